//! What callers ask the writer for, and what it answers.

use crate::{
    Address, Claim, Claimed, CompletionPage, CompletionReceipt, Declaration, Declared, Enqueued, Error,
    ErrorKind, Extension, JobId, JobPage, JobRecord, JobState, ListJobs, NewJob, Owner, Payload, QueueName,
    QueueStats, ReadCompletions, Receipt, Result, Settlement,
};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// One call.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) operation: Operation,
    pub(super) reply: Reply,
}

pub(super) type Reply = oneshot::Sender<Result<Answer>>;

/// A job that passed its checks, with what the caller's thread could prepare.
#[derive(Debug)]
pub(super) struct NewRow {
    pub(super) id: JobId,
    pub(super) job: NewJob,
    pub(super) headers: Option<String>,
}

#[derive(Debug)]
pub(super) enum Operation {
    Probe,
    Declare(QueueName, Declaration),
    DeleteQueue(QueueName, Owner),
    /// Refused jobs stand among the others, so that answers keep the order of the request.
    Enqueue(QueueName, Vec<Result<NewRow>>),
    Claim(QueueName, Claim, Instant),
    /// Claims whose claimer is gone.
    Unclaim(Vec<Receipt>),
    Extend(QueueName, Vec<Receipt>, Duration),
    Settle(QueueName, Vec<Settlement>),
    Stats(QueueName),
    Completions(Address, ReadCompletions, Instant),
    Acknowledge(Address, Vec<CompletionReceipt>),
    Unpin(QueueName, Vec<JobId>),
    Results(QueueName, Vec<JobId>),
    Inspect(QueueName, JobId),
    List(QueueName, ListJobs),
    Cancel(QueueName, Vec<JobId>),
    Redrive(QueueName, Vec<JobId>),
    Purge(QueueName, JobState, u32),
    #[cfg(test)]
    Break(Breakage),
}

/// Ways in which a test spoils a command.
#[cfg(test)]
#[derive(Debug, Clone, Copy)]
pub(super) enum Breakage {
    /// The writer panics after it has written something.
    Panic,
    /// A statement fails after another one has written something.
    Statement,
    /// A statement of the test's own.
    Run(&'static str),
    /// So many commits fail, beginning with this one's, with this code of SQLite.
    Commits(u32, i32),
    /// Nothing; it answers how many commits there were.
    Count,
}

impl Operation {
    /// How many items it works on.
    pub(super) fn items(&self) -> usize {
        match self {
            Self::Enqueue(_, jobs) => jobs.len(),
            Self::Unclaim(claims) => claims.len(),
            Self::Extend(_, receipts, _) => receipts.len(),
            Self::Settle(_, settlements) => settlements.len(),
            Self::Acknowledge(_, receipts) => receipts.len(),
            Self::Results(_, ids) | Self::Cancel(_, ids) | Self::Redrive(_, ids) | Self::Unpin(_, ids) => {
                ids.len()
            }
            Self::List(_, list) => list.limit as usize,
            Self::Purge(_, _, limit) => *limit as usize,
            _ => 1,
        }
    }

    /// Bytes of payloads that it holds in memory while it waits.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Enqueue(_, jobs) => jobs.iter().flatten().map(|row| row.job.payload.len()).sum(),
            Self::Settle(_, settlements) => settlements
                .iter()
                .map(|settlement| match &settlement.settle {
                    crate::Settle::Succeed { result: Some(result) } => result.len(),
                    _ => 0,
                })
                .sum(),
            _ => 0,
        }
    }
}

#[derive(Debug)]
pub(super) enum Answer {
    Done,
    Declared(Declared),
    Enqueued(Vec<Result<Enqueued>>),
    Claimed(Vec<Claimed>),
    Extended(Vec<Result<Extension>>),
    Settled(Vec<Result<()>>),
    Stats(QueueStats),
    Completions(CompletionPage),
    Results(Vec<Option<Payload>>),
    Record(Option<Box<JobRecord>>),
    Page(JobPage),
    States(Vec<Result<JobState>>),
    Removed(u64),
}

/// Takes the expected answer out of the enum.
macro_rules! expect_answer {
    ($answer:expr, $variant:ident) => {
        match $answer {
            $crate::embedded::command::Answer::$variant(value) => Ok(value),
            _ => Err($crate::embedded::command::mismatched()),
        }
    };
}
pub(super) use expect_answer;

/// The writer answered another question than was asked.
pub(super) fn mismatched() -> Error {
    Error::new(ErrorKind::Fatal, "the broker's writer gave an answer of the wrong form")
}
