//! Completions: the fact that a job left the broker, addressed to whoever waits for it.

use crate::{
    Error, JobId, Limits, Outcome, Payload, QueueName, Result, Timestamp,
    lenient::{self, Open},
};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{IgnoredAny, MapAccess},
};
use std::{fmt, time::Duration};

/// Where completions go: one stream per address. An operator's address is its installation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Address(String);

impl Address {
    /// The longest one, in bytes.
    pub(crate) const MAX: usize = 127;

    /// An address of 1 to 127 lowercase letters, digits, dashes and dots.
    ///
    /// # Errors
    /// `Invalid` for anything else.
    pub fn new(text: impl Into<String>) -> Result<Self> {
        let text = text.into();
        let legal =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
        if text.is_empty() || text.len() > Self::MAX || !text.bytes().all(legal) {
            return Err(Error::invalid(
                "a completion's address must be 1 to 127 lowercase letters, digits, dashes and dots",
            ));
        }
        Ok(Self(text))
    }

    /// The address as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Address {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        Self::new(text)
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.0
    }
}

impl fmt::Display for Address {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// Whom to tell when a job leaves the broker, and what to tell them beside the outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Notify {
    /// Where the completion goes.
    pub address: Address,
    /// Opaque to the broker, handed back with the completion; at most [`Limits::CONTEXT`] bytes.
    #[serde(default)]
    pub context: String,
}

impl Notify {
    pub(crate) fn validate(&self) -> Result<()> {
        if self.context.len() > Limits::CONTEXT {
            return Err(Error::invalid(format!(
                "notify.context is over its limit of {} bytes",
                Limits::CONTEXT
            )));
        }
        Ok(())
    }
}

/// A result as completions and outcomes carry it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum StoredResult {
    /// Small: here it is.
    Inline {
        /// The result.
        payload: Payload,
    },
    /// Large: in the result store under the job's id.
    Stored {
        /// Its bytes.
        bytes: u64,
    },
}

impl Open for StoredResult {
    /// Wherever a newer broker keeps it: it can be asked for by the job's id.
    fn bare(_: &str) -> Self {
        Self::Stored { bytes: 0 }
    }

    fn holding<'de, A: MapAccess<'de>>(tag: &str, map: &mut A) -> Result<Self, A::Error> {
        #[derive(Deserialize)]
        struct Inline {
            payload: Payload,
        }
        #[derive(Deserialize)]
        struct Stored {
            bytes: u64,
        }
        match tag {
            "inline" => map.next_value().map(|Inline { payload }| Self::Inline { payload }),
            "stored" => map.next_value().map(|Stored { bytes }| Self::Stored { bytes }),
            other => map.next_value().map(|IgnoredAny| Self::bare(other)),
        }
    }
}

impl<'de> Deserialize<'de> for StoredResult {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        lenient::open(input)
    }
}

/// Proof that a completion was read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CompletionReceipt(pub String);

/// A job that left the broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Completion {
    /// Acknowledge with this.
    pub receipt: CompletionReceipt,
    /// The queue the job was in.
    pub queue: QueueName,
    /// The job.
    pub job: JobId,
    /// How it ended.
    pub outcome: Outcome,
    /// When, by the broker's clock.
    pub settled_at: Timestamp,
    /// What the producer asked to be told.
    pub context: String,
    /// How often this completion was handed out, from 1.
    pub delivery: u32,
}

/// A request for completions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReadCompletions {
    /// At most this many.
    pub max: u32,
    /// If there is none, wait this long for one.
    #[serde(rename = "waitMs", with = "crate::time::millis", default)]
    pub wait: Duration,
    /// How long they are kept from other readers; at most 10 s.
    #[serde(rename = "leaseMs", with = "crate::time::millis")]
    pub lease: Duration,
}

impl ReadCompletions {
    /// The longest lease of a completion.
    pub const MAX_LEASE: Duration = Duration::from_secs(10);
}

/// Some completions of one address, in the order in which they were settled.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CompletionPage {
    /// The completions.
    pub completions: Vec<Completion>,
    /// Nothing else waits, not even under another reader's lease.
    pub caught_up: bool,
}
