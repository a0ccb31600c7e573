//! The one error of the contract: callers branch on its kind, people read its text.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The result of a driver's operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, as far as a caller can act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub enum ErrorKind {
    /// The broker can't be reached; nothing was done. Try again later.
    Unavailable,
    /// The broker did not answer in time; for an operation that only reads.
    Timeout,
    /// The broker may or may not have done it. Repeat it with the same id, or keep the claim.
    Ambiguous,
    /// The receipt no longer holds the lease: somebody else has the job, or it was settled.
    StaleReceipt,
    /// The id is known already. An enqueue answers this as data, other operations as this error.
    Duplicate,
    /// The same id with another payload, or a queue that belongs to somebody else.
    Conflict,
    /// The queue is at its maximum depth; producers wait.
    Full,
    /// A payload, result or header is over its limit.
    TooLarge,
    /// The broker can't do this; the message names the capability.
    Unsupported,
    /// The request makes no sense; repeating it won't help.
    Invalid,
    /// No such queue or job.
    NotFound,
    /// The credentials were refused. Read them again, then try again.
    Unauthorized,
    /// The backend is broken in a way that repeating won't mend (corrupt file, wrong schema).
    Fatal,
}

impl ErrorKind {
    /// Whether the same call may succeed later without anybody changing anything.
    pub const fn is_transient(self) -> bool {
        matches!(self, Self::Unavailable | Self::Timeout | Self::Ambiguous | Self::Full)
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, out)
    }
}

/// An operation of a driver that failed.
#[derive(Debug, Clone, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct Error {
    /// What a caller may do about it.
    #[serde(deserialize_with = "crate::lenient::error_kind")]
    pub kind: ErrorKind,
    /// What happened, to what, and what to do; never a payload or a credential.
    pub message: String,
}

impl Error {
    /// An error of `kind`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// The request makes no sense.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// The receipt lost its lease.
    pub fn stale(receipt: &crate::Receipt) -> Self {
        Self::new(ErrorKind::StaleReceipt, format!("receipt {receipt} no longer holds the job's lease"))
    }

    /// No such queue was declared.
    pub fn no_queue(queue: &crate::QueueName) -> Self {
        Self::new(ErrorKind::NotFound, format!("queue {queue} was never declared on this broker"))
    }

    /// The queue has another owner than the caller said.
    pub fn owned_by_another(queue: &crate::QueueName) -> Self {
        Self::new(ErrorKind::Conflict, format!("queue {queue} belongs to another owner on this broker"))
    }

    /// A redrive of a job whose workflow has heard of its end.
    pub fn of_workflow(job: &crate::JobId) -> Self {
        Self::new(
            ErrorKind::Conflict,
            format!("job {job} belongs to a workflow, which would not hear of it again; retry the workflow"),
        )
    }

    /// The broker is closing or gone.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unavailable, message)
    }
}
