//! An autoscaled Deployment of pods, each the user's containers plus the sidecar.

use crate::{Duration, PodTemplate, duration::literal};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Pods that work on queues: scaled to the work, drained before they go.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "longshore.dev",
    version = "v1alpha1",
    kind = "Worker",
    plural = "workers",
    shortname = "lsw",
    doc = "Pods that work on queues: scaled to the work, drained before they go.",
    category = "longshore",
    namespaced,
    status = "WorkerStatus",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Replicas", type_ = "integer", json_path = ".status.replicas"),
    printcolumn(name = "Desired", type_ = "integer", json_path = ".status.desiredReplicas"),
    printcolumn(name = "Waiting", type_ = "integer", json_path = ".status.waiting"),
    printcolumn(name = "Running", type_ = "integer", json_path = ".status.running"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason", priority = 1),
    printcolumn(name = "Scaling", type_ = "string", json_path = ".status.scalingMessage", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.size() <= 52 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("the name must be a DNS label of at most 52 characters"),
)]
#[serde(rename_all = "camelCase")]
pub struct WorkerSpec {
    /// The queues it works on.
    #[x_kube(merge_strategy = kube::core::ListMerge::Map(vec!["name".into()]))]
    #[schemars(length(min = 1, max = 16))]
    pub queues: Vec<WorkerQueue>,
    /// Jobs at once in one pod.
    #[serde(default = "ten")]
    #[schemars(range(min = 1, max = 1000))]
    pub concurrency: u32,
    /// How jobs reach the app.
    pub handler: Handler,
    /// How many pods there are.
    #[serde(default)]
    pub scaling: Scaling,
    /// Pins the number of pods; scaling rests until it is removed. `kubectl scale` sets it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 1000))]
    pub replicas: Option<u32>,
    /// How long running jobs get to finish when their pod goes away.
    #[serde(default = "minutes_10")]
    #[x_kube(validation = Rule::new("duration(self) <= duration('24h')").message("drainTimeout must be at most 24h"))]
    pub drain_timeout: Duration,
    /// When pods get the sidecar of a newer Longshore.
    #[serde(default)]
    pub sidecar_upgrade_policy: SidecarUpgradePolicy,
    /// The pods. The sidecar is added to them.
    pub template: PodTemplate,
}

const fn ten() -> u32 {
    10
}

fn minutes_10() -> Duration {
    literal("10m")
}

/// A queue that a Worker works on.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkerQueue {
    /// The name of the Queue.
    #[schemars(length(min = 1, max = 52), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Its share of the work beside the other queues.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 100))]
    pub weight: u32,
}

const fn one() -> u32 {
    1
}

/// How jobs reach the app.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.http) != has(self.pull)").message("exactly one of http and pull must be set"))]
pub struct Handler {
    /// The sidecar POSTs each job to the app.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpHandler>,
    /// The app asks the sidecar for jobs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull: Option<PullHandler>,
}

/// Where the app listens.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.port != 7420 && self.port != 7421").message("ports 7420 and 7421 belong to the sidecar"))]
pub struct HttpHandler {
    /// The port on which the app listens in its pod.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// The path that gets the POSTs, with a query if it has one.
    #[serde(default = "root")]
    #[schemars(
        length(max = 256),
        regex(
            pattern = r"^/([A-Za-z0-9/._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})*([?]([A-Za-z0-9/?._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})*)?$"
        )
    )]
    pub path: String,
}

fn root() -> String {
    "/".to_owned()
}

/// The app asks the sidecar for jobs.
#[derive(KubeSchema, Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PullHandler {}

/// How many pods there are.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.minReplicas <= self.maxReplicas").message("minReplicas can't be more than maxReplicas"))]
pub struct Scaling {
    /// Never fewer pods.
    #[serde(default)]
    #[schemars(range(max = 1000))]
    pub min_replicas: u32,
    /// Never more pods.
    #[serde(default = "ten")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_replicas: u32,
    /// So many pods that what waits now is done within this time.
    #[serde(default = "seconds_30")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('24h')").message("targetDrainTime must be from 1s to 24h"))]
    pub target_drain_time: Duration,
    /// Without work for this long, back to minReplicas.
    #[serde(default = "seconds_60")]
    #[x_kube(validation = Rule::new("duration(self) <= duration('24h')").message("idleTimeout must be at most 24h"))]
    pub idle_timeout: Duration,
}

fn seconds_30() -> Duration {
    literal("30s")
}

fn seconds_60() -> Duration {
    literal("60s")
}

impl Default for Scaling {
    fn default() -> Self {
        Self {
            min_replicas: 0,
            max_replicas: ten(),
            target_drain_time: seconds_30(),
            idle_timeout: seconds_60(),
        }
    }
}

/// When pods get the sidecar of a newer Longshore.
#[derive(JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum SidecarUpgradePolicy {
    /// With the next change of the Worker's own template.
    #[default]
    OnTemplateChange,
    /// At once, by a rollout.
    Rolling,
}

/// What the operator saw of a Worker.
#[derive(KubeSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkerStatus {
    /// Ready, ScalingActive, HandlerRoutable, HandlerAuthorized, DrainHook.
    #[serde(default)]
    #[x_kube(merge_strategy = kube::core::ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The generation that the conditions speak of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Pods that exist.
    #[serde(default)]
    pub replicas: i32,
    /// Pods that are ready.
    #[serde(default)]
    pub ready_replicas: i32,
    /// Pods that the operator asks for.
    #[serde(default)]
    pub desired_replicas: u32,
    /// The pods, as a label selector.
    #[serde(default)]
    pub selector: String,
    /// Why there are so many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaling_message: Option<String>,
    /// When the number last changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_scale_time: Option<Time>,
    /// Jobs that wait on its queues; absent while unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<u64>,
    /// Jobs that run on its queues; absent while unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<u64>,
    /// The sidecar that its pods run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sidecar_version: Option<String>,
    /// Jobs at once in one pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
    /// The newest template of which a pod was ready once. Another one starts with a single pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_template_hash: Option<String>,
}
