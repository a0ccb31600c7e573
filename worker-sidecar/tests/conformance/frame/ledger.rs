//! What the apps were given and what they did with it: one entry per run, of all apps together.

use bytes::Bytes;
use http::HeaderMap;
use longshore_drivers::Timestamp;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::sync::watch;

/// How a run ended, as the app saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The app answered with this status.
    Answered(u16),
    /// The app closed the connection.
    Closed,
    /// The other side hung up.
    HungUp,
}

/// One run of a job.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    /// Its number among all runs.
    pub(crate) number: u64,
    pub(crate) pod: usize,
    pub(crate) job: String,
    pub(crate) job_type: String,
    pub(crate) request: String,
    pub(crate) attempt: u32,
    pub(crate) delivery: u32,
    pub(crate) idempotency_key: String,
    pub(crate) body: Bytes,
    pub(crate) began: Instant,
    pub(crate) began_at: Timestamp,
    pub(crate) ended: Option<(Instant, Ended)>,
}

impl Run {
    pub(crate) fn ended_at(&self) -> Instant {
        self.ended.unwrap_or_else(|| panic!("a run of {} goes on", self.job)).0
    }

    pub(crate) fn how(&self) -> Option<Ended> {
        self.ended.map(|(_, how)| how)
    }
}

#[derive(Default)]
struct Inner {
    runs: Vec<Run>,
    of: HashMap<String, Vec<usize>>,
    let_go: HashSet<String>,
    effects: BTreeMap<String, u32>,
}

/// All runs.
#[derive(Default)]
pub(crate) struct Ledger {
    inner: Mutex<Inner>,
    changes: watch::Sender<u64>,
}

impl Ledger {
    /// Writes down that a run begins; gives how many runs the job had before, and the entry.
    pub(crate) fn begin(
        self: &Arc<Self>,
        pod: usize,
        request: String,
        headers: &HeaderMap,
        body: Bytes,
    ) -> (usize, Entry) {
        let text = |name: &str| {
            headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
        };
        let number = |name: &str| text(name).parse().unwrap_or_default();
        let mut inner = self.inner.lock().unwrap();
        let index = inner.runs.len();
        let job = text("job-id");
        let run = Run {
            number: index as u64,
            pod,
            job: job.clone(),
            job_type: text("job-type"),
            request,
            attempt: number("job-attempt"),
            delivery: number("job-delivery"),
            idempotency_key: text("idempotency-key"),
            body,
            began: Instant::now(),
            began_at: Timestamp::now(),
            ended: None,
        };
        inner.runs.push(run);
        let of = inner.of.entry(job).or_default();
        of.push(index);
        (of.len() - 1, Entry { ledger: self.clone(), index, open: true })
    }

    /// A side effect that the app does once per key, as an idempotent app would.
    pub(crate) fn effect(&self, key: &str) {
        self.inner.lock().unwrap().effects.entry(key.to_owned()).or_insert(1);
    }

    /// How often the effect of `key` was done.
    pub(crate) fn effects(&self, key: &str) -> u32 {
        self.inner.lock().unwrap().effects.get(key).copied().unwrap_or(0)
    }

    /// Lets the held runs of these jobs go, and those that come.
    pub(crate) fn let_go<'a>(&self, jobs: impl IntoIterator<Item = &'a str>) {
        self.inner.lock().unwrap().let_go.extend(jobs.into_iter().map(str::to_owned));
        self.changes.send_modify(|change| *change += 1);
    }

    /// Waits until `job` was let go.
    pub(crate) async fn held(&self, job: &str) {
        let mut changes = self.changes.subscribe();
        while !self.inner.lock().unwrap().let_go.contains(job) {
            // The sender lives as long as `self`.
            let _ = changes.changed().await;
        }
    }

    pub(crate) fn runs(&self) -> Vec<Run> {
        self.inner.lock().unwrap().runs.clone()
    }

    pub(crate) fn runs_of(&self, job: &str) -> Vec<Run> {
        let inner = self.inner.lock().unwrap();
        let of = inner.of.get(job).map(Vec::as_slice).unwrap_or_default();
        of.iter().map(|index| inner.runs[*index].clone()).collect()
    }

    /// How many runs began.
    pub(crate) fn begun(&self) -> usize {
        self.inner.lock().unwrap().runs.len()
    }

    /// How many runs go on.
    pub(crate) fn running(&self) -> usize {
        self.inner.lock().unwrap().runs.iter().filter(|run| run.ended.is_none()).count()
    }

    /// The most runs that went on at once in one pod.
    pub(crate) fn most_at_once(&self, pod: usize) -> usize {
        let mut moments: Vec<(Instant, i64)> = Vec::new();
        for run in self.runs().iter().filter(|run| run.pod == pod) {
            moments.push((run.began, 1));
            moments.extend(run.ended.map(|(at, _)| (at, -1)));
        }
        // What ends in the moment when something begins made room for it.
        moments.sort();
        let mut now = 0;
        let most = moments.into_iter().map(|(_, change)| {
            now += change;
            now
        });
        usize::try_from(most.max().unwrap_or(0)).unwrap()
    }

    fn end(&self, index: usize, how: Ended) {
        self.inner.lock().unwrap().runs[index].ended = Some((Instant::now(), how));
    }
}

/// The entry of a run that goes on. Dropping it means that the other side hung up.
pub(crate) struct Entry {
    ledger: Arc<Ledger>,
    index: usize,
    open: bool,
}

impl Entry {
    pub(crate) fn number(&self) -> usize {
        self.index
    }

    pub(crate) fn end(mut self, how: Ended) {
        self.open = false;
        self.ledger.end(self.index, how);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if self.open {
            self.ledger.end(self.index, Ended::HungUp);
        }
    }
}

/// The time from the end of each run to the beginning of the next.
pub(crate) fn gaps(runs: &[Run]) -> Vec<Duration> {
    runs.windows(2).map(|pair| pair[1].began.duration_since(pair[0].ended_at())).collect()
}
