//! What every backend checks before it looks at a call.

use crate::{
    Claim, Error, ErrorKind, JobState, Limits, NewJob, Ordering, QueueName, ReadCompletions, Result,
};
use std::time::Duration;

/// No call works on more items than this.
pub(crate) fn batch(items: usize) -> Result<()> {
    if items > Limits::BATCH {
        return Err(Error::invalid(format!(
            "a call takes {} items at most, this one has {items}",
            Limits::BATCH
        )));
    }
    Ok(())
}

/// A claim asks for something, for some time. More than a batch is not refused: it is only a maximum.
pub(crate) fn claim(claim: &Claim) -> Result<()> {
    if claim.max == 0 {
        return Err(Error::invalid("claim.max must be at least 1"));
    }
    lease(claim.lease)
}

/// An ordering key means something only where there is an order.
pub(crate) fn ordering_key(job: &NewJob, ordering: Ordering) -> Result<()> {
    if job.ordering_key.is_some() && ordering != Ordering::Fifo {
        return Err(Error::invalid("a job's orderingKey needs a queue whose ordering is Fifo"));
    }
    Ok(())
}

/// Jobs are handed out in one order as long as a queue exists: those that wait were promised it.
#[cfg(any(feature = "memory", feature = "redis"))]
pub(crate) fn same_ordering(queue: &QueueName, known: Ordering, wanted: Ordering) -> Result<()> {
    if known != wanted {
        let message = format!("queue {queue} is {known:?}; its ordering can't be changed to {wanted:?}");
        return Err(Error::new(ErrorKind::Conflict, message));
    }
    Ok(())
}

/// A lease lasts for some time, not for ever.
pub(crate) fn lease(lease: Duration) -> Result<()> {
    if lease < Duration::from_millis(1) || lease > Limits::MAX_DELAY {
        return Err(Error::invalid("a lease lasts from 1 ms to 366 days"));
    }
    Ok(())
}

/// A read asks for something, and doesn't keep it from others for long.
pub(crate) fn read(read: &ReadCompletions) -> Result<()> {
    if read.max == 0 {
        return Err(Error::invalid("max must be at least 1 completion"));
    }
    if read.lease > ReadCompletions::MAX_LEASE {
        return Err(Error::invalid(format!(
            "completions are leased for {} s at most",
            ReadCompletions::MAX_LEASE.as_secs()
        )));
    }
    Ok(())
}

/// A page has room for a job. More than a batch is not refused: it is only a maximum.
pub(crate) fn limit(limit: u32) -> Result<()> {
    if limit == 0 {
        return Err(Error::invalid("a page must have room for at least 1 job"));
    }
    Ok(())
}

/// Whoever holds a job keeps it.
pub(crate) fn purge(state: JobState) -> Result<()> {
    if state == JobState::Active {
        return Err(Error::invalid("active jobs can't be purged; cancel them"));
    }
    Ok(())
}
