//! The broker contract of Longshore.
//!
//! [`Driver`] is the one trait that stands between the product and a broker. Every backend implements it, the HTTP
//! client implements it by speaking to the HTTP server, and the conformance suite runs the same scenarios on each of
//! them. Nothing in this crate knows Kubernetes, workers or workflows: jobs, leases and completions are all it sees.

mod capability;
#[cfg(any(feature = "embedded", feature = "memory", feature = "redis", feature = "postgres"))]
mod checks;
#[cfg(any(feature = "http-client", feature = "redis", feature = "postgres"))]
mod coalesce;
mod completion;
mod driver;
mod error;
mod job;
mod lenient;
mod limits;
mod name;
pub mod open;
pub mod policy;
#[cfg(feature = "postgres")]
pub mod postgres;
mod queue;
mod strict;
#[cfg(any(feature = "embedded", feature = "http-client", feature = "redis", feature = "postgres"))]
mod sync;
mod time;

#[cfg(feature = "conformance")]
pub mod conformance;
#[cfg(feature = "embedded")]
pub mod embedded;
#[cfg(any(feature = "http-client", feature = "http-server"))]
pub mod http;
#[cfg(feature = "memory")]
pub mod memory;
#[cfg(feature = "redis")]
pub mod redis;

pub use capability::{Capabilities, Delay, Durability, IdMemory, Lease};
pub use completion::{
    Address, Completion, CompletionPage, CompletionReceipt, Notify, ReadCompletions, StoredResult,
};
pub use driver::{Driver, DriverExt, DynDriver, WakeStream};
pub use error::{Error, ErrorKind, Result};
pub use job::{
    Claim, Claimed, DeadReason, Enqueued, Extension, Failure, JobId, JobPage, JobRecord, JobState, ListJobs,
    NewJob, Outcome, Overrides, Payload, Receipt, Settle, Settlement,
};
pub use limits::Limits;
pub use name::{QueueName, QueueNameError};
pub use queue::{Declaration, Declared, Ordering, Owner, Probe, QueueSettings, QueueStats, Wake};
pub use time::Timestamp;
