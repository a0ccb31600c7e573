//! Keeps leases: every third of a lease all jobs of a queue are extended in one request, those too whose settle takes
//! that long.

use crate::{
    core::Core,
    in_flight::Abort,
    plan::{Lane, LaneKey},
    sync::{sleep, sleep_until, timeout},
};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use longshore_drivers::{Claimed, Error, ErrorKind, Extension, Receipt, Timestamp};
use std::{collections::BTreeSet, panic::AssertUnwindSafe, sync::Arc, time::Duration};
use tokio::time::Instant;

/// The longest pause before a failed extension is tried again.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// When a lease is to be extended and when it ends, by this machine's monotonic clock and as far as known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Term {
    pub(crate) extend_at: Instant,
    pub(crate) until: Instant,
    /// It may be over already, and the job with somebody else: it has to be proven before the job is started.
    pub(crate) doubtful: bool,
}

impl Term {
    /// The term of a lease that was asked for at `sent` and can't have begun before.
    pub(crate) fn since(sent: Instant, lease: Duration) -> Self {
        Self { extend_at: sent + lease / 3, until: sent + lease, doubtful: false }
    }

    /// The term of a job that a claim which did not wait brought at `arrived`. This process may have stood still since
    /// it was sent.
    pub(crate) fn claimed(sent: Instant, arrived: Instant, lease: Duration) -> Self {
        let term = Self::since(sent, lease);
        Self { doubtful: arrived >= term.until, ..term }
    }

    /// The term of a job that a long poll brought now. It was leased at some moment of the wait.
    ///
    /// The broker's clock tells when, if the clocks agree. Where the lease looks short it is extended at once: that costs
    /// a request if the clocks are to blame, and saves the job if its answer was long on its way.
    pub(crate) fn waited(
        job: &Claimed,
        lease: Duration,
        sent: Instant,
        now: Instant,
        clock: Timestamp,
    ) -> Self {
        let left = job.lease_until.since(clock).min(lease);
        let extend_at = now + left.saturating_sub(lease * 2 / 3);
        Self { extend_at: extend_at.max(sent + lease / 3), until: now + lease, doubtful: left.is_zero() }
    }
}

/// The pause before something about a lease is tried again: a lease has room for several of them.
pub(crate) fn soon(lease: Duration) -> Duration {
    (lease / 12).min(LONGEST_PAUSE)
}

/// One request and its answer.
struct Extended {
    lane: Arc<Lane>,
    leases: Vec<(u64, Receipt)>,
    /// Leases are counted from before the request, so that they never seem longer than they are.
    sent: Instant,
    answer: longshore_drivers::Result<Vec<longshore_drivers::Result<Extension>>>,
}

/// Extends leases for as long as the sidecar lives. A queue whose broker is slow delays no other queue.
pub(crate) async fn keep(core: Arc<Core>) {
    let mut busy: BTreeSet<LaneKey> = BTreeSet::new();
    let mut requests: FuturesUnordered<BoxFuture<'static, Extended>> = FuturesUnordered::new();
    loop {
        let next = core.in_flight.next_extension(&busy);
        let due = next.as_ref().map(|(_, at)| *at);
        tokio::select! {
            Some(extended) = requests.next(), if !requests.is_empty() => {
                busy.remove(&extended.lane.key);
                apply(&core, extended);
            }
            () = at(due) => {
                if let Some((lane, _)) = next {
                    let lane = core.current(&lane);
                    busy.insert(lane.key.clone());
                    let leases = core.in_flight.leases_of(&lane.key);
                    requests.push(Box::pin(extend(lane, leases)));
                }
            }
            () = core.in_flight.leases.notified() => {}
        }
    }
}

/// Whether the broker still knows the lease of a job that looks over. Asks for as long as a lease lasts; a broker that does
/// not answer is no proof. The lease is extended with the answer, and kept by [`keep`] from there on.
pub(crate) async fn proven(lane: &Lane, receipt: &Receipt) -> bool {
    let lease = lane.queue.lease;
    let asking = async {
        loop {
            let request = lane.driver.extend(&lane.queue.physical, vec![receipt.clone()], lease);
            match request.await.map(|mut answers| answers.pop()) {
                Ok(Some(Ok(_))) => return true,
                Ok(Some(Err(error))) | Err(error)
                    if matches!(error.kind, ErrorKind::StaleReceipt | ErrorKind::NotFound) =>
                {
                    return false;
                }
                Ok(_) | Err(_) => sleep(soon(lease)).await,
            }
        }
    };
    timeout(lease, asking).await.unwrap_or(false)
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

async fn extend(lane: Arc<Lane>, leases: Vec<(u64, Receipt)>) -> Extended {
    let receipts = leases.iter().map(|(_, receipt)| receipt.clone()).collect();
    let lease = lane.queue.lease;
    let sent = Instant::now();
    let request = timeout(lease / 3, lane.driver.extend(&lane.queue.physical, receipts, lease));
    let answer = match AssertUnwindSafe(request).catch_unwind().await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) => Err(Error::new(ErrorKind::Timeout, "no answer to an extension")),
        Err(_) => Err(Error::new(ErrorKind::Fatal, "the driver panicked")),
    };
    Extended { lane, leases, sent, answer }
}

fn apply(core: &Core, extended: Extended) {
    let Extended { lane, leases, sent, answer } = extended;
    core.health.broker_answered(&lane.queue.broker, &answer);
    let lease = lane.queue.lease;
    let soon = Instant::now() + soon(lease);
    let complete = answer.and_then(|answers| {
        if answers.len() == leases.len() {
            Ok(answers)
        } else {
            Err(Error::new(ErrorKind::Fatal, "the broker answered too few extensions"))
        }
    });
    let answers = complete.unwrap_or_else(|error| {
        core.metrics.broker_error("extend", &error);
        tracing::debug!(queue = lane.queue.name, leases = leases.len(), kind = %error.kind, error = error.message, "leases not extended");
        leases.iter().map(|_| Err(error.clone())).collect()
    });
    for ((id, _), answer) in leases.iter().zip(answers) {
        match answer {
            Ok(extension) => {
                let Term { extend_at, until, .. } = Term::since(sent, lease);
                core.in_flight.extended(*id, extend_at, Some(until));
                if extension.cancel_requested {
                    core.in_flight.abort(*id, Abort::Cancelled);
                }
            }
            Err(error) => {
                core.in_flight.extended(*id, soon, None);
                // After any other error the job goes on. Should its lease end before the broker is back, the broker says
                // whether what came of it still counts.
                if matches!(error.kind, ErrorKind::StaleReceipt | ErrorKind::NotFound) {
                    core.in_flight.abort(*id, Abort::Lost);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::claimed;

    const LEASE: Duration = Duration::from_secs(30);
    const SENT: Timestamp = Timestamp::from_millis(1_700_000_000_000);

    #[test]
    fn a_lease_that_may_be_over_before_its_job_arrived_is_doubtful() {
        let sent = Instant::now();
        let claimed = |seconds| Term::claimed(sent, sent + Duration::from_secs(seconds), LEASE).doubtful;
        assert_eq!((claimed(0), claimed(29), claimed(30)), (false, false, true));
        let waited = |leased, arrived, ahead| waited(leased, arrived, ahead).0.doubtful;
        assert_eq!((waited(0, 20, 0), waited(20, 20, 3600)), (false, false));
        assert!(waited(0, 60, 0), "nobody extended it in time");
        assert!(waited(20, 20, -3600), "clocks that disagree cost a request");
    }

    /// The term of a job that was leased `leased` seconds after the claim was sent and arrived `arrived` seconds after it,
    /// where the broker's clock is `ahead` seconds ahead; and when it arrived.
    fn waited(leased: u64, arrived: u64, ahead: i64) -> (Term, Instant) {
        let mut job = claimed("job", 1);
        let begin = SENT.after(Duration::from_secs(leased)).as_millis() + ahead * 1000;
        job.lease_until = Timestamp::from_millis(begin).after(LEASE);
        let now = Instant::now();
        let sent = now.checked_sub(Duration::from_secs(arrived)).unwrap();
        let term = Term::waited(&job, LEASE, sent, now, SENT.after(Duration::from_secs(arrived)));
        assert_eq!(term.until, now + LEASE);
        (term, now)
    }

    /// The seconds until its first extension.
    fn extended_after(leased: u64, arrived: u64, ahead: i64) -> u64 {
        let (term, now) = waited(leased, arrived, ahead);
        term.extend_at.duration_since(now).as_secs()
    }

    #[test]
    fn a_job_that_was_long_on_its_way_is_extended_early() {
        assert_eq!(extended_after(20, 20, 0), 10);
        assert_eq!(extended_after(16, 20, 0), 6);
        assert_eq!(extended_after(5, 20, 0), 0);
        assert_eq!(extended_after(0, 60, 0), 0, "it is lost already, and the broker says so");
    }

    #[test]
    fn clocks_that_disagree_cost_an_early_extension_at_most() {
        assert_eq!(extended_after(20, 20, -3600), 0);
        assert_eq!(extended_after(20, 20, 3600), 10);
        assert_eq!(extended_after(0, 0, -3600), 10, "a lease can't have begun before it was asked for");
    }
}
