//! What happens by itself: due jobs become ready, leases end, old jobs are forgotten, deleted queues go.
//!
//! Every pass does a bounded part, so that a hundred thousand jobs that are due at once don't hold up anybody.

use super::{
    state::QueueId,
    storage::{Sql, code},
    transition::{End, Job, Tx},
};
use crate::{DeadReason, Failure, JobState, Limits};
use rusqlite::params;

/// Jobs that one pass moves, of each kind.
const PASS: usize = 1000;
/// How long a queue's timers rest after they failed.
const REST: i64 = 1000;
/// Pages that one pass gives back to the file system.
const VACUUM_PAGES: i64 = 512;

/// What a pass did beside its changes.
#[derive(Debug, Default)]
pub(super) struct Pass {
    /// Queues of which nothing is left.
    pub(super) removed: Vec<QueueId>,
}

impl Tx<'_> {
    /// Does a bounded part of what is due.
    pub(super) fn pass(&mut self) -> Sql<Pass> {
        let (now, later) = (self.now.as_millis(), self.now.as_millis().saturating_add(REST));
        let mut budget = PASS;
        for queue in self.state.due.due(now) {
            if !self.step(queue, "wake", &mut budget, Self::wake_queue)? {
                self.state.due.set(&queue, Some(later));
            }
        }
        let mut budget = PASS;
        let sweeps = self.state.sweeps.due(now);
        let swept = !sweeps.is_empty();
        for queue in sweeps {
            if !self.step(queue, "sweep", &mut budget, Self::sweep_queue)? {
                self.state.sweeps.set(&queue, Some(later));
            }
        }
        let mut budget = PASS;
        for queue in self.state.walks.due(now) {
            if !self.step(queue, "walk", &mut budget, Self::walk_lines)? {
                self.state.walked.remove(&queue);
                self.state.walks.set(&queue, Some(later));
            }
        }
        let mut pass = Pass::default();
        if let Some(queue) = self.state.removals.due(now).first().copied() {
            let removed = &mut pass.removed;
            let mut whole = PASS;
            let dismantle = |tx: &mut Tx<'_>, queue, _: &mut usize| tx.dismantle_queue(queue, removed);
            if !self.step(queue, "remove", &mut whole, dismantle)? {
                self.state.removals.set(&queue, Some(later));
            }
        }
        if swept && budget > 0 {
            self.vacuum()?;
        }
        Ok(pass)
    }

    /// Does one queue's part. One that fails is skipped, and must not hold up the others; `false` tells so.
    fn step(
        &mut self,
        queue: QueueId,
        what: &'static str,
        budget: &mut usize,
        work: impl FnOnce(&mut Self, QueueId, &mut usize) -> Sql<()>,
    ) -> Sql<bool> {
        if *budget == 0 {
            return Ok(true);
        }
        let done = self.part(|tx| work(tx, queue, budget))?;
        if let Err(error) = &done {
            tracing::error!(queue, what, %error, "the timers of a queue fail; the others go on");
        }
        Ok(done.is_ok())
    }

    fn dismantle_queue(&mut self, queue: QueueId, removed: &mut Vec<QueueId>) -> Sql<()> {
        // Its deletion may have been rolled back.
        if self.state.queue(queue).is_none_or(|queue| !queue.deleting) {
            self.state.removals.set(&queue, None);
            return Ok(());
        }
        if self.dismantle(queue, PASS)? {
            self.state.due.set(&queue, None);
            self.state.sweeps.set(&queue, None);
            self.state.removals.set(&queue, None);
            removed.push(queue);
        }
        Ok(())
    }

    fn wake_queue(&mut self, queue: QueueId, budget: &mut usize) -> Sql<()> {
        let now = self.now.as_millis();
        if self.state.queue(queue).is_none_or(|queue| queue.deleting) {
            self.state.due.set(&queue, None);
            return Ok(());
        }
        for state in [JobState::Scheduled, JobState::Retrying] {
            let jobs = self.earliest(queue, state, now, *budget)?;
            *budget -= jobs.len();
            for job in &jobs {
                self.mature(job)?;
            }
        }
        let jobs = self.earliest(queue, JobState::Active, now, *budget)?;
        *budget -= jobs.len();
        for job in &jobs {
            self.lose(job)?;
        }
        let mut next = None;
        for state in [JobState::Scheduled, JobState::Retrying, JobState::Active] {
            next = next.into_iter().chain(self.nearest(queue, state)?).min();
        }
        self.state.due.set(&queue, next);
        Ok(())
    }

    fn mature(&mut self, job: &Job) -> Sql<()> {
        self.db
            .prepare_cached("UPDATE jobs SET state = ?1 WHERE seq = ?2")?
            .execute(params![code(JobState::Ready), job.seq])?;
        self.state.moved(job.queue, Some(job.state), Some(JobState::Ready));
        Ok(())
    }

    /// A delivery ended without a settle.
    fn lose(&mut self, job: &Job) -> Sql<()> {
        let lost = job.lost.saturating_add(1);
        if job.cancel_requested {
            return self.finish(job, job.attempts, lost, &End::Cancelled);
        }
        let max_deliveries = self.known(job.queue).settings.max_deliveries.max(1);
        if lost >= max_deliveries {
            let worker = job.worker.as_deref().unwrap_or_default();
            let failure = Failure::new(
                "DeliveriesLost",
                format!("{lost} deliveries ended without a settle, the last one at worker {worker:?}"),
            );
            return self.finish(job, job.attempts, lost, &End::Dead(DeadReason::Quarantined, &failure));
        }
        let again = Job { lost, ..job.clone() };
        self.wait(&again, self.now.as_millis(), JobState::Retrying)
    }

    fn sweep_queue(&mut self, queue: QueueId, budget: &mut usize) -> Sql<()> {
        let now = self.now.as_millis();
        let mut next = None;
        for state in [JobState::Succeeded, JobState::Dead, JobState::Cancelled] {
            let Some(known) = self.state.queue(queue).filter(|queue| !queue.deleting) else {
                break;
            };
            let retention = i64::try_from(known.retention(state).as_millis()).unwrap_or(i64::MAX);
            let forgotten = self.forget_pins(queue, state, budget)?;
            let jobs = self.earliest(queue, state, now.saturating_sub(retention), *budget)?;
            *budget -= jobs.len();
            for job in &jobs {
                self.erase(job)?;
            }
            let nearest = self.nearest(queue, state)?.map(|at| at.saturating_add(retention));
            next = next.into_iter().chain(nearest).chain(forgotten).min();
        }
        if *budget == 0 {
            self.state.sweeps.set(&queue, Some(now));
            return Ok(());
        }
        self.state.sweeps.set(&queue, None);
        if let Some(at) = next {
            self.state.sweep_at(queue, at);
        }
        Ok(())
    }

    /// Lets jobs age for which nobody has come in all that time; when the next pin is as old.
    fn forget_pins(&mut self, queue: QueueId, state: JobState, budget: &mut usize) -> Sql<Option<i64>> {
        let pin = i64::try_from(Limits::PIN.as_millis()).unwrap_or(i64::MAX);
        let jobs = self.pinned(queue, state, self.now.as_millis().saturating_sub(pin), *budget)?;
        *budget -= jobs.len();
        for job in &jobs {
            self.age(job)?;
        }
        Ok(self.first_pinned(queue, state)?.map(|end| end.saturating_add(pin)))
    }

    /// Gives pages back when more than a quarter of the file is empty.
    fn vacuum(&self) -> Sql<()> {
        let count = |name| self.db.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let (free, all) = (count("freelist_count")?, count("page_count")?);
        if free <= VACUUM_PAGES || free * 4 < all {
            return Ok(());
        }
        let mut statement = self.db.prepare(&format!("PRAGMA incremental_vacuum({VACUUM_PAGES})"))?;
        let mut rows = statement.query(())?;
        while rows.next()?.is_some() {}
        Ok(())
    }
}
