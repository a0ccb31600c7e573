//! What operators and people do.

use super::{
    Shared, ToSql,
    enqueue::millis,
    error::{self, Effect},
    inspect,
};
use crate::{
    Capabilities, Declaration, Declared, Durability, Error, ErrorKind, JobId, JobState, Limits, Ordering,
    Owner, Probe, QueueName, Result,
};
use std::time::{Duration, Instant};
use tokio_postgres::types::Type;

/// How long one call goes on with a deletion.
const DELETES: Duration = Duration::from_secs(60);
/// How long one call goes on with a purge.
const PURGES: Duration = Duration::from_secs(30);

/// Brings the schema up to date and asks the server who it is.
pub(super) async fn probe(shared: &Shared, capabilities: &Capabilities) -> Result<Probe> {
    let identity = shared.pool.migrate().await?;
    // An operator that was just started may be able to read what an older one put aside.
    if !shared.unparked.load(std::sync::atomic::Ordering::Relaxed) {
        let all: Option<Vec<i64>> = None;
        shared.pool.call(Effect::Read, "park", &[(&all, Type::INT8_ARRAY)]).await?;
        shared.unparked.store(true, std::sync::atomic::Ordering::Relaxed);
    }
    let statement = "SELECT current_setting('server_version'), current_setting('fsync'), \
         current_setting('synchronous_commit')";
    let rows = shared.pool.query(Effect::Read, statement, &[]).await?;
    let read = |error: tokio_postgres::Error| error::of_statement(&error, Effect::Read);
    let row = rows.first().ok_or_else(|| Error::unavailable("PostgreSQL told nothing about itself"))?;
    let version: String = row.try_get(0).map_err(read)?;
    let (fsync, commit): (&str, &str) = (row.try_get(1).map_err(read)?, row.try_get(2).map_err(read)?);
    let durability = match (fsync, commit) {
        // The last moments may be lost with the server's process alone.
        (_, "off") => Durability::None,
        ("off", _) => Durability::Process,
        _ => Durability::Machine,
    };
    Ok(Probe {
        backend: "postgres".to_owned(),
        // Distributions add their own version in brackets.
        version: version.split(' ').next().unwrap_or_default().to_owned(),
        backend_id: identity.backend_id,
        capabilities: Capabilities { durability, ..capabilities.clone() },
    })
}

pub(super) async fn declare(
    shared: &Shared,
    queue: &QueueName,
    declaration: &Declaration,
) -> Result<Declared> {
    let identity = shared.pool.migrate().await?;
    let Declaration { owner, settings, adopt } = declaration;
    let depth = i64::try_from(settings.max_depth).unwrap_or(i64::MAX).min(i64::MAX >> 2);
    let params: [(&(dyn ToSql + Sync), Type); 10] = [
        (&queue.as_str(), Type::TEXT),
        (&owner.installation, Type::TEXT),
        (&owner.uid, Type::TEXT),
        (adopt, Type::BOOL),
        (&depth, Type::INT8),
        (&i64::from(settings.max_deliveries), Type::INT8),
        (&millis(settings.retain_completed), Type::INT8),
        (&millis(settings.retain_dead), Type::INT8),
        (&settings.paused, Type::BOOL),
        (&(settings.ordering == Ordering::Fifo), Type::BOOL),
    ];
    let rows = shared.pool.call(Effect::Change, "declare_queue", &params).await?;
    shared.depths.forget(queue);
    let verdict: &str = rows.first().and_then(|row| row.try_get(0).ok()).unwrap_or_default();
    shared.upkeep.note(queue, Some(Duration::ZERO));
    match verdict {
        "created" | "updated" | "resumed" => {
            if verdict == "resumed" {
                shared.wakes.tell_queue(queue);
            }
            Ok(Declared { created: verdict == "created", backend_id: identity.backend_id })
        }
        "owned" => Err(Error::owned_by_another(queue)),
        "ordering" => Err(Error::new(
            ErrorKind::Conflict,
            format!("queue {queue} has another ordering than {:?}; it can't be changed", settings.ordering),
        )),
        other => Err(Error::new(ErrorKind::Fatal, format!("a declaration was answered with {other:?}"))),
    }
}

/// What one part of a deletion found.
pub(super) struct Part {
    /// The name belongs to somebody else by now.
    owned: bool,
    pub(super) more: bool,
}

/// Removes a part of what was deleted under a queue's name, and the queue itself if it is the owner's.
pub(super) async fn delete_part(shared: &Shared, queue: &QueueName, owner: &Owner) -> Result<Part> {
    let params: [(&(dyn ToSql + Sync), Type); 3] =
        [(&queue.as_str(), Type::TEXT), (&owner.installation, Type::TEXT), (&owner.uid, Type::TEXT)];
    let rows = shared.pool.call(Effect::Change, "delete_queue", &params).await?;
    let read = |error: tokio_postgres::Error| error::of_statement(&error, Effect::Change);
    let Some(row) = rows.first() else { return Ok(Part { owned: false, more: false }) };
    shared.tell(row.try_get::<_, Option<Vec<String>>>(2).map_err(read)?.as_deref());
    let owned = row.try_get::<_, &str>(0).map_err(read)? == "owned";
    Ok(Part { owned, more: row.try_get(1).map_err(read)? })
}

pub(super) async fn delete(shared: &Shared, queue: &QueueName, owner: &Owner) -> Result<()> {
    let since = Instant::now();
    loop {
        match delete_part(shared, queue, owner).await {
            // What is left of an earlier one goes by itself.
            Ok(Part { owned: true, .. }) => return Err(Error::owned_by_another(queue)),
            Ok(Part { more: true, .. }) if since.elapsed() < DELETES => {}
            Ok(Part { more: true, .. }) => {
                return Err(Error::new(
                    ErrorKind::Timeout,
                    format!("queue {queue} is deleted, but not all of its jobs are gone yet; ask again"),
                ));
            }
            Ok(_) => break,
            // Where there is no schema there is no queue.
            Err(error) if error.kind == ErrorKind::NotFound => break,
            Err(error) => return Err(error),
        }
    }
    // Whoever waits for jobs of it is to hear of it.
    shared.wakes.tell_queue(queue);
    Ok(())
}

pub(super) async fn cancel(
    shared: &Shared,
    queue: &QueueName,
    ids: &[JobId],
) -> Result<Vec<Result<JobState>>> {
    let names: Vec<&str> = ids.iter().map(JobId::as_str).collect();
    let params: [(&(dyn ToSql + Sync), Type); 2] =
        [(&queue.as_str(), Type::TEXT), (&names, Type::TEXT_ARRAY)];
    let rows = shared.pool.call(Effect::Change, "cancel", &params).await?;
    let read = |error: tokio_postgres::Error| error::of_statement(&error, Effect::Change);
    let mut answers = Vec::with_capacity(ids.len());
    for (id, row) in ids.iter().zip(rows) {
        if row.try_get::<_, Option<bool>>(2).map_err(read)? == Some(true) {
            shared.wakes.tell_queue(queue);
        }
        if let Some(address) = row.try_get::<_, Option<&str>>(3).map_err(read)? {
            shared.wakes.tell_addresses([address]);
        }
        answers.push(inspect::state(row.try_get(1).map_err(read)?).ok_or_else(|| no_job(id)));
    }
    shared.upkeep.note(queue, None);
    Ok(answers)
}

fn no_job(id: &JobId) -> Error {
    Error::new(ErrorKind::NotFound, format!("the queue has no job {id}"))
}

pub(super) async fn redrive(shared: &Shared, queue: &QueueName, ids: &[JobId]) -> Result<Vec<Result<()>>> {
    let names: Vec<&str> = ids.iter().map(JobId::as_str).collect();
    let params: [(&(dyn ToSql + Sync), Type); 2] =
        [(&queue.as_str(), Type::TEXT), (&names, Type::TEXT_ARRAY)];
    let rows = shared.pool.call(Effect::Change, "redrive", &params).await?;
    let read = |error: tokio_postgres::Error| error::of_statement(&error, Effect::Change);
    let mut answers = Vec::with_capacity(ids.len());
    for (id, row) in ids.iter().zip(rows) {
        answers.push(match row.try_get::<_, &str>(1).map_err(read)? {
            "done" => Ok(()),
            "missing" => Err(no_job(id)),
            "workflow" => Err(Error::of_workflow(id)),
            _ => {
                Err(Error::new(ErrorKind::Conflict, format!("job {id} isn't dead, so it can't be redriven")))
            }
        });
    }
    if answers.iter().any(Result::is_ok) {
        shared.wakes.tell_queue(queue);
    }
    shared.upkeep.note(queue, None);
    Ok(answers)
}

pub(super) async fn purge(shared: &Shared, queue: &QueueName, state: JobState, limit: u32) -> Result<u64> {
    let limit = u64::from(limit).min(Limits::BATCH as u64);
    let (since, mut purged) = (Instant::now(), 0);
    while purged < limit {
        match purge_part(shared, queue, state, limit - purged).await {
            Ok((part, more)) => {
                purged += part;
                if !more || part == 0 || since.elapsed() > PURGES {
                    break;
                }
            }
            // What is gone is to be told of.
            Err(error) if purged > 0 => {
                tracing::debug!(%queue, %error, "a purge ends early");
                break;
            }
            Err(error) => return Err(error),
        }
    }
    if purged > 0 {
        // In a line somebody's turn may have come.
        shared.wakes.tell_queue(queue);
    }
    shared.upkeep.note(queue, None);
    Ok(purged)
}

/// One statement's part of a purge: how many went, and whether there is more than it could take.
async fn purge_part(shared: &Shared, queue: &QueueName, state: JobState, limit: u64) -> Result<(u64, bool)> {
    let limit = i32::try_from(limit).unwrap_or(i32::MAX);
    let params: [(&(dyn ToSql + Sync), Type); 3] =
        [(&queue.as_str(), Type::TEXT), (&inspect::code(state), Type::INT4), (&limit, Type::INT4)];
    let rows = shared.pool.call(Effect::Change, "purge", &params).await?;
    let read = |error: tokio_postgres::Error| error::of_statement(&error, Effect::Change);
    let Some(row) = rows.first() else { return Ok((0, false)) };
    let purged: i64 = row.try_get(0).map_err(read)?;
    shared.tell(row.try_get::<_, Option<Vec<String>>>(1).map_err(read)?.as_deref());
    Ok((purged.unsigned_abs(), row.try_get(2).map_err(read)?))
}
