//! What scripts answer.

use crate::{
    DeadReason, Error, ErrorKind, Failure, JobId, JobRecord, JobState, Limits, Outcome, Overrides, Payload,
    QueueName, Result, StoredResult, Timestamp,
};
use bytes::Bytes;
use redis::Value;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The items of an answer, one after the other.
#[derive(Debug)]
pub(super) struct Items(std::vec::IntoIter<Value>);

/// The answer makes no sense: another program wrote it, or the data is damaged.
pub(super) fn broken() -> Error {
    Error::new(ErrorKind::Fatal, "the Redis server's data makes no sense; was it written by something else?")
}

impl Items {
    pub(super) fn new(value: Value) -> Result<Self> {
        match value {
            Value::Array(items) | Value::Set(items) => Ok(Self(items.into_iter())),
            // An empty table of Lua.
            Value::Nil => Ok(Self(Vec::new().into_iter())),
            _ => Err(broken()),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.len() == 0
    }

    pub(super) fn value(&mut self) -> Result<Value> {
        self.0.next().ok_or_else(broken)
    }

    /// Bytes, if there are some.
    pub(super) fn optional(&mut self) -> Result<Option<Vec<u8>>> {
        match self.0.next() {
            Some(Value::BulkString(bytes)) => Ok(Some(bytes)),
            Some(Value::Nil) | None => Ok(None),
            Some(Value::SimpleString(text)) => Ok(Some(text.into_bytes())),
            Some(Value::Int(number)) => Ok(Some(number.to_string().into_bytes())),
            Some(_) => Err(broken()),
        }
    }

    pub(super) fn bytes(&mut self) -> Result<Vec<u8>> {
        self.optional()?.ok_or_else(broken)
    }

    pub(super) fn text(&mut self) -> Result<String> {
        String::from_utf8(self.bytes()?).map_err(|_| broken())
    }

    pub(super) fn integer(&mut self) -> Result<i64> {
        match self.value()? {
            Value::Int(number) => Ok(number),
            Value::BulkString(bytes) => {
                std::str::from_utf8(&bytes).ok().and_then(|text| text.parse().ok()).ok_or_else(broken)
            }
            _ => Err(broken()),
        }
    }

    /// A number that is absent when it is negative.
    pub(super) fn natural(&mut self) -> Result<Option<u64>> {
        Ok(u64::try_from(self.integer()?).ok())
    }

    pub(super) fn small(&mut self) -> Result<u32> {
        Ok(u32::try_from(self.integer()?.max(0)).unwrap_or(u32::MAX))
    }

    pub(super) fn time(&mut self) -> Result<Timestamp> {
        self.integer().map(Timestamp::from_millis)
    }

    pub(super) fn items(&mut self) -> Result<Self> {
        Self::new(self.value()?)
    }
}

impl Iterator for Items {
    type Item = Value;

    fn next(&mut self) -> Option<Value> {
        self.0.next()
    }
}

/// The answer of a script behind its first word, which has to be `OK`.
pub(super) fn opened(value: Value, queue: &QueueName) -> Result<Items> {
    let mut items = Items::new(value)?;
    match items.text()?.as_str() {
        "OK" => Ok(items),
        "NOTFOUND" => Err(Error::no_queue(queue)),
        "OWNED" => Err(Error::owned_by_another(queue)),
        _ => Err(broken()),
    }
}

/// The letters of a state, as scripts and sorted sets are named.
pub(super) const fn letter(state: JobState) -> &'static str {
    match state {
        JobState::Ready => "R",
        JobState::Scheduled => "W",
        JobState::Retrying => "Y",
        JobState::Blocked => "B",
        JobState::Active => "A",
        JobState::Succeeded => "S",
        JobState::Dead => "D",
        JobState::Cancelled => "C",
    }
}

/// What a letter stands for. `P` is a job that is gone.
pub(super) fn state(letter: &[u8]) -> Result<JobState> {
    Ok(match letter {
        b"R" => JobState::Ready,
        b"W" => JobState::Scheduled,
        b"Y" => JobState::Retrying,
        b"B" => JobState::Blocked,
        b"A" => JobState::Active,
        b"S" => JobState::Succeeded,
        b"D" => JobState::Dead,
        b"C" | b"P" => JobState::Cancelled,
        _ => return Err(broken()),
    })
}

pub(super) const fn reason_word(reason: DeadReason) -> &'static str {
    match reason {
        DeadReason::Exhausted => "Exhausted",
        DeadReason::Rejected => "Rejected",
        DeadReason::Expired => "Expired",
        DeadReason::Quarantined => "Quarantined",
    }
}

fn reason(word: &[u8]) -> DeadReason {
    match word {
        b"Exhausted" => DeadReason::Exhausted,
        b"Expired" => DeadReason::Expired,
        b"Quarantined" => DeadReason::Quarantined,
        _ => DeadReason::Rejected,
    }
}

/// A failure; none when the script said false.
pub(super) fn failure(items: &mut Items) -> Result<Option<Failure>> {
    let (reason, message) = (items.optional()?, items.optional()?);
    let words = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok(reason.map(|reason| Failure::new(words(reason), message.map(words).unwrap_or_default())))
}

/// How a job ended; none when it didn't.
pub(super) fn outcome(mut items: Items) -> Result<Option<Outcome>> {
    if items.is_empty() {
        return Ok(None);
    }
    let kind = items.bytes()?;
    let why = items.bytes()?;
    let failure = failure(&mut items)?.unwrap_or_default();
    let bytes = items.natural()?;
    let small = items.bytes()?;
    Ok(Some(match kind.as_slice() {
        b"S" => Outcome::Succeeded { result: bytes.map(|bytes| stored(bytes, &small)).transpose()? },
        b"D" => Outcome::Dead { reason: reason(&why), failure },
        b"C" => Outcome::Cancelled,
        b"P" => Outcome::Purged,
        _ => return Err(broken()),
    }))
}

fn stored(bytes: u64, small: &[u8]) -> Result<StoredResult> {
    if bytes > Limits::INLINE_RESULT as u64 {
        return Ok(StoredResult::Stored { bytes });
    }
    Ok(StoredResult::Inline { payload: unpack_result(small.to_vec())? })
}

/// A result as it is stored: the media type, a line break, the bytes.
pub(super) fn pack_result(result: &Payload) -> Vec<u8> {
    let mut packed = Vec::with_capacity(result.content_type.len() + 1 + result.len());
    packed.extend_from_slice(result.content_type.as_bytes());
    packed.push(b'\n');
    packed.extend_from_slice(&result.bytes);
    packed
}

pub(super) fn unpack_result(mut packed: Vec<u8>) -> Result<Payload> {
    let end = packed.iter().position(|byte| *byte == b'\n').ok_or_else(broken)?;
    let bytes = packed.split_off(end + 1);
    packed.truncate(end);
    let content_type = String::from_utf8(packed).map_err(|_| broken())?;
    Ok(Payload { content_type, bytes: Bytes::from(bytes) })
}

/// What the handler gets beside the payload, as JSON. Nothing is stored when nothing is set.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Extras {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) headers: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "is_default")]
    pub(super) overrides: Overrides,
}

fn is_default(overrides: &Overrides) -> bool {
    *overrides == Overrides::default()
}

impl Extras {
    pub(super) fn to_text(&self) -> String {
        if self.headers.is_empty() && is_default(&self.overrides) {
            return String::new();
        }
        serde_json::to_string(self).expect("plain data")
    }
}

/// Extras as they are stored.
pub(super) fn extras(stored: &[u8]) -> Result<Extras> {
    if stored.is_empty() {
        Ok(Extras::default())
    } else {
        serde_json::from_slice(stored).map_err(|_| broken())
    }
}

/// A job as people see it.
pub(super) fn record(mut items: Items) -> Result<JobRecord> {
    let items = &mut items;
    Ok(JobRecord {
        id: JobId::new(items.text()?)?,
        job_type: String::from_utf8_lossy(&items.bytes()?).into_owned(),
        state: state(&items.bytes()?)?,
        attempts: items.small()?,
        lost_deliveries: items.small()?,
        enqueued_at: items.time()?,
        due_at: items.time()?,
        lease_until: Some(items.time()?).filter(|at| at.as_millis() >= 0),
        worker: Some(String::from_utf8_lossy(&items.bytes()?).into_owned()),
        finished_at: Some(items.time()?).filter(|at| at.as_millis() >= 0),
        last_failure: failure(items)?,
        payload_bytes: items.natural()?.unwrap_or(0),
        outcome: outcome(items.items()?)?,
    })
    .map(|record| JobRecord { worker: record.worker.filter(|_| record.state == JobState::Active), ..record })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_back_as_they_went() {
        for (content_type, bytes) in [("application/json", &b"{}"[..]), ("", b""), ("a/b", b"\n\n\xff")] {
            let result = Payload { content_type: content_type.into(), bytes: Bytes::copy_from_slice(bytes) };
            assert_eq!(unpack_result(pack_result(&result)).unwrap(), result);
        }
        assert!(unpack_result(b"no line break".to_vec()).is_err());
    }

    #[test]
    fn an_answer_of_another_shape_is_no_panic() {
        for value in [Value::Okay, Value::Int(1), Value::Array(vec![]), Value::Array(vec![Value::Int(3)])] {
            let queue: QueueName = "a".parse().unwrap();
            assert!(opened(value, &queue).is_err());
        }
        assert!(record(Items::new(Value::Array(vec![Value::Nil])).unwrap()).is_err());
        assert!(extras(b"{broken").is_err());
    }
}
