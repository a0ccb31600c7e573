//! Long polls.

use super::Api;
use crate::{Claim, Claimed, DynDriver, Error, Limits, QueueName, Result};
use std::time::Duration;

/// What a claimed job takes beside its payload and headers.
const ENVELOPE: usize = 1024;

/// Claims up to `claim.max` jobs in slices, so that a response stays within its limit however large the jobs are.
///
/// Only the first slice waits. When the caller goes away this future is dropped where it stands, and so is the driver's
/// claim: its contract covers what happens to the jobs.
pub(super) async fn claim(
    api: &Api,
    driver: &DynDriver,
    queue: &QueueName,
    claim: Claim,
) -> Result<Vec<Claimed>> {
    let (limits, stop) = (&api.shared.limits, &api.shared.stop);
    let largest = driver.capabilities().limits.max_payload.max(1);
    let wanted = usize::try_from(claim.max).unwrap_or(usize::MAX).min(Limits::BATCH);
    let slice = |held: usize, spent: usize| -> u32 {
        let fits = limits.claimed.saturating_sub(spent) / largest;
        let fits = if held == 0 { fits.max(1) } else { fits };
        u32::try_from(fits.min(wanted - held)).unwrap_or(u32::MAX)
    };
    if stop.is_cancelled() {
        return Err(Error::unavailable("the server is going away"));
    }
    let mut max = slice(0, 0);
    let first = Claim { max, wait: claim.wait.min(limits.wait), ..claim.clone() };
    let mut jobs = tokio::select! {
        // A claim that is ready wins over the end.
        biased;
        jobs = driver.claim(queue, first) => jobs?,
        () = stop.cancelled() => Vec::new(),
    };
    let mut spent = jobs.iter().map(cost).sum();
    let mut full = jobs.len() == max as usize;
    loop {
        max = slice(jobs.len().min(wanted), spent);
        if !full || max == 0 || jobs.is_empty() {
            return Ok(jobs);
        }
        let next = Claim { max, wait: Duration::ZERO, ..claim.clone() };
        // What is held already is worth more than this error.
        let Ok(more) = driver.claim(queue, next).await else {
            return Ok(jobs);
        };
        full = more.len() == max as usize;
        spent += more.iter().map(cost).sum::<usize>();
        jobs.extend(more);
    }
}

fn cost(job: &Claimed) -> usize {
    let headers: usize = job.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    job.payload.len() + headers + ENVELOPE
}
