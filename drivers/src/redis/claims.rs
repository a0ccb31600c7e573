//! Claims: handing out, waiting, and taking back what nobody received.

use super::{
    core::{Core, SHARED},
    hub::{Ear, Hub},
    link::{Link, closed},
    reply::{self, Items},
    scripts,
    stored::Stored,
};
use crate::{
    Claim, Claimed, Error, JobId, Limits, Notify, Payload, QueueName, Receipt, Result, Timestamp,
    coalesce::{Coalescer, Size},
};
use bytes::Bytes;
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// Nobody waits longer in one call.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(3600);
/// How often those who wait look by themselves: one of each queue for all of them here, and the others.
const GLANCE: Duration = Duration::from_secs(1);
const RARE_GLANCE: Duration = Duration::from_secs(25);
/// How long a claim is held up at first so that nothing is missed; later it just looks more often.
const LISTENS: Duration = Duration::from_secs(1);

/// Claims that can share a request: queue, lease in milliseconds, worker.
pub(super) type Key = (QueueName, u64, String);

/// One claim in a request: how many, and the number under which it waits otherwise.
#[derive(Debug)]
pub(super) struct Wish {
    max: u32,
    number: Option<u64>,
}

/// What a claim got. Jobs that nobody takes out go back.
#[derive(Debug)]
pub(super) struct Handed {
    jobs: Vec<Claimed>,
    /// When something becomes ready by itself.
    next: Option<Duration>,
    queue: QueueName,
    hub: Arc<Hub>,
    link: Arc<Link>,
}

impl Handed {
    fn take(mut self) -> Vec<Claimed> {
        std::mem::take(&mut self.jobs)
    }
}

impl Drop for Handed {
    fn drop(&mut self) {
        if self.jobs.is_empty() || tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        let receipts: Vec<_> = self.jobs.drain(..).map(|job| job.receipt).collect();
        let (link, queue) = (self.link.clone(), self.queue.clone());
        self.hub.chores.spawn(async move {
            let back = link
                .run_late(&scripts::UNCLAIM, &queue, |cmd| {
                    for receipt in &receipts {
                        let (id, token) = parse(receipt);
                        cmd.arg(id).arg(token);
                    }
                })
                .await;
            if let Err(error) = back {
                tracing::debug!(%queue, %error, "jobs that nobody received stay leased until their leases end");
            }
        });
    }
}

/// A receipt: the token of the claim and the job's id.
fn receipt(token: &str, id: &JobId) -> Receipt {
    Receipt(format!("{token}/{id}"))
}

/// The id and the token in a receipt; empty ones, which hold nothing, when it is none of ours.
pub(super) fn parse(receipt: &Receipt) -> (&str, &str) {
    receipt.0.split_once('/').map_or(("", ""), |(token, id)| (id, token))
}

pub(super) fn lanes(link: &Arc<Link>, hub: &Arc<Hub>) -> Arc<Coalescer<Key, Wish, Handed>> {
    let (link, hub) = (link.clone(), hub.clone());
    Coalescer::of_items(
        SHARED,
        |_| Size::item(64),
        move |key, wishes| {
            let (link, hub) = (link.clone(), hub.clone());
            async move { hand_out(&link, &hub, &key, &wishes).await }
        },
    )
}

async fn hand_out(link: &Arc<Link>, hub: &Arc<Hub>, key: &Key, wishes: &[Wish]) -> Result<Vec<Handed>> {
    let (queue, lease, worker) = key;
    let token = uuid::Uuid::new_v4().simple().to_string();
    let answer = link
        .run(&scripts::CLAIM, queue, |cmd| {
            cmd.arg(&token).arg(lease).arg(worker).arg(&hub.driver);
            for wish in wishes {
                cmd.arg(wish.max);
                match wish.number {
                    Some(number) => cmd.arg(number),
                    None => cmd.arg(""),
                };
            }
        })
        .await?;
    let mut items = reply::opened(answer, queue)?;
    let next = items.natural()?.map(Duration::from_millis);
    let lease_until = items.time()?;
    let mut jobs = Vec::new();
    let mut fields = items.items()?;
    while !fields.is_empty() {
        let id = fields.text()?;
        let parts = Parts::read(&mut fields)?;
        match decode(&id, parts, &token, lease_until) {
            Ok(job) => jobs.push(job),
            Err(error) => {
                tracing::warn!(%queue, job = id, %error, "a job that can't be read is dead");
                bury(link, hub, queue, id, &token);
            }
        }
    }
    let mut jobs = jobs.into_iter();
    Ok(wishes
        .iter()
        .map(|wish| Handed {
            jobs: jobs.by_ref().take(wish.max as usize).collect(),
            next,
            queue: queue.clone(),
            hub: hub.clone(),
            link: link.clone(),
        })
        .collect())
}

/// A job that nobody can be given would be found again and again.
fn bury(link: &Arc<Link>, hub: &Arc<Hub>, queue: &QueueName, id: String, token: &str) {
    let (link, queue, token) = (link.clone(), queue.clone(), token.to_owned());
    hub.chores.spawn(async move {
        let buried = link
            .run_late(&scripts::SETTLE, &queue, |cmd| {
                cmd.arg(&id).arg(&token).arg("U").arg(0).arg("Quarantined").arg("Unreadable");
                cmd.arg("what is stored of the job makes no sense");
            })
            .await;
        if let Err(error) = buried {
            tracing::debug!(%queue, %error, "a job that can't be read comes again");
        }
    });
}

/// What belongs to a job that was handed out, beside its id.
struct Parts {
    fixed: Bytes,
    changes: Vec<u8>,
    /// Empty when it follows what never changes.
    payload: Bytes,
    extras: Vec<u8>,
    note: String,
}

impl Parts {
    fn read(items: &mut Items) -> Result<Self> {
        Ok(Self {
            fixed: items.bytes()?.into(),
            changes: items.bytes()?,
            payload: items.bytes()?.into(),
            extras: items.bytes()?,
            note: String::from_utf8_lossy(&items.bytes()?).into_owned(),
        })
    }
}

fn decode(id: &str, parts: Parts, token: &str, lease_until: Timestamp) -> Result<Claimed> {
    let id = JobId::new(id)?;
    let stored = Stored::read(&parts.fixed, &parts.changes)?;
    let extras = reply::extras(&parts.extras)?;
    let bytes = stored.payload.unwrap_or(parts.payload);
    Ok(Claimed {
        receipt: receipt(token, &id),
        id,
        job_type: stored.job_type,
        payload: Payload { content_type: stored.content_type, bytes },
        overrides: extras.overrides,
        headers: extras.headers,
        attempt: stored.attempts.saturating_add(1),
        delivery: stored.deliveries,
        enqueued_at: stored.enqueued_at,
        ready_at: stored.due_at,
        ordering_key: Some(stored.key).filter(|key| !key.is_empty()),
        last_failure: stored.failure,
        notify: notify(&parts.note)?,
        lease_until,
    })
}

fn notify(stored: &str) -> Result<Option<Notify>> {
    if stored.is_empty() {
        return Ok(None);
    }
    let (address, context) = stored.split_once(' ').ok_or_else(reply::broken)?;
    Ok(Some(Notify { address: crate::Address::new(address)?, context: context.to_owned() }))
}

impl Core {
    async fn ask(&self, key: &Key, max: u32, number: Option<u64>) -> Result<Handed> {
        self.claims.call(key.clone(), Wish { max, number }).await
    }

    pub(super) async fn claim(&self, queue: &QueueName, claim: &Claim) -> Result<Vec<Claimed>> {
        let deadline = Instant::now() + claim.wait.min(LONGEST_WAIT);
        let lease = u64::try_from(claim.lease.as_millis()).unwrap_or(u64::MAX);
        let worker: String =
            claim.worker.chars().filter(|letter| !letter.is_control()).take(Limits::JOB_ID).collect();
        let key = (queue.clone(), lease, worker);
        let max = claim.max.min(u32::try_from(Limits::BATCH).unwrap_or(u32::MAX));
        let handed = self.ask(&key, max, None).await?;
        if !handed.jobs.is_empty() || claim.wait.is_zero() {
            return Ok(handed.take());
        }
        self.hub.listen(Ear::Own, LISTENS.min(claim.wait)).await;
        let mut place = self.hub.sleeper(queue);
        loop {
            let over = Instant::now() >= deadline;
            place.in_line |= !over;
            let handed = self.ask(&key, max, (!over).then_some(place.number)).await?;
            if !handed.jobs.is_empty() {
                // The script took the number out of the line, unless it was too late to ask for that.
                place.in_line &= over;
                return Ok(handed.take());
            }
            if over {
                return Ok(Vec::new());
            }
            let glance =
                if place.is_first() { handed.next.unwrap_or(GLANCE).min(GLANCE) } else { RARE_GLANCE };
            tokio::select! {
                () = place.wake.notified() => {}
                () = tokio::time::sleep_until(deadline.min(Instant::now() + glance)) => {}
                () = self.link.closed.cancelled() => return Err(closed()),
            }
        }
    }
}

/// Nothing is known of a receipt that is no receipt.
pub(super) fn stale(receipt: &Receipt) -> Error {
    Error::stale(receipt)
}
