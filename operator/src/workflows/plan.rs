//! From a Workflow's spec to the machine's plan. Pure.

use longshore_crds::{Callback, FailurePolicy, Order, WorkflowSpec};
use longshore_workflow::{BatchPlan, CallbackSet, FailurePolicy as Policy, Members, Plan, PlannedStep, Work};
use sha2::{Digest, Sha256};
use std::{num::NonZeroU32, time::Duration};

/// A job that was dispatched and not heard of for this long is asked for.
const RESYNC_AFTER: Duration = Duration::from_secs(600);

/// The plan of `spec`.
pub(super) fn plan(spec: &WorkflowSpec) -> Plan {
    // One order today; a second one has to be thought of here.
    let Order::Sequence = spec.order;
    Plan {
        steps: spec.steps.iter().map(step).collect(),
        callbacks: callbacks(spec.then.as_ref(), spec.catch.as_ref(), spec.finally.as_ref()),
        deadline: spec.deadline.as_ref().map(|deadline| millis(deadline.get())),
        resync_after: millis(RESYNC_AFTER),
    }
}

fn step(step: &longshore_crds::Step) -> PlannedStep {
    let work = step.batch.as_ref().map_or(Work::Job, |batch| {
        let members = batch.jobs.as_ref().map_or(Members::Resolved, |jobs| Members::Fixed(count(jobs.len())));
        Work::Batch(BatchPlan {
            members,
            failure_policy: match batch.failure_policy {
                FailurePolicy::FailFast => Policy::FailFast,
                FailurePolicy::Continue => Policy::Continue,
            },
            max_parallel: batch.max_parallel.and_then(NonZeroU32::new),
            callbacks: callbacks(batch.then.as_ref(), batch.catch.as_ref(), batch.finally.as_ref()),
        })
    });
    PlannedStep { name: step.name.clone(), timeout: None, work }
}

fn callbacks(then: Option<&Callback>, catch: Option<&Callback>, finally: Option<&Callback>) -> CallbackSet {
    CallbackSet { then: then.is_some(), catch: catch.is_some(), finally: finally.is_some() }
}

fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The hash of everything in the spec that must not change after the start.
pub(super) fn spec_hash(spec: &WorkflowSpec) -> String {
    let fixed = WorkflowSpec {
        suspend: false,
        cancel: false,
        deadline: None,
        ttl_after_finished: None,
        ..spec.clone()
    };
    // Maps in a JSON value are ordered by key, so equal specs give equal bytes.
    let bytes = serde_json::to_value(&fixed).map(|value| value.to_string()).unwrap_or_default();
    Sha256::digest(bytes.as_bytes()).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}
