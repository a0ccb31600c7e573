//! Requests and responses that are no types of the contract themselves.
//!
//! Payloads hold raw JSON, which only plain structs and externally tagged enums let through: nothing here is flattened
//! or untagged.

use crate::{
    Claimed, CompletionReceipt, Error, ErrorKind, JobId, JobRecord, JobState, Payload, Receipt, Result,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned, de::IgnoredAny};
use serde_json::value::RawValue;
use std::time::Duration;

/// One item of many: one that can't be read leaves its neighbours alone.
#[derive(Debug)]
pub(crate) struct Each<T>(pub(crate) serde_json::Result<T>);

impl<'de, T: DeserializeOwned> Deserialize<'de> for Each<T> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let text = <&RawValue>::deserialize(input)?;
        Ok(Self(serde_json::from_str(text.get())))
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EnqueueBody<J> {
    pub(crate) jobs: Vec<J>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ExtendBody {
    pub(crate) receipts: Vec<Receipt>,
    #[serde(rename = "leaseMs", with = "crate::time::millis")]
    pub(crate) lease: Duration,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SettleBody<S> {
    pub(crate) settlements: Vec<S>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct IdsBody<I = JobId> {
    pub(crate) ids: Vec<I>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PurgeBody {
    pub(crate) state: JobState,
    pub(crate) limit: u32,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AcknowledgeBody {
    pub(crate) receipts: Vec<CompletionReceipt>,
}

/// One answer per item, in the order of the request, as it is written.
#[cfg_attr(not(feature = "http-server"), expect(dead_code, reason = "only a server writes it"))]
#[derive(Debug, Serialize)]
pub(crate) struct Answers<T> {
    pub(crate) results: Vec<Answer<T>>,
}

/// The same as it is read.
#[derive(Debug, Deserialize)]
#[serde(bound = "T: DeserializeOwned")]
pub(crate) struct Heard<T> {
    pub(crate) results: Vec<Each<Answer<T>>>,
}

/// It was done. Whatever a newer broker says besides is ignored.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Done;

impl Serialize for Done {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_unit()
    }
}

impl<'de> Deserialize<'de> for Done {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(input).map(|IgnoredAny| Self)
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Answer<T> {
    Ok(T),
    Error(Error),
}

impl<T> From<Vec<Result<T>>> for Answers<T> {
    fn from(results: Vec<Result<T>>) -> Self {
        let results =
            results.into_iter().map(|result| result.map_or_else(Answer::Error, Answer::Ok)).collect();
        Self { results }
    }
}

impl<T> From<Heard<T>> for Vec<Result<T>> {
    fn from(answers: Heard<T>) -> Self {
        let back = |Each(answer)| match answer {
            Ok(Answer::Ok(value)) => Ok(value),
            Ok(Answer::Error(error)) => Err(error),
            // Something was done, and a newer broker says so in words that nobody here knows.
            Err(_) => {
                Err(Error::new(ErrorKind::Ambiguous, "this version can't understand the broker's answer"))
            }
        };
        answers.results.into_iter().map(back).collect()
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ClaimedJobs {
    pub(crate) jobs: Vec<Claimed>,
}

/// Results by position; `null` where there is none.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Results {
    pub(crate) results: Vec<Option<Payload>>,
}

/// An unknown job is data: a status of 404 says that the queue is unknown.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Inspected {
    pub(crate) job: Option<JobRecord>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Purged {
    pub(crate) purged: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Enqueued, Outcome, StoredResult};

    #[test]
    fn answers_with_raw_payloads_survive_the_wire() {
        let duplicate = Enqueued::Duplicate {
            id: JobId::new("a").unwrap(),
            state: JobState::Succeeded,
            outcome: Some(Outcome::Succeeded {
                result: Some(StoredResult::Inline { payload: Payload::json("{\"b\": 1e400}") }),
            }),
        };
        let sent: Vec<Result<Enqueued>> =
            vec![Ok(duplicate.clone()), Err(Error::new(ErrorKind::Conflict, "other payload"))];
        let text = serde_json::to_string(&Answers::from(sent)).unwrap();
        let back: Vec<Result<Enqueued>> = serde_json::from_str::<Heard<Enqueued>>(&text).unwrap().into();
        assert_eq!(back[0].as_ref().unwrap(), &duplicate);
        assert_eq!(back[1].as_ref().unwrap_err().kind, ErrorKind::Conflict);
    }

    #[test]
    fn a_settle_answers_ok_with_nothing_in_it() {
        let text = serde_json::to_string(&Answers::from(vec![Ok(())])).unwrap();
        assert_eq!(text, r#"{"results":[{"ok":null}]}"#);
        let back: Vec<Result<Done>> = serde_json::from_str::<Heard<Done>>(&text).unwrap().into();
        assert_eq!(back[0].as_ref().unwrap(), &Done);
    }

    #[test]
    fn an_absent_result_and_an_empty_one_differ() {
        let results = Results { results: vec![None, Some(Payload::default()), Some(Payload::json("null"))] };
        let text = serde_json::to_string(&results).unwrap();
        let back: Results = serde_json::from_str(&text).unwrap();
        assert_eq!(back.results, results.results);
    }
}
