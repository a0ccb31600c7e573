//! Every operation of the contract, as a table.

use crate::conformance::{
    Subject,
    fixture::{LEASE, job},
};
use crate::{
    Address, Claim, Claimed, CompletionReceipt, Declaration, DriverExt, ErrorKind, JobId, JobState, ListJobs,
    QueueSettings, ReadCompletions, Result, Settle,
};
use futures::{FutureExt, TryFutureExt, future::BoxFuture};
use std::time::{Duration, Instant};

/// What became of a call.
#[derive(Debug)]
pub(super) struct Story {
    pub(super) name: &'static str,
    /// What it may answer when the broker can't be heard.
    pub(super) allowed: &'static [ErrorKind],
    pub(super) answer: Result<()>,
    pub(super) took: Duration,
}

/// A call that only looks did nothing; its caller may have to wait for that.
const READS: &[ErrorKind] = &[ErrorKind::Unavailable, ErrorKind::Timeout];
/// A call that changes something says whether it surely did nothing.
const CHANGES: &[ErrorKind] = &[ErrorKind::Unavailable, ErrorKind::Ambiguous];

type Call<'a> = BoxFuture<'a, Result<()>>;

/// One call of each operation that the driver has.
pub(super) fn calls<'a>(
    subject: &'a Subject,
    held: &'a Claimed,
    address: &'a Address,
) -> Vec<BoxFuture<'a, Story>> {
    let mut all: Vec<(&'static str, &'static [ErrorKind], Call<'a>)> = Vec::new();
    all.extend(flow(subject, held).map(|(name, call)| (name, CHANGES, call)));
    all.extend(of_completions(subject, address).map(|(name, call)| (name, CHANGES, call)));
    all.extend(changes(subject).into_iter().map(|(name, call)| (name, CHANGES, call)));
    all.extend(looks(subject, held).into_iter().map(|(name, call)| (name, READS, call)));
    all.into_iter()
        .map(|(name, allowed, call)| {
            async move {
                let since = Instant::now();
                let answer = call.await;
                Story { name, allowed, answer, took: since.elapsed() }
            }
            .boxed()
        })
        .collect()
}

/// The way of a job through its queue.
fn flow<'a>(subject: &'a Subject, held: &'a Claimed) -> [(&'static str, Call<'a>); 4] {
    let Subject { driver, queue } = subject;
    let claim =
        Claim { max: 1, wait: Duration::from_millis(100), lease: LEASE, worker: "conformance".into() };
    let succeed = Settle::Succeed { result: None };
    [
        ("enqueue", driver.enqueue_one(queue, job()).map_ok(drop).boxed()),
        ("claim", driver.claim(queue, claim).map_ok(drop).boxed()),
        ("extend", driver.extend_one(queue, &held.receipt, LEASE).map_ok(drop).boxed()),
        ("settle", driver.settle_one(queue, &held.receipt, succeed).boxed()),
    ]
}

fn of_completions<'a>(subject: &'a Subject, address: &'a Address) -> [(&'static str, Call<'a>); 3] {
    let Subject { driver, queue } = subject;
    let read = ReadCompletions { max: 1, wait: Duration::from_millis(100), lease: Duration::from_secs(1) };
    let receipts = vec![CompletionReceipt("nobody's".into())];
    [
        ("completions", driver.completions(address, read).map_ok(drop).boxed()),
        ("acknowledge", driver.acknowledge(address, receipts).boxed()),
        ("unpin", driver.unpin(queue, vec![JobId::generate()]).boxed()),
    ]
}

fn changes(subject: &Subject) -> Vec<(&'static str, Call<'_>)> {
    let Subject { driver, queue } = subject;
    let settings = QueueSettings::default();
    let declaration = Declaration { owner: Subject::owner(), settings, adopt: false };
    let mut calls: Vec<(_, Call<'_>)> =
        vec![("declare", driver.declare(queue, declaration).map_ok(drop).boxed())];
    let ids = || vec![JobId::generate()];
    if driver.capabilities().cancel {
        calls.push(("cancel", driver.cancel(queue, ids()).map_ok(drop).boxed()));
    }
    if driver.capabilities().inspect {
        calls.push(("redrive", driver.redrive(queue, ids()).map_ok(drop).boxed()));
        calls.push(("purge", driver.purge(queue, JobState::Dead, 1).map_ok(drop).boxed()));
    }
    calls
}

fn looks<'a>(subject: &'a Subject, held: &'a Claimed) -> Vec<(&'static str, Call<'a>)> {
    let Subject { driver, queue } = subject;
    let mut calls: Vec<(_, Call<'_>)> = vec![
        ("probe", driver.probe().map_ok(drop).boxed()),
        ("stats", driver.stats(queue).map_ok(drop).boxed()),
    ];
    if driver.capabilities().inspect {
        let list = ListJobs { state: JobState::Ready, limit: 1, after: None };
        calls.push(("inspect", driver.inspect(queue, &held.id).map_ok(drop).boxed()));
        calls.push(("list", driver.list(queue, list).map_ok(drop).boxed()));
    }
    if driver.capabilities().result_store {
        calls.push(("results", driver.results(queue, vec![held.id.clone()]).map_ok(drop).boxed()));
    }
    calls
}
