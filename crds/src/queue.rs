//! A named stream of jobs on a Broker, with its policy.

use crate::{Duration, duration::literal};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A named stream of jobs on a Broker, with its policy.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "longshore.dev",
    version = "v1alpha1",
    kind = "Queue",
    plural = "queues",
    shortname = "lsq",
    doc = "A named stream of jobs on a Broker, with its policy.",
    category = "longshore",
    namespaced,
    status = "QueueStatus",
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Waiting", type_ = "integer", json_path = ".status.depth.ready"),
    printcolumn(name = "Scheduled", type_ = "integer", json_path = ".status.depth.scheduled"),
    printcolumn(name = "Active", type_ = "integer", json_path = ".status.depth.active"),
    printcolumn(name = "Retrying", type_ = "integer", json_path = ".status.depth.retrying"),
    printcolumn(name = "Blocked", type_ = "integer", json_path = ".status.depth.blocked", priority = 1),
    printcolumn(name = "Dead", type_ = "integer", json_path = ".status.depth.dead"),
    printcolumn(name = "Oldest", type_ = "date", json_path = ".status.oldestReadyAt"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.size() <= 52 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("the name must be a DNS label of at most 52 characters"),
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.brokerRef == oldSelf.brokerRef").message("brokerRef can't be changed; make another Queue"),
    validation = Rule::new("self.ordering == oldSelf.ordering").message("ordering can't be changed, jobs that wait were promised it; make another Queue"),
)]
pub struct QueueSpec {
    /// The Broker that keeps the jobs.
    pub broker_ref: BrokerRef,
    /// In which order jobs are started.
    #[serde(default)]
    pub ordering: Ordering,
    /// How long a claim holds without being extended. Not the job's timeout: the sidecar extends it while the job runs.
    #[serde(default = "seconds_30")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('2s') && duration(self) <= duration('1h')").message("lease must be from 2s to 1h"))]
    pub lease: Duration,
    /// How long one attempt may take.
    #[serde(default = "seconds_30")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('100ms') && duration(self) <= duration('168h')").message("timeout must be from 100ms to 168h"))]
    pub timeout: Duration,
    /// What happens after a failed attempt.
    #[serde(default)]
    pub retry: Retry,
    /// A job whose deliveries ended without a settle this often (its pod or sidecar died each time) is dead.
    #[serde(default = "ten")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_deliveries: u32,
    /// Producers are refused from this many waiting jobs on. Retries and workflows never are.
    #[serde(default = "million")]
    #[schemars(range(min = 1, max = 100_000_000))]
    pub max_depth: u64,
    /// How long finished jobs are kept.
    #[serde(default)]
    pub retention: Retention,
    /// What happens to the jobs when the Queue is deleted.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
    /// Accept jobs, but start none. What runs goes on.
    #[serde(default)]
    pub suspend: bool,
    /// Take over data that another Queue of this name wrote.
    #[serde(default)]
    pub adopt: bool,
}

impl QueueSpec {
    /// A Queue on `broker` with all defaults.
    pub fn on(broker: impl Into<String>) -> Self {
        Self {
            broker_ref: BrokerRef { kind: BrokerKind::Broker, name: broker.into() },
            ordering: Ordering::default(),
            lease: seconds_30(),
            timeout: seconds_30(),
            retry: Retry::default(),
            max_deliveries: ten(),
            max_depth: million(),
            retention: Retention::default(),
            deletion_policy: DeletionPolicy::default(),
            suspend: false,
            adopt: false,
        }
    }
}

fn seconds_30() -> Duration {
    literal("30s")
}

const fn ten() -> u32 {
    10
}

const fn million() -> u64 {
    1_000_000
}

/// The kinds of object that can be a broker.
#[derive(JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum BrokerKind {
    /// A Broker in the same namespace.
    #[default]
    Broker,
}

/// A reference to a Broker.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BrokerRef {
    /// Its kind.
    #[serde(default)]
    pub kind: BrokerKind,
    /// Its name.
    #[schemars(length(min = 1, max = 52), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
}

/// In which order jobs are started.
#[derive(JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Ordering {
    /// Roughly in the order in which they became ready. A job that is retried or delayed lets others pass.
    #[default]
    BestEffort,
    /// Jobs of one ordering key strictly one after the other, in the order in which they were enqueued. Jobs without a
    /// key have one together. A job that is retried or delayed holds up its key, and no other.
    Fifo,
}

/// What happens after a failed attempt.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Retry {
    /// Attempts in all.
    #[serde(default = "five")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_attempts: u32,
    /// The delays between them.
    #[serde(default)]
    pub backoff: Backoff,
}

const fn five() -> u32 {
    5
}

impl Default for Retry {
    fn default() -> Self {
        Self { max_attempts: five(), backoff: Backoff::default() }
    }
}

/// Delays that grow.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("duration(self.initial) <= duration(self.max)").message("backoff.initial can't be longer than backoff.max"))]
pub struct Backoff {
    /// The delay after the first failed attempt.
    #[serde(default = "second")]
    pub initial: Duration,
    /// Each further delay is this many times longer.
    #[serde(default = "two")]
    #[schemars(range(min = 1, max = 10))]
    pub multiplier: u32,
    /// No delay is longer.
    #[serde(default = "minutes_5")]
    #[x_kube(validation = Rule::new("duration(self) <= duration('168h')").message("backoff.max must be at most 168h"))]
    pub max: Duration,
    /// Each delay is lengthened by up to this many percent, so that failures spread out.
    #[serde(default = "ten")]
    #[schemars(range(max = 100))]
    pub jitter_percent: u32,
}

fn second() -> Duration {
    literal("1s")
}

const fn two() -> u32 {
    2
}

fn minutes_5() -> Duration {
    literal("5m")
}

impl Default for Backoff {
    fn default() -> Self {
        Self { initial: second(), multiplier: two(), max: minutes_5(), jitter_percent: ten() }
    }
}

/// How long finished jobs are kept.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Retention {
    /// Jobs that ended well; for so long their ids are known.
    #[serde(default = "hour")]
    #[x_kube(validation = Rule::new("duration(self) <= duration('8760h')").message("retention.completed must be at most 8760h"))]
    pub completed: Duration,
    /// Dead jobs.
    #[serde(default = "weeks_2")]
    #[x_kube(validation = Rule::new("duration(self) <= duration('8760h')").message("retention.dead must be at most 8760h"))]
    pub dead: Duration,
}

fn hour() -> Duration {
    literal("1h")
}

fn weeks_2() -> Duration {
    literal("336h")
}

impl Default for Retention {
    fn default() -> Self {
        Self { completed: hour(), dead: weeks_2() }
    }
}

/// What happens to the jobs when the Queue is deleted.
#[derive(JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum DeletionPolicy {
    /// They stay on the broker; a Queue of the same name can adopt them.
    #[default]
    Retain,
    /// They are deleted.
    Delete,
}

/// What the operator saw of a Queue.
#[derive(KubeSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QueueStatus {
    /// Ready.
    #[serde(default)]
    #[x_kube(merge_strategy = kube::core::ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The generation that the conditions speak of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The id of the data that the queue was declared on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend_id: Option<String>,
    /// How full it is. A number that is absent is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<Depth>,
    /// Since when the oldest waiting job could have been started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_ready_at: Option<Time>,
    /// When the next delayed job is due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_due_at: Option<Time>,
    /// What holds where the spec says nothing or the broker decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effective: Option<EffectivePolicy>,
}

/// Values that are not in the spec alone.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EffectivePolicy {
    /// The name of the queue on the broker.
    pub physical_name: String,
    /// The largest payload that the broker takes, in bytes.
    pub max_payload_bytes: u64,
    /// The policy that holds, value by value.
    #[serde(default)]
    #[x_kube(merge_strategy = kube::core::ListMerge::Map(vec!["name".into()]))]
    pub values: Vec<EffectiveValue>,
}

/// A value of the policy and where it comes from.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EffectiveValue {
    /// The field, as in the spec.
    pub name: String,
    /// The value, as text.
    pub value: String,
    /// Where it comes from.
    pub source: ValueSource,
}

/// Where a value comes from.
#[derive(JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ValueSource {
    /// The spec says something else than the default.
    Spec,
    /// It is the default.
    Default,
    /// The broker decides it.
    Broker,
}

/// How many jobs stand where.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Depth {
    /// Can be started now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<u64>,
    /// Wait for their due time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduled: Option<u64>,
    /// Run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<u64>,
    /// Wait for their next attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retrying: Option<u64>,
    /// Wait behind another job of their ordering key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocked: Option<u64>,
    /// Dead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead: Option<u64>,
}
