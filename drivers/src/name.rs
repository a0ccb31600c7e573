//! The physical name of a queue on a broker.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// The name a queue has on its broker: injective in (installation, namespace, name).
///
/// The parts are DNS labels, which hold no dot, so joining them with dots loses nothing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct QueueName(String);

/// Why a text is no queue name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("queue name {0:?} must be 1 to 200 lowercase letters, digits, dots and dashes")]
pub struct QueueNameError(String);

impl QueueName {
    /// Names longer than this are refused.
    pub const MAX_LEN: usize = 200;

    /// The name of the queue `name` in `namespace` as `installation` writes it.
    ///
    /// # Errors
    /// When a part is no DNS label.
    pub fn physical(installation: &str, namespace: &str, name: &str) -> Result<Self, QueueNameError> {
        for part in [installation, namespace, name] {
            if part.is_empty() || part.contains('.') {
                return Err(QueueNameError(part.to_owned()));
            }
        }
        format!("{installation}.{namespace}.{name}").parse()
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for QueueName {
    type Err = QueueNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let legal =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'.' || byte == b'-';
        if text.is_empty() || text.len() > Self::MAX_LEN || !text.bytes().all(legal) {
            return Err(QueueNameError(text.chars().take(Self::MAX_LEN).collect()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for QueueName {
    type Error = QueueNameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<QueueName> for String {
    fn from(name: QueueName) -> Self {
        name.0
    }
}

impl fmt::Display for QueueName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cannot_be_confused() {
        let one = QueueName::physical("a", "b-c", "d").unwrap();
        let other = QueueName::physical("a", "b", "c-d").unwrap();
        assert_ne!(one, other);
        assert!(QueueName::physical("a", "b.c", "d").is_err());
    }

    #[test]
    fn names_outside_the_alphabet_are_refused() {
        for bad in ["", "A", "a/b", "a b", "ü", &"x".repeat(201)] {
            assert!(bad.parse::<QueueName>().is_err(), "{bad:?}");
        }
    }
}
