//! The HTTP form of the contract: JSON over HTTP/1.1 under `/v1`, described in `docs/openapi.yaml`.
//!
//! The server puts any [`Driver`](crate::Driver) on the network, the client is a driver again. Both sides share the wire
//! forms and the table of errors, so that an error keeps its kind on the way.

mod problem;
mod wire;

#[cfg(feature = "http-client")]
pub mod client;
#[cfg(feature = "http-server")]
pub mod server;

pub use problem::{PROBLEM_JSON, Problem, kind_of, status_of};

/// Whether a call leaves a trace. It decides what a lost answer means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It only looks.
    Reads,
    /// It may have done something although nobody heard of it.
    Changes,
}

impl Effect {
    /// The kind of an error for a call whose answer was lost.
    pub const fn lost(self) -> crate::ErrorKind {
        match self {
            Self::Reads => crate::ErrorKind::Unavailable,
            Self::Changes => crate::ErrorKind::Ambiguous,
        }
    }

    /// The kind of an error for a call whose answer did not come in time.
    pub const fn late(self) -> crate::ErrorKind {
        match self {
            Self::Reads => crate::ErrorKind::Timeout,
            Self::Changes => crate::ErrorKind::Ambiguous,
        }
    }
}
