//! The stream of completions of one address.

use super::{
    command::Answer,
    state::PINNED,
    storage::{self, Sql, column},
    transition::{Job, Tx},
};
use crate::{
    Address, Completion, CompletionPage, CompletionReceipt, JobId, Limits, Outcome, QueueName,
    ReadCompletions, Result, Timestamp,
};
use rusqlite::{Connection, OptionalExtension, Row, params};
use std::time::Duration;

/// Marks a completion that can't be read. It is put aside until the broker is opened again, perhaps a newer one.
const PARKED: i64 = i64::MAX;

/// The statements of reading. A completion that nobody holds has a lease that ended at 0.
pub(super) const READABLE: &str = "SELECT id, queue, job, outcome, settled_at, context, delivery \
    FROM completions WHERE address = ?1 AND leased_until = 0 ORDER BY id LIMIT ?2";
pub(super) const UNACKNOWLEDGED: &str = "SELECT outcome FROM completions WHERE queue = ?1 AND job = ?2";
pub(super) const END_LEASES: &str =
    "UPDATE completions SET leased_until = 0 WHERE address = ?1 AND leased_until BETWEEN 1 AND ?2";
pub(super) const NEXT_LEASE_END: &str =
    "SELECT min(leased_until) FROM completions WHERE address = ?1 AND leased_until BETWEEN 1 AND ?2 - 1";

/// Tries the completions again that were put aside.
pub(super) fn unpark(db: &Connection) -> Sql<()> {
    db.execute("UPDATE completions SET leased_until = 0 WHERE leased_until = 9223372036854775807", ())?;
    Ok(())
}

impl Tx<'_> {
    /// Leases completions to a reader.
    pub(super) fn read_completions(
        &mut self,
        address: &Address,
        read: &ReadCompletions,
    ) -> Sql<CompletionPage> {
        let lease_until = self.now.after(read.lease).as_millis();
        self.end_leases(address)?;
        let mut completions = Vec::new();
        for (id, completion) in self.readable(address, (read.max as usize).min(Limits::BATCH))? {
            let until = match completion {
                Ok(completion) => {
                    completions.push(completion);
                    lease_until
                }
                Err(error) => {
                    tracing::warn!(completion = id, %error, "a completion that can't be read is put aside");
                    self.state.completion_removed(address);
                    PARKED
                }
            };
            self.db
                .prepare_cached(
                    "UPDATE completions SET leased_until = ?1, delivery = min(delivery, 4294967295) + 1 WHERE id = ?2",
                )?
                .execute(params![until, id])?;
        }
        // Only when all are leased does it matter when the first comes back: then there are few.
        let next =
            if completions.is_empty() { self.next_lease_end(address)? } else { Some(self.now.as_millis()) };
        self.state.readable.set(address, next);
        let caught_up = self.state.completions(address) == completions.len() as u64;
        Ok(CompletionPage { completions, caught_up })
    }

    fn next_lease_end(&self, address: &Address) -> Sql<Option<i64>> {
        self.db.prepare_cached(NEXT_LEASE_END)?.query_row(params![address.as_str(), PARKED], |row| row.get(0))
    }

    /// Completions whose lease ended stand among those that nobody read, in the order of their settles: so a read finds
    /// what it wants at once, however much is under a lease.
    fn end_leases(&self, address: &Address) -> Sql<()> {
        self.db.prepare_cached(END_LEASES)?.execute(params![address.as_str(), self.now.as_millis()])?;
        Ok(())
    }

    fn readable(&self, address: &Address, max: usize) -> Sql<Vec<(i64, Result<Completion>)>> {
        self.db
            .prepare_cached(READABLE)?
            .query_map(params![address.as_str(), column(max)], |row| Ok((row.get(0)?, decode(row)?)))?
            .collect()
    }

    pub(super) fn acknowledge(
        &mut self,
        address: &Address,
        receipts: &[CompletionReceipt],
    ) -> Sql<Result<Answer>> {
        for receipt in receipts {
            // Whoever read it may acknowledge it, also after its lease: it was handed out, and it is known now.
            let Some(id) = receipt.0.parse::<i64>().ok() else {
                continue;
            };
            let job: Option<(i64, i64)> = self
                .db
                .prepare_cached(
                    "DELETE FROM completions WHERE id = ?1 AND address = ?2 RETURNING job_seq, leased_until",
                )?
                .query_row(params![id, address.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            if let Some((seq, leased_until)) = job {
                if leased_until != PARKED {
                    self.state.completion_removed(address);
                }
                self.let_go(seq)?;
            }
        }
        Ok(Ok(Answer::Done))
    }

    pub(super) fn unpin(&mut self, queue: &QueueName, ids: &[JobId]) -> Sql<Result<Answer>> {
        let Some(queue) = self.state.find(queue) else {
            return Ok(Ok(Answer::Done));
        };
        for id in ids {
            let seq: Option<i64> = self
                .db
                .prepare_cached(
                    "UPDATE jobs SET unpinned = 1 WHERE queue = ?1 AND id = ?2 AND notify = 1 RETURNING seq",
                )?
                .query_row(params![queue, id.as_str()], |row| row.get(0))
                .optional()?;
            if let Some(seq) = seq {
                self.let_go(seq)?;
            }
        }
        Ok(Ok(Answer::Done))
    }

    /// Retention of a finished job begins when its last completion is acknowledged and it is unpinned.
    fn let_go(&mut self, seq: i64) -> Sql<()> {
        let Some(job) = self.job_by_seq(seq)? else {
            return Ok(());
        };
        if !job.state.is_terminal() || job.at < PINNED || !job.unpinned {
            return Ok(());
        }
        // A queue whose name can't be read was left out, and its jobs with it.
        let Some(queue) = self.state.queue(job.queue) else {
            return Ok(());
        };
        if self.unacknowledged(queue.name.as_str(), &job.id)?.is_some() {
            return Ok(());
        }
        self.age(&job)
    }

    /// The outcome of a job of the queue that is or was called `queue`, if somebody has still to acknowledge it.
    pub(super) fn unacknowledged(&self, queue: &str, job: &str) -> Sql<Option<String>> {
        self.db
            .prepare_cached(UNACKNOWLEDGED)?
            .query_row(params![queue, job], |row| storage::text(row, 0))
            .optional()
    }

    /// Retention of a job that was pinned begins.
    pub(super) fn age(&mut self, job: &Job) -> Sql<()> {
        self.db
            .prepare_cached("UPDATE jobs SET at = ?1 WHERE seq = ?2")?
            .execute(params![self.now.as_millis(), job.seq])?;
        let retention =
            self.state.queue(job.queue).map_or(Duration::ZERO, |queue| queue.retention(job.state));
        self.state.sweep_at(job.queue, self.now.after(retention).as_millis());
        Ok(())
    }
}

/// The row's columns have their types; what stands in them may still make no sense.
fn decode(row: &Row<'_>) -> Sql<Result<Completion>> {
    let id: i64 = row.get(0)?;
    let (queue, job, outcome) = (storage::text(row, 1)?, storage::text(row, 2)?, storage::text(row, 3)?);
    let settled_at = Timestamp::from_millis(row.get(4)?);
    let context: Sql<String> = row.get(5);
    let delivery = storage::count(row.get(6)?).saturating_add(1);
    let parsed = move || -> Result<_> {
        let queue =
            queue.parse().map_err(|error: crate::QueueNameError| crate::Error::invalid(error.to_string()))?;
        let outcome: Outcome =
            serde_json::from_str(&outcome).map_err(|error| crate::Error::invalid(error.to_string()))?;
        // Only whoever wrote it can tell what it means, so it is handed back unchanged or not at all.
        let context = context.map_err(|error| crate::Error::invalid(error.to_string()))?;
        Ok((queue, JobId::new(job.as_str())?, outcome, context))
    };
    Ok(parsed().map(|(queue, job, outcome, context)| Completion {
        receipt: CompletionReceipt(id.to_string()),
        queue,
        job,
        outcome,
        settled_at,
        context,
        delivery,
    }))
}
