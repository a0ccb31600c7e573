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

/// How far into the future a job can be put.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Delay {
    /// The longest delay, in milliseconds on the wire.
    #[serde(with = "crate::time::millis", rename = "maxMs")]
    pub max: Duration,
}

/// The capabilities of one broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(clippy::struct_excessive_bools, reason = "a table of independent yes or no answers")]
pub struct Capabilities {
    /// How long ids are remembered.
    pub id_memory: IdMemory,
    /// A stale receipt is refused.
    pub fencing: bool,
    /// A settle and the completion it writes are one transaction.
    pub atomic_settle: bool,
    /// What holds a claimed job.
    pub lease: Lease,
    /// Delayed jobs, if any.
    pub delay: Option<Delay>,
    /// A queue can stop handing out jobs.
    pub pause: bool,
    /// Jobs can be listed and looked at by id.
    pub inspect: bool,
    /// A job can be cancelled by id.
    pub cancel: bool,
    /// Results are kept and can be fetched by id.
    pub result_store: bool,
    /// Subscribers hear of new jobs without polling.
    pub wake: bool,
    /// Depths are exact.
    pub exact_depth: bool,
    /// What was acknowledged survives the death of the broker's process and machine.
    pub durable: bool,
    /// Sizes.
    pub limits: Limits,
}
