//! Names that objects of other components may rely on.

/// The API group.
pub const GROUP: &str = "longshore.dev";
/// The API version.
pub const VERSION: &str = "v1alpha1";

/// Labels.
pub mod label {
    /// On every object that the operator makes.
    pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
    /// The value of [`MANAGED_BY`].
    pub const MANAGED_BY_VALUE: &str = "longshore";
    /// The Broker that an object serves.
    pub const BROKER: &str = "longshore.dev/broker";
    /// The Worker that an object serves.
    pub const WORKER: &str = "longshore.dev/worker";
}

/// Annotations.
pub mod annotation {
    /// The hash of the pod template, on the Deployment of a Worker.
    pub const TEMPLATE_HASH: &str = "longshore.dev/template-hash";
    /// The sidecar image, on the Deployment of a Worker.
    pub const SIDECAR_IMAGE: &str = "longshore.dev/sidecar-image";
    /// The revision of the token, on a Broker's Secret.
    pub const TOKEN_REVISION: &str = "longshore.dev/token-revision";
}

/// Finalizers.
pub mod finalizer {
    /// On a Queue whose data is to be deleted with it.
    pub const QUEUE_DATA: &str = "longshore.dev/queue-data";
    /// On a Workflow while jobs of it are out.
    pub const WORKFLOW_JOBS: &str = "longshore.dev/workflow-jobs";
}

/// Types of conditions.
pub mod condition {
    /// The object does what its spec says.
    pub const READY: &str = "Ready";
    /// What a broker acknowledged survives the death of its pod.
    pub const DURABLE: &str = "Durable";
    /// The operator sets the number of replicas.
    pub const SCALING_ACTIVE: &str = "ScalingActive";
    /// The handler has a route for the jobs it gets.
    pub const HANDLER_ROUTABLE: &str = "HandlerRoutable";
    /// The handler accepts the sidecar's requests.
    pub const HANDLER_AUTHORIZED: &str = "HandlerAuthorized";
    /// The app's own preStop hook is kept, so it has to wait for the drain by itself.
    pub const DRAIN_HOOK: &str = "DrainHook";
    /// A workflow ended, well or badly.
    pub const SUCCEEDED: &str = "Succeeded";
    /// The operator works towards the first step (kstatus).
    pub const RECONCILING: &str = "Reconciling";
    /// The object can't go on by itself (kstatus).
    pub const STALLED: &str = "Stalled";
}
