//! What is counted. Labels are words of finite sets: never names of objects, messages or anything else a user writes.

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};
use std::time::Duration;

/// From an answer out of a cache to the deadline of a reconciliation.
const SECONDS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 30.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Failure {
    kind: String,
    category: String,
}

/// What is counted.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    reconciles: Family<Kind, Histogram, fn() -> Histogram>,
    failures: Family<Failure, Counter>,
    leader: Gauge,
    applied: Counter,
    orphaned: Counter,
    parked: Counter,
    effects: Family<Kind, Counter>,
    lost: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("longshore");
        let reconciles = Family::new_with_constructor((|| Histogram::new(SECONDS)) as fn() -> Histogram);
        registry.register_with_unit(
            "reconcile_duration",
            "How long reconciliations take",
            Unit::Seconds,
            reconciles.clone(),
        );
        let failures = Family::default();
        registry.register("reconcile_errors", "Reconciliations that failed", failures.clone());
        let leader = Gauge::default();
        registry.register("leader", "1 in the replica that leads", leader.clone());
        let effects = Family::default();
        registry.register("workflow_effects", "Effects of workflows that were performed", effects.clone());
        let mut counter = |name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let applied = counter("workflow_completions_applied", "Completions that became part of a workflow");
        let orphaned = counter("workflow_completions_orphaned", "Completions whose workflow is gone");
        let parked = counter(
            "workflow_completions_parked",
            "Completions that could not be applied and were set aside",
        );
        let lost = counter("workflow_jobs_lost", "Jobs of workflows that their broker did not know any more");
        Self { registry, reconciles, failures, leader, applied, orphaned, parked, effects, lost }
    }
}

impl Metrics {
    /// A reconciliation ended, well or badly.
    pub(crate) fn reconciled(&self, kind: &str, elapsed: Duration) {
        let kind = Kind { kind: kind.to_owned() };
        self.reconciles.get_or_create(&kind).observe(elapsed.as_secs_f64());
    }

    /// A reconciliation failed; `category` is that of the error.
    pub(crate) fn reconcile_failed(&self, kind: &str, category: &str) {
        let failure = Failure { kind: kind.to_owned(), category: category.to_owned() };
        self.failures.get_or_create(&failure).inc();
    }

    /// Whether this replica leads.
    pub(crate) fn leader(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    /// Completions became part of their workflow.
    pub(crate) fn completion_applied(&self, count: u64) {
        self.applied.inc_by(count);
    }

    /// Completions were dropped because their workflow is gone.
    pub(crate) fn completion_orphaned(&self, count: u64) {
        self.orphaned.inc_by(count);
    }

    /// Completions were set aside.
    pub(crate) fn completions_parked(&self, count: u64) {
        self.parked.inc_by(count);
    }

    /// Effects were performed; `kind` is a word of the code.
    pub(crate) fn effects_performed(&self, kind: &'static str, count: u64) {
        let kind = Kind { kind: kind.to_owned() };
        self.effects.get_or_create(&kind).inc_by(count);
    }

    /// A broker did not know jobs any more that were sent to it.
    pub(crate) fn jobs_lost(&self, count: u64) {
        self.lost.inc_by(count);
    }

    /// Everything, in the text format of `OpenMetrics`.
    pub(crate) fn encode(&self) -> String {
        let mut text = String::new();
        if let Err(error) = encode(&mut text, &self.registry) {
            // Writing to a string doesn't fail; half an answer would look like a reset.
            tracing::error!(%error, "metrics can't be written down");
            text.clear();
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::Metrics;
    use std::time::Duration;

    #[test]
    fn everything_counted_shows_under_its_name() {
        let metrics = Metrics::default();
        metrics.reconciled("Queue", Duration::from_millis(20));
        metrics.reconcile_failed("Queue", "Conflict");
        metrics.reconcile_failed("Queue", "Conflict");
        metrics.leader(true);
        metrics.completion_applied(3);
        metrics.completion_orphaned(2);
        metrics.completions_parked(1);
        metrics.effects_performed("dispatch", 7);
        metrics.jobs_lost(4);
        let text = metrics.encode();
        for line in [
            "longshore_reconcile_duration_seconds_count{kind=\"Queue\"} 1",
            "longshore_reconcile_duration_seconds_bucket{le=\"0.025\",kind=\"Queue\"} 1",
            "longshore_reconcile_errors_total{kind=\"Queue\",category=\"Conflict\"} 2",
            "longshore_leader 1",
            "longshore_workflow_completions_applied_total 3",
            "longshore_workflow_completions_orphaned_total 2",
            "longshore_workflow_completions_parked_total 1",
            "longshore_workflow_effects_total{kind=\"dispatch\"} 7",
            "longshore_workflow_jobs_lost_total 4",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn a_replica_that_does_not_lead_says_so() {
        let metrics = Metrics::default();
        assert!(metrics.encode().contains("longshore_leader 0\n"));
        metrics.leader(true);
        metrics.leader(false);
        assert!(metrics.encode().contains("longshore_leader 0\n"));
    }
}
