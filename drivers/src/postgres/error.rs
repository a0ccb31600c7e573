//! What errors of the server mean to callers.

use crate::{Error, ErrorKind};
use std::time::Duration;
use tokio_postgres::error::{DbError, SqlState};

/// What a statement does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// It only reads, or it may be repeated without harm.
    Read,
    /// It changes something.
    Change,
}

/// An answer that never came.
pub(super) fn lost(effect: Effect, what: &str) -> Error {
    match effect {
        Effect::Read => Error::unavailable(format!("PostgreSQL: {what}; try again")),
        Effect::Change => Error::new(
            ErrorKind::Ambiguous,
            format!("PostgreSQL: {what} before the answer came; it may have been done"),
        ),
    }
}

/// Nobody answered in time.
pub(super) fn late(effect: Effect, after: Duration) -> Error {
    match effect {
        Effect::Read => {
            Error::new(ErrorKind::Timeout, format!("PostgreSQL did not answer within {after:?}; try again"))
        }
        Effect::Change => lost(effect, &format!("{after:?} passed")),
    }
}

/// Whether the transaction was undone because of others, so that it can be tried again at once.
pub(super) fn is_conflict(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|code| {
        *code == SqlState::T_R_SERIALIZATION_FAILURE || *code == SqlState::T_R_DEADLOCK_DETECTED
    })
}

/// Whether the transaction was undone because somebody else held for too long what it needed.
pub(super) fn is_locked(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE)
}

/// What others held until it was given up.
pub(super) fn held() -> Error {
    Error::unavailable(
        "PostgreSQL: another transaction holds what this needs; nothing was done, look for long transactions, then try \
         again",
    )
}

/// Whether this server takes no changes.
pub(super) fn is_read_only(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION)
}

/// Whether the schema or what should be in it is missing.
pub(super) fn is_missing(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|code| {
        [SqlState::INVALID_SCHEMA_NAME, SqlState::UNDEFINED_TABLE, SqlState::UNDEFINED_FUNCTION]
            .contains(code)
    })
}

/// A statement that failed.
pub(super) fn of_statement(error: &tokio_postgres::Error, effect: Effect) -> Error {
    match error.as_db_error() {
        Some(answer) => of_server(answer, effect),
        None if error.is_closed() || is_io(error) => lost(effect, "the connection was lost"),
        None => Error::new(ErrorKind::Fatal, format!("PostgreSQL: an answer makes no sense: {error}")),
    }
}

/// A connection that could not be made: nothing was sent.
pub(super) fn of_connect(error: &tokio_postgres::Error) -> Error {
    if let Some(answer) = error.as_db_error() {
        return of_server(answer, Effect::Read);
    }
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    Error::unavailable(format!("PostgreSQL can't be reached: {error}{cause}"))
}

fn is_io(error: &tokio_postgres::Error) -> bool {
    std::error::Error::source(error).is_some_and(<dyn std::error::Error>::is::<std::io::Error>)
}

/// The server undid the transaction and says why. What it says may quote a row, so that it is repeated only where it
/// can't.
fn of_server(answer: &DbError, effect: Effect) -> Error {
    let (code, said) = (answer.code(), answer.message());
    let unavailable =
        |advice: &str| Error::unavailable(format!("PostgreSQL: {said} ({}); {advice}", code.code()));
    let own = code.code().strip_prefix("LS");
    if let Some(number) = own {
        let kind = match number {
            "404" => ErrorKind::NotFound,
            "409" => ErrorKind::Conflict,
            "429" => ErrorKind::Full,
            _ => ErrorKind::Invalid,
        };
        return Error::new(kind, said);
    }
    match *code {
        SqlState::INVALID_PASSWORD | SqlState::INVALID_AUTHORIZATION_SPECIFICATION => Error::new(
            ErrorKind::Unauthorized,
            format!(
                "PostgreSQL refused the credentials ({}); check user, password and pg_hba.conf",
                code.code()
            ),
        ),
        SqlState::INSUFFICIENT_PRIVILEGE => Error::new(
            ErrorKind::Unauthorized,
            format!("PostgreSQL: {said}; grant the role what docs/brokers/postgres.md lists"),
        ),
        SqlState::INVALID_CATALOG_NAME => unavailable("create the database or name another one"),
        SqlState::TOO_MANY_CONNECTIONS => {
            unavailable("raise max_connections, lower `connections`, or put PgBouncer in front")
        }
        SqlState::DISK_FULL => unavailable("free some space; nothing was written"),
        SqlState::READ_ONLY_SQL_TRANSACTION => {
            unavailable("this server only reads: connect to the primary, or check its disk")
        }
        SqlState::ADMIN_SHUTDOWN | SqlState::CRASH_SHUTDOWN => lost(effect, "the server is shutting down"),
        SqlState::CANNOT_CONNECT_NOW => unavailable("the server is starting or recovering; try again"),
        SqlState::QUERY_CANCELED if effect == Effect::Read => {
            Error::new(ErrorKind::Timeout, format!("PostgreSQL: {said}; try again"))
        }
        SqlState::QUERY_CANCELED | SqlState::LOCK_NOT_AVAILABLE => {
            unavailable("nothing was done; look for long transactions, then try again")
        }
        SqlState::T_R_SERIALIZATION_FAILURE | SqlState::T_R_DEADLOCK_DETECTED => {
            unavailable("others were in the way several times; nothing was done, try again")
        }
        SqlState::UNDEFINED_FUNCTION | SqlState::UNDEFINED_TABLE | SqlState::INVALID_SCHEMA_NAME => {
            Error::new(
                ErrorKind::Fatal,
                format!("PostgreSQL: {said}; the schema is not the one that this version knows"),
            )
        }
        _ => of_class(answer, effect, &unavailable),
    }
}

fn of_class(answer: &DbError, effect: Effect, unavailable: &dyn Fn(&str) -> Error) -> Error {
    let code = answer.code().code();
    match code.get(..2) {
        // A pooler's word for a server connection that died: before or after the commit, it can't tell.
        Some("08") => lost(effect, &format!("the connection failed ({code})")),
        Some("53" | "55" | "57" | "58") => unavailable("nothing was done; see the server's log"),
        Some("XX") => Error::new(
            ErrorKind::Fatal,
            format!("PostgreSQL found damage ({code}): {}; see the server's log", answer.message()),
        ),
        _ => Error::new(
            ErrorKind::Fatal,
            format!("PostgreSQL refused a statement of this driver ({code}); see the server's log"),
        ),
    }
}
