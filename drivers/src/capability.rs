//! What a broker can do, as data. Docs, admission, status and the conformance suite read this one table.

use crate::Limits;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How long a broker remembers the id of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub enum IdMemory {
    /// Until the job's retention ended and, for a workflow's job, its completion was acknowledged.
    UntilAcked,
    /// For a window of time only.
    Window,
    /// Not at all.
    None,
}

/// What holds a claimed job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub enum Lease {
    /// A lease that the claimer extends.
    Extendable,
    /// The claimer's connection.
    Connection,
}

/// What the death of a broker leaves of what it acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub enum Durability {
    /// Nothing.
    None,
    /// All but the last seconds, when its process or its machine dies.
    Mostly,
    /// Everything when its process dies; when its machine does, the last moments may be lost.
    Process,
    /// Everything, also when its machine dies.
    Machine,
}

/// How far into the future a job can be put.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Delay {
    /// The longest delay, in milliseconds on the wire.
    #[serde(with = "crate::time::millis", rename = "maxMs")]
    pub max: Duration,
}

fn no_durability() -> Durability {
    Durability::None
}

/// The capabilities of one broker. What an older one doesn't speak of, it can't do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(clippy::struct_excessive_bools, reason = "a table of independent yes or no answers")]
pub struct Capabilities {
    /// How long ids are remembered.
    #[serde(deserialize_with = "crate::lenient::id_memory")]
    pub id_memory: IdMemory,
    /// A stale receipt is refused.
    #[serde(default)]
    pub fencing: bool,
    /// A settle and the completion it writes are one transaction.
    #[serde(default)]
    pub atomic_settle: bool,
    /// What holds a claimed job.
    #[serde(deserialize_with = "crate::lenient::lease")]
    pub lease: Lease,
    /// Delayed jobs, if any.
    pub delay: Option<Delay>,
    /// A queue can stop handing out jobs.
    #[serde(default)]
    pub pause: bool,
    /// Jobs can be listed and looked at by id.
    #[serde(default)]
    pub inspect: bool,
    /// A job can be cancelled by id.
    #[serde(default)]
    pub cancel: bool,
    /// Results are kept and can be fetched by id.
    #[serde(default)]
    pub result_store: bool,
    /// Subscribers hear of new jobs without polling.
    #[serde(default)]
    pub wake: bool,
    /// Depths are exact.
    #[serde(default)]
    pub exact_depth: bool,
    /// Jobs of one ordering key are handed out one by one, in the order in which they were enqueued.
    #[serde(default)]
    pub fifo: bool,
    /// What the death of the broker leaves of what it acknowledged.
    #[serde(default = "no_durability", deserialize_with = "crate::lenient::durability")]
    pub durability: Durability,
    /// Sizes.
    pub limits: Limits,
}
