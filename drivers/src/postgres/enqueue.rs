//! Adding jobs.

use super::{
    Shared,
    batch::Met,
    error::{self, Effect},
    inspect::{self, End},
};
use crate::{
    Enqueued, Error, ErrorKind, JobId, JobState, Limits, NewJob, Outcome, QueueName, Result, job::JSON,
};
use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio_postgres::{
    Row,
    types::{ToSql, Type},
};

/// A queue this far from full isn't filled within [`FRESH`].
const FAR: i64 = 50_000;
/// How long nobody asks again how deep a queue is that is far from full.
const FRESH: Duration = Duration::from_millis(100);

/// A job that was checked.
#[derive(Debug)]
pub(super) struct NewRow {
    id: JobId,
    /// The producer chose the id.
    chosen: bool,
    headers: Option<String>,
    job: NewJob,
}

impl NewRow {
    /// About how many bytes it takes on the way.
    pub(super) fn bytes(&self) -> usize {
        self.job.payload.len() + self.headers.as_ref().map_or(0, String::len) + 256
    }
}

/// Checks a job and prepares what needs no server.
pub(super) fn prepare(mut job: NewJob, limits: &Limits) -> Result<NewRow> {
    job.validate(limits)?;
    let headers = (!job.headers.is_empty())
        .then(|| serde_json::to_string(&job.headers).map_err(|error| Error::invalid(error.to_string())))
        .transpose()?;
    let chosen = job.id.is_some();
    Ok(NewRow { id: job.id.take().unwrap_or_else(JobId::generate), chosen, headers, job })
}

/// What the server says of a job whose key somebody else holds.
const HELD: i32 = 5;

/// How deep queues were a moment ago, and which ones have no order.
#[derive(Debug, Default)]
pub(super) struct Depths {
    depths: Mutex<HashMap<QueueName, (Instant, i64, i64)>>,
    unordered: Mutex<HashSet<QueueName>>,
}

impl Depths {
    /// Whether the server has to look how deep a queue is.
    fn matters(&self, queue: &QueueName) -> bool {
        let depths = self.depths.lock().unwrap_or_else(PoisonError::into_inner);
        depths
            .get(queue)
            .is_none_or(|(at, depth, max)| at.elapsed() > FRESH || depth.saturating_add(FAR) > *max)
    }

    /// Another limit may hold from now on.
    pub(super) fn forget(&self, queue: &QueueName) {
        self.depths.lock().unwrap_or_else(PoisonError::into_inner).remove(queue);
        self.unordered.lock().unwrap_or_else(PoisonError::into_inner).remove(queue);
    }

    fn note(&self, queue: &QueueName, depth: i64, max: i64) {
        let mut depths = self.depths.lock().unwrap_or_else(PoisonError::into_inner);
        if depths.len() > 1024 {
            depths.retain(|_, (at, ..)| at.elapsed() < FRESH);
        }
        depths.insert(queue.clone(), (Instant::now(), depth, max));
    }

    /// Whether the order of jobs matters, as far as this driver knows.
    pub(super) fn is_unordered(&self, queue: &QueueName) -> bool {
        self.unordered.lock().unwrap_or_else(PoisonError::into_inner).contains(queue)
    }

    fn note_order(&self, queue: &QueueName, fifo: bool) {
        let mut unordered = self.unordered.lock().unwrap_or_else(PoisonError::into_inner);
        if fifo {
            unordered.remove(queue);
        } else if !unordered.contains(queue) {
            if unordered.len() > 1024 {
                unordered.clear();
            }
            unordered.insert(queue.clone());
        }
    }
}

/// A duration in the milliseconds of a column.
pub(super) fn millis(duration: Duration) -> i64 {
    // Half of the range, so that nothing overflows that adds to it.
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX).min(i64::MAX >> 2)
}

/// A duration that is only handed back.
fn kept(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// A delay in milliseconds, rounded up: instants are cut to milliseconds, and nothing may be early.
pub(super) fn delay(duration: Duration) -> i64 {
    if duration.is_zero() { 0 } else { millis(duration) + 1 }
}

/// Adds jobs in one statement.
pub(super) async fn run(shared: &Shared, queue: &QueueName, rows: &[NewRow]) -> Met<Enqueued> {
    let Some(answers) = send(shared, queue, rows).await? else {
        return Ok(rows.iter().map(|_| None).collect());
    };
    let read = |error: tokio_postgres::Error| error::of_statement(&error, Effect::Change);
    let mut refused: HashMap<usize, Option<Result<Enqueued>>> = HashMap::new();
    let (mut max_depth, mut added) = (0, 0);
    for row in &answers {
        let (code, ord): (i32, i64) = (row.try_get(0).map_err(read)?, row.try_get(1).map_err(read)?);
        if code == 0 {
            added = usize::try_from(ord).unwrap_or(0);
            max_depth = row.try_get(3).map_err(read)?;
            shared.depths.note_order(queue, row.try_get(4).map_err(read)?);
            if let Some(depth) = row.try_get(2).map_err(read)? {
                shared.depths.note(queue, depth, max_depth);
            }
            continue;
        }
        let at = usize::try_from(ord - 1).unwrap_or(usize::MAX);
        let Some(asked) = rows.get(at) else { continue };
        let answer = (code != HELD).then(|| refusal(row, code, asked, max_depth));
        refused.insert(at, answer);
    }
    let delayed = rows.iter().filter(|row| !row.job.delay.is_zero()).map(|row| row.job.delay).min();
    shared.upkeep.note(queue, delayed);
    if added > 0 {
        shared.wakes.tell_queue(queue);
    }
    // Those that the server says nothing else of are the ones it added, if it added as many.
    let all_told = added + refused.len() == rows.len();
    let answer = |(at, row): (usize, &NewRow)| {
        refused.remove(&at).unwrap_or_else(|| {
            Some(if all_told {
                Ok(Enqueued::Created { id: row.id.clone() })
            } else {
                Err(Error::new(ErrorKind::Ambiguous, "the server did not say which jobs it added"))
            })
        })
    };
    Ok(rows.iter().enumerate().map(answer).collect())
}

/// Why a job was not added.
fn refusal(row: &Row, code: i32, asked: &NewRow, max_depth: i64) -> Result<Enqueued> {
    let read = |error: tokio_postgres::Error| error::of_statement(&error, Effect::Change);
    match code {
        1 if row.try_get::<_, Option<bool>>(5).map_err(read)? != Some(true) => Err(Error::new(
            ErrorKind::Conflict,
            format!("job {} is known with another type or payload", asked.id),
        )),
        1 => {
            let state = inspect::state(row.try_get::<_, Option<i16>>(7).map_err(read)?).ok_or_else(|| {
                Error::new(ErrorKind::Fatal, "a known job has no state: its row is damaged")
            })?;
            let end = End::read(row, 8).map_err(read)?;
            Ok(Enqueued::Duplicate { id: asked.id.clone(), state, outcome: end.outcome(state) })
        }
        2 => {
            let text: Option<&str> = row.try_get(6).map_err(read)?;
            let outcome = text.and_then(|text| serde_json::from_str::<Outcome>(text).ok());
            // One that can't be read is an end all the same.
            let state = outcome.as_ref().map_or(JobState::Cancelled, Outcome::state);
            Ok(Enqueued::Duplicate { id: asked.id.clone(), state, outcome })
        }
        3 => {
            Err(Error::new(ErrorKind::Full, format!("the queue has its maximum of {max_depth} waiting jobs")))
        }
        _ => Err(Error::invalid("a job's orderingKey needs a queue whose ordering is Fifo")),
    }
}

fn column<'a, T>(rows: &'a [NewRow], value: impl Fn(&'a NewRow) -> T) -> Vec<T> {
    rows.iter().map(value).collect()
}

async fn send(shared: &Shared, queue: &QueueName, rows: &[NewRow]) -> Result<Option<Vec<Row>>> {
    let chosen = rows.iter().any(|row| row.chosen);
    let keyed = rows.iter().any(|row| row.job.ordering_key.is_some());
    let check = keyed || (shared.depths.matters(queue) && rows.iter().any(|row| row.job.notify.is_none()));
    let ids = column(rows, |row| row.id.as_str());
    let types = column(rows, |row| row.job.job_type.as_str());
    let keys = column(rows, |row| row.job.ordering_key.as_deref());
    let content_types = column(rows, |row| {
        (row.job.payload.content_type != JSON).then_some(row.job.payload.content_type.as_str())
    });
    let payloads = column(rows, |row| &row.job.payload.bytes[..]);
    let delays = column(rows, |row| delay(row.job.delay));
    let headers = column(rows, |row| row.headers.as_deref());
    let attempts = column(rows, |row| row.job.overrides.max_attempts.map(i64::from));
    let timeouts = column(rows, |row| row.job.overrides.timeout.map(kept));
    let addresses = column(rows, |row| row.job.notify.as_ref().map(|notify| notify.address.as_str()));
    let contexts = column(rows, |row| row.job.notify.as_ref().map(|notify| notify.context.as_bytes()));
    let params: [(&(dyn ToSql + Sync), Type); 15] = [
        (&queue.as_str(), Type::TEXT),
        (&chosen, Type::BOOL),
        (&keyed, Type::BOOL),
        (&check, Type::BOOL),
        (&ids, Type::TEXT_ARRAY),
        (&types, Type::TEXT_ARRAY),
        (&keys, Type::TEXT_ARRAY),
        (&content_types, Type::TEXT_ARRAY),
        (&payloads, Type::BYTEA_ARRAY),
        (&delays, Type::INT8_ARRAY),
        (&headers, Type::TEXT_ARRAY),
        (&attempts, Type::INT8_ARRAY),
        (&timeouts, Type::INT8_ARRAY),
        (&addresses, Type::TEXT_ARRAY),
        (&contexts, Type::BYTEA_ARRAY),
    ];
    shared.pool.try_call(Effect::Change, "enqueue_batch", &params).await
}

#[cfg(test)]
mod tests {
    use super::{super::text, *};

    #[test]
    fn delays_are_rounded_up() {
        assert_eq!(delay(Duration::ZERO), 0);
        assert_eq!(delay(Duration::from_micros(1)), 1);
        assert_eq!(delay(Duration::from_micros(1500)), 2);
        assert!(delay(Duration::MAX) < i64::MAX / 2);
    }

    #[test]
    fn texts_lose_only_what_the_server_cannot_hold() {
        assert_eq!(text("a\0b"), "a\u{FFFD}b");
        assert_eq!(text("ü"), "ü");
    }
}
