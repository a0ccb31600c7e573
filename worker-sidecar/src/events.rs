//! What happens to jobs, as typed events: `docs/events.md` lists them, and a test holds that page to this code.
//!
//! An event is a line of the log with a target of its own, so that the filter of the log turns events on and off. While
//! they are off nothing is made for them. They hold names, numbers and words; never payloads, headers, receipts or what
//! apps say.

use crate::{
    core::Core,
    in_flight::Settled,
    outcome::{Answer, Signal},
    plan::Lane,
};
use longshore_drivers::{Claimed, DeadReason, Settle};
use std::{fmt, sync::Arc, time::Duration};
use tracing::Level;

/// The target of their lines.
pub(crate) const TARGET: &str = "longshore::events";
/// Letters of a word that an app may choose.
const WORD: usize = 64;

/// The directives for the log's filter: those that were asked for, and no events unless they are named among them.
pub fn filter(asked: Option<&str>) -> String {
    let asked = asked.map(str::trim).filter(|asked| !asked.is_empty()).unwrap_or("info");
    if asked.contains(TARGET) { asked.to_owned() } else { format!("{asked},{TARGET}=off") }
}

/// Whether anybody wants them.
pub(crate) fn on() -> bool {
    tracing::enabled!(target: TARGET, Level::INFO)
}

/// Makes the enum and the list of its names from one table, so that none is forgotten.
macro_rules! events {
    ($($(#[$doc:meta])* $name:literal $event:ident $({ $($(#[$about:meta])* $field:ident: $type:ty),+ })?;)+) => {
        /// One step of a job, as the sidecar that has it sees it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum JobEvent<'a> {
            $($(#[$doc])* $event $({ $($(#[$about])* $field: $type),+ })?,)+
        }

        impl JobEvent<'_> {
            /// All names.
            #[cfg(test)]
            const NAMES: &'static [&'static str] = &[$($name),+];

            /// Its name and version. What a version means never changes; another meaning is another version.
            const fn name(&self) -> &'static str {
                match self {
                    $(Self::$event $({ $($field: _),+ })? => $name,)+
                }
            }
        }
    };
}

events! {
    /// A claim brought it here.
    "job.claimed.v1" Claimed;
    /// The app gets it: there is a connection for its request, or it is in the answer to the app's own claim.
    "job.started.v1" Started;
    /// The app answered that it goes on with it by itself.
    "job.detached.v1" Detached;
    /// The broker took its success.
    "job.succeeded.v1" Succeeded;
    /// The broker took that it runs again, and that this attempt counted.
    "job.retried.v1" Retried {
        /// What went wrong.
        failure: &'a str,
        /// Not before this long from then.
        delay: Duration
    };
    /// The broker took that it never runs again.
    "job.dead.v1" Dead {
        /// Why it is over.
        reason: DeadReason,
        /// What went wrong.
        failure: &'a str
    };
    /// The broker took it back as if it had not been claimed.
    "job.released.v1" Released {
        /// Why.
        reason: Released,
        /// Not before this long from then.
        delay: Duration
    };
    /// The broker took the end of a job that somebody asked it to cancel.
    "job.cancelled.v1" Cancelled;
    /// This sidecar has it no longer, and nothing that it did with it counts.
    "job.lease_lost.v1" LeaseLost {
        /// Where that was found.
        reason: Lost
    };
    /// The broker may have taken its settle.
    "job.settle_unknown.v1" SettleUnknown {
        /// What the settle asks for.
        settle: &'static str
    };
    /// The broker did not take its settle; it comes again when its lease ends.
    "job.settle_abandoned.v1" SettleAbandoned {
        /// What the settle asks for.
        settle: &'static str
    };
}

/// Makes an enum of words.
macro_rules! words {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $word:ident,)+ }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum $name {
            $($(#[$doc])* $word,)+
        }

        impl $name {
            /// All words.
            #[cfg(test)]
            const WORDS: &'static [&'static str] = &[$(stringify!($word)),+];

            const fn word(self) -> &'static str {
                match self {
                    $(Self::$word => stringify!($word),)+
                }
            }
        }
    };
}

words! {
    /// Why a job goes back as if it had not been claimed.
    Released {
        /// It came when nothing may be started: no slot is free, claims are held, the app that asked for it is gone.
        NotStarted,
        /// The sidecar stops.
        Draining,
        /// The app takes no connections.
        AppUnreachable,
        /// The app is being stopped and closed the connection.
        AppStops,
        /// The app has too much to do.
        Throttled,
        /// The app has no route for it.
        Unroutable,
        /// The app doesn't let the sidecar in.
        Unauthorized,
        /// The app wants it.
        AppAsked,
    }
}

words! {
    /// Where a lost lease was found.
    Lost {
        /// Before it was given to the app.
        BeforeStart,
        /// While the app worked on it.
        Running,
        /// The app that pulled it did not extend it.
        NotExtended,
        /// The broker refused the settle.
        Settling,
    }
}

impl Released {
    /// Why a job goes back that ended with `answer`, unless what the app answers says more; none if it is to be cancelled.
    pub(crate) fn after(answer: &Answer) -> Option<Self> {
        match answer {
            Answer::Refused => Some(Self::AppUnreachable),
            Answer::Reset(_) => Some(Self::AppStops),
            Answer::Cancelled => None,
            Answer::Stopped => Some(Self::Draining),
            Answer::Response(_) | Answer::Garbled(_) | Answer::TimedOut | Answer::Panicked => {
                Some(Self::AppAsked)
            }
        }
    }

    /// The same once it is known what the answer says about the app.
    pub(crate) fn learned(self, signal: Signal) -> Self {
        match signal {
            Signal::Throttled(_) => Self::Throttled,
            Signal::Unroutable(_) => Self::Unroutable,
            Signal::Unauthorized(_) => Self::Unauthorized,
            Signal::Works | Signal::Unreachable | Signal::Silent => self,
        }
    }
}

impl<'a> JobEvent<'a> {
    const fn reason(&self) -> Option<&'static str> {
        match self {
            Self::Dead { reason, .. } => Some(dead(*reason)),
            Self::Released { reason, .. } => Some(reason.word()),
            Self::LeaseLost { reason } => Some(reason.word()),
            _ => None,
        }
    }

    const fn failure(&self) -> Option<&'a str> {
        match self {
            Self::Retried { failure, .. } | Self::Dead { failure, .. } => Some(failure),
            _ => None,
        }
    }

    fn delay_ms(&self) -> Option<u64> {
        match self {
            Self::Retried { delay, .. } | Self::Released { delay, .. } => {
                Some(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX))
            }
            _ => None,
        }
    }

    const fn settle(&self) -> Option<&'static str> {
        match self {
            Self::SettleUnknown { settle } | Self::SettleAbandoned { settle } => Some(settle),
            _ => None,
        }
    }
}

const fn dead(reason: DeadReason) -> &'static str {
    match reason {
        DeadReason::Exhausted => "Exhausted",
        DeadReason::Rejected => "Rejected",
        DeadReason::Expired => "Expired",
        DeadReason::Quarantined => "Quarantined",
    }
}

/// A failure's reason as far as it is a word: apps that settle by themselves choose their own.
fn word(reason: &str) -> &str {
    let is_word =
        (1..=WORD).contains(&reason.len()) && reason.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if is_word { reason } else { "Unnamed" }
}

/// The same for the same event, whoever reads it and however often. Deliveries are counted from 1 again when a dead job
/// is redriven or its id used again; the moment when the job became ready tells those apart.
struct Id<'a> {
    lane: &'a Lane,
    job: &'a Claimed,
    name: &'static str,
}

impl fmt::Display for Id<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (queue, job) = (&self.lane.key.physical, self.job);
        write!(out, "{queue}/{}/{}-{}/{}", job.id, job.ready_at.as_millis(), job.delivery, self.name)
    }
}

/// Writes one event about a delivery of `job`.
pub(crate) fn tell(core: &Core, lane: &Lane, job: &Claimed, event: JobEvent<'_>) {
    write(&core.pod, lane, job, event);
}

fn write(worker: &str, lane: &Lane, job: &Claimed, event: JobEvent<'_>) {
    tracing::info!(
        target: TARGET,
        event = event.name(),
        id = %Id { lane, job, name: event.name() },
        namespace = lane.namespace,
        queue = lane.queue.name,
        job = job.id.as_str(),
        jobType = job.job_type,
        attempt = job.attempt,
        delivery = job.delivery,
        readyAtMs = job.ready_at.as_millis(),
        worker,
        reason = event.reason(),
        failure = event.failure(),
        delayMs = event.delay_ms(),
        settle = event.settle(),
    );
}

/// The start of a job that waits for a connection to the app.
#[derive(Debug)]
pub(crate) struct Start {
    worker: String,
    lane: Arc<Lane>,
    job: Claimed,
}

impl Start {
    /// None while nobody wants events.
    pub(crate) fn of(core: &Core, lane: &Arc<Lane>, job: &Claimed) -> Option<Box<Self>> {
        let made = || Box::new(Self { worker: core.pod.clone(), lane: lane.clone(), job: job.clone() });
        on().then(made)
    }

    /// The connection is there.
    pub(crate) fn tell(&self) {
        write(&self.worker, &self.lane, &self.job, JobEvent::Started);
    }
}

/// What a settle asks for, kept until it is known what became of it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    Succeed,
    Retry {
        failure: String,
        delay: Duration,
    },
    /// Without a reason it is the end of a job that is to be cancelled.
    Release {
        reason: Option<Released>,
        delay: Duration,
    },
    Bury {
        reason: DeadReason,
        failure: String,
    },
}

impl Wish {
    /// None while nobody wants events. `released` is why, if it is a release; none if that is to cancel the job.
    pub(crate) fn of(settle: &Settle, released: Option<Released>) -> Option<Self> {
        on().then(|| Self::read(settle, released))
    }

    fn read(settle: &Settle, released: Option<Released>) -> Self {
        match settle {
            Settle::Succeed { .. } => Self::Succeed,
            Settle::Retry { delay, failure } => {
                Self::Retry { failure: word(&failure.reason).to_owned(), delay: *delay }
            }
            Settle::Release { delay } => Self::Release { reason: released, delay: *delay },
            Settle::Bury { reason, failure } => {
                Self::Bury { reason: *reason, failure: word(&failure.reason).to_owned() }
            }
        }
    }

    /// The event when it `settled` like this. `asked` is the word for the settle.
    pub(crate) fn event(&self, settled: Settled, asked: &'static str) -> JobEvent<'_> {
        match (settled, self) {
            (Settled::Done, Self::Succeed) => JobEvent::Succeeded,
            (Settled::Done, Self::Retry { failure, delay }) => JobEvent::Retried { failure, delay: *delay },
            (Settled::Done, Self::Release { reason: None, .. }) => JobEvent::Cancelled,
            (Settled::Done, Self::Release { reason: Some(reason), delay }) => {
                JobEvent::Released { reason: *reason, delay: *delay }
            }
            (Settled::Done, Self::Bury { reason, failure }) => JobEvent::Dead { reason: *reason, failure },
            (Settled::Buried, _) => {
                JobEvent::Dead { reason: DeadReason::Rejected, failure: crate::outcome::RESULT_TOO_LARGE }
            }
            (Settled::Lost, _) => JobEvent::LeaseLost { reason: Lost::Settling },
            (Settled::Unknown, _) => JobEvent::SettleUnknown { settle: asked },
            (Settled::Abandoned, _) => JobEvent::SettleAbandoned { settle: asked },
        }
    }
}

#[cfg(test)]
mod tests;
