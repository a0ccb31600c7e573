//! Making queues and taking them away; what people do to jobs by id.

use super::{
    command::Answer,
    ordering::WALK_EVERY,
    state::{PINNED, Queue, QueueId},
    storage::{self, Sql, column},
    transition::{End, Job, Tx},
};
use crate::{
    Declaration, Declared, Error, ErrorKind, JobId, JobState, Limits, Outcome, Owner, QueueName,
    QueueSettings, Result, checks,
};
use rusqlite::{named_params, params};

impl Tx<'_> {
    pub(super) fn declare(
        &mut self,
        name: &QueueName,
        declaration: &Declaration,
        backend_id: &str,
    ) -> Sql<Result<Answer>> {
        let known = self.state.find(name);
        if let Some(id) = known {
            if self.known(id).owner != declaration.owner && !declaration.adopt {
                return Ok(Err(Error::owned_by_another(name)));
            }
            let ordering = self.known(id).settings.ordering;
            if let Err(error) = checks::same_ordering(name, ordering, declaration.settings.ordering) {
                return Ok(Err(error));
            }
            self.update_queue(id, declaration)?;
        } else {
            self.insert_queue(name, declaration)?;
        }
        Ok(Ok(Answer::Declared(Declared { created: known.is_none(), backend_id: backend_id.to_owned() })))
    }

    fn insert_queue(&mut self, name: &QueueName, declaration: &Declaration) -> Sql<()> {
        self.db
            .prepare_cached(
                "INSERT INTO queues (name, installation, uid, max_depth, max_deliveries, retain_completed, \
                             retain_dead, paused, ordering) VALUES (?1, '', '', 0, 0, 0, 0, 0, ?2)",
            )?
            .execute([name.as_str(), storage::ordering_word(declaration.settings.ordering)])?;
        let id = self.db.last_insert_rowid();
        let Declaration { owner, settings, adopt: _ } = declaration;
        let queue = Queue::new(name.clone(), owner.clone(), settings.clone());
        if queue.is_fifo() {
            self.state.walks.lower(&id, self.now.as_millis().saturating_add(WALK_EVERY));
        }
        self.state.add_queue(id, queue);
        self.write_queue(id, declaration)
    }

    fn update_queue(&mut self, id: QueueId, declaration: &Declaration) -> Sql<()> {
        let Declaration { owner, settings, adopt: _ } = declaration;
        let known = self.known(id);
        if known.owner == *owner && known.settings == *settings {
            return Ok(());
        }
        if let Some(queue) = self.state.change(id) {
            queue.owner = owner.clone();
            queue.settings = settings.clone();
        }
        // Retention may be shorter now.
        self.state.sweep_at(id, self.now.as_millis());
        self.write_queue(id, declaration)
    }

    fn write_queue(&self, id: QueueId, declaration: &Declaration) -> Sql<()> {
        let Declaration { owner, settings, adopt: _ } = declaration;
        let QueueSettings { max_depth, max_deliveries, retain_completed, retain_dead, paused, ordering: _ } =
            settings;
        self.db
            .prepare_cached(
                "UPDATE queues SET installation = :installation, uid = :uid, max_depth = :max_depth, \
                 max_deliveries = :max_deliveries, retain_completed = :retain_completed, retain_dead = :retain_dead, \
                 paused = :paused WHERE id = :id",
            )?
            .execute(named_params! {
                ":installation": owner.installation,
                ":uid": owner.uid,
                ":max_depth": column(*max_depth),
                ":max_deliveries": max_deliveries,
                ":retain_completed": column(retain_completed.as_millis()),
                ":retain_dead": column(retain_dead.as_millis()),
                ":paused": paused,
                ":id": id,
            })?;
        Ok(())
    }

    /// Takes a queue out of sight; its jobs go in [`Tx::dismantle`]. `None` when there is no such queue.
    pub(super) fn condemn(&mut self, name: &QueueName, owner: &Owner) -> Sql<Result<Option<QueueId>>> {
        let Some(id) = self.state.find(name) else {
            return Ok(Ok(None));
        };
        if self.known(id).owner != *owner {
            return Ok(Err(Error::owned_by_another(name)));
        }
        self.db.prepare_cached("UPDATE queues SET deleting = 1 WHERE id = ?1")?.execute([id])?;
        self.state.condemn(id);
        Ok(Ok(Some(id)))
    }

    /// Removes up to `limit` jobs of a condemned queue, then the queue itself; whether nothing is left of it.
    pub(super) fn dismantle(&mut self, id: QueueId, limit: usize) -> Sql<bool> {
        let jobs: Vec<Job> = self
            .db
            .prepare_cached(concat!(
                "SELECT ",
                super::transition::job_columns!(),
                " FROM jobs WHERE queue = ?1 ORDER BY state, at, seq LIMIT ?2"
            ))?
            .query_map(params![id, column(limit)], Job::read)?
            .collect::<Sql<_>>()?;
        for job in &jobs {
            self.remove(job)?;
        }
        if jobs.len() == limit {
            return Ok(false);
        }
        self.db.prepare_cached("DELETE FROM queues WHERE id = ?1")?.execute([id])?;
        self.state.remove_queue(id);
        Ok(true)
    }

    /// Removes a job; whoever waits for its end learns that it was purged.
    fn remove(&mut self, job: &Job) -> Sql<()> {
        if job.notify && !job.state.is_terminal() {
            self.announce(job, &Outcome::Purged)?;
        }
        let next = self.successor(job)?;
        self.erase(job)?;
        next.map_or(Ok(()), |next| self.call(&next))
    }

    pub(super) fn purge(&mut self, queue: &QueueName, state: JobState, limit: u32) -> Sql<Result<Answer>> {
        let queue = match self.queue(queue) {
            Ok(queue) => queue,
            Err(error) => return Ok(Err(error)),
        };
        let limit = (limit as usize).min(Limits::BATCH);
        // A job that is pinned is still owed to somebody.
        let jobs = self.earliest(queue, state, PINNED - 1, limit)?;
        for job in &jobs {
            self.remove(job)?;
        }
        Ok(Ok(Answer::Removed(jobs.len() as u64)))
    }

    pub(super) fn cancel(&mut self, queue: &QueueName, ids: &[JobId]) -> Sql<Result<Answer>> {
        let queue = match self.queue(queue) {
            Ok(queue) => queue,
            Err(error) => return Ok(Err(error)),
        };
        let states = ids.iter().map(|id| self.cancel_one(queue, id)).collect::<Sql<_>>()?;
        Ok(Ok(Answer::States(states)))
    }

    fn cancel_one(&mut self, queue: QueueId, id: &JobId) -> Sql<Result<JobState>> {
        let Some(job) = self.job_by_id(queue, id.as_str())? else {
            return Ok(Err(no_job(id)));
        };
        match job.state {
            JobState::Ready | JobState::Scheduled | JobState::Retrying | JobState::Blocked => {
                self.finish(&job, job.attempts, job.lost, &End::Cancelled)?;
                Ok(Ok(JobState::Cancelled))
            }
            JobState::Active => {
                self.db
                    .prepare_cached("UPDATE jobs SET cancel_requested = 1 WHERE seq = ?1")?
                    .execute([job.seq])?;
                Ok(Ok(JobState::Active))
            }
            JobState::Succeeded | JobState::Dead | JobState::Cancelled => Ok(Ok(job.state)),
        }
    }

    pub(super) fn redrive(&mut self, queue: &QueueName, ids: &[JobId]) -> Sql<Result<Answer>> {
        let queue = match self.queue(queue) {
            Ok(queue) => queue,
            Err(error) => return Ok(Err(error)),
        };
        let answers = ids.iter().map(|id| self.redrive_one(queue, id)).collect::<Sql<_>>()?;
        Ok(Ok(Answer::Settled(answers)))
    }

    fn redrive_one(&mut self, queue: QueueId, id: &JobId) -> Sql<Result<()>> {
        let Some(job) = self.job_by_id(queue, id.as_str())? else {
            return Ok(Err(no_job(id)));
        };
        if job.state != JobState::Dead {
            return Ok(Err(Error::new(
                ErrorKind::Conflict,
                format!("job {id} isn't dead, so it can't be redriven"),
            )));
        }
        if job.notify {
            return Ok(Err(Error::of_workflow(id)));
        }
        self.db
            .prepare_cached(
                "UPDATE jobs SET deliveries = 0, finished_at = NULL, dead_reason = NULL WHERE seq = ?1",
            )?
            .execute([job.seq])?;
        // It stands before those that were enqueued later, but not before the one whose turn it is.
        let state = if self.returns_behind(&job)? { JobState::Blocked } else { JobState::Ready };
        let fresh = Job { attempts: 0, lost: 0, ..job };
        self.stand(&fresh, state, self.now.as_millis())?;
        Ok(Ok(()))
    }
}

fn no_job(id: &JobId) -> Error {
    Error::new(ErrorKind::NotFound, format!("the queue has no job {id}"))
}
