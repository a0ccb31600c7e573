//! The state as it is stored, with the version of its form.

use crate::State;
use serde_json::Value;

/// The version that this code writes.
pub const VERSION: u32 = 1;

/// A stored state that can't be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another writer wrote it, a newer one as a rule.
    #[error("the state has version {found}, this operator reads version {VERSION}")]
    UnsupportedVersion {
        /// The version found.
        found: u32,
    },
    /// It makes no sense.
    #[error("the state can't be read: {0}")]
    Malformed(#[from] serde_json::Error),
}

/// The state as it is stored.
///
/// # Panics
/// Never: every state can be written as JSON.
pub fn encode(state: &State) -> (u32, Value) {
    (VERSION, serde_json::to_value(state).expect("a state has only text keys and finite numbers"))
}

/// The state that was stored.
///
/// # Errors
/// When it has another version, or makes no sense.
pub fn decode(version: u32, data: &Value) -> Result<State, Error> {
    if version != VERSION {
        return Err(Error::UnsupportedVersion { found: version });
    }
    Ok(serde_json::from_value(data.clone())?)
}
