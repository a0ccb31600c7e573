//! Instants as brokers tell them.

use serde::{Deserialize, Serialize};
use std::time::Duration;
#[cfg(any(feature = "embedded", feature = "memory"))]
use std::time::Instant;

/// An instant in milliseconds since the Unix epoch, always read from the broker's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The instant `millis` milliseconds after the Unix epoch.
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the Unix epoch.
    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// This instant moved by `by` into the future; saturates.
    #[must_use]
    pub fn after(self, by: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(by.as_millis()).unwrap_or(i64::MAX)))
    }

    /// How long after `earlier` this instant is; zero if it isn't.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// The wall clock of this machine. Only what owns a clock may call it: a backend that has none of its own.
    #[expect(clippy::disallowed_methods, reason = "the one place where the wall clock is read")]
    pub fn now() -> Self {
        let since_epoch =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
    }
}

/// Follows the wall clock forwards, and goes on by itself while that stands behind: a wall clock that jumped ahead and
/// back must neither turn time back nor stop it.
#[cfg(any(feature = "embedded", feature = "memory"))]
#[derive(Debug)]
pub(crate) struct Steady {
    latest: Timestamp,
    read: Instant,
}

#[cfg(any(feature = "embedded", feature = "memory"))]
impl Steady {
    /// A clock that shows `latest` or later from now on.
    pub(crate) fn new(latest: Timestamp) -> Self {
        Self { latest, read: Instant::now() }
    }

    /// The present instant, where the wall clock shows `wall`.
    pub(crate) fn now(&mut self, wall: Timestamp) -> Timestamp {
        let passed = Instant::now().saturating_duration_since(self.read).as_millis();
        let passed = Duration::from_millis(u64::try_from(passed).unwrap_or(u64::MAX));
        // Parts of a millisecond count the next time.
        self.read += passed;
        self.latest = self.latest.after(passed).max(wall);
        self.latest
    }
}

/// Durations travel as whole milliseconds.
pub(crate) mod millis {
    use serde::{Deserialize, Deserializer, Serializer};
    use std::time::Duration;

    pub(crate) fn serialize<S: Serializer>(value: &Duration, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_u64(u64::try_from(value.as_millis()).unwrap_or(u64::MAX))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<Duration, D::Error> {
        u64::deserialize(input).map(Duration::from_millis)
    }

    /// The same for a duration that may be absent.
    pub(crate) mod option {
        use serde::{Deserialize, Deserializer, Serializer};
        use std::time::Duration;

        #[expect(clippy::ref_option, reason = "the signature serde asks for")]
        pub(crate) fn serialize<S: Serializer>(value: &Option<Duration>, out: S) -> Result<S::Ok, S::Error> {
            match value {
                Some(value) => super::serialize(value, out),
                None => out.serialize_none(),
            }
        }

        pub(crate) fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Duration>, D::Error> {
            Ok(Option::<u64>::deserialize(input)?.map(Duration::from_millis))
        }
    }
}
