//! What the stations of a line have in their hands, and what they make of what they are told.

use crate::conformance::{Failed, Verdict, check, check_eq};
use crate::{Claimed, Completion, DeadReason, Failure, JobId, Outcome, Settle};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Short: a claim whose answer was lost holds its jobs for as long.
pub(super) const LEASE: Duration = Duration::from_secs(5);

/// Things at hand, oldest first.
#[derive(Debug)]
pub(super) struct Stock<T>(Mutex<VecDeque<T>>);

impl<T> Default for Stock<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Stock<T> {
    fn inner(&self) -> MutexGuard<'_, VecDeque<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, things: impl IntoIterator<Item = T>) {
        self.inner().extend(things);
    }

    /// The oldest, at most `most`, while more than `keep` are there.
    pub(super) fn take(&self, most: usize, keep: usize) -> Vec<T> {
        let mut inner = self.inner();
        let many = inner.len().saturating_sub(keep).min(most);
        inner.drain(..many).collect()
    }

    /// They are the oldest again.
    pub(super) fn put_back(&self, things: Vec<T>) {
        let mut inner = self.inner();
        things.into_iter().rev().for_each(|thing| inner.push_front(thing));
    }

    pub(super) fn len(&self) -> usize {
        self.inner().len()
    }
}

/// A job that a station holds.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) job: Claimed,
    pub(super) settle: Settle,
    /// When the last call began that surely gave it a lease.
    pub(super) leased: Instant,
    /// A settle may have been made whose answer was lost.
    pub(super) unheard: bool,
}

impl Held {
    /// Its receipt is stale, for a reason: the lease may be over, or a settle was made whose answer was lost.
    pub(super) fn lapsed(&self) -> Verdict {
        // Leases are in whole milliseconds.
        let since = self.leased.elapsed() + Duration::from_millis(2);
        check!(since >= LEASE || self.unheard, "{} was stale {since:?} after its lease began", self.job.id);
        Ok(())
    }
}

/// What was heard of jobs that are over.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// Each completion as often as it was handed out.
    read: BTreeSet<(JobId, u32)>,
    pub(super) jobs: BTreeSet<JobId>,
    /// Since when each is known to be acknowledged.
    pub(super) gone: BTreeMap<JobId, Instant>,
}

impl Heard {
    /// Takes in one that was read by a call that began at `began`.
    pub(super) fn read(&mut self, completion: &Completion, began: Instant) -> Verdict {
        let (id, delivery) = (&completion.job, completion.delivery);
        // A second completion of a job would count from one again.
        let new = self.read.insert((id.clone(), delivery));
        check!(new, "delivery {delivery} of the completion of {id} came twice");
        let gone = self.gone.get(id).is_some_and(|since| *since < began);
        check!(!gone, "the completion of {id} came after it was acknowledged");
        let buried = matches!(completion.outcome, Outcome::Dead { .. });
        check_eq!(buried, is_bad(index_of(id)?), "whether {id} was told to be dead");
        self.jobs.insert(id.clone());
        Ok(())
    }

    /// Since `now` these are known to be acknowledged.
    pub(super) fn acknowledged(&mut self, completions: Vec<Completion>, now: Instant) {
        for completion in completions {
            self.gone.entry(completion.job).or_insert(now);
        }
    }
}

fn index_of(id: &JobId) -> Result<usize, Failed> {
    let index = id.as_str().strip_prefix("job-").and_then(|index| index.parse().ok());
    index.ok_or_else(|| Failed(format!("{id} is no job of this line")))
}

/// Whether a job is buried in the end.
fn is_bad(index: usize) -> bool {
    index % 17 == 3
}

/// Some come again first; nearly all succeed in the end.
pub(super) fn decide(job: &Claimed) -> Result<Settle, Failed> {
    let (index, failure) = (index_of(&job.id)?, || Failure::new("HandlerError", "no"));
    Ok(match index % 11 {
        1 if job.attempt == 1 => Settle::Retry { delay: Duration::from_millis(20), failure: failure() },
        2 if job.delivery == 1 => Settle::Release { delay: Duration::ZERO },
        _ if is_bad(index) => Settle::Bury { reason: DeadReason::Rejected, failure: failure() },
        _ => Settle::Succeed { result: None },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CompletionReceipt, Timestamp};

    fn completion(index: usize, delivery: u32) -> Completion {
        Completion {
            receipt: CompletionReceipt("receipt".into()),
            queue: "queue".parse().unwrap(),
            job: JobId::new(format!("job-{index}")).unwrap(),
            outcome: Outcome::Succeeded { result: None },
            settled_at: Timestamp::from_millis(0),
            context: String::new(),
            delivery,
        }
    }

    #[test]
    fn a_completion_may_come_again_until_it_is_acknowledged() {
        let (mut heard, now) = (Heard::default(), Instant::now());
        heard.read(&completion(1, 1), now).unwrap();
        heard.read(&completion(1, 2), now).unwrap();
        heard.acknowledged(vec![completion(1, 1)], now);
        // That read may have been answered before.
        heard.read(&completion(1, 3), now).unwrap();
        heard.read(&completion(1, 4), now + Duration::from_millis(1)).unwrap_err();
    }

    #[test]
    fn a_second_completion_and_a_wrong_one_are_found() {
        let (mut heard, now) = (Heard::default(), Instant::now());
        heard.read(&completion(1, 1), now).unwrap();
        heard.read(&completion(1, 1), now).unwrap_err();
        // That one is buried.
        heard.read(&completion(3, 1), now).unwrap_err();
    }

    #[test]
    fn a_stock_keeps_what_it_is_to_keep_and_the_order() {
        let stock = Stock::default();
        stock.add(0..5);
        assert_eq!(stock.take(10, 3), [0, 1]);
        stock.put_back(vec![0, 1]);
        assert_eq!((stock.take(2, 0), stock.len()), (vec![0, 1], 3));
        assert_eq!(stock.take(10, 3), Vec::<i32>::new());
    }
}
