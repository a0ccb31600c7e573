//! Handing out jobs.

use super::{
    Shared,
    enqueue::millis,
    error::{self, Effect},
    settle,
};
use crate::{
    Address, Claimed, Error, Failure, JobId, Notify, Overrides, Payload, QueueName, Receipt, Result,
    Timestamp, job::JSON,
};
use bytes::Bytes;
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio_postgres::{
    Row,
    types::{ToSql, Type},
};

/// How long claims may leave earlier jobs out that were left over.
const SKIPS: Duration = Duration::from_secs(1);
/// A claim looks this far back behind the first job of the one before.
const BEHIND: i64 = 2000;
/// Characters of a worker's name.
const WORKER: usize = 200;
/// How often a claim looks again whose jobs could not be read.
const ROUNDS: usize = 20;

/// Claims that may share a statement.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Wanted {
    pub(super) queue: QueueName,
    pub(super) lease: Duration,
    pub(super) worker: String,
}

/// What came of the claim of one job.
#[derive(Debug)]
pub(super) enum Found {
    Job(Box<Claimed>),
    /// There is none, and there will be none by itself for this long, as far as the server knows.
    Nothing(Option<Duration>),
}

/// Where claims begin to look, for jobs and for leases that ended. Both leave dead entries at the beginning of their index
/// until the oldest transaction of the server ends, and a claim that walks over all of them gets slower and slower. So the
/// next one begins where the one before found something, or looked, for a second; then one looks from the beginning again.
#[derive(Debug, Default)]
pub(super) struct Floors(Mutex<HashMap<QueueName, (Instant, i64)>>);

impl Floors {
    fn of(&self, queue: &QueueName) -> i64 {
        let floors = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        floors.get(queue).filter(|(since, _)| since.elapsed() < SKIPS).map_or(i64::MIN, |(_, floor)| *floor)
    }

    /// A claim that got all it wanted found its first job here.
    fn found(&self, queue: &QueueName, first: i64) {
        let mut floors = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if floors.len() > 1024 {
            floors.retain(|_, (since, _)| since.elapsed() < SKIPS);
        }
        let floor = first.saturating_sub(BEHIND);
        match floors.get_mut(queue) {
            Some((since, known)) if since.elapsed() < SKIPS => *known = floor.max(*known),
            _ => drop(floors.insert(queue.clone(), (Instant::now(), floor))),
        }
    }

    fn forget(&self, queue: &QueueName) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(queue);
    }
}

/// The name of a worker as it is stored.
pub(super) fn worker(name: &str) -> String {
    super::text(name).chars().take(WORKER).collect()
}

/// A receipt: the job's number and the token of its claim.
fn receipt(seq: i64, token: i64) -> Receipt {
    Receipt(format!("{seq}-{token}"))
}

/// The number and the token in a receipt of this driver.
pub(super) fn parse_receipt(receipt: &Receipt) -> Option<(i64, i64)> {
    let (seq, token) = receipt.0.split_once('-')?;
    Some((seq.parse().ok()?, token.parse().ok()?))
}

/// Leases up to `max` jobs; one answer per job asked for. Jobs that can't be read are dead from then on, and others come
/// instead.
pub(super) async fn run(shared: &Shared, wanted: &Wanted, max: usize) -> Result<Vec<Found>> {
    let mut found = Vec::with_capacity(max);
    let mut quiet = None;
    for _ in 0..ROUNDS {
        let mut floor = shared.floors.of(&wanted.queue);
        let mut batch = send(shared, wanted, max, floor).await?;
        if batch.jobs.is_empty() && floor > i64::MIN {
            shared.floors.forget(&wanted.queue);
            floor = i64::MIN;
            batch = send(shared, wanted, max, floor).await?;
        }
        if batch.jobs.len() < max {
            shared.floors.forget(&wanted.queue);
        } else if let Some(Ok(first)) = batch.jobs.first() {
            shared.floors.found(&wanted.queue, first.ready_at.as_millis());
        }
        quiet = batch.quiet;
        let unreadable = bury(shared, wanted, &mut batch.jobs).await;
        found.extend(batch.jobs.into_iter().filter_map(Result::ok).map(|job| Found::Job(Box::new(job))));
        if !unreadable || !found.is_empty() {
            break;
        }
    }
    let due = (!found.is_empty()).then_some(wanted.lease + Duration::from_millis(1));
    shared.upkeep.note(&wanted.queue, due);
    while found.len() < max {
        found.push(Found::Nothing(quiet));
    }
    Ok(found)
}

/// A job that can't be read, with the receipt under which it is leased.
struct Unreadable {
    receipt: Receipt,
    error: Error,
}

struct Batch {
    jobs: Vec<Result<Claimed, Unreadable>>,
    quiet: Option<Duration>,
}

async fn send(shared: &Shared, wanted: &Wanted, max: usize, floor: i64) -> Result<Batch> {
    let max = i32::try_from(max).unwrap_or(i32::MAX);
    let lease = millis(wanted.lease);
    let since = shared.looks.of(&wanted.queue);
    let params: [(&(dyn ToSql + Sync), Type); 6] = [
        (&wanted.queue.as_str(), Type::TEXT),
        (&max, Type::INT4),
        (&lease, Type::INT8),
        (&wanted.worker, Type::TEXT),
        (&floor, Type::INT8),
        (&since, Type::INT8),
    ];
    let rows = shared.pool.call(Effect::Change, "claim", &params).await?;
    let read = |error: tokio_postgres::Error| error::of_statement(&error, Effect::Change);
    // What belongs to all of them stands in the last row.
    let Some((last, rows)) = rows.split_last() else {
        return Err(Error::new(crate::ErrorKind::Fatal, "a claim was answered with nothing"));
    };
    let now: i64 = last.try_get(18).map_err(read)?;
    let next: Option<i64> = last.try_get(19).map_err(read)?;
    if since == i64::MIN {
        shared.looks.found(&wanted.queue, now);
    }
    if last.try_get::<_, Option<bool>>(20).map_err(read)? == Some(true) {
        shared.wakes.tell_queue(&wanted.queue);
    }
    shared.tell(last.try_get::<_, Option<Vec<String>>>(21).map_err(read)?.as_deref());
    let lease_until = Timestamp::from_millis(now).after(wanted.lease);
    let jobs = rows.iter().map(|row| decode(row, lease_until)).collect();
    let quiet = next.map(|next| Duration::from_millis(u64::try_from(next - now).unwrap_or(0)));
    Ok(Batch { jobs, quiet })
}

/// Puts jobs away that can't be read; whether there were any.
async fn bury(shared: &Shared, wanted: &Wanted, jobs: &mut Vec<Result<Claimed, Unreadable>>) -> bool {
    let (readable, broken): (Vec<_>, Vec<_>) = std::mem::take(jobs).into_iter().partition(Result::is_ok);
    *jobs = readable;
    let broken: Vec<_> = broken.into_iter().filter_map(Result::err).collect();
    if broken.is_empty() {
        return false;
    }
    let ends = broken.iter().map(|broken| {
        tracing::warn!(queue = %wanted.queue, error = %broken.error, "a job that can't be read is dead");
        settle::unreadable(&broken.receipt, &broken.error)
    });
    if let Err(error) = settle::insist(shared, &wanted.queue, ends.flatten().collect()).await {
        tracing::warn!(%error, "jobs that can't be read stay leased for now");
    }
    true
}

fn decode(row: &Row, lease_until: Timestamp) -> Result<Claimed, Unreadable> {
    let numbers = || -> Result<_, tokio_postgres::Error> { Ok((row.try_get(0)?, row.try_get(1)?)) };
    let (seq, token): (i64, i64) = numbers().unwrap_or_default();
    let receipt = receipt(seq, token);
    columns(row, receipt.clone(), lease_until).map_err(|error| Unreadable { receipt, error })
}

fn columns(row: &Row, receipt: Receipt, lease_until: Timestamp) -> Result<Claimed> {
    let read = |error: tokio_postgres::Error| Error::invalid(format!("its row is damaged: {error}"));
    let count = |value: Option<i64>| value.map(|value| u32::try_from(value).unwrap_or(u32::MAX));
    let number = |value: i32| u32::try_from(value).unwrap_or(0);
    let headers = match row.try_get::<_, Option<&str>>(8).map_err(read)? {
        Some(text) => serde_json::from_str(text)
            .map_err(|error| Error::invalid(format!("its headers are damaged: {error}")))?,
        None => std::collections::BTreeMap::new(),
    };
    let notify = match row.try_get::<_, Option<&str>>(16).map_err(read)? {
        Some(address) => Some(Notify { address: Address::new(address)?, context: context(row, 17)? }),
        None => None,
    };
    let reason: Option<String> = row.try_get(14).map_err(read)?;
    let message: Option<String> = row.try_get(15).map_err(read)?;
    Ok(Claimed {
        id: JobId::new(row.try_get::<_, &str>(2).map_err(read)?)?,
        receipt,
        job_type: row.try_get(3).map_err(read)?,
        payload: Payload {
            content_type: row.try_get::<_, Option<&str>>(4).map_err(read)?.unwrap_or(JSON).to_owned(),
            bytes: Bytes::copy_from_slice(row.try_get(5).map_err(read)?),
        },
        overrides: Overrides {
            max_attempts: count(row.try_get(6).map_err(read)?),
            timeout: row
                .try_get::<_, Option<i64>>(7)
                .map_err(read)?
                .map(|millis| Duration::from_millis(millis.unsigned_abs())),
        },
        headers,
        ordering_key: row.try_get(9).map_err(read)?,
        attempt: number(row.try_get(10).map_err(read)?).saturating_add(1),
        delivery: number(row.try_get(11).map_err(read)?),
        enqueued_at: Timestamp::from_millis(row.try_get(12).map_err(read)?),
        ready_at: Timestamp::from_millis(row.try_get(13).map_err(read)?),
        lease_until,
        last_failure: reason.map(|reason| Failure { reason, message: message.unwrap_or_default() }),
        notify,
    })
}

/// The text of a completion's context.
pub(super) fn context(row: &Row, at: usize) -> Result<String> {
    let bytes: Option<&[u8]> =
        row.try_get(at).map_err(|error| Error::invalid(format!("its row is damaged: {error}")))?;
    String::from_utf8(bytes.unwrap_or_default().to_vec())
        .map_err(|_| Error::invalid("the context of its notification is damaged"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receipts_come_back_as_they_went() {
        for (seq, token) in [(1, 0), (i64::MAX, i64::MAX)] {
            assert_eq!(parse_receipt(&receipt(seq, token)), Some((seq, token)));
        }
        for bad in ["", "1", "1-x", "x-1", "-", "1-2-3"] {
            assert_eq!(parse_receipt(&Receipt(bad.into())), None, "{bad:?}");
        }
    }

    #[test]
    fn claims_look_from_the_beginning_again_after_a_second() {
        let (floors, queue) = (Floors::default(), "q".parse().unwrap());
        assert_eq!(floors.of(&queue), i64::MIN);
        floors.found(&queue, 10_000);
        assert_eq!(floors.of(&queue), 8000);
        // A later find doesn't make the second any longer.
        let since = floors.0.lock().unwrap()[&queue].0;
        floors.found(&queue, 11_000);
        assert_eq!(floors.0.lock().unwrap()[&queue], (since, 9000));
        floors.forget(&queue);
        assert_eq!(floors.of(&queue), i64::MIN);
    }
}
