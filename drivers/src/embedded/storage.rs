//! SQLite's errors as errors of the contract, and the codes that columns hold.

use crate::{DeadReason, Error, ErrorKind, Failure, JobState, Ordering};
use rusqlite::{ErrorCode, Row, types::ValueRef};

/// The result of statements: an error means that the transaction is spoilt.
pub(super) type Sql<T> = rusqlite::Result<T>;

/// What a statement's failure means to callers, whose commands were undone.
pub(super) fn error(error: &rusqlite::Error) -> Error {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => Error::unavailable("the broker's disk is full; nothing was changed"),
        Some(
            ErrorCode::SystemIoFailure | ErrorCode::CannotOpen | ErrorCode::ReadOnly | ErrorCode::OutOfMemory,
        ) => Error::unavailable(format!("the broker's disk failed; nothing was changed: {error}")),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            Error::unavailable("the broker's database is locked by another process; nothing was changed")
        }
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Error::new(
            ErrorKind::Fatal,
            format!("the broker's database is damaged; restore a backup: {error}"),
        ),
        _ => Error::new(ErrorKind::Fatal, format!("the broker's database refused a statement: {error}")),
    }
}

/// What a failed commit means: the disk may have kept it all the same.
pub(super) fn commit_error(failure: &rusqlite::Error) -> Error {
    let mut answer = error(failure);
    if answer.kind == ErrorKind::Unavailable {
        answer = Error::new(
            ErrorKind::Ambiguous,
            format!("the broker's disk failed while it committed: {failure}"),
        );
    }
    answer
}

/// What a panic means to the caller whose command was undone.
pub(super) fn panicked(panic: &(dyn std::any::Any + Send)) -> Error {
    let message = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message");
    Error::new(ErrorKind::Fatal, format!("the embedded broker panicked at a command and undid it: {message}"))
}

/// How many states there are.
pub(super) const STATES: usize = 8;

/// All states, in the order of their codes.
pub(super) const BY_CODE: [JobState; STATES] = [
    JobState::Ready,
    JobState::Scheduled,
    JobState::Retrying,
    JobState::Active,
    JobState::Succeeded,
    JobState::Dead,
    JobState::Cancelled,
    JobState::Blocked,
];

/// The number that stands for `state` in the database.
pub(super) const fn code(state: JobState) -> i64 {
    match state {
        JobState::Ready => 0,
        JobState::Scheduled => 1,
        JobState::Retrying => 2,
        JobState::Active => 3,
        JobState::Succeeded => 4,
        JobState::Dead => 5,
        JobState::Cancelled => 6,
        JobState::Blocked => 7,
    }
}

/// The state that `code` stands for.
pub(super) fn state(code: i64) -> Option<JobState> {
    usize::try_from(code).ok().and_then(|code| BY_CODE.get(code).copied())
}

/// The word that stands for `ordering` in the database.
pub(super) const fn ordering_word(ordering: Ordering) -> &'static str {
    match ordering {
        Ordering::BestEffort => "BestEffort",
        Ordering::Fifo => "Fifo",
    }
}

/// The ordering that `word` stands for. One that can't be read is strict: nothing overtakes, and no line is forgotten.
pub(super) fn ordering(word: &str) -> Ordering {
    if word == ordering_word(Ordering::BestEffort) { Ordering::BestEffort } else { Ordering::Fifo }
}

/// The word that stands for `reason` in the database.
pub(super) const fn reason(reason: DeadReason) -> &'static str {
    match reason {
        DeadReason::Exhausted => "Exhausted",
        DeadReason::Rejected => "Rejected",
        DeadReason::Expired => "Expired",
        DeadReason::Quarantined => "Quarantined",
    }
}

/// The reason that `word` stands for.
pub(super) fn dead_reason(word: &str) -> Option<DeadReason> {
    [DeadReason::Exhausted, DeadReason::Rejected, DeadReason::Expired, DeadReason::Quarantined]
        .into_iter()
        .find(|known| reason(*known) == word)
}

/// `failure` within the limits, wherever it came from.
pub(super) fn bounded(failure: &Failure) -> Failure {
    let reason = Failure::new("", failure.reason.as_str()).message;
    Failure::new(reason, failure.message.as_str())
}

/// Text from a column, readable whatever the disk made of it: bytes that are no UTF-8 become `U+FFFD`, which no name, id
/// or address may contain. A row that failed here would be met again and again, and hold up all others.
pub(super) fn text(row: &Row<'_>, column: usize) -> Sql<String> {
    optional_text(row, column).map(Option::unwrap_or_default)
}

/// The same where there may be none.
pub(super) fn optional_text(row: &Row<'_>, column: usize) -> Sql<Option<String>> {
    Ok(match row.get_ref(column)? {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        ValueRef::Null | ValueRef::Integer(_) | ValueRef::Real(_) => None,
    })
}

/// A number for a column; what doesn't fit is as large as fits.
pub(super) fn column(number: impl TryInto<i64>) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}

/// A count from a column; what a damaged row holds is brought into range.
pub(super) fn count(number: i64) -> u32 {
    u32::try_from(number.max(0)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_states_are_each_others_inverse() {
        for known in BY_CODE {
            assert_eq!(state(code(known)), Some(known));
        }
        assert_eq!(state(-1), None);
        assert_eq!(state(8), None);
    }
}
