//! Looking at jobs: one, a page, their results, and how full a queue is.

use super::{
    command::Answer,
    state::{Queue, QueueId},
    storage::{self, Sql, code, column},
    transition::Tx,
};
use crate::{
    Error, Failure, JobId, JobPage, JobRecord, JobState, Limits, ListJobs, Outcome, Payload, QueueName,
    QueueStats, Result, StoredResult, Timestamp,
};
use bytes::Bytes;
use rusqlite::{OptionalExtension, Row, ToSql, params};

/// A row of `jobs` as people see it.
#[derive(Debug)]
pub(super) struct Record {
    seq: i64,
    at: i64,
    id: String,
    pub(super) job_type: String,
    pub(super) state: JobState,
    attempts: u32,
    lost: u32,
    enqueued_at: i64,
    due_at: i64,
    worker: Option<String>,
    finished_at: Option<i64>,
    dead_reason: Option<String>,
    failure_reason: Option<String>,
    failure_message: Option<String>,
    payload_bytes: i64,
}

macro_rules! record_columns {
    () => {
        "seq, at, id, type, state, attempts, lost, enqueued_at, due_at, worker, finished_at, dead_reason, \
         failure_reason, failure_message, payload_bytes"
    };
}

/// The statements of [`Tx::behind`].
pub(super) const SAME_TIME: &str = concat!(
    "SELECT ",
    record_columns!(),
    " FROM jobs WHERE queue = ?1 AND state = ?2 AND at = ?3 AND seq > ?4 ORDER BY seq LIMIT ?5"
);
pub(super) const LATER: &str = concat!(
    "SELECT ",
    record_columns!(),
    " FROM jobs WHERE queue = ?1 AND state = ?2 AND at > ?3 ORDER BY at, seq LIMIT ?4"
);
/// What stands aside because it can't be read. Each has an index of its own, which holds nothing else.
pub(super) const UNREADABLE_JOBS: &str =
    "SELECT count(*) FROM jobs WHERE queue = ?1 AND failure_reason = 'Unreadable'";
pub(super) const PARKED_COMPLETIONS: &str =
    "SELECT count(*) FROM completions WHERE queue = ?1 AND leased_until = 9223372036854775807";

impl Record {
    fn read(row: &Row<'_>) -> Sql<Self> {
        Ok(Self {
            seq: row.get(0)?,
            at: row.get(1)?,
            id: storage::text(row, 2)?,
            job_type: storage::text(row, 3)?,
            state: storage::state(row.get(4)?).unwrap_or(JobState::Dead),
            attempts: storage::count(row.get(5)?),
            lost: storage::count(row.get(6)?),
            enqueued_at: row.get(7)?,
            due_at: row.get(8)?,
            worker: storage::optional_text(row, 9)?,
            finished_at: row.get(10)?,
            dead_reason: storage::optional_text(row, 11)?,
            failure_reason: storage::optional_text(row, 12)?,
            failure_message: storage::optional_text(row, 13)?,
            payload_bytes: row.get(14)?,
        })
    }

    fn failure(&self) -> Option<Failure> {
        Some(Failure {
            reason: self.failure_reason.clone()?,
            message: self.failure_message.clone().unwrap_or_default(),
        })
    }

    fn into_job(self, outcome: Option<Outcome>) -> Result<JobRecord> {
        let active = self.state == JobState::Active;
        let last_failure = self.failure();
        Ok(JobRecord {
            id: JobId::new(self.id)?,
            job_type: self.job_type,
            state: self.state,
            attempts: self.attempts,
            lost_deliveries: self.lost,
            enqueued_at: Timestamp::from_millis(self.enqueued_at),
            due_at: Timestamp::from_millis(self.due_at),
            lease_until: active.then(|| Timestamp::from_millis(self.at)),
            worker: self.worker.filter(|_| active),
            finished_at: self.finished_at.filter(|_| self.state.is_terminal()).map(Timestamp::from_millis),
            last_failure,
            outcome,
            payload_bytes: u64::try_from(self.payload_bytes).unwrap_or(0),
        })
    }
}

impl Tx<'_> {
    pub(super) fn stats(&self, queue: &QueueName) -> Sql<Result<Answer>> {
        let id = match self.queue(queue) {
            Ok(id) => id,
            Err(error) => return Ok(Err(error)),
        };
        let due = [self.nearest(id, JobState::Scheduled)?, self.nearest(id, JobState::Retrying)?];
        let oldest = self.nearest(id, JobState::Ready)?;
        let unreadable = self.count(UNREADABLE_JOBS, id)?;
        let queue: &Queue = self.known(id);
        let parked = queue.unknown() + unreadable + self.count(PARKED_COMPLETIONS, queue.name.as_str())?;
        Ok(Ok(Answer::Stats(QueueStats {
            ready: Some(queue.count(JobState::Ready)),
            scheduled: Some(queue.count(JobState::Scheduled)),
            active: Some(queue.count(JobState::Active)),
            retrying: Some(queue.count(JobState::Retrying)),
            blocked: Some(queue.count(JobState::Blocked)),
            dead: Some(queue.count(JobState::Dead)),
            oldest_ready_at: oldest.map(Timestamp::from_millis),
            next_due_at: due.into_iter().flatten().min().map(Timestamp::from_millis),
            service_time_ms: queue.service_time_ms(),
            parked: Some(parked),
        })))
    }

    fn count(&self, statement: &str, of: impl ToSql) -> Sql<u64> {
        let count: i64 = self.db.prepare_cached(statement)?.query_row([of], |row| row.get(0))?;
        Ok(u64::try_from(count).unwrap_or(0))
    }

    /// The row of one job.
    pub(super) fn record(&self, queue: QueueId, id: &str) -> Sql<Option<Record>> {
        self.db
            .prepare_cached(concat!("SELECT ", record_columns!(), " FROM jobs WHERE queue = ?1 AND id = ?2"))?
            .query_row(params![queue, id], Record::read)
            .optional()
    }

    /// How a job ended, if it did.
    pub(super) fn outcome(&self, record: &Record) -> Sql<Option<Outcome>> {
        Ok(match record.state {
            JobState::Succeeded => Some(Outcome::Succeeded { result: self.stored_result(record.seq)? }),
            JobState::Dead => Some(Outcome::Dead {
                reason: record
                    .dead_reason
                    .as_deref()
                    .and_then(storage::dead_reason)
                    .unwrap_or(crate::DeadReason::Rejected),
                failure: record.failure().unwrap_or_default(),
            }),
            JobState::Cancelled => Some(Outcome::Cancelled),
            JobState::Ready
            | JobState::Scheduled
            | JobState::Retrying
            | JobState::Blocked
            | JobState::Active => None,
        })
    }

    /// The result as an outcome carries it; a large one isn't read.
    fn stored_result(&self, seq: i64) -> Sql<Option<StoredResult>> {
        self.db
            .prepare_cached(
                "SELECT content_type, length(payload), iif(length(payload) <= ?2, payload, x'') FROM results \
                 WHERE seq = ?1",
            )?
            .query_row(params![seq, column(Limits::INLINE_RESULT)], |row| {
                let bytes = usize::try_from(row.get::<_, i64>(1)?).unwrap_or(0);
                if bytes > Limits::INLINE_RESULT {
                    return Ok(StoredResult::Stored { bytes: bytes as u64 });
                }
                let payload = Payload {
                    content_type: storage::text(row, 0)?,
                    bytes: Bytes::from(row.get::<_, Vec<u8>>(2)?),
                };
                Ok(StoredResult::Inline { payload })
            })
            .optional()
    }

    fn result(&self, seq: i64) -> Sql<Option<Payload>> {
        self.db
            .prepare_cached("SELECT content_type, payload FROM results WHERE seq = ?1")?
            .query_row([seq], |row| {
                Ok(Payload {
                    content_type: storage::text(row, 0)?,
                    bytes: Bytes::from(row.get::<_, Vec<u8>>(1)?),
                })
            })
            .optional()
    }

    pub(super) fn inspect(&self, queue: &QueueName, id: &JobId) -> Sql<Result<Answer>> {
        let queue = match self.queue(queue) {
            Ok(queue) => queue,
            Err(error) => return Ok(Err(error)),
        };
        let Some(record) = self.record(queue, id.as_str())? else {
            return Ok(Ok(Answer::Record(None)));
        };
        let outcome = self.outcome(&record)?;
        Ok(record.into_job(outcome).map(|job| Answer::Record(Some(Box::new(job)))))
    }

    pub(super) fn results(&self, queue: &QueueName, ids: &[JobId]) -> Sql<Result<Answer>> {
        let queue = match self.queue(queue) {
            Ok(queue) => queue,
            Err(error) => return Ok(Err(error)),
        };
        let results = ids
            .iter()
            .map(|id| match self.job_by_id(queue, id.as_str())? {
                Some(job) => self.result(job.seq),
                None => Ok(None),
            })
            .collect::<Sql<_>>()?;
        Ok(Ok(Answer::Results(results)))
    }

    /// The rows in `state` behind a place in the order. Two searches, because an index over (at, seq) is entered by
    /// `at` alone, and thousands of jobs may share it.
    fn behind(&self, queue: QueueId, state: JobState, place: (i64, i64), limit: usize) -> Sql<Vec<Record>> {
        let (at, seq) = place;
        let mut records: Vec<Record> = self
            .db
            .prepare_cached(SAME_TIME)?
            .query_map(params![queue, code(state), at, seq, column(limit)], Record::read)?
            .collect::<Sql<_>>()?;
        let later: Vec<Record> = self
            .db
            .prepare_cached(LATER)?
            .query_map(params![queue, code(state), at, column(limit - records.len())], Record::read)?
            .collect::<Sql<_>>()?;
        records.extend(later);
        Ok(records)
    }

    pub(super) fn list(&self, queue: &QueueName, list: &ListJobs) -> Sql<Result<Answer>> {
        let queue = match self.queue(queue) {
            Ok(queue) => queue,
            Err(error) => return Ok(Err(error)),
        };
        let Some((at, seq)) = list.after.as_deref().map_or(Some((i64::MIN, i64::MIN)), cursor) else {
            return Ok(Err(Error::invalid("the cursor of a list is the `next` of the page before")));
        };
        let limit = (list.limit as usize).min(Limits::BATCH);
        let mut records = self.behind(queue, list.state, (at, seq), limit + 1)?;
        let more = records.len() > limit;
        records.truncate(limit);
        let next = records.last().filter(|_| more).map(|last| format!("{}.{}", last.at, last.seq));
        let mut jobs = Vec::with_capacity(records.len());
        for record in records {
            let seq = record.seq;
            let outcome = self.outcome(&record)?;
            match record.into_job(outcome) {
                Ok(job) => jobs.push(job),
                Err(error) => {
                    tracing::warn!(job = seq, %error, "a job that can't be read is left out of a list");
                }
            }
        }
        Ok(Ok(Answer::Page(JobPage { jobs, next })))
    }
}

fn cursor(text: &str) -> Option<(i64, i64)> {
    let (at, seq) = text.split_once('.')?;
    Some((at.parse().ok()?, seq.parse().ok()?))
}
