//! A run to completion: a chain of jobs and batches with callbacks.

use crate::{Duration, Json};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A run to completion: a chain of jobs and batches with callbacks.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "longshore.dev",
    version = "v1alpha1",
    kind = "Workflow",
    plural = "workflows",
    shortname = "lswf",
    doc = "A run to completion: a chain of jobs and batches with callbacks.",
    category = "longshore",
    namespaced,
    status = "WorkflowStatus",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Progress", type_ = "string", json_path = ".status.progress"),
    printcolumn(name = "Started", type_ = "date", json_path = ".status.startedAt"),
    printcolumn(name = "Finished", type_ = "date", json_path = ".status.finishedAt"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.size() <= 52 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("the name must be a DNS label of at most 52 characters"),
    validation = Rule::new("!has(oldSelf.status) || !has(oldSelf.status.startedAt) || (self.spec.queueRef == oldSelf.spec.queueRef && self.spec.order == oldSelf.spec.order && self.spec.steps == oldSelf.spec.steps && has(self.spec.then) == has(oldSelf.spec.then) && (!has(self.spec.then) || self.spec.then == oldSelf.spec.then) && has(self.spec.catch) == has(oldSelf.spec.catch) && (!has(self.spec.catch) || self.spec.catch == oldSelf.spec.catch) && has(self.spec.finally) == has(oldSelf.spec.finally) && (!has(self.spec.finally) || self.spec.finally == oldSelf.spec.finally))").message("a workflow that has started can't be changed, except suspend, cancel, deadline and ttlAfterFinished; make another one"),
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.steps.all(step, self.steps.exists_one(other, other.name == step.name))").message("the names of steps must be unique"))]
pub struct WorkflowSpec {
    /// The Queue for jobs that name none.
    pub queue_ref: QueueRef,
    /// How steps follow each other.
    #[serde(default)]
    pub order: Order,
    /// The steps.
    #[x_kube(merge_strategy = kube::core::ListMerge::Atomic)]
    #[schemars(length(min = 1, max = 100))]
    pub steps: Vec<Step>,
    /// Runs after every step succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub then: Option<Callback>,
    /// Runs after a step failed, or after a cancel or a missed deadline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub catch: Option<Callback>,
    /// Runs at the end, whatever way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finally: Option<Callback>,
    /// Start nothing further. What runs goes on.
    #[serde(default)]
    pub suspend: bool,
    /// End it: start nothing further, cancel what waits, run catch and finally.
    #[serde(default)]
    pub cancel: bool,
    /// From the start to the outcome; it fails when this passes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('8760h')").message("deadline must be from 1s to 8760h"))]
    pub deadline: Option<Duration>,
    /// Delete the object this long after it ended. Never with objects that Argo CD or Flux track.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) <= duration('8760h')").message("ttlAfterFinished must be at most 8760h"))]
    pub ttl_after_finished: Option<Duration>,
}

/// A reference to a Queue.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QueueRef {
    /// Its name.
    #[schemars(length(min = 1, max = 52), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
}

/// How steps follow each other.
#[derive(JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Order {
    /// One after the other, in the order of the list.
    #[default]
    Sequence,
}

/// A step: one job, or a batch of jobs.
#[derive(KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.job) != has(self.batch)").message("a step has either a job or a batch"))]
pub struct Step {
    /// Its name, by which expressions find its result.
    #[schemars(length(min = 1, max = 52), regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// One job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobTemplate>,
    /// Many jobs at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<Batch>,
}

/// A job to be enqueued.
#[derive(KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JobTemplate {
    /// What kind of work it is; the handler dispatches on it.
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[!-~]+$"))]
    pub job_type: String,
    /// Any JSON. A text like `$(steps.fetch.result.url)` is replaced by what the expression gives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::pod_template::anything")]
    pub payload: Option<Json>,
    /// The Queue, if it is another one than the workflow's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_ref: Option<QueueRef>,
    /// Attempts in all, if not as the queue says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_attempts: Option<u32>,
    /// How long one attempt may take, if not as the queue says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('100ms') && duration(self) <= duration('168h')").message("timeout must be from 100ms to 168h"))]
    pub timeout: Option<Duration>,
    /// Not before this long after the job's turn has come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) <= duration('8760h')").message("delay must be at most 8760h"))]
    pub delay: Option<Duration>,
}

/// Many jobs at once.
#[derive(KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.jobs) ? !has(self.forEach) && !has(self.job) : has(self.forEach) && has(self.job)").message("a batch has either jobs, or forEach and job"))]
pub struct Batch {
    /// The jobs, one by one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(merge_strategy = kube::core::ListMerge::Atomic)]
    #[schemars(length(min = 1, max = 500))]
    pub jobs: Option<Vec<JobTemplate>>,
    /// An expression that gives a list: one job for each element, which expressions call `item`, at `index`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 4, max = 1024), regex(pattern = r"^\$\([\s\S]+\)$"))]
    pub for_each: Option<String>,
    /// The job for each element.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobTemplate>,
    /// What the first failed member means.
    #[serde(default)]
    pub failure_policy: FailurePolicy,
    /// Members in the broker at once; all of them without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub max_parallel: Option<u32>,
    /// Runs after every member succeeded, before the next step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub then: Option<Callback>,
    /// Runs after a member failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub catch: Option<Callback>,
    /// Runs at the end of the batch, whatever way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finally: Option<Callback>,
}

/// What the first failed member of a batch means.
#[derive(JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum FailurePolicy {
    /// The batch has failed: start no further member, cancel those that wait.
    #[default]
    FailFast,
    /// Run the others, then the batch has failed.
    Continue,
}

/// A job that runs when something ended.
#[derive(KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Callback {
    /// The job. It has one owner as a whole.
    #[x_kube(merge_strategy = kube::core::MapMerge::Atomic)]
    pub job: JobTemplate,
}

/// Where a workflow stands.
#[derive(JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum WorkflowPhase {
    /// Not started.
    #[default]
    Pending,
    /// Steps run.
    Running,
    /// Nothing is started until it is resumed.
    Suspended,
    /// The outcome is decided, callbacks run.
    Finishing,
    /// Ended well.
    Succeeded,
    /// Ended badly.
    Failed,
    /// Ended by request.
    Cancelled,
    /// A phase that only a newer operator knows. Never written.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// Where a step stands.
#[derive(JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum StepPhase {
    /// Its turn has not come.
    #[default]
    Pending,
    /// It runs.
    Running,
    /// Ended well.
    Succeeded,
    /// Ended badly.
    Failed,
    /// Ended by request.
    Cancelled,
    /// Its turn never came.
    Skipped,
    /// A phase that only a newer operator knows. Never written.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// What the operator knows of a Workflow.
#[derive(KubeSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkflowStatus {
    /// Where it stands.
    #[serde(default)]
    pub phase: WorkflowPhase,
    /// Succeeded, Reconciling, Stalled.
    #[serde(default)]
    #[x_kube(merge_strategy = kube::core::ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The generation that the conditions speak of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Steps that ended well, of all.
    #[serde(default)]
    pub progress: String,
    /// Why it stands where it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// When it started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    /// The steps, for people.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = kube::core::ListMerge::Atomic)]
    pub steps: Vec<StepStatus>,
    /// Its callbacks whose turn has come.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = kube::core::ListMerge::Atomic)]
    pub callbacks: Vec<CallbackStatus>,
    /// Jobs that their broker didn't know any more and that were sent again.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lost_jobs: u32,
    /// Jobs of which a later completion said otherwise than the first one, which counts.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub conflicting_completions: u32,
    /// The hash of the spec that it was started with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec_hash: Option<String>,
    /// The operator's own state. Don't edit it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<Checkpoint>,
}

/// A step, for people.
#[derive(KubeSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StepStatus {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub phase: StepPhase,
    /// Its jobs; absent until known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u32>,
    /// Jobs that ended well.
    #[serde(default)]
    pub succeeded: u32,
    /// Jobs that ended badly.
    #[serde(default)]
    pub failed: u32,
    /// When it started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The batch's callbacks whose turn has come.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = kube::core::ListMerge::Atomic)]
    pub callbacks: Vec<CallbackStatus>,
}

/// A callback, for people. How it ends changes nothing else.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CallbackStatus {
    /// `then`, `catch` or `finally`.
    pub name: String,
    /// Where it stands.
    pub phase: StepPhase,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// The operator's own state of a workflow.
#[derive(KubeSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Checkpoint {
    /// The version of its form.
    pub version: u32,
    /// The state.
    #[schemars(schema_with = "crate::pod_template::any_object")]
    pub data: Json,
}
