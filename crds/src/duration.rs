//! Durations as users write them: `1h30m`, `45s`, `250ms`.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use std::{borrow::Cow, fmt, str::FromStr};

/// A duration in hours, minutes, seconds and milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Duration {
    text: String,
    value: std::time::Duration,
}

/// Why a text is no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no duration: write numbers with h, m, s or ms, like 1h30m or 250ms")]
pub struct DurationError(String);

impl Duration {
    /// The one pattern for durations.
    pub const PATTERN: &'static str = "^([0-9]{1,9}(h|ms|m|s)){1,4}$";

    /// The value.
    pub const fn get(&self) -> std::time::Duration {
        self.value
    }
}

impl FromStr for Duration {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || DurationError(text.chars().take(40).collect());
        let mut rest = text;
        let mut millis: u64 = 0;
        if rest.is_empty() || rest.len() > 48 {
            return Err(bad());
        }
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let number: u64 = rest[..digits].parse().map_err(|_| bad())?;
            let unit_len = rest[digits..].bytes().take_while(u8::is_ascii_lowercase).count();
            let unit = match &rest[digits..digits + unit_len] {
                "h" => 3_600_000,
                "m" => 60_000,
                "s" => 1_000,
                "ms" => 1,
                _ => return Err(bad()),
            };
            millis = number.checked_mul(unit).and_then(|part| millis.checked_add(part)).ok_or_else(bad)?;
            rest = &rest[digits + unit_len..];
        }
        Ok(Self { text: text.to_owned(), value: std::time::Duration::from_millis(millis) })
    }
}

impl TryFrom<String> for Duration {
    type Error = DurationError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Duration> for String {
    fn from(duration: Duration) -> Self {
        duration.text
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.text)
    }
}

impl JsonSchema for Duration {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": Self::PATTERN, "maxLength": 24 })
    }
}

/// A default written as a literal.
pub(crate) fn literal(text: &str) -> Duration {
    text.parse().expect("a duration literal in this crate is well formed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_mean_what_they_say() {
        for (text, millis) in
            [("30s", 30_000), ("1h30m", 5_400_000), ("250ms", 250), ("1m1s1ms", 61_001), ("0s", 0)]
        {
            assert_eq!(text.parse::<Duration>().unwrap().get().as_millis(), millis, "{text}");
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "1", "s", "1d", "-1s", "1.5s", "1S", " 1s", "99999999999999999999h", "1s1"] {
            assert!(text.parse::<Duration>().is_err(), "{text:?}");
        }
    }
}
