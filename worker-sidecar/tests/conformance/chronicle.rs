//! Judges what the logs of all sidecars tell of some jobs: `docs/events.md` says what may come after what. Pure; it has
//! trials of its own that show that it finds what it looks for.

use crate::frame::ledger::{Ended, Run};
use libtest_mimic::{Failed, Trial};
use longshore_drivers::{JobRecord, JobState, Outcome};
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// What was found wrong.
type Found = Result<(), String>;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Told {
    event: String,
    id: String,
    job: String,
    attempt: u32,
    delivery: u32,
    worker: String,
    ready_at_ms: i64,
    pub(crate) reason: Option<String>,
    pub(crate) failure: Option<String>,
    pub(crate) delay_ms: Option<u64>,
    pub(crate) settle: Option<String>,
}

impl Told {
    /// The name without what all names have.
    pub(crate) fn word(&self) -> &str {
        self.event.strip_prefix("job.").and_then(|name| name.strip_suffix(".v1")).unwrap_or(&self.event)
    }

    /// What happened, in one word, with its reason and its failure.
    pub(crate) fn what(&self) -> String {
        let parts = [Some(self.word()), self.reason.as_deref(), self.failure.as_deref()];
        parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
    }

    fn ends_the_job(&self) -> bool {
        matches!(self.word(), "succeeded" | "dead" | "cancelled")
    }
}

/// How far a delivery is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Unknown,
    Claimed,
    Started,
    Detached,
    Over,
}

impl Stage {
    /// Where `told` leads from here, if it may come here.
    fn after(self, told: &Told) -> Option<Self> {
        // What takes time or breaks before the app has the job.
        let early = matches!(told.failure.as_deref(), Some("Timeout" | "SidecarPanicked"));
        match (self, told.word()) {
            (Self::Unknown, "claimed") => Some(Self::Claimed),
            (Self::Claimed, "started") => Some(Self::Started),
            (Self::Started, "detached") => Some(Self::Detached),
            (Self::Claimed, "retried" | "dead") if early => Some(Self::Over),
            (Self::Started | Self::Detached, "succeeded" | "retried" | "dead")
            | (
                Self::Claimed | Self::Started | Self::Detached,
                "released" | "cancelled" | "lease_lost" | "settle_unknown" | "settle_abandoned",
            ) => Some(Self::Over),
            _ => None,
        }
    }
}

/// The deliveries of one job, and the events of each.
type Deliveries = BTreeMap<(i64, u32), Vec<Told>>;

/// All events of some jobs.
#[derive(Debug, Default)]
pub(crate) struct Chronicle {
    jobs: BTreeMap<String, Deliveries>,
}

impl Chronicle {
    /// What these lines tell, which come pod by pod and of each pod in the order in which it wrote them.
    pub(crate) fn read(lines: Vec<Value>) -> Result<Self, String> {
        let (mut chronicle, mut ids) = (Self::default(), BTreeSet::new());
        for line in lines {
            let told: Told = serde_json::from_value(line).map_err(|error| format!("no event: {error}"))?;
            if !ids.insert(told.id.clone()) {
                return Err(format!("{} is told twice", told.id));
            }
            let of = chronicle.jobs.entry(told.job.clone()).or_default();
            of.entry((told.ready_at_ms, told.delivery)).or_default().push(told);
        }
        Ok(chronicle)
    }

    /// All events of a job, in order.
    pub(crate) fn of(&self, job: &str) -> impl Iterator<Item = &Told> {
        self.jobs.get(job).into_iter().flat_map(BTreeMap::values).flatten()
    }

    /// What happened to a job beside its claims and starts.
    pub(crate) fn story(&self, job: &str) -> Vec<String> {
        let beside = self.of(job).filter(|told| !matches!(told.word(), "claimed" | "started"));
        beside.map(Told::what).collect()
    }

    /// Whether the end of a job is told.
    pub(crate) fn is_over(&self, job: &str) -> bool {
        self.of(job).any(Told::ends_the_job)
    }

    /// Each delivery is one that `docs/events.md` allows, and so is each job's row of them. Answers the jobs of which a
    /// delivery has no end.
    pub(crate) fn judge(&self) -> Result<BTreeSet<&str>, String> {
        let mut lost = BTreeSet::new();
        for (job, deliveries) in &self.jobs {
            let mut before: Option<&Told> = None;
            for told in deliveries.values() {
                let over = judge_delivery(told)?;
                let (first, last) = (&told[0], &told[told.len() - 1]);
                if let Some(before) = before {
                    follows(before, first)?;
                }
                if !over {
                    lost.insert(job.as_str());
                }
                before = Some(last);
            }
        }
        Ok(lost)
    }

    /// The apps were given what was told as started, and each delivery ended as its run did.
    pub(crate) fn agrees_with_runs(&self, runs: &[Run]) -> Found {
        let mut started = BTreeMap::new();
        for told in self.jobs.values().flat_map(BTreeMap::values) {
            if let Some(start) = told.iter().find(|told| told.word() == "started") {
                let key = (start.job.clone(), start.delivery, start.attempt, start.worker.clone());
                started.insert(key, &told[told.len() - 1]);
            }
        }
        for run in runs {
            let key = (run.job.clone(), run.delivery, run.attempt, format!("pod-{}", run.pod));
            let Some(last) = started.remove(&key) else {
                return Err(format!("run {key:?} was told by nobody"));
            };
            if !fits(run.how(), last) {
                return Err(format!(
                    "a run of {} ended {:?}, and {} is told",
                    run.job,
                    run.how(),
                    last.what()
                ));
            }
        }
        started
            .keys()
            .next()
            .map_or(Ok(()), |key| Err(format!("{key:?} was told as started, and no app saw it")))
    }

    /// The end that is told of a job is the one that the broker keeps.
    pub(crate) fn agrees_with_record(&self, record: &JobRecord) -> Found {
        let id = record.id.as_str();
        let told: Vec<_> = self.of(id).filter(|told| told.ends_the_job()).map(Told::what).collect();
        let kept = match (record.state, &record.outcome) {
            (JobState::Succeeded, _) => "succeeded".to_owned(),
            (JobState::Cancelled, _) => "cancelled".to_owned(),
            (_, Some(Outcome::Dead { reason, failure })) => format!("dead {reason:?} {}", failure.reason),
            (state, outcome) => return Err(format!("{id} is not over: {state:?}, {outcome:?}")),
        };
        if told == [kept.as_str()] { Ok(()) } else { Err(format!("of {id} is told {told:?}, it is {kept}")) }
    }
}

/// Whether what is told of one delivery may be; tells whether it has an end.
fn judge_delivery(told: &[Told]) -> Result<bool, String> {
    let mut stage = Stage::Unknown;
    for one in told {
        let next = stage.after(one);
        stage = next.ok_or_else(|| format!("{} of {} comes after {stage:?}", one.what(), one.job))?;
        if (&one.worker, one.attempt) != (&told[0].worker, told[0].attempt) {
            return Err(format!(
                "delivery {} of {} is at two workers, or two attempts",
                one.delivery, one.job
            ));
        }
    }
    Ok(stage == Stage::Over)
}

/// Whether a delivery that begins with `first` may follow one whose last event is `last`.
fn follows(last: &Told, first: &Told) -> Found {
    let job = &first.job;
    if last.ends_the_job() {
        return Err(format!("{job} is {} and comes again", last.word()));
    }
    if first.delivery <= last.delivery {
        return Err(format!("delivery {} of {job} comes after {}", first.delivery, last.delivery));
    }
    // A retry is what counts an attempt; nobody knows of a settle that may have been taken.
    let expected = last.attempt + u32::from(last.word() == "retried");
    let open = last.word() == "settle_unknown";
    // Deliveries of which nothing is told may lie in between, and end in no way that counts.
    if first.attempt != expected && !open {
        return Err(format!("{job}: attempt {} after {} of {}", first.attempt, last.what(), last.attempt));
    }
    Ok(())
}

/// Whether a run that ended like this may have `last` as the last event of its delivery.
fn fits(how: Option<Ended>, last: &Told) -> bool {
    let what = last.what();
    match how {
        Some(Ended::Answered(202)) => what.ends_with("Timeout"),
        Some(Ended::Answered(200)) => {
            matches!(what.as_str(), "succeeded" | "dead Rejected ResultTooLarge")
                || what.starts_with("lease_lost")
        }
        Some(Ended::Answered(429 | 503)) => what == "released Throttled",
        Some(Ended::Answered(404)) => what == "released Unroutable",
        Some(Ended::Answered(401)) => what == "released Unauthorized",
        Some(Ended::Answered(400)) => what == "dead Rejected HandlerRejected",
        Some(Ended::Answered(500)) => what == "retried HandlerError" || what == "dead Exhausted HandlerError",
        Some(Ended::Closed) => what == "retried ConnectionLost" || what == "dead Exhausted ConnectionLost",
        // The sidecar hung up, or is no more.
        Some(Ended::HungUp) => {
            what.ends_with("Timeout")
                || matches!(what.as_str(), "started" | "cancelled" | "released Draining")
                || what.starts_with("lease_lost")
        }
        Some(Ended::Answered(_)) | None => false,
    }
}

/// Events of one job that are in order: attempt, delivery, what.
const GOOD: &[(u32, u32, &str)] = &[
    (1, 1, "claimed"),
    (1, 1, "started"),
    (1, 1, "retried"),
    (2, 2, "claimed"),
    (2, 2, "released"),
    (2, 4, "claimed"),
    (2, 4, "started"),
    (2, 5, "claimed"),
    (2, 5, "started"),
    (2, 5, "succeeded"),
];

/// Shows that each kind of fault is found.
pub(crate) fn trials() -> Vec<Trial> {
    type Change = fn(&mut Vec<(u32, u32, &'static str)>);
    let wrong: [(&str, Change, &str); 9] = [
        (
            "an_end_without_a_start",
            |told| told.retain(|one| *one != (2, 5, "started")),
            "comes after Claimed",
        ),
        ("a_start_without_a_claim", |told| told.retain(|one| *one != GOOD[0]), "comes after Unknown"),
        ("two_ends_of_a_delivery", |told| told.insert(3, (1, 1, "released")), "comes after Over"),
        ("two_ends_of_a_job", |told| told.extend([(2, 6, "claimed"), (2, 6, "started")]), "comes again"),
        ("an_attempt_that_nobody_counted", |told| told[2].2 = "released", "attempt 2 after"),
        (
            "an_attempt_that_is_not_counted",
            |told| told[3..].iter_mut().for_each(|one| one.0 = 1),
            "attempt 1 after",
        ),
        ("a_cancelled_job_that_comes_again", |told| told[4].2 = "cancelled", "comes again"),
        ("two_attempts_in_one", |told| told[1].0 = 2, "two attempts"),
        ("a_repetition", |told| told.push((2, 5, "succeeded")), "told twice"),
    ];
    let mut trials = vec![Trial::test("chronicle::takes_what_is_in_order", || {
        let chronicle = trial_chronicle(GOOD).map_err(Failed::from)?;
        let lost = chronicle.judge().map_err(Failed::from)?;
        // Nobody told how delivery 4 ended, and nothing at all of delivery 3.
        let fine = lost == BTreeSet::from(["a"]) && chronicle.is_over("a");
        if fine { Ok(()) } else { Err(format!("{lost:?}").into()) }
    })];
    trials.extend(wrong.map(|(name, change, word)| {
        Trial::test(format!("chronicle::finds_{name}"), move || {
            let mut told = GOOD.to_vec();
            change(&mut told);
            let found = trial_chronicle(&told)
                .and_then(|chronicle| chronicle.judge().map(|lost| format!("nothing but {lost:?}")));
            match found {
                Err(found) if found.contains(word) => Ok(()),
                other => Err(format!("it says {other:?}").into()),
            }
        })
    }));
    trials
}

fn trial_chronicle(told: &[(u32, u32, &str)]) -> Result<Chronicle, String> {
    let line = |(attempt, delivery, word): &(u32, u32, &str)| {
        serde_json::json!({
            "event": format!("job.{word}.v1"), "id": format!("queue/a/{delivery}/{word}"), "job": "a",
            "attempt": attempt, "delivery": delivery, "worker": "pod-0", "readyAtMs": delivery,
        })
    };
    Chronicle::read(told.iter().map(line).collect())
}
