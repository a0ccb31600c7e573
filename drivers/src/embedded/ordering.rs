//! The lines of a Fifo queue: of the jobs of one key that aren't over, one has its turn and the others are blocked behind
//! it, in the order in which they were enqueued.
//!
//! Nothing of it is kept beside the rows: the first of a line is its job that isn't blocked, of which an index allows one
//! only, and the next one is the blocked job with the lowest number. Whatever ends or removes a first calls its successor
//! in the same transaction.
//!
//! A damaged row counts as gone from its line. If it was the first, nobody would call the next one: a walk looks for such
//! lines, at the start and from time to time.

use super::{
    state::QueueId,
    storage::{Sql, column},
    transition::{Job, Tx, job_columns},
};
use crate::{Error, JobState};
use rusqlite::{
    OptionalExtension, ToSql, params,
    types::{FromSql, FromSqlError, FromSqlResult, ToSqlOutput, ValueRef},
};

/// How often all lines of a queue are looked at. It takes two searches per line.
pub(super) const WALK_EVERY: i64 = 600_000;

/// The statements. Codes of states are written out, or the indexes could not be used: 0 to 3 wait for their time, are
/// ready or run, 7 is blocked.
pub(super) const FIRST: &str =
    "SELECT seq FROM jobs WHERE queue = ?1 AND ordering_key = ?2 AND state IN (0, 1, 2, 3)";
pub(super) const KEY: &str = "SELECT ordering_key FROM jobs WHERE seq = ?1";
pub(super) const NEXT: &str = concat!(
    "SELECT ",
    job_columns!(),
    " FROM jobs WHERE queue = ?1 AND ordering_key = ?2 AND state = 7 ORDER BY seq LIMIT 1"
);
pub(super) const NEXT_AFTER: &str = concat!(
    "SELECT ",
    job_columns!(),
    " FROM jobs WHERE queue = ?1 AND ordering_key = (SELECT ordering_key FROM jobs WHERE seq = ?2) AND state = 7 \
     ORDER BY seq LIMIT 1"
);
pub(super) const LINE_AFTER: &str = "SELECT ordering_key FROM jobs WHERE queue = ?1 AND ordering_key > ?2 \
    AND state = 7 ORDER BY ordering_key LIMIT 1";
pub(super) const OUTSIDE: &str =
    "SELECT seq FROM jobs WHERE queue = ?1 AND ordering_key IS NULL AND state = 7 LIMIT ?2";

/// An ordering key as a row holds it, legible or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key(Vec<u8>);

impl Key {
    /// The key of a new job. Those that were given none have one together, which nobody can give.
    pub(super) fn of(key: Option<&str>) -> Self {
        Self(key.unwrap_or_default().as_bytes().to_vec())
    }
}

impl ToSql for Key {
    fn to_sql(&self) -> Sql<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(ValueRef::Text(&self.0)))
    }
}

impl FromSql for Key {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        match value {
            ValueRef::Text(bytes) => Ok(Self(bytes.to_vec())),
            _ => Err(FromSqlError::InvalidType),
        }
    }
}

impl Tx<'_> {
    /// Whether a job that comes to the line of `key` has to stand behind others.
    pub(super) fn is_blocked(&mut self, queue: QueueId, key: &Key) -> Sql<bool> {
        let first = self.db.prepare_cached(FIRST)?.exists(params![queue, key])?;
        if first || self.known(queue).count(JobState::Blocked) == 0 {
            return Ok(first);
        }
        let next = self.db.prepare_cached(NEXT)?.query_row(params![queue, key], Job::read).optional()?;
        let Some(next) = next else {
            return Ok(false);
        };
        tracing::warn!(job = next.seq, "the job before this one is damaged and counts as gone");
        self.call(&next)?;
        Ok(true)
    }

    /// Whether `job`, which was over, has to stand behind others of its key.
    pub(super) fn returns_behind(&mut self, job: &Job) -> Sql<bool> {
        if !self.known(job.queue).is_fifo() {
            return Ok(false);
        }
        let key: Option<Key> = self.db.prepare_cached(KEY)?.query_row([job.seq], |row| row.get(0))?;
        key.map_or(Ok(false), |key| self.is_blocked(job.queue, &key))
    }

    /// Who comes after `job`, which ends or goes; nobody if it isn't the first of its line.
    pub(super) fn successor(&self, job: &Job) -> Sql<Option<Job>> {
        let queue = self.known(job.queue);
        let first = !job.state.is_terminal() && job.state != JobState::Blocked;
        if !first || !queue.is_fifo() || queue.deleting || queue.count(JobState::Blocked) == 0 {
            return Ok(None);
        }
        self.db.prepare_cached(NEXT_AFTER)?.query_row(params![job.queue, job.seq], Job::read).optional()
    }

    /// The turn of `job` has come.
    pub(super) fn call(&mut self, job: &Job) -> Sql<()> {
        // It could not be handed out before: those of other keys that were ready earlier come first.
        let due = job.at.max(self.now.as_millis());
        let later = if job.attempts == 0 { JobState::Scheduled } else { JobState::Retrying };
        self.wait(job, due, later)
    }

    /// Walks along a part of the lines of `queue` and mends what damage did to them.
    pub(super) fn walk_lines(&mut self, queue: QueueId, budget: &mut usize) -> Sql<()> {
        let Some(known) = self.state.queue(queue).filter(|queue| queue.is_fifo() && !queue.deleting) else {
            self.state.walks.set(&queue, None);
            return Ok(());
        };
        let pause = self.now.as_millis().saturating_add(WALK_EVERY);
        if known.count(JobState::Blocked) == 0 {
            self.state.walks.set(&queue, Some(pause));
            return Ok(());
        }
        let mut at = match self.state.walked.remove(&queue) {
            Some(at) => at,
            None => self.begin_walk(queue, budget)?,
        };
        while *budget > 0 {
            let Some(key) = self.line_after(queue, &at)? else {
                self.state.walks.set(&queue, Some(pause));
                return Ok(());
            };
            *budget -= 1;
            self.is_blocked(queue, &key)?;
            at = key;
        }
        self.state.walked.insert(queue, at);
        Ok(())
    }

    /// The jobs that stand in no line, and the line of those without a key.
    fn begin_walk(&mut self, queue: QueueId, budget: &mut usize) -> Sql<Key> {
        let outside: Vec<i64> = self
            .db
            .prepare_cached(OUTSIDE)?
            .query_map(params![queue, column(*budget)], |row| row.get(0))?
            .collect::<Sql<_>>()?;
        *budget -= outside.len();
        for seq in outside {
            self.bury_unreadable(seq, &no_key())?;
        }
        let keyless = Key::of(None);
        self.is_blocked(queue, &keyless)?;
        Ok(keyless)
    }

    fn line_after(&self, queue: QueueId, key: &Key) -> Sql<Option<Key>> {
        self.db.prepare_cached(LINE_AFTER)?.query_row(params![queue, key], |row| row.get(0)).optional()
    }
}

/// A job of a Fifo queue that stands in no line can't be handed out in any order.
pub(super) fn no_key() -> Error {
    Error::invalid("its ordering key is lost")
}
