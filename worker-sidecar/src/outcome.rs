//! What an answer of the app means for a job. Pure: the table of the protocol and nothing else.
//!
//! The status code alone is enough for any web framework; `Job-Outcome`, `Retry-After` and `Job-Error` refine it.

use longshore_drivers::{Claimed, DeadReason, Failure, Payload, Settle, policy::QueuePolicy};
use std::time::Duration;

/// A throttled or released job comes back after this long, doubled for each time it was released before.
const THROTTLED: Duration = Duration::from_secs(1);
/// The same for a job that no route of the app takes. Longer, because only a new deployment mends it.
const MISROUTED: Duration = Duration::from_secs(5);
/// A job that was released before comes back after this long at the earliest, however soon the app wants it: doubled for
/// each release up to the longest.
const SHORTEST_AGAIN: Duration = Duration::from_secs(1);
const LONGEST_AGAIN: Duration = Duration::from_secs(10);
/// However long the app wants a job to wait, it is not parked for ever by a slip.
const LONGEST_WISH: Duration = Duration::from_secs(3600);
/// The reason of a failure for which nobody is to blame but the size of a result.
pub(crate) const RESULT_TOO_LARGE: &str = "ResultTooLarge";
/// No release by default is longer than this.
const LONGEST_RELEASE: Duration = Duration::from_secs(60);

/// How one run of a job ended, as far as the sidecar can tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The app answered.
    Response(Response),
    /// The app took no connection; nothing was written.
    Refused,
    /// The connection ended after the request was written and before the answer was complete.
    Reset(String),
    /// What came back is no HTTP.
    Garbled(String),
    /// No answer before the deadline of the attempt.
    TimedOut,
    /// Somebody asked the broker to cancel the job.
    Cancelled,
    /// The sidecar stops and the job did not finish.
    Stopped,
    /// The task that ran the job panicked.
    Panicked,
}

/// The parts of an HTTP answer that matter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// `Job-Outcome`.
    pub wanted: Option<Wanted>,
    /// `Retry-After`, counted from when the answer came.
    pub retry_after: Option<Duration>,
    /// `Job-Error`, or the beginning of a textual body.
    pub error: Option<String>,
    /// The body.
    pub body: Body,
}

/// The body of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// There was none, or nobody wants it.
    Empty,
    /// A result.
    Result(Payload),
    /// More than this many bytes; it was not read to its end.
    TooLarge(usize),
}

/// What `Job-Outcome` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Again, and this attempt counted.
    Retry,
    /// Again, as if it had not been claimed.
    Release,
    /// Never again.
    Dead,
}

impl Wanted {
    /// Reads the header; unknown words mean nothing.
    pub fn parse(text: &str) -> Option<Self> {
        match text.trim().to_ascii_lowercase().as_str() {
            "retry" => Some(Self::Retry),
            "release" => Some(Self::Release),
            "dead" => Some(Self::Dead),
            _ => None,
        }
    }
}

/// What stands around a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Any random number.
    pub dice: u64,
    /// Whether the app is being stopped on purpose: then a lost connection is nobody's fault.
    pub app_stops: bool,
    /// How often the job was given back without anybody having worked on it, as far as known.
    pub bounces: u32,
}

/// What is done with a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// This settle ends the claim.
    Settle(Settle),
    /// The app goes on with it and completes it later; the lease is kept until the deadline.
    Detach,
}

/// What an answer says about the app rather than about the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// It works.
    Works,
    /// It has too much to do, for about this long.
    Throttled(Duration),
    /// It has no route for the job; this was its status.
    Unroutable(u16),
    /// It doesn't let the sidecar in; this was its status.
    Unauthorized(u16),
    /// It takes no connections.
    Unreachable,
    /// Nothing.
    Silent,
}

/// A verdict and what it says about the app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// What is done with the job.
    pub verdict: Verdict,
    /// What was learned about the app.
    pub signal: Signal,
}

impl Decision {
    fn settle(settle: Settle, signal: Signal) -> Self {
        Self { verdict: Verdict::Settle(settle), signal }
    }
}

/// Decides what `answer` means for `job`.
pub fn decide(answer: Answer, job: &Claimed, queue: &QueuePolicy, moment: Moment) -> Decision {
    let again = |reason: &str, message: String| {
        let settle = retry(job, queue, Failure::new(reason, message), None, moment.dice);
        Decision::settle(settle, Signal::Silent)
    };
    match answer {
        Answer::Response(response) => decide_response(response, job, queue, moment),
        Answer::Refused => Decision::settle(release(Duration::ZERO), Signal::Unreachable),
        Answer::Reset(_) if moment.app_stops => Decision::settle(release(Duration::ZERO), Signal::Silent),
        Answer::Reset(cause) => {
            again("ConnectionLost", format!("the app closed the connection before it answered: {cause}"))
        }
        Answer::Garbled(cause) => again("BadAnswer", format!("the app's answer is no HTTP: {cause}")),
        Answer::TimedOut => {
            let timeout = queue.timeout_of(&job.overrides);
            again("Timeout", format!("no answer within {} ms", timeout.as_millis()))
        }
        Answer::Panicked => again("SidecarPanicked", "the sidecar panicked while it ran the job".to_owned()),
        // A release of a job that is to be cancelled ends it.
        Answer::Cancelled | Answer::Stopped => Decision::settle(release(Duration::ZERO), Signal::Silent),
    }
}

fn decide_response(response: Response, job: &Claimed, queue: &QueuePolicy, moment: Moment) -> Decision {
    let Response { status, wanted, retry_after, error, body } = response;
    let failure = |reason: &str| {
        let message = error.clone().unwrap_or_else(|| format!("the app answered {status}"));
        Failure::new(reason, message)
    };
    let works = |settle| Decision::settle(settle, Signal::Works);
    let dice = moment.dice;
    let after = |default: Duration| release_after(retry_after, default, job, moment);
    match (wanted, status) {
        (Some(Wanted::Release), _) => works(release(after(THROTTLED))),
        (None, 202) => Decision { verdict: Verdict::Detach, signal: Signal::Works },
        (None, 200..=299) => works(succeed(body)),
        (None, 429 | 503) => {
            let delay = after(THROTTLED);
            Decision::settle(release(delay), Signal::Throttled(delay))
        }
        (None, 300..=399 | 404 | 405 | 501) => {
            Decision::settle(release(after(MISROUTED)), Signal::Unroutable(status))
        }
        (None, 401 | 403 | 407) => Decision::settle(release(after(MISROUTED)), Signal::Unauthorized(status)),
        (Some(Wanted::Retry), _) | (None, 408 | 409 | 423 | 425 | 500..=599) => {
            works(retry(job, queue, failure("HandlerError"), retry_after, dice))
        }
        (Some(Wanted::Dead), _) | (None, 400..=499) => {
            works(bury(DeadReason::Rejected, failure("HandlerRejected")))
        }
        // Neither a final status nor one that HTTP knows.
        (None, _) => works(retry(job, queue, failure("BadAnswer"), retry_after, dice)),
    }
}

/// The settle for a job that came to its end well.
pub fn succeed(body: Body) -> Settle {
    match body {
        Body::Empty => Settle::Succeed { result: None },
        Body::Result(result) if result.is_empty() => Settle::Succeed { result: None },
        Body::Result(result) => Settle::Succeed { result: Some(result) },
        // Doing the work again would give the same result.
        Body::TooLarge(limit) => too_large(limit),
    }
}

/// The settle for a job whose result no broker would keep.
pub fn too_large(limit: usize) -> Settle {
    let message = format!("the result takes more than {limit} bytes, which the queue's broker does not keep");
    bury(DeadReason::Rejected, Failure::new(RESULT_TOO_LARGE, message))
}

/// What becomes of a settle that the app asks for in the words of a broker: the same as of an answer to a push.
pub fn ruled(wish: Settle, job: &Claimed, queue: &QueuePolicy, max_result: usize, moment: Moment) -> Settle {
    match wish {
        Settle::Succeed { result: Some(result) } if result.len() > max_result => too_large(max_result),
        Settle::Retry { delay, failure } => retry(job, queue, failure, Some(delay), moment.dice),
        Settle::Release { delay } => release(release_after(Some(delay), THROTTLED, job, moment)),
        Settle::Succeed { .. } | Settle::Bury { .. } => wish,
    }
}

/// Another attempt, or the end when there is none left. The app may ask for more patience than the policy, not for less.
pub fn retry(
    job: &Claimed,
    queue: &QueuePolicy,
    failure: Failure,
    retry_after: Option<Duration>,
    dice: u64,
) -> Settle {
    if job.attempt >= queue.max_attempts_of(&job.overrides) {
        return bury(DeadReason::Exhausted, failure);
    }
    let policy = queue.retry.delay_after(job.attempt, dice);
    let delay = retry_after.map_or(policy, |wish| wish.min(LONGEST_WISH).max(policy));
    Settle::Retry { delay, failure }
}

/// Back to the queue as if it had not been claimed.
pub fn release(delay: Duration) -> Settle {
    Settle::Release { delay }
}

/// Dead.
pub fn bury(reason: DeadReason, failure: Failure) -> Settle {
    Settle::Bury { reason, failure }
}

/// When a released job comes back. What the app wants is honoured, but neither in a hot loop nor for ever.
fn release_after(wish: Option<Duration>, default: Duration, job: &Claimed, moment: Moment) -> Duration {
    // Deliveries that were no attempt are the releases before this one, whichever pod made them, so the growth needs no
    // memory; only those after which nobody had to wait don't count.
    let releases = job.delivery.saturating_sub(job.attempt).saturating_sub(moment.bounces);
    let Some(wish) = wish else {
        return doubled(default, releases).min(LONGEST_RELEASE);
    };
    let soonest = match releases {
        0 => Duration::ZERO,
        again => doubled(SHORTEST_AGAIN, again - 1).min(LONGEST_AGAIN),
    };
    wish.min(LONGEST_WISH).max(soonest)
}

fn doubled(base: Duration, times: u32) -> Duration {
    base.saturating_mul(1 << times.min(16))
}

#[cfg(test)]
mod tests;
