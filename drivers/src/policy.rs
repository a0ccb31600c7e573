//! The policy of a worker's queues, as the operator renders it and the sidecar reads it.
//!
//! It is a file: no token, no rollout, and it works while the API server is away. A job carries only what its producer
//! set; everything else comes from here at the moment the job is claimed.

use crate::{Overrides, QueueName};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Everything a sidecar needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkerPolicy {
    /// The version of this file's form. A sidecar keeps its last policy when it reads a newer one.
    pub version: u32,
    /// The namespace of the Worker.
    pub namespace: String,
    /// The name of the Worker.
    pub worker: String,
    /// Jobs at once in one pod.
    pub concurrency: u32,
    /// How long running jobs get when the pod goes away, unless the pod says it itself: it knows what it was made with.
    #[serde(rename = "drainTimeoutMs", with = "crate::time::millis")]
    pub drain_timeout: Duration,
    /// How jobs reach the app, unless the pod says it itself.
    pub handler: Handler,
    /// The brokers that the queues are on.
    pub brokers: Vec<BrokerAccess>,
    /// The queues.
    pub queues: Vec<QueuePolicy>,
    /// Pods that shall not claim any more because they are about to be retired.
    #[serde(default)]
    pub draining: Vec<String>,
}

impl WorkerPolicy {
    /// The version of the form that this code writes and reads.
    pub const VERSION: u32 = 1;
}

/// How jobs reach the app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Handler {
    /// The sidecar POSTs each job.
    Http {
        /// The port on localhost.
        port: u16,
        /// The path.
        path: String,
    },
    /// The app asks the sidecar for jobs.
    Pull {},
}

/// Where a broker is and how to speak to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BrokerAccess {
    /// The name of the Broker.
    pub name: String,
    /// How it is reached.
    #[serde(flatten)]
    pub via: Via,
}

/// How a broker is reached. Credentials are files: they are read again when the broker refuses them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Via {
    /// Longshore's own HTTP API.
    Http {
        /// The base URL.
        url: String,
        /// Files with bearer tokens, the one to try first at the front; further ones are those before a rotation.
        token_files: Vec<String>,
    },
    /// A Redis server.
    Redis {
        /// A file with its URL.
        url_file: String,
        /// A file with the certificates that may sign the server's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ca_file: Option<String>,
        /// All keys begin with it.
        prefix: String,
    },
    /// A PostgreSQL server.
    Postgres {
        /// A file with its URL.
        url_file: String,
        /// A file with the certificates that may sign the server's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ca_file: Option<String>,
        /// The schema of all tables.
        schema: String,
        /// Whether a connection of its own may listen for notifications; without it claims are polled for.
        listen: bool,
    },
}

/// One queue of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QueuePolicy {
    /// The name of the Queue; what the app and producers call it.
    pub name: String,
    /// Its name on the broker.
    pub physical: QueueName,
    /// The name of its Broker.
    pub broker: String,
    /// Its share of claims beside the worker's other queues, from 1.
    pub weight: u32,
    /// Claim nothing.
    #[serde(default)]
    pub suspended: bool,
    /// How long a claim holds.
    #[serde(rename = "leaseMs", with = "crate::time::millis")]
    pub lease: Duration,
    /// How long one attempt may take.
    #[serde(rename = "timeoutMs", with = "crate::time::millis")]
    pub timeout: Duration,
    /// What happens after a failed attempt.
    pub retry: RetryPolicy,
}

impl QueuePolicy {
    /// How long one attempt of a job may take.
    pub fn timeout_of(&self, overrides: &Overrides) -> Duration {
        overrides.timeout.unwrap_or(self.timeout)
    }

    /// How many attempts a job has in all.
    pub fn max_attempts_of(&self, overrides: &Overrides) -> u32 {
        overrides.max_attempts.unwrap_or(self.retry.max_attempts)
    }
}

/// What happens after a failed attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RetryPolicy {
    /// Attempts in all, from 1.
    pub max_attempts: u32,
    /// The delay after the first failed attempt.
    #[serde(rename = "initialMs", with = "crate::time::millis")]
    pub initial: Duration,
    /// Each further delay is this many times longer.
    pub multiplier: u32,
    /// No delay is longer.
    #[serde(rename = "maxMs", with = "crate::time::millis")]
    pub max: Duration,
    /// Each delay is lengthened by up to this many percent, so that failures spread out. Never shortened.
    pub jitter_percent: u32,
}

impl RetryPolicy {
    /// The delay after failed attempt number `attempt` (from 1). `dice` is any random number.
    ///
    /// Jitter only lengthens a delay (up to `max`), so that a retry is never early.
    pub fn delay_after(&self, attempt: u32, dice: u64) -> Duration {
        let factor = u128::from(self.multiplier.max(1)).saturating_pow(attempt.saturating_sub(1));
        let base = self.initial.as_millis().saturating_mul(factor).min(self.max.as_millis());
        let spread = base.saturating_mul(u128::from(self.jitter_percent.min(100))) / 100;
        let jitter = if spread == 0 { 0 } else { u128::from(dice) % (spread + 1) };
        let total = base.saturating_add(jitter).min(self.max.as_millis());
        Duration::from_millis(u64::try_from(total).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: RetryPolicy = RetryPolicy {
        max_attempts: 5,
        initial: Duration::from_secs(1),
        multiplier: 2,
        max: Duration::from_secs(300),
        jitter_percent: 10,
    };

    #[test]
    fn backoff_grows_monotonically_up_to_its_maximum() {
        let delays: Vec<_> = (1..=12).map(|attempt| POLICY.delay_after(attempt, 0).as_secs()).collect();
        assert_eq!(delays, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        assert_eq!(POLICY.delay_after(u32::MAX, u64::MAX), POLICY.max);
    }

    #[test]
    fn jitter_stays_in_its_range_and_never_shortens() {
        for dice in 0..2000 {
            let delay = POLICY.delay_after(3, dice).as_millis();
            assert!((4000..=4400).contains(&delay), "{delay}");
        }
    }
}
