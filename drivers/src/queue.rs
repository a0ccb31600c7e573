//! Queues as a broker knows them.

use crate::{Address, Capabilities, QueueName, Timestamp};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Who a broker is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Probe {
    /// The backend (`memory`, `embedded`, …).
    pub backend: String,
    /// The server's version.
    pub version: String,
    /// Made once with the data: another id means other data.
    pub backend_id: String,
    /// What it can do.
    pub capabilities: Capabilities,
}

/// Whose queue it is. Written with the data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Owner {
    /// The installation of Longshore.
    pub installation: String,
    /// The uid of the Queue object.
    pub uid: String,
}

/// In which order a queue hands its jobs out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub enum Ordering {
    /// Roughly in the order in which they became ready; whatever is claimed, retried or delayed lets others pass.
    #[default]
    BestEffort,
    /// Jobs of one ordering key strictly in the order in which they were enqueued, one at a time: the next one is handed
    /// out when the one before is over. Jobs without a key have one together. A retry, a release or a delay holds up its
    /// key, and no other.
    Fifo,
}

/// The part of a queue's policy that the broker itself enforces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct QueueSettings {
    /// Producers are refused from this many waiting jobs on. Never anything else.
    pub max_depth: u64,
    /// A job with this many deliveries that ended without a settle is dead.
    pub max_deliveries: u32,
    /// How long a finished job is remembered.
    #[serde(rename = "retainCompletedMs", with = "crate::time::millis")]
    pub retain_completed: Duration,
    /// How long a dead job is kept.
    #[serde(rename = "retainDeadMs", with = "crate::time::millis")]
    pub retain_dead: Duration,
    /// Hands out nothing; what runs goes on.
    #[serde(default)]
    pub paused: bool,
    /// In which order jobs are handed out. It can't be changed: another one is a `Conflict`.
    #[serde(default)]
    pub ordering: Ordering,
}

impl Default for QueueSettings {
    fn default() -> Self {
        Self {
            max_depth: 1_000_000,
            max_deliveries: 10,
            retain_completed: Duration::from_secs(3600),
            retain_dead: Duration::from_secs(14 * 24 * 3600),
            paused: false,
            ordering: Ordering::BestEffort,
        }
    }
}

/// Makes a queue, or brings its settings up to date.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Declaration {
    /// Whose it is.
    pub owner: Owner,
    /// What the broker enforces.
    pub settings: QueueSettings,
    /// Take it over from another owner.
    #[serde(default)]
    pub adopt: bool,
}

/// What a declaration did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Declared {
    /// Whether the queue is new.
    pub created: bool,
    /// The id of the broker's data.
    pub backend_id: String,
}

/// How full a queue is. What a broker can't tell is absent: unknown is not zero.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct QueueStats {
    /// Can be claimed now.
    pub ready: Option<u64>,
    /// Wait for their first due time.
    pub scheduled: Option<u64>,
    /// Under a lease.
    pub active: Option<u64>,
    /// Wait for their next attempt.
    pub retrying: Option<u64>,
    /// Wait behind another job of their ordering key.
    pub blocked: Option<u64>,
    /// Dead.
    pub dead: Option<u64>,
    /// Since when the oldest ready job has been ready.
    pub oldest_ready_at: Option<Timestamp>,
    /// When the next waiting job is due.
    pub next_due_at: Option<Timestamp>,
    /// Jobs and completions that can't be read and stand aside, so that nothing else has to wait for them.
    pub parked: Option<u64>,
    /// A moving average of the time between claim and settle, in milliseconds.
    pub service_time_ms: Option<f64>,
}

/// Something a sleeper should look at. A hint: it may be lost, repeated or late.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "wake")]
pub enum Wake {
    /// A queue has a job that it had not before.
    Queue {
        /// The queue.
        queue: QueueName,
    },
    /// An address has a completion.
    Completions {
        /// The address.
        address: Address,
    },
}
