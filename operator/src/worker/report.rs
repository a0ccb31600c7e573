//! The status of a Worker. Pure.

use super::{
    inject::own_hooks,
    pods::Seen,
    scale::{Basis, Decision, Demand},
};
use k8s_openapi::{
    api::apps::v1::Deployment,
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::{SignedDuration, Timestamp},
};
use kube::ResourceExt;
use longshore_crds::{Reason, Worker, WorkerStatus, condition, label, set_condition};

/// Numbers alone are written this often at most.
const WRITE_EVERY: SignedDuration = SignedDuration::from_secs(10);

/// The status of a Worker that has no pods to speak of, and why.
pub(super) fn blocked(worker: &Worker, ready: Reason, now: Timestamp) -> WorkerStatus {
    let mut status = worker.status.clone().unwrap_or_default();
    status.observed_generation = worker.metadata.generation;
    status.selector = selector(worker);
    set_condition(&mut status.conditions, condition::READY, ready, worker.metadata.generation, now);
    status
}

fn selector(worker: &Worker) -> String {
    format!("{}={}", label::WORKER, worker.name_any())
}

/// What the status is made of.
pub(super) struct Seeing<'a> {
    pub(super) deployment: &'a Deployment,
    pub(super) decision: &'a Decision,
    pub(super) demands: &'a [Demand],
    pub(super) pods: Option<&'a [Seen]>,
    pub(super) image: &'a str,
    /// The hash of a template of which a pod was ready once.
    pub(super) proven: Option<String>,
}

/// The status that was seen.
pub(super) fn status(worker: &Worker, seeing: &Seeing<'_>, now: Timestamp) -> WorkerStatus {
    let old = worker.status.clone().unwrap_or_default();
    let live = seeing.deployment.status.clone().unwrap_or_default();
    let sum = |pick: fn(&Demand) -> Option<u64>| seeing.demands.iter().map(pick).sum::<Option<u64>>();
    let desired = seeing.decision.desired;
    let mut status = WorkerStatus {
        conditions: old.conditions,
        observed_generation: worker.metadata.generation,
        replicas: live.replicas.unwrap_or(0),
        ready_replicas: live.ready_replicas.unwrap_or(0),
        desired_replicas: desired,
        selector: selector(worker),
        scaling_message: Some(seeing.decision.message.clone()),
        last_scale_time: if old.desired_replicas == desired {
            old.last_scale_time
        } else {
            whole_seconds(now)
        },
        waiting: sum(|demand| demand.ready),
        running: sum(|demand| demand.active),
        sidecar_version: seeing.image.rsplit_once(':').map(|(_, tag)| tag.to_owned()),
        concurrency: Some(worker.spec.concurrency),
        ready_template_hash: seeing.proven.clone(),
    };
    let generation = worker.metadata.generation;
    for (kind, reason) in conditions(worker, seeing, &status) {
        set_condition(&mut status.conditions, kind, reason, generation, now);
    }
    status
}

fn conditions(worker: &Worker, seeing: &Seeing<'_>, status: &WorkerStatus) -> Vec<(&'static str, Reason)> {
    let desired = i32::try_from(status.desired_replicas).unwrap_or(i32::MAX);
    let ready = if status.ready_replicas >= desired {
        let reason = if desired == 0 { "ScaledToZero" } else { "PodsReady" };
        Reason::yes(reason, format!("{} of {desired} pods are ready", status.ready_replicas.min(desired)))
    } else {
        Reason::no("WaitingForPods", format!("{} of {desired} pods are ready", status.ready_replicas))
    };
    let scaling = match seeing.decision.basis {
        Basis::Pinned => Reason::no("Pinned", seeing.decision.message.clone()),
        Basis::Unknown => Reason::no("BrokerUnreachable", seeing.decision.message.clone()),
        Basis::Unproven => {
            Reason::no("NeverReady", "no pod of this template was ready yet: only one is started")
        }
        Basis::Work | Basis::Idle => Reason::yes("FollowingWork", "the work says how many pods there are"),
    };
    let hooks = own_hooks(&worker.spec.template.0);
    let hook = if hooks.is_empty() {
        Reason::yes("Injected", "the app is stopped after its jobs")
    } else {
        Reason::no(
            "OwnPreStop",
            format!(
                "{} bring a preStop hook: call http://127.0.0.1:7421/hooks/app-stop in it to let jobs end first",
                hooks.join(", ")
            ),
        )
    };
    let mut all =
        vec![(condition::READY, ready), (condition::SCALING_ACTIVE, scaling), (condition::DRAIN_HOOK, hook)];
    all.extend(seeing.pods.map(faults).unwrap_or_default());
    all
}

fn faults(pods: &[Seen]) -> Vec<(&'static str, Reason)> {
    let told: Vec<_> =
        pods.iter().filter_map(|pod| pod.status.as_ref().map(|status| &status.faults)).collect();
    if told.is_empty() {
        return Vec::new();
    }
    let message = |pick: fn(&super::pods::Faults) -> Option<bool>| {
        told.iter()
            .find(|faults| pick(faults) == Some(false))
            .map(|faults| faults.message.clone().unwrap_or_default())
    };
    let routable = message(|faults| faults.routable).map_or_else(
        || Reason::yes("Routed", "the app has a route for its jobs"),
        |message| Reason::no("NoRoute", message),
    );
    let authorized = message(|faults| faults.authorized).map_or_else(
        || Reason::yes("Accepted", "the app accepts the sidecar's requests"),
        |message| Reason::no("Refused", message),
    );
    vec![(condition::HANDLER_ROUTABLE, routable), (condition::HANDLER_AUTHORIZED, authorized)]
}

fn whole_seconds(now: Timestamp) -> Option<Time> {
    Timestamp::from_second(now.as_second()).ok().map(Time)
}

/// Whether the change deserves a write now: numbers alone wait their turn.
pub(super) fn worth_writing(
    old: Option<&WorkerStatus>,
    new: &WorkerStatus,
    last: Option<Timestamp>,
    now: Timestamp,
) -> bool {
    let Some(old) = old else { return true };
    if old == new {
        return false;
    }
    let zero = |number: Option<u64>| number.map(|number| number == 0);
    let numbers_aside = |status: &WorkerStatus| WorkerStatus {
        waiting: None,
        running: None,
        scaling_message: None,
        conditions: status
            .conditions
            .iter()
            .cloned()
            .map(|mut it| {
                it.message = String::new();
                it
            })
            .collect(),
        ..status.clone()
    };
    let matters = numbers_aside(old) != numbers_aside(new)
        || zero(old.waiting) != zero(new.waiting)
        || zero(old.running) != zero(new.running);
    matters || last.is_none_or(|last| now.duration_since(last) >= WRITE_EVERY)
}
