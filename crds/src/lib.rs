//! The API types of Longshore, version `v1alpha1`, and the CustomResourceDefinitions made from them.
//!
//! What stands here is what users write and read; doc comments of fields appear in `kubectl explain`. No I/O.
#![expect(unreachable_pub, reason = "KubeSchema repeats each struct inside a function")]

mod broker;
mod conditions;
mod definitions;
mod duration;
mod json;
mod names;
mod pod_template;
mod queue;
mod worker;
mod workflow;

pub use broker::{
    Broker, BrokerSpec, BrokerStatus, EmbeddedBroker, HttpBroker, PostgresBroker, PostgresWake, RedisBroker,
    SecretKey, ServerTls, Storage,
};
pub use conditions::{Reason, is_true, set_condition};
pub use definitions::{definitions, yaml};
pub use duration::{Duration, DurationError};
pub use json::Json;
pub use names::{GROUP, VERSION, annotation, condition, finalizer, label};
pub use pod_template::PodTemplate;
pub use queue::{
    Backoff, BrokerKind, BrokerRef, DeletionPolicy, Depth, EffectivePolicy, EffectiveValue, Ordering, Queue,
    QueueSpec, QueueStatus, Retention, Retry, ValueSource,
};
pub use worker::{
    Handler, HttpHandler, PullHandler, Scaling, SidecarUpgradePolicy, Worker, WorkerQueue, WorkerSpec,
    WorkerStatus,
};
pub use workflow::{
    Batch, Callback, CallbackStatus, Checkpoint, FailurePolicy, JobTemplate, Order, QueueRef, Step,
    StepPhase, StepStatus, Workflow, WorkflowPhase, WorkflowSpec, WorkflowStatus,
};
