//! The conformance suite: what every backend promises, as scenarios with the same names everywhere.
//!
//! A scenario is data: a name, the guarantee it proves in one sentence, the capabilities it needs, and a function. Where
//! a backend lacks a capability, the scenario's twin runs instead and proves that the backend refuses what it can't do.
//! `tests/conformance.rs` runs them; wrappers and other crates can run [`ALL`] on drivers of their own.

mod backends;
mod bounds;
mod fixture;
pub mod history;
mod http_backend;
mod machine;
pub mod proxy;
mod scenarios;
pub mod servers;

pub use backends::{Backend, Broker, by_name};
pub use bounds::{Amount, Bound, Bounds, Bytes, Holds, Unit};
pub use fixture::{Failed, Fixture, SOON, Subject, eventually};
pub use http_backend::use_broker_binary;
pub use scenarios::ALL;

use crate::{Capabilities, ErrorKind, Probe, Result as CallResult};
use futures::future::BoxFuture;
use std::time::Duration;

/// How long a call through a handle of [`Broker::handle_at`] may take beside what it asks the broker to wait, whatever
/// happens to the broker and to the way there.
pub const BOUND: Duration = Duration::from_secs(6);

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
    /// It stops, kills or freezes its broker, so it has one of its own.
    pub alone: bool,
    /// The proof.
    pub run: Run,
}

/// What a backend has for scenarios to work with.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct Offer {
    /// What its brokers say about themselves.
    pub probe: Probe,
    /// There is a network before a broker, so the way to it can be broken.
    pub network: bool,
    /// A broker is a process that can be killed and frozen.
    pub process: bool,
    /// A broker can be had that nobody else uses.
    pub alone: bool,
    /// Another process can reach it.
    pub reachable: bool,
}

impl Offer {
    /// Starts a broker of `backend` and sees.
    ///
    /// # Errors
    /// Whatever keeps the broker from running.
    pub async fn of(backend: &dyn Backend) -> CallResult<Self> {
        let (broker, alone) = match backend.start_alone().await {
            // A server that somebody named is there for others too: it is neither stopped nor killed.
            Err(error) if error.kind == ErrorKind::Unsupported => (backend.start().await?, false),
            started => (started?, true),
        };
        let found = Self::look(&*broker, alone).await;
        broker.stop().await;
        found
    }

    async fn look(broker: &dyn Broker, alone: bool) -> CallResult<Self> {
        let probe = broker.handle().await?.probe().await?;
        let directory = servers::process::Directory::new("credentials")?;
        let reachable = match broker.via(None, directory.path()) {
            Ok(_) => true,
            Err(error) if error.kind == ErrorKind::Unsupported => false,
            Err(error) => return Err(error),
        };
        if !alone {
            return Ok(Self { probe, network: false, process: false, alone, reachable });
        }
        let network = broker.address().is_some();
        let process = match broker.freeze().await {
            Ok(()) => broker.thaw().await.map(|()| true)?,
            Err(error) if error.kind == ErrorKind::Unsupported => false,
            Err(error) => return Err(error),
        };
        Ok(Self { probe, network, process, alone, reachable })
    }
}

/// A capability that scenarios need.
#[derive(Debug)]
pub struct Need {
    /// Its name in [`Capabilities`], as the wire spells it, or that of another part of [`Offer`].
    pub name: &'static str,
    /// Whether a backend has it.
    pub holds: fn(&Offer) -> bool,
    /// What a backend without it must refuse, if there is such an operation.
    pub refused: Option<Run>,
}

impl Scenario {
    /// The first capability that is missing.
    pub fn missing(&self, offer: &Offer) -> Option<&'static Need> {
        // First: what a broker that others use might be able to do is not looked at.
        let alone: Option<&'static Need> = self.alone.then_some(&needs::ALONE);
        alone.into_iter().chain(self.needs.iter().copied()).find(|need| !(need.holds)(offer))
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

/// The capabilities that scenarios need. Those of the world around a broker are for scenarios elsewhere too.
pub mod needs {
    use super::scenarios::refusals;
    use super::{Capabilities, Need, Offer};

    fn capabilities(offer: &Offer) -> &Capabilities {
        &offer.probe.capabilities
    }

    pub(crate) static DELAY: Need = Need {
        name: "delay",
        holds: |offer| capabilities(offer).delay.is_some(),
        refused: Some(|fixture| Box::pin(refusals::delay(fixture))),
    };
    pub(crate) static PAUSE: Need = Need {
        name: "pause",
        holds: |offer| capabilities(offer).pause,
        refused: Some(|fixture| Box::pin(refusals::pause(fixture))),
    };
    pub(crate) static INSPECT: Need = Need {
        name: "inspect",
        holds: |offer| capabilities(offer).inspect,
        refused: Some(|fixture| Box::pin(refusals::inspect(fixture))),
    };
    pub(crate) static CANCEL: Need = Need {
        name: "cancel",
        holds: |offer| capabilities(offer).cancel,
        refused: Some(|fixture| Box::pin(refusals::cancel(fixture))),
    };
    pub(crate) static RESULTS: Need = Need {
        name: "resultStore",
        holds: |offer| capabilities(offer).result_store,
        refused: Some(|fixture| Box::pin(refusals::results(fixture))),
    };
    pub(crate) static WAKE: Need = Need {
        name: "wake",
        holds: |offer| capabilities(offer).wake,
        refused: Some(|fixture| Box::pin(refusals::wake(fixture))),
    };
    pub(crate) static FENCING: Need =
        Need { name: "fencing", holds: |offer| capabilities(offer).fencing, refused: None };
    pub(crate) static IDS: Need = Need {
        name: "idMemory",
        holds: |offer| capabilities(offer).id_memory == crate::IdMemory::UntilAcked,
        refused: None,
    };
    pub(crate) static LEASE: Need = Need {
        name: "lease",
        holds: |offer| capabilities(offer).lease == crate::Lease::Extendable,
        refused: None,
    };
    pub(crate) static EXACT: Need =
        Need { name: "exactDepth", holds: |offer| capabilities(offer).exact_depth, refused: None };
    pub(crate) static DURABLE: Need = Need {
        name: "durability",
        holds: |offer| capabilities(offer).durability >= crate::Durability::Process,
        refused: Some(|fixture| Box::pin(refusals::durable(fixture))),
    };
    pub(crate) static FIFO: Need = Need {
        name: "fifo",
        holds: |offer| capabilities(offer).fifo,
        refused: Some(|fixture| Box::pin(refusals::fifo(fixture))),
    };
    /// The broker has nobody else to serve.
    pub static ALONE: Need = Need { name: "alone", holds: |offer| offer.alone, refused: None };
    /// The way to the broker can be broken.
    pub static NETWORK: Need = Need {
        name: "network",
        holds: |offer| offer.network,
        refused: Some(|fixture| Box::pin(refusals::network(fixture))),
    };
    /// The broker can be killed and frozen.
    pub static PROCESS: Need = Need {
        name: "process",
        holds: |offer| offer.process,
        refused: Some(|fixture| Box::pin(refusals::process(fixture))),
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

    /// What every scenario means, and which line of the test plan it covers.
    const PAGE: &str = include_str!("../../../docs/scenarios.md");

    #[test]
    fn names_are_unique_and_guarantees_are_sentences() {
        let names: BTreeSet<_> = ALL.iter().map(|scenario| scenario.name).collect();
        assert_eq!(names.len(), ALL.len());
        for scenario in ALL {
            assert!(scenario.guarantee.ends_with('.'), "{}", scenario.name);
        }
    }

    #[test]
    fn whoever_breaks_a_broker_has_one_alone() {
        for scenario in ALL {
            let breaks = scenario.needs.iter().any(|need| ["process", "network"].contains(&need.name));
            assert!(!breaks || scenario.alone, "{}", scenario.name);
        }
    }

    #[derive(Debug)]
    struct Named;

    #[async_trait::async_trait]
    impl Backend for Named {
        fn name(&self) -> &'static str {
            "named"
        }

        async fn start(&self) -> CallResult<std::sync::Arc<dyn Broker>> {
            by_name("memory").expect("it is always there").start().await
        }

        async fn start_alone(&self) -> CallResult<std::sync::Arc<dyn Broker>> {
            Err(crate::Error::new(ErrorKind::Unsupported, "it is somebody else's"))
        }
    }

    #[tokio::test]
    async fn a_broker_that_others_use_is_not_stopped() {
        let offer = Offer::of(&Named).await.unwrap();
        assert!(!offer.alone && !offer.process && !offer.network && !offer.reachable);
        for scenario in ALL.iter().filter(|scenario| scenario.alone) {
            assert!(scenario.missing(&offer).is_some(), "{}", scenario.name);
        }
        assert!(ALL.iter().any(|scenario| !scenario.alone && scenario.missing(&offer).is_none()));
    }

    #[test]
    fn the_page_of_scenarios_says_what_runs() {
        let (ours, _) = PAGE.split_once("## Through the sidecar").expect("the page has two tables");
        let rows: Vec<_> = ours.lines().filter(|line| line.starts_with("| `")).collect();
        for scenario in ALL {
            let row = format!("| `{}` | {} |", scenario.name, scenario.guarantee);
            assert!(rows.iter().any(|line| line.starts_with(&row)), "docs/scenarios.md has no row {row}");
        }
        assert_eq!(rows.len(), ALL.len(), "docs/scenarios.md has rows of scenarios that don't exist");
    }
}
