//! Numbers for Prometheus. Labels are queue names of the policy and words of this code, never what producers write.

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

/// Seconds of a handler's work.
const BUCKETS: [f64; 12] = [0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 300.0, 1800.0];

/// Seconds of what should take no time.
const LATENCY_BUCKETS: [f64; 12] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0, 300.0, 3600.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Queue {
    pub(crate) queue: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Outcome {
    pub(crate) queue: String,
    pub(crate) outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Call {
    pub(crate) call: &'static str,
    pub(crate) kind: String,
}

type Durations = Family<Queue, Histogram, fn() -> Histogram>;

#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) jobs: Family<Outcome, Counter>,
    pub(crate) claims: Family<Queue, Counter>,
    pub(crate) claimed: Family<Queue, Counter>,
    pub(crate) broker_errors: Family<Call, Counter>,
    pub(crate) duration: Durations,
    pub(crate) start: Durations,
    pub(crate) settle: Durations,
    pub(crate) concurrency: Gauge,
    pub(crate) running: Gauge,
    pub(crate) unsettled: Gauge,
    pub(crate) payload_bytes: Gauge,
    pub(crate) result_bytes: Gauge,
    pub(crate) throttled: Gauge,
    pub(crate) claiming: Gauge,
    pub(crate) policy_ok: Gauge,
    pub(crate) stage: Gauge,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            jobs: Family::default(),
            claims: Family::default(),
            claimed: Family::default(),
            broker_errors: Family::default(),
            duration: Durations::new_with_constructor(|| Histogram::new(BUCKETS)),
            start: Durations::new_with_constructor(|| Histogram::new(LATENCY_BUCKETS)),
            settle: Durations::new_with_constructor(|| Histogram::new(LATENCY_BUCKETS)),
            concurrency: Gauge::default(),
            running: Gauge::default(),
            unsettled: Gauge::default(),
            payload_bytes: Gauge::default(),
            result_bytes: Gauge::default(),
            throttled: Gauge::default(),
            claiming: Gauge::default(),
            policy_ok: Gauge::default(),
            stage: Gauge::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let registry = self.registry.sub_registry_with_prefix("longshore_sidecar");
        registry.register("jobs", "Claims that ended, by outcome", self.jobs.clone());
        registry.register("claims", "Claim requests", self.claims.clone());
        registry.register("claimed", "Jobs that claims brought", self.claimed.clone());
        registry.register("broker_errors", "Calls to a broker that failed", self.broker_errors.clone());
        registry.register(
            "handler_duration_seconds",
            "From request to answer of the app",
            self.duration.clone(),
        );
        registry.register(
            "start_latency_seconds",
            "From ready to the request to the app",
            self.start.clone(),
        );
        registry.register(
            "settle_latency_seconds",
            "From the end of a job's run to the broker's last word on it",
            self.settle.clone(),
        );
        registry.register("concurrency", "Jobs at once, as configured", self.concurrency.clone());
        registry.register("running", "Jobs that the app works on", self.running.clone());
        registry.register("unsettled", "Jobs that are answered but not settled", self.unsettled.clone());
        registry.register("payload_bytes", "Bytes of jobs held in memory", self.payload_bytes.clone());
        registry.register("result_bytes", "Bytes of results held in memory", self.result_bytes.clone());
        registry.register("throttled", "1 while the app's answers keep jobs from it", self.throttled.clone());
        registry.register("claiming", "1 while jobs are claimed", self.claiming.clone());
        registry.register(
            "policy_ok",
            "1 when the policy file as it is now was taken",
            self.policy_ok.clone(),
        );
        registry.register(
            "drain_stage",
            "0 running, 1 draining, 2 app may stop, 3 releasing, 4 stopped",
            self.stage.clone(),
        );
    }

    /// Counts the end of a claim.
    pub(crate) fn ended(&self, queue: &str, outcome: &'static str) {
        let labels = Outcome { queue: queue.to_owned(), outcome };
        self.jobs.get_or_create(&labels).inc();
    }

    /// Counts a call to a broker that failed.
    pub(crate) fn broker_error(&self, call: &'static str, error: &longshore_drivers::Error) {
        let labels = Call { call, kind: error.kind.to_string() };
        self.broker_errors.get_or_create(&labels).inc();
    }

    /// All of it as text.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string can't fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
