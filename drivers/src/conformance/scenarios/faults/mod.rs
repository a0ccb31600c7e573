//! Brokers that die or stand still, and ways there that break, while jobs go in and come out.
//!
//! Nothing is left to luck: a fault begins when every operation is known to go well, lasts until each was seen to fail in
//! it, and the scenario ends when they go well again through the same handles.

mod consume;
mod dispatch;
mod hands;
mod line;
mod order;
mod tally;

pub(super) use consume::{consume_after_broker_recovery, ordering_fifo_broker_faults};
pub(super) use dispatch::dispatch_during_broker_fault;

use crate::conformance::{
    Failed, Fixture, Subject, Verdict, check, eventually,
    fixture::{LEASE, SOON, job},
    history::{Client, History},
    proxy::{Proxy, Side, Weather},
};
use crate::{Claim, DriverExt, ErrorKind, JobId, Settle};
use std::{sync::Arc, time::Duration};

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The broker's process is killed, and started again in the end.
    Killed,
    /// The broker hears everything, and each connection breaks with its first answer.
    AnswersLost,
    /// The broker hears everything and does it, and no answer comes back: a connection that is half open.
    HalfOpen,
    /// It stands still, and goes on in the end.
    Frozen,
    /// Connections stand, and nothing passes.
    Silent,
    /// The broker is stopped in good order and started again.
    Restarted,
    /// Connections are reset as soon as they are made.
    Refused,
    /// Each connection breaks in the middle of the first request.
    RequestsCut,
    /// Everything comes later, and nothing is lost.
    Slow,
}

/// How much later in [`Fault::Slow`], each way. A connection that has to be made anew takes a dozen ways, within the second
/// that handles have for it.
const LATER: Duration = Duration::from_millis(25);

impl Fault {
    pub(super) const ALL: [Self; 9] = [
        Self::Killed,
        Self::AnswersLost,
        Self::HalfOpen,
        Self::Frozen,
        Self::Silent,
        Self::Restarted,
        Self::Refused,
        Self::RequestsCut,
        Self::Slow,
    ];
    /// Those during which no call at all is answered.
    pub(super) const TOTAL: [Self; 7] = [
        Self::Killed,
        Self::AnswersLost,
        Self::HalfOpen,
        Self::Frozen,
        Self::Silent,
        Self::Refused,
        Self::RequestsCut,
    ];

    /// A fault that is over by itself is over when this is answered.
    pub(super) async fn begin(self, fixture: &Fixture, proxy: &Proxy) -> Verdict {
        match self {
            Self::Killed => fixture.broker().kill().await?,
            Self::AnswersLost => proxy.set(Weather::Cut(Side::Server, 0)),
            Self::HalfOpen => proxy.set(Weather::Held(Side::Server)),
            Self::Frozen => fixture.broker().freeze().await?,
            Self::Silent => proxy.set(Weather::Silent),
            Self::Restarted => fixture.broker().restart().await?,
            Self::Refused => proxy.set(Weather::Reset),
            Self::RequestsCut => proxy.set(Weather::Cut(Side::Client, 1)),
            Self::Slow => proxy.set(Weather::Slow(LATER)),
        }
        Ok(())
    }

    pub(super) async fn end(self, fixture: &Fixture, proxy: &Proxy) -> Verdict {
        match self {
            Self::Killed => fixture.broker().restart().await?,
            Self::Frozen => fixture.broker().thaw().await?,
            Self::Restarted => {}
            _ => proxy.heal(),
        }
        Ok(())
    }
}

/// The handle that was there all along does everything again, by itself.
pub(super) async fn healthy(fixture: &Fixture, subject: &Subject, fault: Fault) -> Verdict {
    // A queue of its own: what was asked for during the fault may still be done, late.
    let healthy =
        Subject { queue: fixture.queue_name(&format!("{fault:?}").to_lowercase())?, ..subject.clone() };
    eventually("the handle works again", || async {
        let settings = crate::QueueSettings::default();
        let declaration = crate::Declaration { owner: Subject::owner(), settings, adopt: false };
        Ok(healthy.driver.declare(&healthy.queue, declaration).await.is_ok())
    })
    .await?;
    // An answer that is late on a machine that stood still is lost, and a claimed job with it: another one tells.
    eventually("jobs go in and come out again", || through_once(&healthy)).await
}

/// Whether a job went all the way through, each call having been answered.
async fn through_once(healthy: &Subject) -> Result<bool, Failed> {
    let (driver, id) = (&healthy.driver, JobId::generate());
    if driver.enqueue_one(&healthy.queue, job().with_id(id.clone())).await.is_err() {
        return Ok(false);
    }
    loop {
        let claim = Claim { max: 1, wait: SOON, lease: LEASE, worker: "conformance".into() };
        let claimed = match driver.claim(&healthy.queue, claim).await {
            Ok(mut jobs) => jobs.pop(),
            Err(error) => return unheard(error),
        };
        let claimed = claimed.ok_or_else(|| Failed(format!("no job could be claimed within {SOON:?}")))?;
        let succeed = Settle::Succeed { result: None };
        match driver.settle_one(&healthy.queue, &claimed.receipt, succeed).await {
            Ok(()) if claimed.id == id => return Ok(true),
            Ok(()) => {}
            Err(error) => return unheard(error),
        }
    }
}

/// An answer that didn't come in time may come the next time; any other error is one.
fn unheard(error: crate::Error) -> Result<bool, Failed> {
    match error.kind {
        ErrorKind::Unavailable | ErrorKind::Ambiguous | ErrorKind::Timeout => Ok(false),
        _ => Err(error.into()),
    }
}

/// Asks where each job stands and judges the history.
pub(super) async fn judge(subject: &Subject, history: &Arc<History>) -> Verdict {
    let client = Client::new(history, 1001, subject.driver.clone(), subject.queue.clone());
    let fates = client.fates(history.jobs()).await?;
    let findings = history.check(&fates);
    check!(findings.is_empty(), "{} findings: {}", findings.len(), findings.join("; "));
    Ok(())
}
