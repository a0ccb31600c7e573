//! What the handlers wrote down.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// One line.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Entry {
    /// `boot`, `start`, `end` or `sigterm`.
    pub event: String,
    /// The job.
    pub id: String,
    /// Its type.
    #[serde(rename = "type")]
    pub job_type: String,
    /// The attempt.
    pub attempt: u32,
    /// The delivery.
    #[serde(default)]
    pub delivery: u32,
    /// What the handler answered.
    #[serde(default)]
    pub status: Option<u16>,
    /// A note from the payload.
    #[serde(default)]
    pub payload: Option<serde_json::Value>,
    /// The pod.
    pub pod: String,
    /// When, in seconds since the epoch, by the pod's clock.
    pub at: f64,
}

/// All lines so far, in the order in which they were written.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    /// The lines.
    pub entries: Vec<Entry>,
}

impl Ledger {
    /// Reads what a ledger answered.
    ///
    /// # Errors
    /// When a line is no entry.
    pub fn parse(text: &str) -> Result<Self> {
        let lines = text.lines().filter(|line| !line.is_empty());
        let entries =
            lines.map(|line| serde_json::from_str(line).with_context(|| format!("ledger line {line:?}")));
        Ok(Self { entries: entries.collect::<Result<_>>()? })
    }

    /// Entries of `event`.
    pub fn of<'a>(&'a self, event: &'a str) -> impl Iterator<Item = &'a Entry> + 'a {
        self.entries.iter().filter(move |entry| entry.event == event)
    }

    /// The jobs of `job_type` that were started, each once.
    pub fn started(&self, job_type: &str) -> BTreeSet<&str> {
        self.of("start").filter(|entry| entry.job_type == job_type).map(|entry| entry.id.as_str()).collect()
    }

    /// How often a job of `job_type` was started.
    pub fn starts(&self, job_type: &str) -> usize {
        self.of("start").filter(|entry| entry.job_type == job_type).count()
    }

    /// How often a job of `job_type` ended with a status below 300.
    pub fn successes(&self, job_type: &str) -> usize {
        let good =
            |entry: &&Entry| entry.job_type == job_type && entry.status.is_some_and(|status| status < 300);
        self.of("end").filter(good).count()
    }

    /// Checks that every job of `job_type` ran exactly once, and that there were `count`.
    ///
    /// # Errors
    /// With the difference.
    pub fn ran_exactly_once(&self, job_type: &str, count: usize) -> Result<()> {
        let mut runs: BTreeMap<&str, usize> = BTreeMap::new();
        for entry in self.of("end").filter(|entry| entry.job_type == job_type) {
            *runs.entry(&entry.id).or_default() += 1;
        }
        let repeated: Vec<_> = runs.iter().filter(|(_, times)| **times > 1).collect();
        ensure!(repeated.is_empty(), "jobs of type {job_type} that ran more than once: {repeated:?}");
        ensure!(runs.len() == count, "{} jobs of type {job_type} ran, not {count}", runs.len());
        Ok(())
    }

    /// Checks that no two runs of one job overlapped.
    ///
    /// # Errors
    /// With the job.
    pub fn no_two_runs_at_once(&self) -> Result<()> {
        let mut running: BTreeMap<&str, &Entry> = BTreeMap::new();
        for entry in &self.entries {
            match entry.event.as_str() {
                "start" => {
                    let other = running.insert(&entry.id, entry);
                    ensure!(
                        other.is_none(),
                        "job {} was started in {} while it ran: {other:?}",
                        entry.id,
                        entry.pod
                    );
                }
                "end" => {
                    running.remove(entry.id.as_str());
                }
                // Its pod is gone, and its runs with it.
                "sigterm" => running.retain(|_, started| started.pod != entry.pod),
                _ => {}
            }
        }
        Ok(())
    }

    /// The highest attempt that any job of `job_type` saw.
    pub fn highest_attempt(&self, job_type: &str) -> u32 {
        self.of("start")
            .filter(|entry| entry.job_type == job_type)
            .map(|entry| entry.attempt)
            .max()
            .unwrap_or(0)
    }
}
