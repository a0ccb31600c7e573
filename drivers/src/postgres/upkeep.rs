//! What happens by itself: leases end, old jobs are forgotten, counts are added up, deleted queues go.
//!
//! Nobody but drivers is there to do it, so each looks after the queues that it works on, when the server said that there
//! is something to do, and at least every few seconds. The server lets one of them at a queue at a time.

use super::{Shared, error::Effect};
use crate::{ErrorKind, QueueName, Result};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};
use tokio_postgres::types::Type;

/// A queue is looked at this often.
const ROUND: Duration = Duration::from_secs(5);
/// Not more often than that, however much is due.
const APART: Duration = Duration::from_millis(200);
/// Unless there is more of the same.
const AT_ONCE: Duration = Duration::from_millis(5);
/// How long a queue is looked after that nobody uses.
const KEPT: Duration = Duration::from_secs(120);
/// How often deletions that nobody finished are looked for.
const REMOVALS: Duration = Duration::from_secs(60);
/// How long their parts are apart.
const PARTS: Duration = Duration::from_millis(20);

#[derive(Debug, Clone, Copy)]
struct Care {
    next: Instant,
    /// Not before this, so that many events become one look.
    earliest: Instant,
    used: Instant,
}

/// The queues of one driver.
#[derive(Debug, Default)]
pub(super) struct Upkeep {
    queues: Mutex<HashMap<QueueName, Care>>,
    changed: Notify,
    runs: AtomicBool,
}

impl Upkeep {
    fn lock(&self) -> MutexGuard<'_, HashMap<QueueName, Care>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A queue is used, and something is due in it `within` this time.
    pub(super) fn note(&self, queue: &QueueName, within: Option<Duration>) {
        let now = Instant::now();
        let within = now + within.map_or(ROUND, |within| within.min(ROUND));
        let mut queues = self.lock();
        if let Some(care) = queues.get_mut(queue) {
            care.used = now;
            if within.max(care.earliest) >= care.next {
                return;
            }
            care.next = within.max(care.earliest);
        } else {
            let soon = now + APART;
            queues.insert(queue.clone(), Care { next: within.min(soon), earliest: now, used: now });
        }
        drop(queues);
        self.changed.notify_one();
    }

    /// The queue whose turn is first, and when.
    fn first(&self) -> Option<(QueueName, Instant)> {
        let mut queues = self.lock();
        let now = Instant::now();
        queues.retain(|_, care| now.duration_since(care.used) < KEPT);
        queues.iter().min_by_key(|(_, care)| care.next).map(|(queue, care)| (queue.clone(), care.next))
    }

    fn plan(&self, queue: &QueueName, rest: Option<Duration>) {
        let mut queues = self.lock();
        let now = Instant::now();
        match rest {
            Some(rest) => {
                if let Some(care) = queues.get_mut(queue) {
                    care.next = now + rest;
                    care.earliest = now + rest.min(APART);
                }
            }
            None => drop(queues.remove(queue)),
        }
    }
}

/// Looks after queues, from the first call on.
pub(super) fn start(shared: &Arc<Shared>) {
    if shared.upkeep.runs.swap(true, Ordering::Relaxed) {
        return;
    }
    let (closed, shared) = (shared.pool.closed.clone(), shared.clone());
    tokio::spawn(closed.run_until_cancelled_owned(async move {
        let mut removals = Instant::now() + APART;
        loop {
            let first = shared.upkeep.first();
            let wake = first.as_ref().map_or(removals, |(_, at)| (*at).min(removals));
            tokio::select! {
                () = tokio::time::sleep_until(wake) => {}
                () = shared.upkeep.changed.notified() => continue,
            }
            if Instant::now() >= removals {
                // Between two parts others get their turn.
                let more = remove(&shared).await;
                removals = Instant::now() + if more { PARTS } else { REMOVALS };
            }
            if let Some((queue, at)) = first
                && Instant::now() >= at
            {
                let rest = rest(tick(&shared, &queue).await);
                shared.upkeep.plan(&queue, rest);
            }
        }
    }));
}

/// How long a queue rests after a look; `None` when there is nothing to look after.
fn rest(ticked: Result<Duration>) -> Option<Duration> {
    match ticked {
        Ok(rest) => Some(rest),
        // A producer's role may not be allowed to do it: others do.
        Err(error) if matches!(error.kind, ErrorKind::NotFound | ErrorKind::Unauthorized) => None,
        Err(error) => {
            tracing::debug!(%error, "a queue is not looked after for now");
            Some(ROUND)
        }
    }
}

/// Does what is due in one queue; how long there is nothing more to do.
async fn tick(shared: &Shared, queue: &QueueName) -> Result<Duration> {
    let rows = shared.pool.call(Effect::Read, "tick", &[(&queue.as_str(), Type::TEXT)]).await?;
    let Some(row) = rows.first() else { return Ok(ROUND) };
    let failed = |error: tokio_postgres::Error| super::error::of_statement(&error, Effect::Read);
    let now: i64 = row.try_get(0).map_err(failed)?;
    let next: Option<i64> = row.try_get(1).map_err(failed)?;
    let again: bool = row.try_get(2).map_err(failed)?;
    if row.try_get(3).map_err(failed)? {
        shared.wakes.tell_queue(queue);
    }
    shared.tell(row.try_get::<_, Option<Vec<String>>>(4).map_err(failed)?.as_deref());
    // In a statement of its own, which may fail without undoing that.
    let forgotten = forget(shared, queue).await.unwrap_or_else(|error| {
        tracing::debug!(%error, "old jobs of a queue are kept for now");
        ROUND
    });
    if again {
        return Ok(AT_ONCE);
    }
    let next = next.map_or(ROUND, |next| Duration::from_millis(u64::try_from(next - now).unwrap_or(0)));
    Ok(next.clamp(APART, ROUND).min(forgotten))
}

/// Forgets what a queue kept for long enough; how long there is nothing more to forget.
async fn forget(shared: &Shared, queue: &QueueName) -> Result<Duration> {
    let rows = shared.pool.call(Effect::Read, "forget", &[(&queue.as_str(), Type::TEXT)]).await?;
    let Some(row) = rows.first() else { return Ok(ROUND) };
    let failed = |error: tokio_postgres::Error| super::error::of_statement(&error, Effect::Read);
    let now: i64 = row.try_get(0).map_err(failed)?;
    let next: Option<i64> = row.try_get(1).map_err(failed)?;
    if row.try_get(2).map_err(failed)? {
        return Ok(AT_ONCE);
    }
    let next = next.map_or(ROUND, |next| Duration::from_millis(u64::try_from(next - now).unwrap_or(0)));
    Ok(next.clamp(APART, ROUND))
}

/// Does one part of each deletion whose caller went away; whether there is more.
async fn remove(shared: &Shared) -> bool {
    let Ok(rows) = shared.pool.call(Effect::Read, "deleted_queues", &[]).await else { return false };
    let mut more = false;
    for row in rows {
        let Ok(name) = row.try_get::<_, &str>(0) else { continue };
        let Ok(queue) = name.parse() else { continue };
        let nobody = crate::Owner { installation: String::new(), uid: String::new() };
        // A queue that is there stays: nobody owns that.
        match super::admin::delete_part(shared, &queue, &nobody).await {
            Ok(part) => more |= part.more,
            Err(error) => tracing::debug!(%error, "a deletion doesn't go on for now"),
        }
    }
    more
}
