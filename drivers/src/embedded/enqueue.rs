//! Adding jobs.

use super::{
    command::{Answer, NewRow},
    inspect,
    ordering::Key,
    state::QueueId,
    storage::{Sql, code, column},
    transition::Tx,
};
use crate::{
    Enqueued, Error, ErrorKind, JobId, JobState, Limits, NewJob, Outcome, QueueName, Result, checks,
};
use rusqlite::{OptionalExtension, params};

/// Checks a job and prepares what needs no database, on the caller's thread.
pub(super) fn prepare(mut job: NewJob, limits: &Limits) -> Result<NewRow> {
    job.validate(limits)?;
    let headers = if job.headers.is_empty() {
        None
    } else {
        let text = serde_json::to_string(&job.headers);
        Some(text.expect("a map of strings is plain data"))
    };
    Ok(NewRow { id: job.id.take().unwrap_or_else(JobId::generate), job, headers })
}

impl Tx<'_> {
    pub(super) fn enqueue(&mut self, queue: &QueueName, rows: &[Result<NewRow>]) -> Sql<Result<Answer>> {
        let queue = match self.queue(queue) {
            Ok(queue) => queue,
            Err(error) => return Ok(Err(error)),
        };
        let answers = rows
            .iter()
            .map(|row| match row {
                Ok(row) => self.enqueue_one(queue, row),
                Err(error) => Ok(Err(error.clone())),
            })
            .collect::<Sql<_>>()?;
        Ok(Ok(Answer::Enqueued(answers)))
    }

    fn enqueue_one(&mut self, queue: QueueId, row: &NewRow) -> Sql<Result<Enqueued>> {
        let known = self.known(queue);
        if let Err(error) = checks::ordering_key(&row.job, known.settings.ordering) {
            return Ok(Err(error));
        }
        let (waiting, max_depth) = (known.waiting(), known.settings.max_depth);
        if row.job.notify.is_none() && waiting >= max_depth {
            let duplicate = self.duplicate(queue, row)?;
            return Ok(duplicate.unwrap_or_else(|| Err(full(max_depth))));
        }
        if let Some(outcome) = self.left(queue, row)? {
            return Ok(Ok(outcome));
        }
        if self.insert(queue, row)? {
            return Ok(Ok(Enqueued::Created { id: row.id.clone() }));
        }
        let duplicate = self.duplicate(queue, row)?;
        Ok(duplicate.expect("an insert that adds nothing met a job with this id"))
    }

    /// Whether the job was new.
    fn insert(&mut self, queue: QueueId, row: &NewRow) -> Sql<bool> {
        let job = &row.job;
        let due = self.due(job.delay);
        let key = self.known(queue).is_fifo().then(|| Key::of(job.ordering_key.as_deref()));
        let state = match &key {
            Some(key) if self.is_blocked(queue, key)? => JobState::Blocked,
            _ if job.delay.is_zero() => JobState::Ready,
            _ => JobState::Scheduled,
        };
        let seq = self.state.next_seq();
        let added = self
            .db
            .prepare_cached(
                "INSERT INTO jobs (seq, queue, id, type, state, at, notify, payload_bytes, enqueued_at, due_at, \
                 ordering_key) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?6, ?10) ON CONFLICT (queue, id) DO NOTHING",
            )?
            .execute(params![
                seq,
                queue,
                row.id.as_str(),
                job.job_type,
                code(state),
                due,
                job.notify.is_some(),
                column(job.payload.len()),
                self.now.as_millis(),
                key,
            ])?;
        if added == 0 {
            return Ok(false);
        }
        let notify = job.notify.as_ref();
        self.db
            .prepare_cached(
                "INSERT INTO bodies (seq, content_type, payload, headers, max_attempts, timeout, notify_address, \
                 notify_context) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?
            .execute(params![
                seq,
                job.payload.content_type,
                &job.payload.bytes[..],
                row.headers,
                job.overrides.max_attempts,
                job.overrides.timeout.map(|timeout| column(timeout.as_millis())),
                notify.map(|notify| notify.address.as_str()),
                notify.map(|notify| notify.context.as_str()),
            ])?;
        self.state.moved(queue, None, Some(state));
        if state == JobState::Scheduled {
            self.state.due.lower(&queue, due);
        }
        Ok(true)
    }

    /// A job that left with its queue or by a purge is known until its completion is acknowledged: whoever asks for it by
    /// enqueueing it again must hear how it ended, and not run it again.
    fn left(&self, queue: QueueId, row: &NewRow) -> Sql<Option<Enqueued>> {
        if row.job.notify.is_none() || !self.state.has_completions() {
            return Ok(None);
        }
        let name = self.known(queue).name.as_str();
        let Some(text) = self.unacknowledged(name, row.id.as_str())? else {
            return Ok(None);
        };
        if self.record(queue, row.id.as_str())?.is_some() {
            return Ok(None);
        }
        let outcome: Option<Outcome> = serde_json::from_str(&text).ok();
        let state = outcome.as_ref().map_or(JobState::Cancelled, Outcome::state);
        Ok(Some(Enqueued::Duplicate { id: row.id.clone(), state, outcome }))
    }

    /// What a job whose id may be known is answered.
    fn duplicate(&self, queue: QueueId, row: &NewRow) -> Sql<Option<Result<Enqueued>>> {
        let Some(record) = self.record(queue, row.id.as_str())? else {
            return Ok(None);
        };
        let payload = &row.job.payload;
        let same: Option<bool> = self
            .db
            .prepare_cached(
                "SELECT content_type = ?3 AND payload = ?4 FROM jobs JOIN bodies USING (seq) WHERE queue = ?1 AND id = ?2",
            )?
            .query_row(
                params![queue, row.id.as_str(), payload.content_type, &payload.bytes[..]],
                |found| found.get(0),
            )
            .optional()?;
        let inspect::Record { job_type, state, .. } = &record;
        if *job_type != row.job.job_type || same != Some(true) {
            return Ok(Some(Err(Error::new(
                ErrorKind::Conflict,
                format!("job {} is known with another type or payload", row.id),
            ))));
        }
        Ok(Some(Ok(Enqueued::Duplicate {
            id: row.id.clone(),
            state: *state,
            outcome: self.outcome(&record)?,
        })))
    }
}

fn full(max_depth: u64) -> Error {
    Error::new(ErrorKind::Full, format!("the queue has its maximum of {max_depth} waiting jobs"))
}
