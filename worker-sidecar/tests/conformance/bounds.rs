//! Keeps the numbers that scenarios assert, so that what is published about workers is what was asserted.
//!
//! A scenario runs as one task, which has its own; helpers that it calls add to them.

pub(crate) use longshore_drivers::conformance::Bytes;
use longshore_drivers::conformance::{Amount, Bounds};
use std::time::Duration;

tokio::task_local! {
    /// Those of the scenario that runs.
    pub(crate) static BOUNDS: Bounds;
}

/// Answers `bound`, which is to be asserted: never more than that of `name`.
pub(crate) fn at_most<A: Amount>(name: &'static str, bound: A) -> A {
    BOUNDS.with(|bounds| bounds.at_most(name, bound))
}

/// Answers `bound`, which is to be asserted: never less than that of `name`.
pub(crate) fn at_least<A: Amount>(name: &'static str, bound: A) -> A {
    BOUNDS.with(|bounds| bounds.at_least(name, bound))
}

/// Answers `amount`, which is what brokers and workers are to go through.
pub(crate) fn over<A: Amount>(name: &'static str, amount: A) -> A {
    BOUNDS.with(|bounds| bounds.over(name, amount))
}

/// How early anything may be.
pub(crate) fn early() -> Duration {
    at_most("early", Duration::ZERO)
}

/// How late what has a window may be.
pub(crate) fn late() -> Duration {
    at_most("late", crate::frame::late())
}
