//! What capabilities mean, for people.

use longshore_drivers::conformance::{Bound, Holds, Unit};
use serde_json::Value;

/// What each means, by its name on the wire.
pub(super) const MEANINGS: &[(&str, &str)] = &[
    ("atomicSettle", "The end of a job and its completion are written together or not at all."),
    ("cancel", "A job can be cancelled by its id."),
    ("delay", "A job can be put off."),
    (
        "durability",
        "What the death of the broker leaves of what it acknowledged: `Machine`: everything; `Process`: everything, \
         unless its machine dies; `Mostly`: all but the last seconds; `None`: nothing.",
    ),
    ("exactDepth", "The depths of a queue are exact."),
    ("fencing", "Who lost a lease can't settle with it."),
    ("fifo", "Jobs of one ordering key run one by one, in the order in which they were enqueued."),
    (
        "idMemory",
        "An id is known, and its job not enqueued again, until its retention ended and its completion was read.",
    ),
    ("inspect", "Jobs can be looked at, listed, redriven and purged."),
    ("lease", "A claimed job is held by a lease that its claimer extends, and comes back without."),
    ("limits", "The largest payload and the largest result of a job."),
    ("pause", "A queue can stop handing out jobs."),
    ("resultStore", "Results are kept and can be fetched by the id of the job."),
    ("wake", "Who waits hears of new jobs without asking again and again."),
];

/// Capabilities that a scenario proves without being skipped where they are missing.
pub(super) const PROVEN_BY: &[(&str, &str)] = &[("atomicSettle", "completion_is_written_with_the_settle")];

/// Sizes that a broker tells, by capability and field, and the scenario that asserts the same number under this name.
pub(super) const SIZES: &[(&str, &str, &str, &str)] = &[
    ("limits", "maxPayload", "payload_large", "of payload"),
    ("limits", "maxResult", "result_large", "of result"),
    ("delay", "maxMs", "config_option_fuzz", "delay"),
];

/// What `capability` means.
pub(super) fn meaning(capability: &str) -> Option<&'static str> {
    MEANINGS.iter().find(|(name, _)| *name == capability).map(|(_, meaning)| *meaning)
}

/// Whether a value says that there is nothing of the kind.
pub(super) fn is_none(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null | Value::Bool(false)) => true,
        Some(Value::String(word)) => word == "None",
        Some(_) => false,
    }
}

/// A capability's value, for people.
pub(super) fn shown(capability: &str, value: Option<&Value>) -> String {
    match value {
        Some(Value::Bool(true)) => "yes".to_owned(),
        Some(Value::Bool(false) | Value::Null) | None => "no".to_owned(),
        Some(Value::String(word)) => format!("`{word}`"),
        Some(Value::Object(fields)) => {
            let bound = |(_, field, _, name): &(&str, &str, &str, &'static str)| {
                let bound = fields.get(*field)?.as_u64()?;
                let unit = if field.ends_with("Ms") { Unit::Millis } else { Unit::Bytes };
                Some(Bound { name: (*name).into(), holds: Holds::AtMost, bound, unit }.to_string())
            };
            let of = SIZES.iter().filter(|(of, ..)| *of == capability);
            of.filter_map(bound).collect::<Vec<_>>().join("; ")
        }
        Some(other) => other.to_string(),
    }
}
