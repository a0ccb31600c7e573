//! Keeps leases: every third of a lease all jobs of a queue are extended in one request.

use crate::{
    core::Core,
    in_flight::Abort,
    plan::{Lane, LaneKey},
};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use longshore_drivers::{Error, ErrorKind, Extension, Receipt};
use std::{collections::BTreeSet, panic::AssertUnwindSafe, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep_until, timeout};

/// The longest pause before a failed extension is tried again.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

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
    let soon = Instant::now() + (lease / 12).min(LONGEST_PAUSE);
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
                core.in_flight.extended(*id, sent + lease / 3, Some(sent + lease));
                if extension.cancel_requested {
                    core.in_flight.abort(*id, Abort::Cancelled);
                }
            }
            Err(error) => {
                core.in_flight.extended(*id, soon, None);
                // After any other error the job goes on: while nobody else claimed it, its settle counts even late.
                if matches!(error.kind, ErrorKind::StaleReceipt | ErrorKind::NotFound) {
                    core.in_flight.abort(*id, Abort::Lost);
                }
            }
        }
    }
}
