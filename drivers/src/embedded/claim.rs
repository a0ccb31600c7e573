//! Handing out jobs, and taking them back when nobody received them.

use super::{
    ordering,
    state::QueueId,
    storage::{self, Sql, code, column},
    transition::{End, Job, Tx},
};
use crate::{
    Address, Claim, Claimed, DeadReason, Failure, JobId, JobState, Limits, Notify, Overrides, Payload,
    Receipt, Result, Timestamp,
};
use bytes::Bytes;
use rusqlite::{Connection, Row, params, types::ValueRef};
use std::time::Duration;

/// Payload bytes in one answer; the first job always fits.
const ANSWER_BYTES: usize = 16 * 1024 * 1024;

/// The jobs that have been ready longest. The outer join keeps a job without a body in sight, and the order of the loops.
pub(super) const READY: &str = "SELECT jobs.seq, at, deliveries, payload, id, type, attempts, enqueued_at, \
    failure_reason, failure_message, content_type, headers, max_attempts, timeout, notify_address, notify_context, \
    ordering_key FROM jobs LEFT JOIN bodies ON bodies.seq = jobs.seq \
    WHERE queue = ?1 AND state = ?2 ORDER BY at, jobs.seq LIMIT ?3";

/// What one pass may still hand out, so that claims neither keep settles waiting for long nor fill the memory.
#[derive(Debug)]
pub(super) struct Budget {
    jobs: usize,
    bytes: usize,
}

impl Budget {
    /// The budget of a whole pass.
    pub(super) const fn whole() -> Self {
        Self { jobs: 4000, bytes: 32 * 1024 * 1024 }
    }

    pub(super) const fn is_spent(&self) -> bool {
        self.jobs == 0 || self.bytes == 0
    }

    const fn spend(&mut self, bytes: usize) {
        self.jobs = self.jobs.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// A receipt: the job's number and the token of its claim.
pub(super) fn receipt(seq: i64, token: i64) -> Receipt {
    Receipt(format!("{seq}-{:016x}", token.cast_unsigned()))
}

/// The number and the token in a receipt of this broker.
pub(super) fn parse_receipt(receipt: &Receipt) -> Option<(i64, i64)> {
    let (seq, token) = receipt.0.split_once('-')?;
    let token = u64::from_str_radix(token, 16).ok()?;
    Some((seq.parse().ok()?, token.cast_signed()))
}

/// A ready job, read but not yet claimed.
struct Ready {
    seq: i64,
    at: i64,
    deliveries: u32,
    /// `Err` when the row makes no sense.
    job: Result<Claimed>,
}

impl Ready {
    /// Payload bytes in memory, whatever the row says.
    fn bytes(&self) -> usize {
        self.job.as_ref().map_or(0, |job| job.payload.len())
    }
}

impl Tx<'_> {
    /// Leases the jobs of `queue` that have been ready longest. None only if there is none, or the budget is spent.
    pub(super) fn claim(&mut self, queue: QueueId, claim: &Claim, budget: &mut Budget) -> Sql<Vec<Claimed>> {
        let mut claimed = Vec::new();
        // Rows that can't be read go out of the way; behind them there may be others.
        while claimed.is_empty() && !budget.is_spent() {
            let ready = self.ready(queue, claim.max as usize, budget)?;
            if ready.is_empty() {
                break;
            }
            self.lease(queue, claim, ready, &mut claimed, budget)?;
        }
        Ok(claimed)
    }

    fn lease(
        &mut self,
        queue: QueueId,
        claim: &Claim,
        found: Vec<Ready>,
        claimed: &mut Vec<Claimed>,
        budget: &mut Budget,
    ) -> Sql<()> {
        let lease_until = self.now.after(claim.lease);
        let worker: String = claim.worker.chars().take(Limits::JOB_ID).collect();
        for ready in found {
            budget.spend(ready.bytes());
            let job = match ready.job {
                Ok(job) => job,
                Err(error) => {
                    tracing::warn!(job = ready.seq, %error, "a job that can't be read is dead");
                    self.bury_unreadable(ready.seq, &error)?;
                    continue;
                }
            };
            let token = self.state.token(ready.seq);
            self.db
                .prepare_cached(
                    "UPDATE jobs SET state = ?1, at = ?2, token = ?3, claimed_at = ?4, worker = ?5, deliveries = ?6 \
                     WHERE seq = ?7",
                )?
                .execute(params![
                    code(JobState::Active),
                    lease_until.as_millis(),
                    token,
                    self.now.as_millis(),
                    worker,
                    ready.deliveries.saturating_add(1),
                    ready.seq,
                ])?;
            self.state.moved(queue, Some(JobState::Ready), Some(JobState::Active));
            claimed.push(Claimed {
                receipt: receipt(ready.seq, token),
                ready_at: Timestamp::from_millis(ready.at),
                lease_until,
                ..job
            });
        }
        self.state.due.lower(&queue, lease_until.as_millis());
        Ok(())
    }

    fn ready(&self, queue: QueueId, max: usize, budget: &Budget) -> Sql<Vec<Ready>> {
        let fifo = self.known(queue).is_fifo();
        let mut statement = self.db.prepare_cached(READY)?;
        let max = max.min(Limits::BATCH).min(budget.jobs);
        let limit = ANSWER_BYTES.min(budget.bytes);
        let mut rows = statement.query(params![queue, code(JobState::Ready), column(max)])?;
        let mut found: Vec<Ready> = Vec::new();
        let mut bytes = 0;
        while let Some(row) = rows.next()? {
            let mut ready = read(row)?;
            if fifo && row.get_ref(16)? == ValueRef::Null {
                ready.job = Err(ordering::no_key());
            }
            bytes += ready.bytes();
            if bytes > limit && !found.is_empty() {
                break;
            }
            found.push(ready);
        }
        Ok(found)
    }

    /// A job that nobody can be given would be found again and again.
    pub(super) fn bury_unreadable(&mut self, seq: i64, error: &crate::Error) -> Sql<()> {
        let Some(job) = self.job_by_seq(seq)? else {
            return Ok(());
        };
        let failure = Failure::new("Unreadable", error.message.as_str());
        self.finish(&job, job.attempts, job.lost, &End::Dead(DeadReason::Quarantined, &failure))
    }

    /// Takes jobs back that nobody received, as if they had never been handed out.
    pub(super) fn unclaim(&mut self, receipts: &[Receipt]) -> Sql<()> {
        for receipt in receipts {
            let Some(job) = self.held(None, receipt)? else {
                continue;
            };
            self.db
                .prepare_cached(
                    "UPDATE jobs SET state = ?1, at = due_at, token = NULL, deliveries = deliveries - 1 WHERE seq = ?2",
                )?
                .execute(params![code(JobState::Ready), job.seq])?;
            self.state.moved(job.queue, Some(job.state), Some(JobState::Ready));
            if job.cancel_requested {
                let job = Job { state: JobState::Ready, ..job };
                self.finish(&job, job.attempts, job.lost, &End::Cancelled)?;
            }
        }
        Ok(())
    }

    /// The job that `receipt` holds: claimed with it, of this queue, and its lease has not ended.
    ///
    /// A lease that ended is over even if nobody else has the job yet: who may settle is a matter of the clock alone.
    pub(super) fn held(&self, queue: Option<QueueId>, receipt: &Receipt) -> Sql<Option<Job>> {
        let Some((seq, token)) = parse_receipt(receipt) else {
            return Ok(None);
        };
        let job = self.job_by_seq(seq)?;
        Ok(job.filter(|job| {
            job.state == JobState::Active
                && job.token == Some(token)
                && job.at > self.now.as_millis()
                && queue.is_none_or(|queue| queue == job.queue)
        }))
    }
}

/// Has leases hold until `until` at least. Called before anything is handed out.
pub(super) fn lengthen_leases(db: &Connection, until: Timestamp) -> Sql<()> {
    db.execute(
        "UPDATE jobs SET at = ?1 WHERE state = ?2 AND at < ?1",
        params![until.as_millis(), code(JobState::Active)],
    )?;
    Ok(())
}

fn read(row: &Row<'_>) -> Sql<Ready> {
    Ok(Ready { seq: row.get(0)?, at: row.get(1)?, deliveries: storage::count(row.get(2)?), job: decode(row) })
}

fn decode(row: &Row<'_>) -> Result<Claimed> {
    let unreadable = |error: rusqlite::Error| crate::Error::invalid(error.to_string());
    let columns = || -> Sql<_> {
        let failure_reason: Option<String> = row.get(8)?;
        let failure_message: Option<String> = row.get(9)?;
        let claimed = Claimed {
            id: JobId::generate(),
            receipt: Receipt(String::new()),
            job_type: row.get(5)?,
            payload: Payload {
                content_type: row.get(10)?,
                bytes: Bytes::copy_from_slice(row.get_ref(3)?.as_blob()?),
            },
            overrides: Overrides {
                max_attempts: row.get(12)?,
                timeout: row
                    .get::<_, Option<i64>>(13)?
                    .map(|millis| Duration::from_millis(millis.unsigned_abs())),
            },
            headers: std::collections::BTreeMap::new(),
            ordering_key: row.get::<_, Option<String>>(16)?.filter(|key| !key.is_empty()),
            attempt: storage::count(row.get(6)?).saturating_add(1),
            delivery: storage::count(row.get(2)?).saturating_add(1),
            enqueued_at: Timestamp::from_millis(row.get(7)?),
            ready_at: Timestamp::default(),
            lease_until: Timestamp::default(),
            last_failure: failure_reason
                .map(|reason| Failure { reason, message: failure_message.unwrap_or_default() }),
            notify: None,
        };
        let id: String = row.get(4)?;
        let headers: Option<String> = row.get(11)?;
        let address: Option<String> = row.get(14)?;
        let context: Option<String> = row.get(15)?;
        Ok((claimed, id, headers, address, context))
    };
    let (claimed, id, headers, address, context) = columns().map_err(unreadable)?;
    let headers = match headers {
        Some(text) => serde_json::from_str(&text)
            .map_err(|error| crate::Error::invalid(format!("its headers are damaged: {error}")))?,
        None => std::collections::BTreeMap::new(),
    };
    let notify = match address {
        Some(address) => {
            Some(Notify { address: Address::new(address)?, context: context.unwrap_or_default() })
        }
        None => None,
    };
    Ok(Claimed { id: JobId::new(id)?, headers, notify, ..claimed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receipts_come_back_as_they_went() {
        for (seq, token) in [(1, 0), (i64::MAX, -1), (7, i64::MIN)] {
            assert_eq!(parse_receipt(&receipt(seq, token)), Some((seq, token)));
        }
        for bad in ["", "1", "1-x", "x-1", "-", "1-00-1"] {
            assert_eq!(parse_receipt(&Receipt(bad.into())), None, "{bad:?}");
        }
    }
}
