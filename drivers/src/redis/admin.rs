//! What operators and people do to queues and jobs.

use super::{
    core::Core,
    errors::Call,
    leases::millis,
    link::Link,
    reply::{self, Items, letter},
    scripts,
};
use crate::{
    Declaration, Declared, Error, ErrorKind, JobId, JobPage, JobRecord, JobState, Limits, ListJobs, Ordering,
    Owner, Payload, QueueName, QueueStats, Result, Timestamp, checks,
};
use redis::Value;
use std::time::Duration;

/// The key of all queues' names.
pub(super) fn queues(link: &Link) -> String {
    format!("{}:queues", link.prefix)
}

/// How full a queue is, and when something in it is due next.
pub(super) async fn stats(link: &Link, queue: &QueueName) -> Result<(QueueStats, Option<Duration>)> {
    let answer = link.run(&scripts::STATS, queue, |_| {}).await?;
    let mut items = reply::opened(answer, queue)?;
    let time = |items: &mut Items| -> Result<Option<Timestamp>> {
        Ok(Some(items.time()?).filter(|at| at.as_millis() >= 0))
    };
    let stats = QueueStats {
        ready: items.natural()?,
        scheduled: items.natural()?,
        active: items.natural()?,
        retrying: items.natural()?,
        blocked: items.natural()?,
        dead: items.natural()?,
        oldest_ready_at: time(&mut items)?,
        next_due_at: time(&mut items)?,
        parked: items.natural()?,
        service_time_ms: items.text()?.parse().ok(),
    };
    Ok((stats, items.natural()?.map(Duration::from_millis)))
}

impl Core {
    pub(super) async fn declare(&self, queue: &QueueName, declaration: Declaration) -> Result<Declared> {
        let facts = self.link.meet(Call::Prepares).await?;
        self.name(queue).await?;
        loop {
            let answer = self.link.run(&scripts::DECLARE, queue, |cmd| write(cmd, &declaration)).await?;
            let mut items = Items::new(answer)?;
            match items.text()?.as_str() {
                "OK" => {
                    let created = items.integer()? == 1;
                    return Ok(Declared { created, backend_id: facts.backend_id });
                }
                "OWNED" => return Err(Error::owned_by_another(queue)),
                "ORDER" => {
                    let known = if items.bytes()? == b"1" { Ordering::Fifo } else { Ordering::BestEffort };
                    checks::same_ordering(queue, known, declaration.settings.ordering)?;
                    return Err(reply::broken());
                }
                // Somebody began to remove it and did not come to the end.
                "AGAIN" => self.remove(queue, &declaration.owner).await?,
                _ => return Err(reply::broken()),
            }
        }
    }

    /// Has the queue among all queues' names. A full memory refuses a new name, and one that is there needs no room.
    async fn name(&self, queue: &QueueName) -> Result<()> {
        let names = |command: &str| {
            let mut cmd = redis::cmd(command);
            cmd.arg(queues(&self.link)).arg(queue.as_str());
            cmd
        };
        let known = self.link.command(&names("SISMEMBER"), "declare", Call::Prepares).await?;
        if !matches!(known, Value::Int(1) | Value::Boolean(true)) {
            self.link.command(&names("SADD"), "declare", Call::Changes).await?;
        }
        Ok(())
    }

    pub(super) async fn delete(&self, queue: &QueueName, owner: &Owner) -> Result<()> {
        self.remove(queue, owner).await?;
        let mut cmd = redis::cmd("SREM");
        cmd.arg(queues(&self.link)).arg(queue.as_str());
        self.link.command(&cmd, "delete_queue", Call::Changes).await?;
        Ok(())
    }

    async fn remove(&self, queue: &QueueName, owner: &Owner) -> Result<()> {
        let mut cursor = "0".to_owned();
        loop {
            let answer = self
                .link
                .run(&scripts::DELETE, queue, |cmd| {
                    cmd.arg(&owner.installation).arg(&owner.uid).arg(&cursor);
                })
                .await?;
            let mut items = Items::new(answer)?;
            match items.text()?.as_str() {
                "OK" => return Ok(()),
                "MORE" => cursor = items.text()?,
                "OWNED" => return Err(Error::owned_by_another(queue)),
                _ => return Err(reply::broken()),
            }
        }
    }

    pub(super) async fn unpin(&self, queue: &QueueName, ids: &[JobId]) -> Result<()> {
        let answer = self.link.run(&scripts::UNPIN, queue, |cmd| write_ids(cmd, ids)).await?;
        reply::opened(answer, queue).map(drop)
    }

    pub(super) async fn results(&self, queue: &QueueName, ids: &[JobId]) -> Result<Vec<Option<Payload>>> {
        let mut results = Vec::with_capacity(ids.len());
        // A few at a time: each may be large.
        for ids in ids.chunks(8) {
            let answer = self.link.run(&scripts::RESULTS, queue, |cmd| write_ids(cmd, ids)).await?;
            let mut found = reply::opened(answer, queue)?.items()?;
            for _ in ids {
                results.push(found.optional()?.map(reply::unpack_result).transpose()?);
            }
        }
        Ok(results)
    }

    pub(super) async fn inspect(&self, queue: &QueueName, id: &JobId) -> Result<Option<JobRecord>> {
        let answer = self
            .link
            .run(&scripts::INSPECT, queue, |cmd| {
                cmd.arg(id.as_str());
            })
            .await?;
        let mut items = reply::opened(answer, queue)?;
        if items.is_empty() { Ok(None) } else { reply::record(items.items()?).map(Some) }
    }

    pub(super) async fn list(&self, queue: &QueueName, list: ListJobs) -> Result<JobPage> {
        let after = list.after.as_deref().map(cursor).transpose()?;
        let limit = (list.limit as usize).min(Limits::BATCH);
        let answer = self
            .link
            .run(&scripts::LIST, queue, |cmd| {
                cmd.arg(letter(list.state)).arg(limit);
                match after {
                    Some((at, name)) => cmd.arg(at).arg(name),
                    None => cmd.arg("").arg(""),
                };
            })
            .await?;
        let mut items = reply::opened(answer, queue)?;
        let next = Some(items.text()?).filter(|next| !next.is_empty());
        let mut jobs = Vec::new();
        for job in items.items()? {
            match reply::record(Items::new(job)?) {
                Ok(job) => jobs.push(job),
                Err(error) => {
                    tracing::warn!(%queue, %error, "a job that can't be read is left out of a list")
                }
            }
        }
        Ok(JobPage { jobs, next })
    }

    pub(super) async fn cancel(&self, queue: &QueueName, ids: &[JobId]) -> Result<Vec<Result<JobState>>> {
        let answer = self.link.run(&scripts::CANCEL, queue, |cmd| write_ids(cmd, ids)).await?;
        each(answer, queue, ids, |id, code| match code {
            b'N' => Err(no_job(id)),
            code => reply::state(&[code]),
        })
    }

    pub(super) async fn redrive(&self, queue: &QueueName, ids: &[JobId]) -> Result<Vec<Result<()>>> {
        let answer = self.link.run(&scripts::REDRIVE, queue, |cmd| write_ids(cmd, ids)).await?;
        each(answer, queue, ids, |id, code| match code {
            b'K' => Ok(()),
            b'N' => Err(no_job(id)),
            b'W' => Err(Error::of_workflow(id)),
            _ => {
                Err(Error::new(ErrorKind::Conflict, format!("job {id} isn't dead, so it can't be redriven")))
            }
        })
    }

    pub(super) async fn purge(&self, queue: &QueueName, state: JobState, limit: u32) -> Result<u64> {
        let limit = (limit as usize).min(Limits::BATCH);
        let answer = self
            .link
            .run(&scripts::PURGE, queue, |cmd| {
                cmd.arg(letter(state)).arg(limit);
            })
            .await?;
        reply::opened(answer, queue)?.natural()?.ok_or_else(reply::broken)
    }
}

fn write(cmd: &mut redis::Cmd, declaration: &Declaration) {
    let (owner, settings) = (&declaration.owner, &declaration.settings);
    let flag = |yes: bool| if yes { "1" } else { "0" };
    cmd.arg(&owner.installation)
        .arg(&owner.uid)
        .arg(flag(declaration.adopt))
        .arg(settings.max_depth)
        .arg(settings.max_deliveries)
        .arg(millis(settings.retain_completed))
        .arg(millis(settings.retain_dead))
        .arg(flag(settings.paused))
        .arg(flag(settings.ordering == Ordering::Fifo));
}

fn write_ids(cmd: &mut redis::Cmd, ids: &[JobId]) {
    for id in ids {
        cmd.arg(id.as_str());
    }
}

/// One answer for each id, from a letter for each.
fn each<T>(
    answer: Value,
    queue: &QueueName,
    ids: &[JobId],
    decode: impl Fn(&JobId, u8) -> Result<T>,
) -> Result<Vec<Result<T>>> {
    let codes = reply::opened(answer, queue)?.bytes()?;
    if codes.len() != ids.len() {
        return Err(reply::broken());
    }
    Ok(ids.iter().zip(codes).map(|(id, code)| decode(id, code)).collect())
}

/// The place behind which a page starts: a time, and a job's name in sorted sets.
fn cursor(text: &str) -> Result<(i64, &str)> {
    let nonsense = || Error::invalid("the cursor of a list is the `next` of the page before");
    let (at, name) = text.split_once('.').ok_or_else(nonsense)?;
    let at = at.parse().map_err(|_| nonsense())?;
    let numbered = name.get(..14).is_some_and(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
    if numbered { Ok((at, name)) } else { Err(nonsense()) }
}

fn no_job(id: &JobId) -> Error {
    Error::new(ErrorKind::NotFound, format!("the queue has no job {id}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_cursors_that_were_given_are_taken() {
        assert_eq!(cursor("12.00000000000001a.b").unwrap(), (12, "00000000000001a.b"));
        for bad in ["", "nonsense", "1.", "1.x", "x.00000000000001a", "1.ü0000000000000"] {
            assert_eq!(cursor(bad).unwrap_err().kind, ErrorKind::Invalid, "{bad:?}");
        }
    }
}
