//! From the database to memory, at the start. What can't be read is left out, told and counted, and stops nothing.

use super::{Queue, QueueId, State, slot};
use crate::{
    Address, JobState, Owner, QueueName, QueueSettings,
    embedded::storage::{self, Sql},
};
use rusqlite::Connection;
use std::time::Duration;

impl State {
    /// Reads everything from the database.
    pub(in crate::embedded) fn load(db: &Connection) -> Sql<Self> {
        let mut state = Self::default();
        state.load_queues(db)?;
        let mut counts =
            db.prepare("SELECT queue, state, count(*), min(at) FROM jobs GROUP BY queue, state")?;
        let mut rows = counts.query(())?;
        while let Some(row) = rows.next()? {
            let (id, code, count, at) = (row.get(0)?, row.get(1)?, row.get::<_, i64>(2)?, row.get(3)?);
            state.load_count(id, code, count, at);
        }
        let mut addresses = db.prepare("SELECT address, count(*) FROM completions GROUP BY address")?;
        let mut rows = addresses.query(())?;
        while let Some(row) = rows.next()? {
            let Ok(address) = Address::new(storage::text(row, 0)?) else {
                tracing::error!("completions whose address can't be read are left out");
                continue;
            };
            let count = u64::try_from(row.get::<_, i64>(1)?).unwrap_or(0);
            state.readable.lower(&address, 0);
            state.completions.insert(address, count);
        }
        // Completions may name jobs that are gone; a number they name must not come again. One that no count of jobs
        // can reach is damage, and must leave room for new ones.
        state.next_seq = db.query_row(
            "SELECT 1 + max(0, coalesce((SELECT max(seq) FROM jobs WHERE seq < ?1), 0), \
             coalesce((SELECT max(job_seq) FROM completions WHERE job_seq < ?1), 0))",
            [i64::MAX / 2],
            |row| row.get(0),
        )?;
        Ok(state)
    }

    fn load_queues(&mut self, db: &Connection) -> Sql<()> {
        let mut statement = db.prepare(
            "SELECT id, name, installation, uid, max_depth, max_deliveries, retain_completed, retain_dead, paused, \
             deleting, ordering FROM queues",
        )?;
        let mut rows = statement.query(())?;
        while let Some(row) = rows.next()? {
            let id: QueueId = row.get(0)?;
            let Ok(name) = storage::text(row, 1)?.parse::<QueueName>() else {
                tracing::error!(queue = id, "a queue whose name can't be read is left out");
                continue;
            };
            let millis = |column| -> Sql<Duration> {
                Ok(Duration::from_millis(u64::try_from(row.get::<_, i64>(column)?).unwrap_or(0)))
            };
            let settings = QueueSettings {
                max_depth: u64::try_from(row.get::<_, i64>(4)?).unwrap_or(0),
                max_deliveries: storage::count(row.get(5)?),
                retain_completed: millis(6)?,
                retain_dead: millis(7)?,
                paused: row.get(8)?,
                ordering: storage::ordering(&storage::text(row, 10)?),
            };
            let owner = Owner { installation: storage::text(row, 2)?, uid: storage::text(row, 3)? };
            let mut queue = Queue::new(name.clone(), owner, settings);
            queue.deleting = row.get(9)?;
            if queue.deleting {
                self.removals.lower(&id, 0);
            } else {
                self.by_name.insert(name, id);
            }
            if queue.is_fifo() {
                self.walks.lower(&id, 0);
            }
            self.queues.insert(id, queue);
        }
        Ok(())
    }

    fn load_count(&mut self, id: QueueId, code: i64, count: i64, at: i64) {
        let jobs = u64::try_from(count).unwrap_or(0);
        let Some(queue) = self.queues.get_mut(&id) else {
            tracing::error!(queue = id, jobs, "jobs of no known queue are left out");
            return;
        };
        let Some(state) = storage::state(code) else {
            tracing::error!(queue = id, state = code, jobs, "jobs in no known state are left out");
            queue.unknown += jobs;
            return;
        };
        queue.counts[slot(state)] = jobs;
        match state {
            JobState::Ready | JobState::Blocked => {}
            JobState::Scheduled | JobState::Retrying | JobState::Active => self.due.lower(&id, at),
            JobState::Succeeded | JobState::Dead | JobState::Cancelled => self.sweeps.lower(&id, 0),
        }
    }
}
