//! Adding jobs.

use super::{
    core::SHARED,
    errors::Call,
    link::Link,
    reply::{self, Extras, Items},
    scripts,
    slices::{Answers, cut},
};
use crate::{
    Address, Enqueued, Error, ErrorKind, JobId, Limits, NewJob, Ordering, QueueName, Result, checks,
    coalesce::{Coalescer, Size},
};
use redis::Value;
use std::{collections::BTreeSet, sync::Arc};

/// A job with its id.
struct Row {
    id: JobId,
    job: NewJob,
    extras: String,
}

pub(super) fn lanes(link: &Arc<Link>) -> Arc<Coalescer<QueueName, NewJob, Result<Enqueued>>> {
    let link = link.clone();
    Coalescer::of_items(
        SHARED,
        |job| Size::item(size(job)),
        move |queue, jobs| {
            let link = link.clone();
            async move { enqueue(&link, &queue, jobs).await }
        },
    )
}

/// What a job takes in a request.
pub(super) fn size(job: &NewJob) -> usize {
    job.payload.len() + 512
}

fn prepare(mut job: NewJob) -> Result<Row> {
    job.validate(&Limits::default())?;
    let extras = Extras { headers: std::mem::take(&mut job.headers), overrides: job.overrides.clone() };
    Ok(Row { id: job.id.take().unwrap_or_else(JobId::generate), job, extras: extras.to_text() })
}

/// Adds jobs, in as many requests as their size asks for.
pub(super) async fn enqueue(
    link: &Link,
    queue: &QueueName,
    jobs: Vec<NewJob>,
) -> Result<Vec<Result<Enqueued>>> {
    let mut answers: Vec<Option<Result<Enqueued>>> = Vec::with_capacity(jobs.len());
    let mut rows = Vec::with_capacity(jobs.len());
    for job in jobs {
        match prepare(job) {
            Ok(row) => {
                rows.push(row);
                answers.push(None);
            }
            Err(error) => answers.push(Some(Err(error))),
        }
    }
    if rows.is_empty() {
        // Whether there is such a queue is asked all the same.
        send(link, queue, &[], false).await?;
    }
    let mut added = Answers::new();
    for now in cut(&rows, |row| size(&row.job)) {
        if added.go_on(now.len()) {
            added.take(now.len(), add(link, queue, now).await)?;
        }
    }
    let mut added = added.finish().into_iter();
    let missing = || Err(reply::broken());
    Ok(answers.into_iter().map(|answer| answer.or_else(|| added.next()).unwrap_or_else(missing)).collect())
}

async fn add(link: &Link, queue: &QueueName, rows: &[Row]) -> Result<Vec<Result<Enqueued>>> {
    if let Some(answers) = send(link, queue, rows, false).await? {
        return Ok(answers);
    }
    // Whoever reads completions has to find the queue before there is one.
    enter(link, queue, rows).await?;
    let answers = send(link, queue, rows, true).await?.ok_or_else(reply::broken)?;
    // A queue that was deleted and declared anew meanwhile may have been taken out by a reader in between.
    if let Err(error) = enter(link, queue, rows).await {
        tracing::debug!(%queue, %error, "the index of completions was not written once more");
    }
    Ok(answers)
}

/// Writes the queue into the indexes of the addresses that its jobs notify.
async fn enter(link: &Link, queue: &QueueName, rows: &[Row]) -> Result<()> {
    let told = rows.iter().filter_map(|row| row.job.notify.as_ref());
    for address in told.map(|notify| &notify.address).collect::<BTreeSet<_>>() {
        let mut cmd = redis::cmd("SADD");
        cmd.arg(index(link, address)).arg(queue.as_str());
        link.command(&cmd, "enqueue", Call::Prepares).await?;
    }
    Ok(())
}

/// The key of the queues that may have completions for an address.
pub(super) fn index(link: &Link, address: &Address) -> String {
    format!("{}:a:{{{address}}}", link.prefix)
}

/// The type and the media type of all jobs, when they share them and have nothing else beside their payloads.
fn alike(rows: &[Row]) -> Option<(&str, &str)> {
    let first = &rows.first()?.job;
    let plain = |Row { job, extras, .. }: &Row| {
        job.job_type == first.job_type
            && job.payload.content_type == first.payload.content_type
            && extras.is_empty()
            && job.delay.is_zero()
            && job.notify.is_none()
            && job.ordering_key.as_ref().is_none_or(String::is_empty)
    };
    rows.iter().all(plain).then_some((&first.job_type, &first.payload.content_type))
}

fn write(cmd: &mut redis::Cmd, Row { id, job, extras }: &Row) {
    let delay = u64::try_from(job.delay.as_millis()).unwrap_or(u64::MAX);
    let delay = delay + u64::from(delay == 0 && !job.delay.is_zero());
    let (address, context) =
        job.notify.as_ref().map_or(("", ""), |notify| (notify.address.as_str(), notify.context.as_str()));
    cmd.arg(id.as_str())
        .arg(&job.job_type)
        .arg(&job.payload.content_type)
        .arg(&job.payload.bytes[..])
        .arg(delay)
        .arg(extras)
        .arg(address)
        .arg(context)
        .arg(job.ordering_key.as_deref().unwrap_or_default());
}

/// None when addresses have to be put into their index first.
async fn send(
    link: &Link,
    queue: &QueueName,
    rows: &[Row],
    indexed: bool,
) -> Result<Option<Vec<Result<Enqueued>>>> {
    let answer = link
        .run(&scripts::ENQUEUE, queue, |cmd| {
            if let Some((job_type, content_type)) = alike(rows) {
                cmd.arg("same").arg(job_type).arg(content_type);
                for Row { id, job, .. } in rows {
                    cmd.arg(id.as_str()).arg(&job.payload.bytes[..]);
                }
            } else {
                cmd.arg(if indexed { "1" } else { "" });
                rows.iter().for_each(|row| write(cmd, row));
            }
        })
        .await?;
    if matches!(&answer, Value::Array(items) if items.first() == Some(&Value::BulkString(b"INDEX".to_vec())))
    {
        return Ok(None);
    }
    let mut items = reply::opened(answer, queue)?;
    let codes = items.bytes()?;
    let mut details = items.items()?;
    let max_depth = items.text()?;
    if codes.len() != rows.len() {
        return Err(reply::broken());
    }
    let answers = codes.iter().zip(rows).map(|(code, row)| decode(*code, row, &mut details, &max_depth));
    Ok(Some(answers.collect()))
}

fn decode(code: u8, row: &Row, details: &mut Items, max_depth: &str) -> Result<Enqueued> {
    let Row { id, job, .. } = row;
    match code {
        b'C' => Ok(Enqueued::Created { id: id.clone() }),
        b'D' => {
            let mut detail = details.items()?;
            let state = reply::state(&detail.bytes()?)?;
            Ok(Enqueued::Duplicate { id: id.clone(), state, outcome: reply::outcome(detail)? })
        }
        b'X' => {
            Err(Error::new(ErrorKind::Conflict, format!("job {id} is known with another type or payload")))
        }
        b'F' => {
            Err(Error::new(ErrorKind::Full, format!("the queue has its maximum of {max_depth} waiting jobs")))
        }
        // Checked here before; the script has the last word.
        b'I' => Err(Error::invalid(format!(
            "job {id} is over one of the limits, or one of its words isn't legal"
        ))),
        b'O' => Err(checks::ordering_key(job, Ordering::BestEffort).err().unwrap_or_else(reply::broken)),
        _ => Err(Error::new(
            ErrorKind::Fatal,
            format!("what is stored of job {id} makes no sense; delete its queue or choose another id"),
        )),
    }
}
