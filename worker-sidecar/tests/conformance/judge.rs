//! Judges a history: what the apps wrote down against what the broker acknowledged and keeps. Pure; it has trials of its own
//! that show that it finds what it looks for.

use crate::frame::ledger::{Ended, Run};
use libtest_mimic::{Failed, Trial};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

/// What was found wrong.
type Found = Result<(), String>;

/// How long a worker that was let go takes at most until it has sent its app what it was about to send when it was frozen.
const WAKES: Duration = Duration::from_secs(2);

/// A time in which a worker stood still for longer than a lease.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Freeze {
    pub(crate) pod: usize,
    pub(crate) from: Instant,
    pub(crate) to: Instant,
}

impl Freeze {
    /// Whether `run` began on that worker when its lease may have been over: the last look at the lease may be the last thing
    /// that a worker does before it is frozen.
    fn touches(&self, run: &Run) -> bool {
        run.pod == self.pod && self.from <= run.began && run.began <= self.to + WAKES
    }
}

/// All that is known of some jobs.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// What the apps were given.
    pub(crate) runs: Vec<Run>,
    /// The jobs whose enqueueing the broker acknowledged.
    pub(crate) acknowledged: BTreeSet<String>,
    /// The run whose settle the broker took, by the result that it keeps.
    pub(crate) accepted: HashMap<String, u64>,
    /// When workers stood still for longer than a lease.
    pub(crate) freezes: Vec<Freeze>,
}

/// What a history that is in order amounts to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Figures {
    pub(crate) jobs: usize,
    /// Runs beside the one that counts.
    pub(crate) repeated: usize,
    /// Jobs of which a run ended well without counting.
    pub(crate) done_twice: usize,
    /// Runs on a worker that had been frozen, beside one that had the lease.
    pub(crate) unleased: usize,
}

impl History {
    /// Each acknowledged job succeeded by its last run that had a lease, and no two that had one overlapped.
    pub(crate) fn judge(&self) -> Result<Figures, String> {
        let leased = self.leased();
        runs_do_not_overlap(&leased)?;
        let of = by_job(&leased);
        let mut done_twice = 0;
        for id in &self.acknowledged {
            let runs = of.get(id.as_str()).ok_or_else(|| format!("{id} is lost: it never ran"))?;
            let accepted = self.accepted.get(id).ok_or_else(|| format!("{id} is lost: it has no end"))?;
            let last = runs.last().ok_or_else(|| format!("{id} never ran"))?;
            if last.number != *accepted {
                return Err(format!("run {accepted} of {id} counts, and run {} came after it", last.number));
            }
            if last.how() != Some(Ended::Answered(200)) {
                return Err(format!("{id} succeeded by a run that ended otherwise: {:?}", last.how()));
            }
            let well = runs.iter().filter(|run| run.how() == Some(Ended::Answered(200))).count();
            done_twice += usize::from(well > 1);
        }
        if let Some(stranger) = of.keys().find(|id| !self.acknowledged.contains(**id)) {
            return Err(format!("{stranger} ran, and nobody enqueued it"));
        }
        let jobs = self.acknowledged.len();
        let (repeated, unleased) = (self.runs.len() - jobs, self.runs.len() - leased.len());
        Ok(Figures { jobs, repeated, done_twice, unleased })
    }

    /// The runs without those that a frozen worker had lost before they began or ended, to a later delivery of the same job
    /// that ran meanwhile or before. Where no worker was frozen, that is all of them.
    fn leased(&self) -> Vec<Run> {
        let of = by_job(&self.runs);
        let lost = |run: &Run| {
            let later = |other: &&Run| {
                other.delivery > run.delivery && run.ended.is_none_or(|(at, _)| other.began < at)
            };
            self.freezes.iter().any(|freeze| freeze.touches(run)) && of[run.job.as_str()].iter().any(later)
        };
        self.runs.iter().filter(|run| !lost(run)).cloned().collect()
    }
}

/// The runs of each job, in the order in which they began.
fn by_job(runs: &[Run]) -> BTreeMap<&str, Vec<&Run>> {
    let mut of: BTreeMap<&str, Vec<&Run>> = BTreeMap::new();
    for run in runs {
        of.entry(&run.job).or_default().push(run);
    }
    for runs in of.values_mut() {
        runs.sort_by_key(|run| (run.began, run.number));
    }
    of
}

/// No run of a job begins before the one before it has ended.
pub(crate) fn runs_do_not_overlap(runs: &[Run]) -> Found {
    for (id, runs) in by_job(runs) {
        for pair in runs.windows(2) {
            let over = pair[0].ended.is_some_and(|(at, _)| at <= pair[1].began);
            if !over {
                return Err(format!("runs {} and {} of {id} overlap", pair[0].number, pair[1].number));
            }
        }
    }
    Ok(())
}

/// Shows that each kind of fault is found.
pub(crate) fn trials() -> Vec<Trial> {
    let good =
        || trial_history(&[("a", 0, 10, 200), ("b", 5, 15, 500), ("b", 20, 30, 200)], &[("a", 0), ("b", 2)]);
    let wrong: [(&str, History, &str); 9] = [
        ("a_lost_job", History { runs: good().runs[1..].to_vec(), ..good() }, "never ran"),
        (
            "a_job_without_an_end",
            History { accepted: HashMap::from([("a".into(), 0)]), ..good() },
            "has no end",
        ),
        (
            "a_run_after_the_end",
            trial_history(&[("a", 0, 1, 200), ("a", 2, 3, 200)], &[("a", 0)]),
            "came after it",
        ),
        ("an_end_that_was_no_success", trial_history(&[("a", 0, 1, 500)], &[("a", 0)]), "ended otherwise"),
        ("an_overlap", trial_history(&[("a", 0, 10, 200), ("a", 9, 20, 200)], &[("a", 1)]), "overlap"),
        ("an_overlap_beside_a_frozen_worker", woken(1, 0, 4900), "overlap"),
        ("an_overlap_long_after_a_freeze", woken(0, 0, 1000), "overlap"),
        ("a_frozen_worker_that_ran_what_another_had", other_way_round(woken(0, 4500, 4900)), "overlap"),
        ("a_stranger", History { acknowledged: BTreeSet::from(["b".into()]), ..good() }, "nobody enqueued"),
    ];
    let mut trials = vec![Trial::test("judge::takes_what_is_in_order", move || {
        let figures = good().judge().map_err(Failed::from)?;
        let expected = Figures { jobs: 2, repeated: 1, done_twice: 0, unleased: 0 };
        if figures == expected { Ok(()) } else { Err(format!("{figures:?}").into()) }
    })];
    trials.push(Trial::test("judge::takes_a_frozen_worker_that_lost_its_job", move || {
        let figures = woken(0, 0, 4900).judge().map_err(Failed::from)?;
        let expected = Figures { jobs: 1, repeated: 1, done_twice: 0, unleased: 1 };
        if figures == expected { Ok(()) } else { Err(format!("{figures:?}").into()) }
    }));
    trials.extend(wrong.map(|(name, history, word)| {
        Trial::test(format!("judge::finds_{name}"), move || match history.judge() {
            Err(found) if found.contains(word) => Ok(()),
            other => Err(format!("it says {other:?}").into()),
        })
    }));
    trials
}

/// A job whose first delivery began after the second one, 5 s from the beginning, while worker `pod` was frozen from and to
/// these milliseconds. All of it ran on worker 0.
fn woken(pod: usize, from: u64, to: u64) -> History {
    let history = trial_history(&[("a", 5000, 5010, 200), ("a", 4000, 5005, 200)], &[("a", 1)]);
    let zero = history.runs[0].began.checked_sub(Duration::from_millis(5000)).unwrap();
    let at = |millis: u64| zero + Duration::from_millis(millis);
    History { freezes: vec![Freeze { pod, from: at(from), to: at(to) }], ..history }
}

/// The same with the deliveries of the two runs exchanged.
fn other_way_round(mut history: History) -> History {
    for run in &mut history.runs {
        run.delivery = 3 - run.delivery;
    }
    history
}

/// A history of runs (job, beginning and end in milliseconds, status) and ends that count (job, run).
fn trial_history(runs: &[(&str, u64, u64, u16)], accepted: &[(&str, u64)]) -> History {
    let zero = Instant::now();
    let at = |millis: u64| zero + Duration::from_millis(millis);
    let delivery = |number: usize, job: &str| runs[..=number].iter().filter(|run| run.0 == job).count();
    let run = |(number, (job, from, to, status)): (usize, &(&str, u64, u64, u16))| Run {
        number: number as u64,
        pod: 0,
        job: (*job).to_owned(),
        job_type: "work".to_owned(),
        request: "POST /jobs".to_owned(),
        attempt: 1,
        delivery: u32::try_from(delivery(number, job)).unwrap(),
        idempotency_key: (*job).to_owned(),
        body: bytes::Bytes::new(),
        began: at(*from),
        began_at: longshore_drivers::Timestamp::from_millis(0),
        ended: Some((at(*to), Ended::Answered(*status))),
    };
    History {
        runs: runs.iter().enumerate().map(run).collect(),
        acknowledged: accepted.iter().map(|(job, _)| (*job).to_owned()).collect(),
        accepted: accepted.iter().map(|(job, run)| ((*job).to_owned(), *run)).collect(),
        freezes: Vec::new(),
    }
}
