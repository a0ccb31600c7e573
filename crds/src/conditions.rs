//! Conditions: set, compared, never touched without need.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

/// The status, reason and message of a condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// `True`, `False` or `Unknown`.
    pub status: &'static str,
    /// A CamelCase word.
    pub reason: String,
    /// What happened, to what, and what to do.
    pub message: String,
}

impl Reason {
    /// The condition holds.
    pub fn yes(reason: &str, message: impl Into<String>) -> Self {
        Self { status: "True", reason: reason.to_owned(), message: message.into() }
    }

    /// The condition doesn't hold.
    pub fn no(reason: &str, message: impl Into<String>) -> Self {
        Self { status: "False", reason: reason.to_owned(), message: message.into() }
    }

    /// Nobody knows yet.
    pub fn unknown(reason: &str, message: impl Into<String>) -> Self {
        Self { status: "Unknown", reason: reason.to_owned(), message: message.into() }
    }
}

/// Sets `kind` among `conditions`. The transition time changes only when the status does.
pub fn set_condition(
    conditions: &mut Vec<Condition>,
    kind: &str,
    value: Reason,
    generation: Option<i64>,
    now: Timestamp,
) {
    let mut message = value.message;
    if message.len() > 1024 {
        let end = (0..=1024).rev().find(|&at| message.is_char_boundary(at)).unwrap_or(0);
        message.truncate(end);
    }
    let mut next = Condition {
        type_: kind.to_owned(),
        status: value.status.to_owned(),
        reason: value.reason,
        message,
        observed_generation: generation,
        last_transition_time: Time(now),
    };
    match conditions.iter_mut().find(|condition| condition.type_ == kind) {
        Some(old) => {
            if old.status == next.status {
                next.last_transition_time = old.last_transition_time.clone();
            }
            *old = next;
        }
        None => conditions.push(next),
    }
}

/// Whether `kind` stands at `True`.
pub fn is_true(conditions: &[Condition], kind: &str) -> bool {
    conditions.iter().any(|condition| condition.type_ == kind && condition.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transition_time_moves_only_with_the_status() {
        let (early, late) = (Timestamp::from_second(1).unwrap(), Timestamp::from_second(2).unwrap());
        let mut conditions = Vec::new();
        set_condition(&mut conditions, "Ready", Reason::no("A", "a"), Some(1), early);
        set_condition(&mut conditions, "Ready", Reason::no("B", "b"), Some(2), late);
        assert_eq!(conditions[0].last_transition_time.0, early);
        assert_eq!((conditions[0].reason.as_str(), conditions[0].observed_generation), ("B", Some(2)));
        set_condition(&mut conditions, "Ready", Reason::yes("C", "c"), Some(2), late);
        assert_eq!(conditions[0].last_transition_time.0, late);
        assert_eq!(conditions.len(), 1);
    }
}
