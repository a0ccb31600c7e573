//! Looking at queues and jobs.

use super::{
    Shared,
    error::{self, Effect},
};
use crate::{
    DeadReason, Error, ErrorKind, Failure, JobId, JobPage, JobRecord, JobState, Limits, ListJobs, Outcome,
    Payload, QueueName, QueueStats, Result, StoredResult, Timestamp,
};
use bytes::Bytes;
use tokio_postgres::{Row, types::Type};

/// The number of a state in the tables.
pub(super) const fn code(state: JobState) -> i32 {
    match state {
        JobState::Ready => 0,
        JobState::Scheduled => 1,
        JobState::Retrying => 2,
        JobState::Blocked => 3,
        JobState::Active => 4,
        JobState::Succeeded => 5,
        JobState::Dead => 6,
        JobState::Cancelled => 7,
    }
}

/// The state of a number in the tables.
pub(super) fn state(code: Option<i16>) -> Option<JobState> {
    Some(match code? {
        0 => JobState::Ready,
        1 => JobState::Scheduled,
        2 => JobState::Retrying,
        3 => JobState::Blocked,
        4 => JobState::Active,
        5 => JobState::Succeeded,
        6 => JobState::Dead,
        7 => JobState::Cancelled,
        _ => return None,
    })
}

fn dead_reason(word: &str) -> DeadReason {
    match word {
        "Exhausted" => DeadReason::Exhausted,
        "Expired" => DeadReason::Expired,
        "Quarantined" => DeadReason::Quarantined,
        _ => DeadReason::Rejected,
    }
}

/// What a row says of a job's end.
#[derive(Debug)]
pub(super) struct End {
    dead_reason: Option<String>,
    failure: Option<Failure>,
    result: Option<StoredResult>,
}

impl End {
    /// Reads six columns from `at` on: the reason of its death, reason and message of its failure, type, bytes (if there
    /// are few) and length of its result.
    pub(super) fn read(row: &Row, at: usize) -> Result<Self, tokio_postgres::Error> {
        let reason: Option<String> = row.try_get(at + 1)?;
        let message: Option<String> = row.try_get(at + 2)?;
        let content_type: Option<String> = row.try_get(at + 3)?;
        let small: Option<&[u8]> = row.try_get(at + 4)?;
        let length: Option<i64> = row.try_get(at + 5)?;
        let result = length.map(|length| match small {
            Some(bytes) => StoredResult::Inline {
                payload: Payload {
                    content_type: content_type.unwrap_or_else(|| crate::job::JSON.to_owned()),
                    bytes: Bytes::copy_from_slice(bytes),
                },
            },
            None => StoredResult::Stored { bytes: length.unsigned_abs() },
        });
        Ok(Self {
            dead_reason: row.try_get(at)?,
            failure: reason.map(|reason| Failure { reason, message: message.unwrap_or_default() }),
            result,
        })
    }

    /// How the job ended, if it did.
    pub(super) fn outcome(&self, state: JobState) -> Option<Outcome> {
        match state {
            JobState::Succeeded => Some(Outcome::Succeeded { result: self.result.clone() }),
            JobState::Dead => Some(Outcome::Dead {
                reason: dead_reason(self.dead_reason.as_deref().unwrap_or_default()),
                failure: self.failure.clone().unwrap_or_default(),
            }),
            JobState::Cancelled => Some(Outcome::Cancelled),
            JobState::Ready
            | JobState::Scheduled
            | JobState::Retrying
            | JobState::Blocked
            | JobState::Active => None,
        }
    }
}

fn damaged(what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Fatal, format!("the row of a job is damaged: {what}"))
}

/// One row of `describe`.
fn record(row: &Row) -> Result<JobRecord> {
    let bad = |error: tokio_postgres::Error| damaged(error);
    let instant = |at| -> Result<Option<Timestamp>> {
        Ok(row.try_get::<_, Option<i64>>(at).map_err(bad)?.map(Timestamp::from_millis))
    };
    let number =
        |at| -> Result<u32> { Ok(u32::try_from(row.try_get::<_, i32>(at).map_err(bad)?).unwrap_or(0)) };
    let state = state(row.try_get(5).map_err(bad)?).ok_or_else(|| damaged("its state is unknown"))?;
    let end = End::read(row, 13).map_err(bad)?;
    Ok(JobRecord {
        id: JobId::new(row.try_get::<_, &str>(3).map_err(bad)?)?,
        job_type: row.try_get(4).map_err(bad)?,
        state,
        attempts: number(6)?,
        lost_deliveries: number(7)?,
        enqueued_at: instant(8)?.ok_or_else(|| damaged("it was never enqueued"))?,
        due_at: instant(9)?.ok_or_else(|| damaged("it was never due"))?,
        lease_until: instant(10)?,
        worker: row.try_get(11).map_err(bad)?,
        finished_at: instant(12)?,
        outcome: end.outcome(state),
        last_failure: end.failure,
        payload_bytes: row.try_get::<_, Option<i64>>(19).map_err(bad)?.unwrap_or(0).unsigned_abs(),
    })
}

pub(super) async fn inspect(shared: &Shared, queue: &QueueName, id: &JobId) -> Result<Option<JobRecord>> {
    let params = [(&queue.as_str() as &(dyn super::ToSql + Sync), Type::TEXT), (&id.as_str(), Type::TEXT)];
    let rows = shared.pool.call(Effect::Read, "inspect", &params).await?;
    shared.upkeep.note(queue, None);
    rows.first().map(record).transpose()
}

fn cursor(text: &str) -> Option<(i64, i64)> {
    let (at, seq) = text.split_once('.')?;
    Some((at.parse().ok()?, seq.parse().ok()?))
}

pub(super) async fn list(shared: &Shared, queue: &QueueName, list: &ListJobs) -> Result<JobPage> {
    let after = list.after.as_deref().map_or(Some((i64::MIN, i64::MIN)), cursor);
    let (at, seq) =
        after.ok_or_else(|| Error::invalid("the cursor of a list is the `next` of the page before"))?;
    let limit = (list.limit as usize).min(Limits::BATCH);
    let asked = i32::try_from(limit + 1).unwrap_or(i32::MAX);
    let rows = shared
        .pool
        .call(
            Effect::Read,
            "list",
            &[
                (&queue.as_str(), Type::TEXT),
                (&code(list.state), Type::INT4),
                (&at, Type::INT8),
                (&seq, Type::INT8),
                (&asked, Type::INT4),
            ],
        )
        .await?;
    shared.upkeep.note(queue, None);
    let place = |row: &Row| -> Result<String> {
        let read = |error: tokio_postgres::Error| error::of_statement(&error, Effect::Read);
        let (seq, at): (i64, Option<i64>) = (row.try_get(1).map_err(read)?, row.try_get(2).map_err(read)?);
        // One that moved on in the meantime stands nowhere: the page goes on from the beginning of its own time.
        Ok(format!("{}.{seq}", at.unwrap_or(i64::MIN)))
    };
    let next = match rows.get(limit) {
        Some(_) => rows.get(limit - 1).map(place).transpose()?,
        None => None,
    };
    let mut jobs = Vec::with_capacity(rows.len().min(limit));
    for row in rows.iter().take(limit) {
        match record(row) {
            Ok(job) if job.state == list.state => jobs.push(job),
            // It moved on since the page was chosen.
            Ok(_) => {}
            Err(error) => tracing::warn!(%queue, %error, "a job that can't be read is left out of a list"),
        }
    }
    Ok(JobPage { jobs, next })
}

pub(super) async fn stats(shared: &Shared, queue: &QueueName) -> Result<QueueStats> {
    let rows = shared.pool.call(Effect::Read, "stats", &[(&queue.as_str(), Type::TEXT)]).await?;
    shared.upkeep.note(queue, None);
    let Some(row) = rows.first() else { return Err(Error::no_queue(queue)) };
    let read = |error: tokio_postgres::Error| error::of_statement(&error, Effect::Read);
    let count = |at: usize| -> Result<Option<u64>> {
        Ok(row.try_get::<_, Option<i64>>(at).map_err(read)?.map(|count| u64::try_from(count).unwrap_or(0)))
    };
    let instant = |at: usize| -> Result<Option<Timestamp>> {
        Ok(row.try_get::<_, Option<i64>>(at).map_err(read)?.map(Timestamp::from_millis))
    };
    if row.try_get(10).map_err(read)? {
        shared.wakes.tell_queue(queue);
    }
    shared.tell(row.try_get(11).map_err(read)?);
    Ok(QueueStats {
        ready: count(0)?,
        scheduled: count(1)?,
        retrying: count(2)?,
        blocked: count(3)?,
        active: count(4)?,
        dead: count(5)?,
        oldest_ready_at: instant(6)?,
        next_due_at: instant(7)?,
        parked: count(8)?,
        service_time_ms: row.try_get(9).map_err(read)?,
    })
}

pub(super) async fn results(
    shared: &Shared,
    queue: &QueueName,
    ids: &[JobId],
) -> Result<Vec<Option<Payload>>> {
    let asked: Vec<&str> = ids.iter().map(JobId::as_str).collect();
    let params = [(&queue.as_str() as &(dyn super::ToSql + Sync), Type::TEXT), (&asked, Type::TEXT_ARRAY)];
    let rows = shared.pool.call(Effect::Read, "results", &params).await?;
    let read = |error: tokio_postgres::Error| error::of_statement(&error, Effect::Read);
    let mut results = vec![None; ids.len()];
    for row in rows {
        let ord: i64 = row.try_get(0).map_err(read)?;
        let bytes: &[u8] = row.try_get(2).map_err(read)?;
        let payload =
            Payload { content_type: row.try_get(1).map_err(read)?, bytes: Bytes::copy_from_slice(bytes) };
        let at = usize::try_from(ord - 1).unwrap_or(usize::MAX);
        if let Some(result) = results.get_mut(at) {
            *result = Some(payload);
        }
    }
    Ok(results)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_come_back_as_they_went() {
        for number in 0..8_i16 {
            assert_eq!(state(Some(number)).map(code), Some(i32::from(number)));
        }
        assert_eq!((state(Some(8)), state(Some(-1)), state(None)), (None, None, None));
    }
}
