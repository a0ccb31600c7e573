//! The conformance suite: what every backend promises, as scenarios with the same names everywhere.
//!
//! A scenario is data: a name, the guarantee it proves in one sentence, the capabilities it needs, and a function. Where
//! a backend lacks a capability, the scenario's twin runs instead and proves that the backend refuses what it can't do.
//! `tests/conformance.rs` runs them; wrappers and other crates can run [`ALL`] on drivers of their own.

mod backends;
mod fixture;
mod http_backend;
mod scenarios;
pub mod servers;

pub use backends::{Backend, Broker, by_name};
pub use fixture::{Failed, Fixture, Subject, eventually};
pub use scenarios::ALL;

use crate::{Capabilities, ErrorKind};
use futures::future::BoxFuture;

/// What a scenario answers.
pub type Verdict = Result<(), Failed>;

/// The function of a scenario.
pub type Run = fn(Fixture) -> BoxFuture<'static, Verdict>;

/// One guarantee and its proof.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// The name, the same for each backend.
    pub name: &'static str,
    /// What is promised, in one sentence.
    pub guarantee: &'static str,
    /// What a backend must be able to do for it.
    pub needs: &'static [&'static Need],
    /// The proof.
    pub run: Run,
}

/// A capability that scenarios need.
#[derive(Debug)]
pub struct Need {
    /// Its name in [`Capabilities`], as the wire spells it.
    pub name: &'static str,
    /// Whether a backend has it.
    pub holds: fn(&Capabilities) -> bool,
    /// What a backend without it must refuse, if there is such an operation.
    pub refused: Option<Run>,
}

impl Scenario {
    /// The first capability that is missing.
    pub fn missing(&self, capabilities: &Capabilities) -> Option<&'static Need> {
        self.needs.iter().copied().find(|need| !(need.holds)(capabilities))
    }
}

/// Fails the scenario unless the condition holds.
macro_rules! check {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::conformance::Failed(format!($($message)+)));
        }
    };
}
use check;

/// Fails the scenario unless both are equal.
macro_rules! check_eq {
    ($left:expr, $right:expr, $($message:tt)+) => {{
        let (left, right) = (&$left, &$right);
        if left != right {
            let message = format!($($message)+);
            return Err($crate::conformance::Failed(format!("{message}: {left:?} is not {right:?}")));
        }
    }};
}
use check_eq;

/// The capabilities that scenarios need.
pub(crate) mod needs {
    use super::Need;
    use super::scenarios::refusals;

    pub(crate) static DELAY: Need = Need {
        name: "delay",
        holds: |capabilities| capabilities.delay.is_some(),
        refused: Some(|fixture| Box::pin(refusals::delay(fixture))),
    };
    pub(crate) static PAUSE: Need = Need {
        name: "pause",
        holds: |capabilities| capabilities.pause,
        refused: Some(|fixture| Box::pin(refusals::pause(fixture))),
    };
    pub(crate) static INSPECT: Need = Need {
        name: "inspect",
        holds: |capabilities| capabilities.inspect,
        refused: Some(|fixture| Box::pin(refusals::inspect(fixture))),
    };
    pub(crate) static CANCEL: Need = Need {
        name: "cancel",
        holds: |capabilities| capabilities.cancel,
        refused: Some(|fixture| Box::pin(refusals::cancel(fixture))),
    };
    pub(crate) static RESULTS: Need = Need {
        name: "resultStore",
        holds: |capabilities| capabilities.result_store,
        refused: Some(|fixture| Box::pin(refusals::results(fixture))),
    };
    pub(crate) static WAKE: Need = Need {
        name: "wake",
        holds: |capabilities| capabilities.wake,
        refused: Some(|fixture| Box::pin(refusals::wake(fixture))),
    };
    pub(crate) static FENCING: Need =
        Need { name: "fencing", holds: |capabilities| capabilities.fencing, refused: None };
    pub(crate) static IDS: Need = Need {
        name: "idMemory",
        holds: |capabilities| capabilities.id_memory == crate::IdMemory::UntilAcked,
        refused: None,
    };
    pub(crate) static LEASE: Need = Need {
        name: "lease",
        holds: |capabilities| capabilities.lease == crate::Lease::Extendable,
        refused: None,
    };
    pub(crate) static EXACT: Need =
        Need { name: "exactDepth", holds: |capabilities| capabilities.exact_depth, refused: None };
    pub(crate) static DURABLE: Need = Need {
        name: "durability",
        holds: |capabilities| capabilities.durability >= crate::Durability::Process,
        refused: None,
    };
    pub(crate) static FIFO: Need = Need {
        name: "fifo",
        holds: |capabilities| capabilities.fifo,
        refused: Some(|fixture| Box::pin(refusals::fifo(fixture))),
    };
}

/// Whether `answer` is an error of `kind`.
pub(crate) fn is_kind<T>(answer: &crate::Result<T>, kind: ErrorKind) -> bool {
    answer.as_ref().is_err_and(|error| error.kind == kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_guarantees_are_sentences() {
        let names: BTreeSet<_> = ALL.iter().map(|scenario| scenario.name).collect();
        assert_eq!(names.len(), ALL.len());
        for scenario in ALL {
            assert!(scenario.guarantee.ends_with('.'), "{}", scenario.name);
        }
    }
}
