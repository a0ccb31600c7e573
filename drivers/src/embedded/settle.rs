//! Ending claims and making them longer.

use super::{
    command::Answer,
    state::QueueId,
    storage::{Sql, bounded},
    transition::{End, Job, Tx},
};
use crate::{
    Error, Extension, Failure, JobState, Limits, Payload, QueueName, Receipt, Result, Settle, Settlement,
    Timestamp,
};
use rusqlite::params;
use std::time::Duration;

impl Tx<'_> {
    pub(super) fn settle(&mut self, queue: &QueueName, settlements: &[Settlement]) -> Sql<Result<Answer>> {
        let queue = match self.queue(queue) {
            Ok(queue) => queue,
            Err(error) => return Ok(Err(error)),
        };
        let answers =
            settlements.iter().map(|settlement| self.settle_one(queue, settlement)).collect::<Sql<_>>()?;
        Ok(Ok(Answer::Settled(answers)))
    }

    fn settle_one(&mut self, queue: QueueId, settlement: &Settlement) -> Sql<Result<()>> {
        let Settlement { receipt, settle } = settlement;
        if let Err(error) = check(settle) {
            return Ok(Err(error));
        }
        let Some(job) = self.held(Some(queue), receipt)? else {
            return Ok(Err(Error::stale(receipt)));
        };
        if !matches!(settle, Settle::Release { .. }) {
            let claimed_at = Timestamp::from_millis(job.claimed_at.unwrap_or(self.now.as_millis()));
            self.state.served(queue, self.now.since(claimed_at));
        }
        match settle {
            Settle::Succeed { result } => {
                self.finish(&job, job.attempts.saturating_add(1), job.lost, &End::Succeeded(result.as_ref()))
            }
            Settle::Bury { reason, failure } => self.finish(
                &job,
                job.attempts.saturating_add(1),
                job.lost,
                &End::Dead(*reason, &bounded(failure)),
            ),
            Settle::Retry { failure, .. } if job.cancel_requested => {
                self.note(&job, failure)?;
                self.finish(&job, job.attempts.saturating_add(1), job.lost, &End::Cancelled)
            }
            Settle::Release { .. } if job.cancel_requested => {
                self.finish(&job, job.attempts, job.lost, &End::Cancelled)
            }
            Settle::Retry { delay, failure } => self.retry(&job, *delay, failure),
            Settle::Release { delay } => self.release(&job, *delay),
        }?;
        Ok(Ok(()))
    }

    fn retry(&mut self, job: &Job, delay: Duration, failure: &Failure) -> Sql<()> {
        self.note(job, failure)?;
        let again = Job { attempts: job.attempts.saturating_add(1), ..job.clone() };
        self.wait(&again, self.due(delay), JobState::Retrying)
    }

    fn release(&mut self, job: &Job, delay: Duration) -> Sql<()> {
        let later = if job.attempts == 0 { JobState::Scheduled } else { JobState::Retrying };
        self.wait(job, self.due(delay), later)
    }

    fn note(&self, job: &Job, failure: &Failure) -> Sql<()> {
        let failure = bounded(failure);
        self.db
            .prepare_cached("UPDATE jobs SET failure_reason = ?1, failure_message = ?2 WHERE seq = ?3")?
            .execute(params![failure.reason, failure.message, job.seq])?;
        Ok(())
    }

    pub(super) fn extend(
        &mut self,
        queue: &QueueName,
        receipts: &[Receipt],
        lease: Duration,
    ) -> Sql<Result<Answer>> {
        let queue = match self.queue(queue) {
            Ok(queue) => queue,
            Err(error) => return Ok(Err(error)),
        };
        let lease_until = self.now.after(lease);
        let mut answers = Vec::with_capacity(receipts.len());
        for receipt in receipts {
            let Some(job) = self.held(Some(queue), receipt)? else {
                answers.push(Err(Error::stale(receipt)));
                continue;
            };
            self.db
                .prepare_cached("UPDATE jobs SET at = ?1 WHERE seq = ?2")?
                .execute(params![lease_until.as_millis(), job.seq])?;
            answers.push(Ok(Extension { lease_until, cancel_requested: job.cancel_requested }));
        }
        self.state.due.lower(&queue, lease_until.as_millis());
        Ok(Ok(Answer::Extended(answers)))
    }
}

fn check(settle: &Settle) -> Result<()> {
    match settle {
        Settle::Succeed { result } => result.as_ref().map_or(Ok(()), check_result),
        Settle::Retry { delay, .. } | Settle::Release { delay } if *delay > Limits::MAX_DELAY => {
            Err(Error::invalid("a job can be delayed by 366 days at most"))
        }
        Settle::Retry { .. } | Settle::Release { .. } | Settle::Bury { .. } => Ok(()),
    }
}

fn check_result(result: &Payload) -> Result<()> {
    crate::job::check_payload("result", result, Limits::default().max_result)
}
