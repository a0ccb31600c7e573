//! What a reader makes of words that a newer writer added.
//!
//! Responses are read by older sidecars and operators. Fields that they don't know are ignored; a word that they don't
//! know in place of one of ours becomes the nearest one that does no harm. Requests are strict instead: see
//! [`crate::strict`].

use crate::{DeadReason, Durability, ErrorKind, IdMemory, JobState, Lease};
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IgnoredAny, IntoDeserializer, MapAccess, Visitor, value},
};
use std::{fmt, marker::PhantomData};

/// A kind that nobody here can act on: the text beside it is for people.
pub(crate) fn error_kind<'de, D: Deserializer<'de>>(input: D) -> Result<ErrorKind, D::Error> {
    Ok(known(input)?.unwrap_or(ErrorKind::Fatal))
}

/// Dead for good, as all dead jobs are.
pub(crate) fn dead_reason<'de, D: Deserializer<'de>>(input: D) -> Result<DeadReason, D::Error> {
    Ok(known(input)?.unwrap_or(DeadReason::Rejected))
}

/// Not over, and nobody's: whoever needs more asks again.
pub(crate) fn job_state<'de, D: Deserializer<'de>>(input: D) -> Result<JobState, D::Error> {
    Ok(known(input)?.unwrap_or(JobState::Scheduled))
}

/// Nothing to rely on.
pub(crate) fn id_memory<'de, D: Deserializer<'de>>(input: D) -> Result<IdMemory, D::Error> {
    Ok(known(input)?.unwrap_or(IdMemory::None))
}

/// Nothing to rely on.
pub(crate) fn durability<'de, D: Deserializer<'de>>(input: D) -> Result<Durability, D::Error> {
    Ok(known(input)?.unwrap_or(Durability::None))
}

/// Nothing that could be extended.
pub(crate) fn lease<'de, D: Deserializer<'de>>(input: D) -> Result<Lease, D::Error> {
    Ok(known(input)?.unwrap_or(Lease::Connection))
}

fn known<'de, T: Deserialize<'de>, D: Deserializer<'de>>(input: D) -> Result<Option<T>, D::Error> {
    let word = String::deserialize(input)?;
    let word: value::StringDeserializer<value::Error> = word.into_deserializer();
    Ok(T::deserialize(word).ok())
}

/// An externally tagged enum that reads variants which it doesn't have.
pub(crate) trait Open: Sized {
    /// The variant `tag`, which holds nothing.
    fn bare(tag: &str) -> Self;

    /// The variant `tag`, whose content is the map's next value.
    fn holding<'de, A: MapAccess<'de>>(tag: &str, map: &mut A) -> Result<Self, A::Error>;
}

/// Reads an [`Open`] enum.
pub(crate) fn open<'de, T: Open, D: Deserializer<'de>>(input: D) -> Result<T, D::Error> {
    input.deserialize_any(Opened(PhantomData))
}

struct Opened<T>(PhantomData<T>);

impl<'de, T: Open> Visitor<'de> for Opened<T> {
    type Value = T;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a variant")
    }

    fn visit_str<E>(self, tag: &str) -> Result<T, E> {
        Ok(T::bare(tag))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<T, A::Error> {
        let tag = map.next_key::<String>()?.ok_or_else(|| A::Error::custom("a variant has a name"))?;
        let value = T::holding(&tag, &mut map)?;
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(value)
    }
}
