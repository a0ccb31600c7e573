//! Real processes on loopback: a broker, sidecars, and apps that write down what they were given.

pub(crate) mod app;
pub(crate) mod broker;
pub(crate) mod http;
pub(crate) mod ledger;
pub(crate) mod pod;
pub(crate) mod process;
pub(crate) mod site;

use std::{future::Future, time::Duration};
use tokio::time::{Instant, sleep};

/// Nothing that has no reason to take long takes longer, on any machine that also compiles something.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// Waits until `condition` holds.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, condition: impl FnMut() -> F) {
    within(DEADLINE, what, condition).await;
}

/// Waits until `condition` holds, for at most `patience`.
pub(crate) async fn within<F: Future<Output = bool>>(
    patience: Duration,
    what: &str,
    mut condition: impl FnMut() -> F,
) {
    let deadline = Instant::now() + patience;
    while !condition().await {
        assert!(Instant::now() < deadline, "not within {patience:?}: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Later than its window by this much is too late. `LONGSHORE_LATE_MS` allows more on a slow machine.
pub(crate) fn late() -> Duration {
    let text = std::env::var("LONGSHORE_LATE_MS").ok();
    text.and_then(|text| text.parse().ok()).map_or(Duration::from_secs(2), Duration::from_millis)
}
