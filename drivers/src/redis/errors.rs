//! What an error of the server or of the connection means.

use crate::{Error, ErrorKind};
use redis::RedisError;

/// Whether a call changes something or only reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    Reads,
    Changes,
}

/// The call was never sent.
pub(super) fn not_sent(error: &RedisError) -> Error {
    if let Some(refusal) = refusal(error) {
        return refusal;
    }
    if error.kind() == redis::ErrorKind::AuthenticationFailed {
        return unauthorized();
    }
    Error::unavailable(format!("the Redis server can't be reached: {}", cause(error)))
}

/// The call `what` was sent, and this came back.
pub(super) fn failed(error: &RedisError, what: &str, call: Call) -> Error {
    if let Some(refusal) = refusal(error) {
        return refusal;
    }
    let kind = match call {
        Call::Changes => ErrorKind::Ambiguous,
        Call::Reads if error.is_timeout() => ErrorKind::Timeout,
        Call::Reads => ErrorKind::Unavailable,
    };
    Error::new(kind, format!("the Redis server's answer to {what} was lost: {}", cause(error)))
}

/// Whether the connection is of no more use.
pub(super) fn breaks(error: &RedisError) -> bool {
    match error.code() {
        // The host may have another server behind it by now.
        Some(code) => matches!(code, "READONLY" | "NOAUTH"),
        None => true,
    }
}

fn unauthorized() -> Error {
    Error::new(
        ErrorKind::Unauthorized,
        "the Redis server refused the credentials, or doesn't allow them enough",
    )
}

/// What the server itself said: nothing was done.
fn refusal(error: &RedisError) -> Option<Error> {
    let code = error.code()?;
    let unavailable = |text: &str| Some(Error::unavailable(text));
    match code {
        "OOM" => unavailable(
            "the Redis server's memory is full (maxmemory): raise maxmemory, or let jobs be worked off; \
             claims and settles go on",
        ),
        "LOADING" => unavailable("the Redis server is still loading its data; try again"),
        "READONLY" => unavailable("the Redis server is a read-only replica: use the primary's address"),
        "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" => {
            unavailable("the Redis server has lost its primary or its cluster")
        }
        "BUSY" => unavailable("the Redis server is busy with somebody else's script"),
        "MISCONF" => unavailable(
            "the Redis server refuses writes because it can't save to its disk: see its log and its disk",
        ),
        "NOREPLICAS" => unavailable("the Redis server has fewer replicas than it needs to accept writes"),
        "MOVED" | "ASK" | "CROSSSLOT" => Some(Error::new(
            ErrorKind::Unsupported,
            "cluster: the Redis server is a node of a cluster; use one without cluster mode",
        )),
        "NOAUTH" | "WRONGPASS" | "NOPERM" => Some(unauthorized()),
        _ if error.detail().is_some_and(|detail| detail.contains("max number of clients")) => {
            unavailable("the Redis server has no room for one more connection (maxclients)")
        }
        _ => Some(Error::new(
            ErrorKind::Fatal,
            format!("the Redis server refuses the operation: {code} {}", error.detail().unwrap_or_default()),
        )),
    }
}

/// What happened to the connection, in words of the library and the system, which hold nothing of ours.
fn cause(error: &RedisError) -> String {
    if error.is_timeout() {
        return "it did not answer in time".to_owned();
    }
    error.to_string()
}
