//! Every operation of the contract, as a table: what it may answer to what, and one call of each.

use super::ground::Ground;
use crate::conformance::fixture::LEASE;
use crate::{
    Claim, DriverExt, DynDriver, ErrorKind, JobState, ListJobs, QueueSettings, ReadCompletions, Result,
    Settle,
};
use futures::{FutureExt, TryFutureExt, future::BoxFuture};
use std::time::{Duration, Instant};

/// An operation of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Operation {
    Probe,
    Stats,
    Wake,
    Results,
    Inspect,
    List,
    Enqueue,
    Claim,
    Extend,
    Settle,
    Acknowledge,
    Unpin,
    Cancel,
    Redrive,
    Purge,
    DeleteQueue,
    Declare,
    Completions,
}

/// Why a call is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unanswered {
    /// It was not sent: the handle is closed, or nothing is there.
    NotSent,
    /// It was sent over a connection that stands, and nothing comes back.
    Silence,
    /// The connection broke, before or after it was sent.
    Broken,
    /// Somebody stands before the broker: when that one dies, the connection to them may stand or break.
    Unclear,
}

/// It surely did nothing.
const U: &[ErrorKind] = &[ErrorKind::Unavailable];
/// It looked, and nobody answered in time.
const T: &[ErrorKind] = &[ErrorKind::Timeout];
/// It was done or not.
const A: &[ErrorKind] = &[ErrorKind::Ambiguous];
const UA: &[ErrorKind] = &[ErrorKind::Unavailable, ErrorKind::Ambiguous];
const UT: &[ErrorKind] = &[ErrorKind::Unavailable, ErrorKind::Timeout];

impl Operation {
    /// The table. Whoever looks can always say that nothing was done; whoever changes something says so only if it is sure.
    const fn row(self) -> [&'static [ErrorKind]; 3] {
        match self {
            // not sent, silence, broken
            Self::Probe | Self::Stats | Self::Wake | Self::Results | Self::Inspect | Self::List => [U, T, U],
            Self::Enqueue
            | Self::Claim
            | Self::Extend
            | Self::Settle
            | Self::Acknowledge
            | Self::Unpin
            | Self::Cancel
            | Self::Redrive
            | Self::Purge
            | Self::DeleteQueue => [U, A, UA],
            // They may look for something before they change anything.
            Self::Declare | Self::Completions => [U, UA, UA],
        }
    }

    /// Whether a call may have left something behind.
    pub(super) const fn changes(self) -> bool {
        !matches!(self, Self::Probe | Self::Stats | Self::Wake | Self::Results | Self::Inspect | Self::List)
    }

    /// What it may answer. On a machine that stood still for `pauses` meanwhile, what came may have come too late, and what
    /// should be sent may not have been.
    pub(super) fn allowed(self, why: Unanswered, pauses: Duration) -> &'static [ErrorKind] {
        /// The time-outs of handles whose calls end soon are longer.
        const STOOD_STILL: Duration = Duration::from_millis(500);
        if pauses > STOOD_STILL || why == Unanswered::Unclear {
            return if self.changes() { UA } else { UT };
        }
        let [not_sent, silence, broken] = self.row();
        match why {
            Unanswered::NotSent => not_sent,
            Unanswered::Silence => silence,
            Unanswered::Broken | Unanswered::Unclear => broken,
        }
    }
}

/// What became of a call.
#[derive(Debug)]
pub(super) struct Story {
    pub(super) operation: Operation,
    pub(super) answer: Result<()>,
    pub(super) took: Duration,
}

type Call<'a> = (Operation, BoxFuture<'a, Result<()>>);

/// One call of each operation that the driver has.
pub(super) fn calls<'a>(driver: &'a DynDriver, ground: &'a Ground) -> Vec<BoxFuture<'a, Story>> {
    let mut all: Vec<Call<'a>> = Vec::new();
    all.extend(flow(driver, ground));
    all.extend(of_completions(driver, ground));
    all.extend(changes(driver, ground));
    all.extend(looks(driver, ground));
    all.into_iter()
        .map(|(operation, call)| {
            async move {
                let since = Instant::now();
                let answer = call.await;
                Story { operation, answer, took: since.elapsed() }
            }
            .boxed()
        })
        .collect()
}

/// The way of a job through its queue.
fn flow<'a>(driver: &'a DynDriver, ground: &'a Ground) -> [Call<'a>; 4] {
    let Ground { jobs, held, extended, .. } = ground;
    let claim =
        Claim { max: 1, wait: Duration::from_millis(100), lease: LEASE, worker: "conformance".into() };
    let succeed = Settle::Succeed { result: None };
    [
        (Operation::Enqueue, driver.enqueue_one(jobs, ground.new_job()).map_ok(drop).boxed()),
        (Operation::Claim, driver.claim(&ground.claimable.0, claim).map_ok(drop).boxed()),
        (
            Operation::Extend,
            driver.extend_one(jobs, &extended.receipt, Ground::EXTENDED).map_ok(drop).boxed(),
        ),
        (Operation::Settle, driver.settle_one(jobs, &held.receipt, succeed).boxed()),
    ]
}

fn of_completions<'a>(driver: &'a DynDriver, ground: &'a Ground) -> [Call<'a>; 3] {
    let (lease, wait) = (ReadCompletions::MAX_LEASE, Duration::from_millis(100));
    let read = ReadCompletions { max: 1, wait, lease };
    let (told, receipt) = &ground.told;
    let (kept, pinned) = &ground.kept;
    [
        (Operation::Completions, driver.completions(&ground.unread, read).map_ok(drop).boxed()),
        (Operation::Acknowledge, driver.acknowledge(told, vec![receipt.clone()]).boxed()),
        (Operation::Unpin, driver.unpin(kept, vec![pinned.clone()]).boxed()),
    ]
}

fn changes<'a>(driver: &'a DynDriver, ground: &'a Ground) -> Vec<Call<'a>> {
    let declare = driver.declare(&ground.undeclared, Ground::declaration(QueueSettings::default()));
    let mut calls: Vec<Call<'a>> = vec![
        (Operation::Declare, declare.map_ok(drop).boxed()),
        (
            Operation::DeleteQueue,
            async { driver.delete_queue(&ground.deleted.0, &Ground::owner()).await }.boxed(),
        ),
    ];
    if driver.capabilities().cancel {
        let cancel = driver.cancel(&ground.jobs, vec![ground.waiting.clone()]);
        calls.push((Operation::Cancel, cancel.map_ok(drop).boxed()));
    }
    if driver.capabilities().inspect {
        let redrive = driver.redrive(&ground.jobs, vec![ground.dead.clone()]);
        calls.push((Operation::Redrive, redrive.map_ok(drop).boxed()));
        let purge = driver.purge(&ground.purged.0, JobState::Dead, 1);
        calls.push((Operation::Purge, purge.map_ok(drop).boxed()));
    }
    calls
}

fn looks<'a>(driver: &'a DynDriver, ground: &'a Ground) -> Vec<Call<'a>> {
    let Ground { jobs, held, .. } = ground;
    let mut calls: Vec<Call<'a>> = vec![
        (Operation::Probe, driver.probe().map_ok(drop).boxed()),
        (Operation::Stats, driver.stats(jobs).map_ok(drop).boxed()),
    ];
    if driver.capabilities().wake {
        calls.push((Operation::Wake, driver.wake().map_ok(drop).boxed()));
    }
    if driver.capabilities().inspect {
        let list = ListJobs { state: JobState::Ready, limit: 1, after: None };
        calls.push((Operation::Inspect, driver.inspect(jobs, &held.id).map_ok(drop).boxed()));
        calls.push((Operation::List, driver.list(jobs, list).map_ok(drop).boxed()));
    }
    if driver.capabilities().result_store {
        let results = driver.results(jobs, vec![held.id.clone()]);
        calls.push((Operation::Results, results.map_ok(drop).boxed()));
    }
    calls
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const ALL: [Operation; 18] = [
        Operation::Probe,
        Operation::Stats,
        Operation::Wake,
        Operation::Results,
        Operation::Inspect,
        Operation::List,
        Operation::Enqueue,
        Operation::Claim,
        Operation::Extend,
        Operation::Settle,
        Operation::Acknowledge,
        Operation::Unpin,
        Operation::Cancel,
        Operation::Redrive,
        Operation::Purge,
        Operation::DeleteQueue,
        Operation::Declare,
        Operation::Completions,
    ];

    /// Nobody passes who answers the same to everything, and only a look has an answer that came too late.
    #[test]
    fn the_table_tells_the_cases_apart() {
        for operation in ALL {
            let [not_sent, silence, broken] = operation.row();
            assert_eq!(not_sent, U, "{operation:?}");
            for kinds in [silence, broken] {
                assert_eq!(kinds.contains(&ErrorKind::Ambiguous), operation.changes(), "{operation:?}");
                assert!(!operation.changes() || !kinds.contains(&ErrorKind::Timeout), "{operation:?}");
            }
        }
    }

    #[tokio::test]
    async fn every_operation_is_called_once() {
        let broker = crate::conformance::by_name("memory").unwrap().start().await.unwrap();
        let fixture = crate::conformance::Fixture::new(broker, "calls");
        let driver = fixture.driver().await.unwrap();
        let ground = Ground::lay(&fixture, &driver, "one").await.unwrap();
        let told = futures::future::join_all(calls(&driver, &ground)).await;
        let called: Vec<_> = told.iter().map(|story| story.operation).collect();
        assert_eq!(called.len(), ALL.len());
        assert_eq!(BTreeSet::from_iter(called), BTreeSet::from(ALL));
        for Story { operation, answer, .. } in told {
            answer.unwrap();
            let untouched = ground.untouched(&driver, operation).await.unwrap();
            assert_eq!(untouched, !operation.changes(), "{operation:?} was done, and it has to show");
        }
    }
}
