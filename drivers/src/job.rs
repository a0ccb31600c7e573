//! Jobs and what happens to them.

use crate::{
    Error, ErrorKind, Limits, Notify, Result, Timestamp,
    lenient::{self, Open},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{IgnoredAny, MapAccess},
};
use serde_json::value::RawValue;
use std::{collections::BTreeMap, fmt, time::Duration};

/// The id of a job, unique within its queue for as long as the broker remembers it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JobId(String);

impl JobId {
    /// An id made of `text`: 1 to 200 letters, digits, dots, dashes, underscores and colons.
    ///
    /// # Errors
    /// `Invalid` for anything else.
    pub fn new(text: impl Into<String>) -> Result<Self> {
        let text = text.into();
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':');
        if text.is_empty() || text.len() > Limits::JOB_ID || !text.bytes().all(legal) {
            let shown: String = text.chars().take(64).collect();
            return Err(Error::invalid(format!(
                "job id {shown:?} must be 1 to {} letters, digits, dots, dashes, underscores and colons",
                Limits::JOB_ID
            )));
        }
        Ok(Self(text))
    }

    /// A fresh id that sorts by the time it was made.
    pub fn generate() -> Self {
        Self(uuid::Uuid::now_v7().to_string())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for JobId {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        Self::new(text)
    }
}

impl From<JobId> for String {
    fn from(id: JobId) -> Self {
        id.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// Bytes with a media type. They reach the handler unchanged.
///
/// On the wire JSON stands as it is under `json`, anything else as base64 under `base64`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "WirePayload", into = "WirePayload")]
pub struct Payload {
    /// The media type, `application/json` unless the producer said otherwise.
    pub content_type: String,
    /// The bytes.
    pub bytes: Bytes,
}

/// The media type of JSON.
pub(crate) const JSON: &str = "application/json";

impl Payload {
    /// `bytes` as JSON.
    pub fn json(bytes: impl Into<Bytes>) -> Self {
        Self { content_type: JSON.to_owned(), bytes: bytes.into() }
    }

    /// How many bytes it holds.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct WirePayload {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) content_type: Option<String>,
    #[serde(default, deserialize_with = "raw", skip_serializing_if = "Option::is_none")]
    pub(crate) json: Option<Box<RawValue>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) base64: Option<String>,
}

/// Raw JSON that is there, `null` included: an optional one by itself would read that as absent.
pub(crate) fn raw<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(input).map(Some)
}

impl From<Payload> for WirePayload {
    fn from(payload: Payload) -> Self {
        let is_json = payload.content_type == JSON;
        let content_type = (!is_json).then_some(payload.content_type);
        if payload.bytes.is_empty() {
            return Self { content_type, json: None, base64: None };
        }
        // A raw value keeps its bytes, but not white space around it, and older readers take `null` for absent: then
        // base64 has to carry them.
        let padded = payload.bytes.first().is_some_and(u8::is_ascii_whitespace)
            || payload.bytes.last().is_some_and(u8::is_ascii_whitespace);
        if is_json
            && !padded
            && &payload.bytes[..] != b"null"
            && let Ok(text) = std::str::from_utf8(&payload.bytes)
            && let Ok(raw) = serde_json::from_str::<Box<RawValue>>(text)
        {
            return Self { content_type, json: Some(raw), base64: None };
        }
        Self { content_type, json: None, base64: Some(STANDARD.encode(&payload.bytes)) }
    }
}

impl TryFrom<WirePayload> for Payload {
    type Error = Error;

    fn try_from(wire: WirePayload) -> Result<Self> {
        let bytes = match (wire.json, wire.base64) {
            (Some(raw), None) => Bytes::from(Box::<str>::from(raw).into_boxed_bytes()),
            (None, Some(text)) => STANDARD
                .decode(text)
                .map(Bytes::from)
                .map_err(|error| Error::invalid(format!("payload.base64 is no base64: {error}")))?,
            (None, None) => Bytes::new(),
            (Some(_), Some(_)) => {
                return Err(Error::invalid("a payload has either json or base64, not both"));
            }
        };
        Ok(Self { content_type: wire.content_type.unwrap_or_else(|| JSON.to_owned()), bytes })
    }
}

/// What a producer set explicitly for one job; the rest is the queue's policy when it is claimed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Overrides {
    /// Attempts in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// How long one attempt may take.
    #[serde(
        rename = "timeoutMs",
        with = "crate::time::millis::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub timeout: Option<Duration>,
}

impl Overrides {
    fn validate(&self) -> Result<()> {
        if self.max_attempts == Some(0) {
            return Err(Error::invalid("maxAttempts must be at least 1"));
        }
        if self.timeout.is_some_and(|timeout| timeout.as_millis() == 0) {
            return Err(Error::invalid("timeoutMs must be at least 1"));
        }
        Ok(())
    }
}

/// A job to be enqueued.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewJob {
    /// Chosen by the producer, or made by the broker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<JobId>,
    /// What kind of work this is; the handler dispatches on it.
    #[serde(rename = "type")]
    pub job_type: String,
    /// What the handler gets.
    #[serde(default, deserialize_with = "crate::strict::payload")]
    pub payload: Payload,
    /// Not before this long from now, by the broker's clock.
    #[serde(
        rename = "delayMs",
        with = "crate::time::millis",
        default,
        skip_serializing_if = "Duration::is_zero"
    )]
    pub delay: Duration,
    /// What the producer set explicitly.
    #[serde(default, deserialize_with = "crate::strict::overrides")]
    pub overrides: Overrides,
    /// Metadata that travels to the handler (`traceparent`, `Job-Meta-…`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// On a queue whose ordering is Fifo: jobs with the same key run one after the other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ordering_key: Option<String>,
    /// Whom to tell when the job leaves the broker.
    #[serde(default, deserialize_with = "crate::strict::notify", skip_serializing_if = "Option::is_none")]
    pub notify: Option<Notify>,
}

impl NewJob {
    /// A job of `job_type` that carries `payload`.
    pub fn new(job_type: impl Into<String>, payload: Payload) -> Self {
        Self { job_type: job_type.into(), payload, ..Self::default() }
    }

    /// The same job under `id`.
    #[must_use]
    pub fn with_id(self, id: JobId) -> Self {
        Self { id: Some(id), ..self }
    }

    /// The same job, not before `delay` from now.
    #[must_use]
    pub fn with_delay(self, delay: Duration) -> Self {
        Self { delay, ..self }
    }

    /// The same job, telling `notify` when it leaves the broker.
    #[must_use]
    pub fn with_notify(self, notify: Notify) -> Self {
        Self { notify: Some(notify), ..self }
    }

    /// Checks sizes and alphabets; every backend calls it before anything else.
    ///
    /// # Errors
    /// `TooLarge` or `Invalid`, naming the field and the limit.
    pub fn validate(&self, limits: &Limits) -> Result<()> {
        check_word("a job's type", &self.job_type, Limits::JOB_TYPE)?;
        if let Some(key) = &self.ordering_key {
            check_word("a job's orderingKey", key, Limits::ORDERING_KEY)?;
        }
        check_payload("payload", &self.payload, limits.max_payload)?;
        let header_bytes: usize = self.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        if header_bytes > Limits::HEADERS {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!("a job's headers take {header_bytes} bytes, the limit is {}", Limits::HEADERS),
            ));
        }
        for (name, value) in &self.headers {
            if http::HeaderName::from_bytes(name.as_bytes()).is_err()
                || http::HeaderValue::from_str(value).is_err()
            {
                return Err(Error::invalid(format!("header {name:?} is no HTTP header")));
            }
        }
        if self.delay > Limits::MAX_DELAY {
            return Err(Error::invalid("a job can be delayed by 366 days at most"));
        }
        self.overrides.validate()?;
        self.notify.as_ref().map_or(Ok(()), Notify::validate)
    }
}

fn check_word(what: &str, word: &str, limit: usize) -> Result<()> {
    let legal = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\');
    if word.is_empty() || word.len() > limit || !word.bytes().all(legal) {
        return Err(Error::invalid(format!(
            "{what} must be 1 to {limit} printable ASCII characters without spaces, quotes and backslashes"
        )));
    }
    Ok(())
}

/// Checks a payload's or result's size and media type.
pub(crate) fn check_payload(what: &str, payload: &Payload, limit: usize) -> Result<()> {
    if payload.len() > limit {
        return Err(Error::new(
            ErrorKind::TooLarge,
            format!("the {what} takes {} bytes, the limit is {limit}", payload.len()),
        ));
    }
    let media_type = &payload.content_type;
    if media_type.len() > Limits::CONTENT_TYPE || http::HeaderValue::from_str(media_type).is_err() {
        return Err(Error::invalid(format!("the {what}'s content type is no media type")));
    }
    Ok(())
}

/// What an enqueue did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Enqueued {
    /// The job is in the broker now.
    Created {
        /// Its id.
        id: JobId,
    },
    /// The id was known: nothing was added.
    Duplicate {
        /// Its id.
        id: JobId,
        /// Where the known job stands.
        #[serde(deserialize_with = "lenient::job_state")]
        state: JobState,
        /// How it ended, if it did.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        outcome: Option<Outcome>,
    },
}

impl Enqueued {
    /// The job's id.
    pub fn id(&self) -> &JobId {
        match self {
            Self::Created { id } | Self::Duplicate { id, .. } => id,
        }
    }
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum JobState {
    /// Can be claimed.
    Ready,
    /// Waits for its first due time.
    Scheduled,
    /// Waits for its next attempt.
    Retrying,
    /// Waits until the job before it, which has the same ordering key, is over.
    Blocked,
    /// Claimed, under a lease.
    Active,
    /// Ended well; kept until retention ends.
    Succeeded,
    /// Ended badly; kept with its failure until retention ends, can be redriven.
    Dead,
    /// Cancelled by request.
    Cancelled,
}

impl JobState {
    /// Whether the job is over.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Dead | Self::Cancelled)
    }
}

/// Why a job is dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub enum DeadReason {
    /// Its attempts are used up.
    Exhausted,
    /// The handler refused it for good.
    Rejected,
    /// It was not started in time.
    Expired,
    /// Too many deliveries ended without a settle.
    Quarantined,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// Well. The result, if any, is in the result store or beside this.
    Succeeded {
        /// The result.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        result: Option<crate::StoredResult>,
    },
    /// Badly.
    Dead {
        /// Why it is dead.
        reason: DeadReason,
        /// The last failure.
        failure: Failure,
    },
    /// Cancelled by request.
    Cancelled,
    /// Removed by a purge or with its queue.
    Purged,
}

impl Open for Outcome {
    /// An end that only newer brokers know is no success, and an end all the same: a workflow must not wait for more.
    fn bare(tag: &str) -> Self {
        match tag {
            "cancelled" => Self::Cancelled,
            "purged" => Self::Purged,
            other => Self::Dead {
                reason: DeadReason::Rejected,
                failure: Failure::new(
                    "UnknownOutcome",
                    format!("this version doesn't know the end {other:?}"),
                ),
            },
        }
    }

    fn holding<'de, A: MapAccess<'de>>(tag: &str, map: &mut A) -> Result<Self, A::Error> {
        #[derive(Deserialize)]
        struct Succeeded {
            #[serde(default)]
            result: Option<crate::StoredResult>,
        }
        #[derive(Deserialize)]
        struct Dead {
            #[serde(deserialize_with = "lenient::dead_reason")]
            reason: DeadReason,
            failure: Failure,
        }
        match tag {
            "succeeded" => map.next_value().map(|Succeeded { result }| Self::Succeeded { result }),
            "dead" => map.next_value().map(|Dead { reason, failure }| Self::Dead { reason, failure }),
            other => map.next_value().map(|IgnoredAny| Self::bare(other)),
        }
    }
}

impl Outcome {
    /// Where a job stands that ended like this.
    pub const fn state(&self) -> JobState {
        match self {
            Self::Succeeded { .. } => JobState::Succeeded,
            Self::Dead { .. } => JobState::Dead,
            Self::Cancelled | Self::Purged => JobState::Cancelled,
        }
    }
}

impl<'de> Deserialize<'de> for Outcome {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        lenient::open(input)
    }
}

/// One failure, for people.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// A short stable word (`Timeout`, `HandlerError`, …).
    pub reason: String,
    /// What the handler or the sidecar said, cut to [`Limits::MESSAGE`] bytes.
    pub message: String,
}

impl Failure {
    /// A failure whose message is cut to its limit.
    pub fn new(reason: impl Into<String>, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > Limits::MESSAGE {
            let end = (0..=Limits::MESSAGE).rev().find(|&at| message.is_char_boundary(at)).unwrap_or(0);
            message.truncate(end);
        }
        Self { reason: reason.into(), message }
    }
}

/// Proof of one claim. Opaque: only the broker that wrote it reads it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Receipt(pub String);

impl fmt::Display for Receipt {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// A request for jobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Claim {
    /// At most this many.
    pub max: u32,
    /// If there is none, wait this long for one.
    #[serde(rename = "waitMs", with = "crate::time::millis", default)]
    pub wait: Duration,
    /// How long each is leased.
    #[serde(rename = "leaseMs", with = "crate::time::millis")]
    pub lease: Duration,
    /// Who claims, for people who inspect.
    #[serde(default)]
    pub worker: String,
}

/// A job under a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Claimed {
    /// The job's id.
    pub id: JobId,
    /// Proof of this claim.
    pub receipt: Receipt,
    /// What kind of work this is.
    #[serde(rename = "type")]
    pub job_type: String,
    /// What the handler gets.
    pub payload: Payload,
    /// What the producer set explicitly.
    #[serde(default)]
    pub overrides: Overrides,
    /// Metadata.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Its ordering key, if it was given one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ordering_key: Option<String>,
    /// The number of this attempt, from 1.
    pub attempt: u32,
    /// The number of this delivery, from 1.
    pub delivery: u32,
    /// When it was enqueued.
    pub enqueued_at: Timestamp,
    /// When it became ready last.
    pub ready_at: Timestamp,
    /// When the lease ends unless it is extended.
    pub lease_until: Timestamp,
    /// The last failure, from the second attempt on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<Failure>,
    /// Whom the broker tells when it is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notify: Option<Notify>,
}

/// What a claimer does with a job it holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Settle {
    /// It is done.
    Succeed {
        /// What the handler answered, if it is to be kept.
        #[serde(
            default,
            deserialize_with = "crate::strict::result",
            skip_serializing_if = "Option::is_none"
        )]
        result: Option<Payload>,
    },
    /// Again, and this attempt counted.
    Retry {
        /// Not before this long from now.
        #[serde(rename = "delayMs", with = "crate::time::millis", default)]
        delay: Duration,
        /// Why.
        #[serde(deserialize_with = "crate::strict::failure")]
        failure: Failure,
    },
    /// Again, as if it had not been claimed.
    Release {
        /// Not before this long from now.
        #[serde(rename = "delayMs", with = "crate::time::millis", default)]
        delay: Duration,
    },
    /// Never again; it is dead.
    Bury {
        /// Why it is dead.
        reason: DeadReason,
        /// The failure that killed it.
        #[serde(deserialize_with = "crate::strict::failure")]
        failure: Failure,
    },
}

/// A settle of one job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Settlement {
    /// Proof of the claim.
    pub receipt: Receipt,
    /// What is done with it.
    pub settle: Settle,
}

/// What an extension of a lease answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Extension {
    /// When the lease ends now.
    pub lease_until: Timestamp,
    /// Somebody asked for the job to be cancelled: stop it if you can.
    #[serde(default)]
    pub cancel_requested: bool,
}

/// A job as people see it. Without its payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JobRecord {
    /// Its id.
    pub id: JobId,
    /// What kind of work it is.
    #[serde(rename = "type")]
    pub job_type: String,
    /// Where it stands.
    #[serde(deserialize_with = "lenient::job_state")]
    pub state: JobState,
    /// Attempts that counted so far.
    pub attempts: u32,
    /// Deliveries that ended without a settle.
    pub lost_deliveries: u32,
    /// When it was enqueued.
    pub enqueued_at: Timestamp,
    /// When it is or was due.
    pub due_at: Timestamp,
    /// Until when it is leased.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_until: Option<Timestamp>,
    /// Who holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
    /// The last failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<Failure>,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// Bytes of its payload.
    pub payload_bytes: u64,
}

/// A request for a page of jobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ListJobs {
    /// Only jobs that stand here.
    pub state: JobState,
    /// At most this many.
    pub limit: u32,
    /// The cursor that the page before gave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// A page of jobs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JobPage {
    /// The jobs, oldest first.
    pub jobs: Vec<JobRecord>,
    /// Where the next page starts, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(payload: &Payload) -> (String, Payload) {
        let text = serde_json::to_string(payload).unwrap();
        let back = serde_json::from_str(&text).unwrap();
        (text, back)
    }

    #[test]
    fn payload_bytes_survive_the_wire_unchanged() {
        for bytes in [
            &b"{\"b\": 1,  \"a\":1e400}"[..],
            b" [1]\n",
            b"",
            b"not json",
            b"\xff\x00",
            b"null",
            b"\"\\u0041\"",
        ] {
            let payload = Payload::json(Bytes::copy_from_slice(bytes));
            assert_eq!(round_trip(&payload).1, payload, "{bytes:?}");
        }
        let image = Payload { content_type: "image/png".into(), bytes: Bytes::from_static(b"{}") };
        assert_eq!(round_trip(&image).1, image);
    }

    #[test]
    fn json_payloads_stay_readable_on_the_wire() {
        assert_eq!(round_trip(&Payload::json("{\"a\":1}")).0, r#"{"json":{"a":1}}"#);
    }

    #[test]
    fn a_failure_is_cut_between_characters() {
        let failure = Failure::new("HandlerError", "ü".repeat(2000));
        assert_eq!(failure.message.len(), Limits::MESSAGE);
        let odd = Failure::new("HandlerError", format!("x{}", "ü".repeat(2000)));
        assert_eq!(odd.message.len(), Limits::MESSAGE - 1);
    }

    #[test]
    fn job_ids_outside_the_alphabet_are_refused() {
        for bad in ["", "a b", "a/b", "ü", &"x".repeat(201)] {
            assert!(JobId::new(bad).is_err(), "{bad:?}");
        }
    }
}
