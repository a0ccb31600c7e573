//! Types of the contract as requests carry them.
//!
//! Jobs, completions and outcomes hold the same types, and there unknown fields are ignored ([`crate::lenient`]). In a
//! request an unknown field is a typing error that would silently lose a payload, a limit or a result: it is refused.

use crate::{Address, Failure, Notify, Overrides, Payload, job::WirePayload};
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::value::RawValue;
use std::time::Duration;

#[derive(Deserialize)]
#[serde(remote = "WirePayload", rename_all = "camelCase", deny_unknown_fields)]
struct PayloadFields {
    #[serde(default)]
    content_type: Option<String>,
    #[serde(default, deserialize_with = "crate::job::raw")]
    json: Option<Box<RawValue>>,
    #[serde(default)]
    base64: Option<String>,
}

#[derive(Deserialize)]
#[serde(remote = "Overrides", rename_all = "camelCase", deny_unknown_fields)]
struct OverridesFields {
    #[serde(default)]
    max_attempts: Option<u32>,
    #[serde(default, rename = "timeoutMs", with = "crate::time::millis::option")]
    timeout: Option<Duration>,
}

#[derive(Deserialize)]
#[serde(remote = "Notify", rename_all = "camelCase", deny_unknown_fields)]
struct NotifyFields {
    address: Address,
    #[serde(default)]
    context: String,
}

#[derive(Deserialize)]
#[serde(remote = "Failure", rename_all = "camelCase", deny_unknown_fields)]
struct FailureFields {
    reason: String,
    message: String,
}

pub(crate) fn payload<'de, D: Deserializer<'de>>(input: D) -> Result<Payload, D::Error> {
    PayloadFields::deserialize(input)?.try_into().map_err(D::Error::custom)
}

pub(crate) fn result<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Payload>, D::Error> {
    #[derive(Deserialize)]
    struct Strict(#[serde(deserialize_with = "payload")] Payload);
    Ok(Option::<Strict>::deserialize(input)?.map(|Strict(payload)| payload))
}

pub(crate) fn overrides<'de, D: Deserializer<'de>>(input: D) -> Result<Overrides, D::Error> {
    OverridesFields::deserialize(input)
}

pub(crate) fn notify<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Notify>, D::Error> {
    #[derive(Deserialize)]
    struct Strict(#[serde(with = "NotifyFields")] Notify);
    Ok(Option::<Strict>::deserialize(input)?.map(|Strict(notify)| notify))
}

pub(crate) fn failure<'de, D: Deserializer<'de>>(input: D) -> Result<Failure, D::Error> {
    FailureFields::deserialize(input)
}
