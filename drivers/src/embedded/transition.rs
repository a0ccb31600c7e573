//! One open transaction, and the ways in which it moves a job from state to state.

use super::{
    state::{PINNED, Queue, QueueId, State},
    storage::{self, Sql, code, column},
};
use crate::{
    Address, DeadReason, Error, Failure, JobState, Limits, Outcome, Payload, QueueName, Result, StoredResult,
    Timestamp,
};
use rusqlite::{Connection, OptionalExtension, Row, named_params, params};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

/// The open transaction of one group of commands.
#[derive(Debug)]
pub(super) struct Tx<'a> {
    pub(super) db: &'a Connection,
    pub(super) state: &'a mut State,
    /// The instant at which the whole transaction happens.
    pub(super) now: Timestamp,
}

/// The part of a job that transitions read.
#[derive(Debug, Clone)]
pub(super) struct Job {
    pub(super) seq: i64,
    pub(super) queue: QueueId,
    pub(super) id: String,
    pub(super) state: JobState,
    pub(super) at: i64,
    pub(super) notify: bool,
    /// Whoever is told of its end needs nothing more of it.
    pub(super) unpinned: bool,
    pub(super) attempts: u32,
    pub(super) lost: u32,
    pub(super) cancel_requested: bool,
    pub(super) token: Option<i64>,
    pub(super) claimed_at: Option<i64>,
    pub(super) worker: Option<String>,
}

/// What [`Job::read`] reads.
macro_rules! job_columns {
    () => {
        "seq, queue, id, state, at, notify, attempts, lost, cancel_requested, token, claimed_at, worker, unpinned"
    };
}
pub(super) use job_columns;

/// The statements of [`Tx::earliest`], [`Tx::nearest`], [`Tx::pinned`] and [`Tx::first_pinned`].
pub(super) const EARLIEST: &str = concat!(
    "SELECT ",
    job_columns!(),
    " FROM jobs WHERE queue = ?1 AND state = ?2 AND at <= ?3 ORDER BY at, seq LIMIT ?4"
);
pub(super) const NEAREST: &str = "SELECT min(at) FROM jobs WHERE queue = ?1 AND state = ?2";
pub(super) const OLDEST_PINNED: &str = concat!(
    "SELECT ",
    job_columns!(),
    " FROM jobs WHERE queue = ?1 AND state = ?2 AND at BETWEEN ?3 AND ?4 ORDER BY at, seq LIMIT ?5"
);
pub(super) const FIRST_PINNED: &str = "SELECT min(at) FROM jobs WHERE queue = ?1 AND state = ?2 AND at >= ?3";

impl Job {
    pub(super) fn read(row: &Row<'_>) -> Sql<Self> {
        Ok(Self {
            seq: row.get(0)?,
            queue: row.get(1)?,
            id: storage::text(row, 2)?,
            // A code that nobody wrote can only come from damage; dead jobs are at least seen.
            state: storage::state(row.get(3)?).unwrap_or(JobState::Dead),
            at: row.get(4)?,
            notify: row.get(5)?,
            attempts: storage::count(row.get(6)?),
            lost: storage::count(row.get(7)?),
            cancel_requested: row.get(8)?,
            token: row.get(9)?,
            claimed_at: row.get(10)?,
            worker: storage::optional_text(row, 11)?,
            unpinned: row.get(12)?,
        })
    }
}

/// How a job ends.
#[derive(Debug, Clone, Copy)]
pub(super) enum End<'e> {
    Succeeded(Option<&'e Payload>),
    Dead(DeadReason, &'e Failure),
    Cancelled,
}

impl End<'_> {
    const fn state(&self) -> JobState {
        match self {
            Self::Succeeded(_) => JobState::Succeeded,
            Self::Dead(..) => JobState::Dead,
            Self::Cancelled => JobState::Cancelled,
        }
    }

    fn outcome(&self) -> Outcome {
        match *self {
            Self::Succeeded(result) => Outcome::Succeeded { result: result.map(stored) },
            Self::Dead(reason, failure) => Outcome::Dead { reason, failure: failure.clone() },
            Self::Cancelled => Outcome::Cancelled,
        }
    }
}

/// A result as outcomes carry it.
pub(super) fn stored(result: &Payload) -> StoredResult {
    if result.len() <= Limits::INLINE_RESULT {
        StoredResult::Inline { payload: result.clone() }
    } else {
        StoredResult::Stored { bytes: result.len() as u64 }
    }
}

impl Tx<'_> {
    /// Carries out a part of the transaction that may fail alone. The outer error is the end of the whole transaction,
    /// the inner one of the part: nothing of it is left.
    pub(super) fn part<T>(&mut self, work: impl FnOnce(&mut Self) -> Sql<T>) -> Sql<Result<T>> {
        self.db.prepare_cached("SAVEPOINT part")?.execute(())?;
        self.state.begin_part();
        let failure = match catch_unwind(AssertUnwindSafe(|| work(self))) {
            Ok(Ok(value)) => {
                self.db.prepare_cached("RELEASE part")?.execute(())?;
                self.state.keep_part();
                return Ok(Ok(value));
            }
            // A disk that fails may end the transaction as a whole.
            Ok(Err(error)) if self.db.is_autocommit() => return Err(error),
            Ok(Err(error)) => storage::error(&error),
            Err(panic) => storage::panicked(panic.as_ref()),
        };
        self.db.execute_batch("ROLLBACK TO part; RELEASE part")?;
        self.state.undo_part();
        Ok(Err(failure))
    }

    /// The queue `name`.
    pub(super) fn queue(&self, name: &QueueName) -> Result<QueueId> {
        self.state.find(name).ok_or_else(|| Error::no_queue(name))
    }

    /// The settings and counts of a queue that was found before.
    pub(super) fn known(&self, id: QueueId) -> &Queue {
        self.state.queue(id).expect("queues are found by name before they are used")
    }

    /// The instant `delay` from now, rounded up: instants are cut to milliseconds, and nothing may be early.
    pub(super) fn due(&self, delay: Duration) -> i64 {
        if delay.is_zero() {
            return self.now.as_millis();
        }
        self.now.after(delay).as_millis().saturating_add(1)
    }

    pub(super) fn job_by_seq(&self, seq: i64) -> Sql<Option<Job>> {
        self.db
            .prepare_cached(concat!("SELECT ", job_columns!(), " FROM jobs WHERE seq = ?1"))?
            .query_row([seq], Job::read)
            .optional()
    }

    pub(super) fn job_by_id(&self, queue: QueueId, id: &str) -> Sql<Option<Job>> {
        self.db
            .prepare_cached(concat!("SELECT ", job_columns!(), " FROM jobs WHERE queue = ?1 AND id = ?2"))?
            .query_row(params![queue, id], Job::read)
            .optional()
    }

    /// The job ends. Whoever wants to know learns it from the same transaction.
    pub(super) fn finish(&mut self, job: &Job, attempts: u32, lost: u32, end: &End<'_>) -> Sql<()> {
        let now = self.now.as_millis();
        let (reason, failure) = match *end {
            End::Dead(reason, failure) => (Some(storage::reason(reason)), Some(failure)),
            End::Succeeded(_) | End::Cancelled => (None, None),
        };
        self.db
            .prepare_cached(
                "UPDATE jobs SET state = :state, at = :at, attempts = :attempts, lost = :lost, token = NULL, \
                 cancel_requested = 0, finished_at = :now, dead_reason = :reason, \
                 failure_reason = coalesce(:failure_reason, failure_reason), \
                 failure_message = coalesce(:failure_message, failure_message) WHERE seq = :seq",
            )?
            .execute(named_params! {
                ":state": code(end.state()),
                ":at": if job.notify { PINNED.saturating_add(now) } else { now },
                ":attempts": attempts,
                ":lost": lost,
                ":now": now,
                ":reason": reason,
                ":failure_reason": failure.map(|failure| &failure.reason),
                ":failure_message": failure.map(|failure| &failure.message),
                ":seq": job.seq,
            })?;
        if let End::Succeeded(Some(result)) = end {
            self.db
                .prepare_cached(
                    "INSERT OR REPLACE INTO results (seq, content_type, payload) VALUES (?1, ?2, ?3)",
                )?
                .execute(params![job.seq, result.content_type, &result.bytes[..]])?;
        }
        self.state.moved(job.queue, Some(job.state), Some(end.state()));
        if let Some(next) = self.successor(job)? {
            self.call(&next)?;
        }
        let keep = if job.notify { Limits::PIN } else { self.known(job.queue).retention(end.state()) };
        self.state.sweep_at(job.queue, self.now.after(keep).as_millis());
        if job.notify { self.announce(job, &end.outcome()) } else { Ok(()) }
    }

    /// The job waits again: at once when `due` has come, else as `later`.
    pub(super) fn wait(&mut self, job: &Job, due: i64, later: JobState) -> Sql<()> {
        let state = if due <= self.now.as_millis() { JobState::Ready } else { later };
        self.stand(job, state, due)
    }

    /// The job waits in `state`.
    pub(super) fn stand(&mut self, job: &Job, state: JobState, due: i64) -> Sql<()> {
        self.db
            .prepare_cached(
                "UPDATE jobs SET state = ?1, at = ?2, due_at = ?2, attempts = ?3, lost = ?4, token = NULL WHERE seq = ?5",
            )?
            .execute(params![code(state), due, job.attempts, job.lost, job.seq])?;
        self.state.moved(job.queue, Some(job.state), Some(state));
        if matches!(state, JobState::Scheduled | JobState::Retrying) {
            self.state.due.lower(&job.queue, due);
        }
        Ok(())
    }

    /// Writes the completion of a job that leaves its queue with `outcome`.
    pub(super) fn announce(&mut self, job: &Job, outcome: &Outcome) -> Sql<()> {
        let whom: Option<(Option<String>, Option<String>)> = self
            .db
            .prepare_cached("SELECT notify_address, notify_context FROM bodies WHERE seq = ?1")?
            .query_row([job.seq], |row| {
                Ok((storage::optional_text(row, 0)?, storage::optional_text(row, 1)?))
            })
            .optional()?;
        let (address, context) = whom.unwrap_or_default();
        let Ok(address) = Address::new(address.unwrap_or_default()) else {
            tracing::warn!(job = job.seq, "the address of a completion can't be read; nobody is told");
            return self.age(job);
        };
        let outcome = serde_json::to_string(outcome).expect("outcomes are plain data");
        let queue = self.known(job.queue).name.as_str().to_owned();
        self.db
            .prepare_cached(
                "INSERT INTO completions (address, queue, job, job_seq, outcome, settled_at, context) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?
            .execute(params![
                address.as_str(),
                queue,
                job.id,
                job.seq,
                outcome,
                self.now.as_millis(),
                context.unwrap_or_default(),
            ])?;
        self.state.completion_added(&address, self.now);
        Ok(())
    }

    /// Removes all rows of a job. Its completions stay.
    pub(super) fn erase(&mut self, job: &Job) -> Sql<()> {
        for statement in [
            "DELETE FROM jobs WHERE seq = ?1",
            "DELETE FROM bodies WHERE seq = ?1",
            "DELETE FROM results WHERE seq = ?1",
        ] {
            self.db.prepare_cached(statement)?.execute([job.seq])?;
        }
        self.state.moved(job.queue, Some(job.state), None);
        Ok(())
    }

    /// Up to `limit` jobs of `queue` in `state` whose time is `until` or earlier, earliest first.
    pub(super) fn earliest(
        &self,
        queue: QueueId,
        state: JobState,
        until: i64,
        limit: usize,
    ) -> Sql<Vec<Job>> {
        self.db
            .prepare_cached(EARLIEST)?
            .query_map(params![queue, code(state), until, column(limit)], Job::read)?
            .collect()
    }

    /// Up to `limit` jobs of `queue` that ended in `state` at `until` or earlier and are pinned.
    pub(super) fn pinned(&self, queue: QueueId, state: JobState, until: i64, limit: usize) -> Sql<Vec<Job>> {
        self.db
            .prepare_cached(OLDEST_PINNED)?
            .query_map(
                params![queue, code(state), PINNED, PINNED.saturating_add(until), column(limit)],
                Job::read,
            )?
            .collect()
    }

    /// When the first pinned job of `queue` ended in `state`.
    pub(super) fn first_pinned(&self, queue: QueueId, state: JobState) -> Sql<Option<i64>> {
        let at: Option<i64> = self
            .db
            .prepare_cached(FIRST_PINNED)?
            .query_row(params![queue, code(state), PINNED], |row| row.get(0))?;
        Ok(at.map(|at| at - PINNED))
    }

    /// The nearest time of a job of `queue` in `state`.
    pub(super) fn nearest(&self, queue: QueueId, state: JobState) -> Sql<Option<i64>> {
        self.db.prepare_cached(NEAREST)?.query_row(params![queue, code(state)], |row| row.get(0))
    }
}
