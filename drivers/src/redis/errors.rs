//! What an error of the server or of the connection means.

use crate::{Error, ErrorKind};
use redis::RedisError;

/// Whether a call changes something or only reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    Reads,
    /// It only reads, and the change that depends on it was not asked for yet.
    Prepares,
    /// It changes something, and may be asked for again whatever was done: that comes back by itself, or is done once.
    Repeats,
    Changes,
}

/// The call was never sent: there is no connection. The first commands of one carry the password, which a server may repeat
/// in its words, so these are not shown.
pub(super) fn not_sent(error: &RedisError) -> Error {
    if error.kind() == redis::ErrorKind::AuthenticationFailed {
        return unauthorized();
    }
    match error.code() {
        Some(code) => known(code, error).unwrap_or_else(|| {
            let text =
                "the Redis server refuses a connection's first commands (HELLO with the credentials, SELECT)";
            Error::new(ErrorKind::Fatal, format!("{text}: {code}"))
        }),
        None if error.is_io_error() => {
            Error::unavailable(format!("the Redis server can't be reached: {}", cause(error)))
        }
        None => Error::unavailable(format!("the Redis server can't be reached: {}", error.category())),
    }
}

/// The call `what` was sent, and this came back.
pub(super) fn failed(error: &RedisError, what: &str, call: Call) -> Error {
    if let Some(refusal) = refusal(error) {
        let is_definite = matches!(refusal.kind, ErrorKind::Unavailable | ErrorKind::Unsupported);
        if call == Call::Changes && !is_definite && inside(error) {
            let message = format!("{}; how much of {what} was done is not known", refusal.message);
            return Error::new(ErrorKind::Ambiguous, message);
        }
        return refusal;
    }
    let kind = match call {
        Call::Changes | Call::Repeats => ErrorKind::Ambiguous,
        Call::Reads if error.is_timeout() => ErrorKind::Timeout,
        Call::Reads | Call::Prepares => ErrorKind::Unavailable,
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

/// Whether a script met this error on its way, and may have written before. What the server's state forbids, it forbids a
/// script's first write; these errors are the `Unavailable` ones.
fn inside(error: &RedisError) -> bool {
    error.detail().is_some_and(|detail| detail.contains(" script: "))
}

/// What the server itself said. A command of its own was not done then.
fn refusal(error: &RedisError) -> Option<Error> {
    let code = error.code()?;
    Some(known(code, error).unwrap_or_else(|| {
        let detail = error.detail().unwrap_or_default();
        // It goes on with what was sent.
        let detail = detail.split(", with args beginning with").next().unwrap_or_default();
        Error::new(ErrorKind::Fatal, format!("the Redis server refuses the operation: {code} {detail}"))
    }))
}

/// The errors that say what to do.
fn known(code: &str, error: &RedisError) -> Option<Error> {
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
        _ => None,
    }
}

/// What happened to the connection, in words of the library and the system, which hold nothing of ours.
fn cause(error: &RedisError) -> String {
    if error.is_timeout() {
        return "it did not answer in time".to_owned();
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(code: &str, detail: &str) -> RedisError {
        redis::make_extension_error(code.to_owned(), Some(detail.to_owned()))
    }

    #[test]
    fn what_was_sent_is_not_shown() {
        let repeated =
            server("ERR", "unknown command 'HELLO', with args beginning with: '3' 'AUTH' 'a' 'sekret' ");
        for error in [not_sent(&repeated), failed(&repeated, "enqueue", Call::Changes)] {
            assert_eq!(error.kind, ErrorKind::Fatal);
            assert!(!error.message.contains("sekret") && error.message.contains("HELLO"), "{error}");
        }
        let unknown = not_sent(&server("ERR", "no sekret here"));
        assert!(!unknown.message.contains("sekret"), "{unknown}");
    }

    #[test]
    fn only_what_refuses_a_whole_script_says_that_nothing_was_done() {
        let cases = [
            ("WRONGTYPE", "of a key script: 12, on @user_script:1.", Call::Changes, ErrorKind::Ambiguous),
            (
                "NOPERM",
                "ACL failure in script: no. script: 12, on @u:1.",
                Call::Changes,
                ErrorKind::Ambiguous,
            ),
            ("ERR", "user_script:1: nil script: 12, on @user_script:1.", Call::Repeats, ErrorKind::Fatal),
            ("WRONGTYPE", "of a key script: 12, on @user_script:1.", Call::Reads, ErrorKind::Fatal),
            ("OOM", "not allowed script: 12, on @user_script:1.", Call::Changes, ErrorKind::Unavailable),
            ("WRONGTYPE", "of a key", Call::Changes, ErrorKind::Fatal),
            ("NOPERM", "to run the 'evalsha' command", Call::Changes, ErrorKind::Unauthorized),
        ];
        for (code, detail, call, expected) in cases {
            let error = failed(&server(code, detail), "settle", call);
            assert_eq!(error.kind, expected, "{code} {detail}: {error}");
        }
    }
}
