//! Claims: long polls, whose answers are bounded one by one and all together.
//!
//! A driver is asked for a number of jobs, a response is bounded in bytes. So claims go in slices, as large as the jobs
//! that were seen in a queue make seem right; what a slice is expected to take is reserved before the driver is asked.

use super::{Api, extract::Queue};
use crate::{Claim, Claimed, Error, Limits, QueueName, Result};
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::OwnedSemaphorePermit;

/// What a claimed job takes beside its payload and headers.
const ENVELOPE: usize = 1024;
/// Whoever waits for jobs has no share of the responses, and is handed few bytes at first.
const UNSHARED: usize = 64 * 1024;

/// What jobs of a queue take, as far as claims have seen. Holds one number per queue that exists or did.
#[derive(Debug, Default)]
pub(super) struct Sizes(Mutex<HashMap<QueueName, usize>>);

impl Sizes {
    /// What a job is expected to take: what the largest one may as long as nothing is known.
    fn expected(&self, queue: &QueueName, largest: usize) -> usize {
        let sizes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sizes.get(queue).copied().unwrap_or(largest).max(1)
    }

    /// A large job is believed at once, small ones little by little.
    fn saw(&self, queue: &QueueName, largest: usize, jobs: &[Claimed]) {
        let Some(seen) = jobs.iter().map(cost).max() else { return };
        let mut sizes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let expected = sizes.entry(queue.clone()).or_insert(largest);
        *expected = seen.max(*expected / 2);
    }
}

/// Claims up to `claim.max` jobs. The share is to be kept until the response is built.
///
/// When the caller goes away this future is dropped where it stands, and so is the driver's claim: its contract covers
/// what happens to the jobs.
pub(super) async fn claim(
    api: &Api,
    queue: &Queue,
    claim: Claim,
) -> Result<(Vec<Claimed>, Option<OwnedSemaphorePermit>)> {
    if claim.max == 0 {
        return Err(Error::invalid("claim.max must be at least 1"));
    }
    if api.shared.stop.is_cancelled() {
        return Err(Error::unavailable("the server is going away"));
    }
    let wait = claim.wait.min(api.shared.limits.wait);
    let largest = queue.driver.capabilities().limits.max_payload;
    let mut slices = Slices { api, queue, claim, largest, jobs: Vec::new(), spent: 0, share: None };
    slices.fill().await?;
    if slices.jobs.is_empty() && !wait.is_zero() && slices.wait(wait).await? {
        slices.fill().await?;
    }
    Ok((slices.jobs, slices.share))
}

/// A claim on its way.
struct Slices<'a> {
    api: &'a Api,
    queue: &'a Queue,
    claim: Claim,
    largest: usize,
    jobs: Vec<Claimed>,
    spent: usize,
    share: Option<OwnedSemaphorePermit>,
}

impl Slices<'_> {
    /// Takes what is there, slice by slice, without waiting for jobs.
    async fn fill(&mut self) -> Result<()> {
        loop {
            let max = self.room(self.api.shared.limits.claimed);
            if max == 0 {
                return Ok(());
            }
            match self.take(max).await {
                Ok(true) => {}
                // What is held already is worth more than an error.
                Err(error) if self.jobs.is_empty() => return Err(error),
                Ok(false) | Err(_) => return Ok(()),
            }
        }
    }

    /// Takes one slice. Whether it was full: then there may be more.
    async fn take(&mut self, max: u32) -> Result<bool> {
        let share = self.api.share_of_responses(max as usize * self.expected()).await?;
        let slice = Claim { max, wait: Duration::ZERO, ..self.claim.clone() };
        let jobs = self.queue.driver.claim(&self.queue.name, slice).await?;
        Ok(self.keep(max, jobs, Some(share)))
    }

    /// Waits for the first jobs, without a share: a crowd that waits must not keep others from their answers.
    async fn wait(&mut self, wait: Duration) -> Result<bool> {
        let max = self.room(UNSHARED);
        let slice = Claim { max, wait, ..self.claim.clone() };
        tokio::select! {
            // A claim that is ready wins over the end.
            biased;
            jobs = self.queue.driver.claim(&self.queue.name, slice) => {
                let jobs = jobs?;
                Ok(self.keep(max, jobs, None))
            }
            () = self.api.shared.stop.cancelled() => Ok(false),
        }
    }

    /// Adds a slice. Whether it was full.
    fn keep(&mut self, max: u32, jobs: Vec<Claimed>, share: Option<OwnedSemaphorePermit>) -> bool {
        let is_full = jobs.len() >= max as usize;
        self.api.shared.sizes.saw(&self.queue.name, self.largest, &jobs);
        let spent = jobs.iter().map(cost).sum();
        self.spent += spent;
        self.jobs.extend(jobs);
        self.account(spent, share);
        is_full
    }

    /// Keeps as much of `share` as was `spent`. Jobs that turned out larger than expected are accounted for as far as
    /// there is room: there is no way back.
    fn account(&mut self, spent: usize, share: Option<OwnedSemaphorePermit>) {
        let reserved = share.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let missing = u32::try_from(spent.saturating_sub(reserved)).unwrap_or(u32::MAX);
        let more = self.api.shared.responses.clone().try_acquire_many_owned(missing).ok();
        let used = share.and_then(|mut share| share.split(spent.min(reserved)));
        for part in used.into_iter().chain(more) {
            match &mut self.share {
                Some(held) => held.merge(part),
                held => *held = Some(part),
            }
        }
    }

    /// How many jobs fit into what is left of `bytes`; the first one always does.
    fn room(&self, bytes: usize) -> u32 {
        let fits = bytes.saturating_sub(self.spent) / self.expected();
        let fits = if self.jobs.is_empty() { fits.max(1) } else { fits };
        let wanted = usize::try_from(self.claim.max).unwrap_or(usize::MAX).min(Limits::BATCH);
        u32::try_from(fits.min(wanted.saturating_sub(self.jobs.len()))).unwrap_or(u32::MAX)
    }

    fn expected(&self) -> usize {
        self.api.shared.sizes.expected(&self.queue.name, self.largest)
    }
}

fn cost(job: &Claimed) -> usize {
    let headers: usize = job.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    job.payload.len() + headers + ENVELOPE
}
