//! The status of a Worker. Pure.

use super::{
    inject::{ADMIN_PORT, own_hooks},
    pods::{Faults, Seen},
    rollout::{self, Rollout},
    scale::{Basis, Decision, Demand},
};
use crate::reporting::{self, Writing};
use k8s_openapi::{api::apps::v1::Deployment, apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kube::ResourceExt;
use longshore_crds::{Reason, Worker, WorkerStatus, condition, label, set_condition};
use std::time::Duration;

/// Pods take a while to start: no fault yet.
const WAITING: &str = "WaitingForPods";

/// The status of a Worker for which nothing can be done, and why.
pub(super) fn blocked(worker: &Worker, ready: Reason, now: Timestamp) -> WorkerStatus {
    let mut status = worker.status.clone().unwrap_or_default();
    status.observed_generation = worker.metadata.generation;
    status.selector = selector(worker);
    let scaling = Reason {
        message: format!("nothing is scaled until it is ready: {}", ready.message),
        ..ready.clone()
    };
    for (kind, reason) in [(condition::READY, ready), (condition::SCALING_ACTIVE, scaling)] {
        set_condition(&mut status.conditions, kind, reason, worker.metadata.generation, now);
    }
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
    /// What the pods last said.
    pub(super) pods: &'a [Seen],
    /// The sidecar's image.
    pub(super) image: &'a str,
    /// The revision of the pods that are asked for.
    pub(super) revision: &'a str,
    /// The newest revision of which a pod was ready once.
    pub(super) proven: Option<String>,
    /// Why the template isn't used.
    pub(super) refusal: Option<Reason>,
    /// What keeps some of the queues away.
    pub(super) missing: Option<Reason>,
    pub(super) scaled_at: Option<Timestamp>,
}

/// The status that was seen.
pub(super) fn status(worker: &Worker, seeing: &Seeing<'_>, now: Timestamp) -> WorkerStatus {
    let old = worker.status.clone().unwrap_or_default();
    let live = seeing.deployment.status.clone().unwrap_or_default();
    let sum = |pick: fn(&Demand) -> Option<u64>| seeing.demands.iter().map(pick).sum::<Option<u64>>();
    let generation = worker.metadata.generation;
    let mut status = WorkerStatus {
        conditions: old.conditions,
        observed_generation: generation,
        replicas: live.replicas.unwrap_or(0),
        ready_replicas: live.ready_replicas.unwrap_or(0),
        desired_replicas: seeing.decision.desired,
        selector: selector(worker),
        scaling_message: Some(seeing.decision.message()),
        last_scale_time: seeing.scaled_at.and_then(whole_seconds).or(old.last_scale_time),
        waiting: sum(|demand| demand.ready),
        running: sum(|demand| demand.active),
        sidecar_version: version(seeing.image),
        concurrency: Some(worker.spec.concurrency),
        ready_template_hash: seeing.proven.clone(),
    };
    for (kind, reason) in conditions(worker, seeing) {
        set_condition(&mut status.conditions, kind, reason, generation, now);
    }
    status
}

/// The tag of an image, or its digest where it has no tag.
fn version(image: &str) -> Option<String> {
    let (name, digest) = image.split_once('@').map_or((image, None), |(name, digest)| (name, Some(digest)));
    let last = name.rsplit('/').next().unwrap_or(name);
    let tag = last.split_once(':').map(|(_, tag)| tag);
    tag.or(digest).filter(|version| !version.is_empty()).map(str::to_owned)
}

fn conditions(worker: &Worker, seeing: &Seeing<'_>) -> Vec<(&'static str, Reason)> {
    let mut all = vec![
        (condition::READY, ready(seeing)),
        (condition::SCALING_ACTIVE, scaling(seeing.decision)),
        (condition::DRAIN_HOOK, drain_hook(worker)),
    ];
    all.extend(faults(seeing.pods));
    all
}

/// Of two things that are wrong, the one that stops more.
fn ready(seeing: &Seeing<'_>) -> Reason {
    let pods = pods_ready(seeing);
    match &seeing.missing {
        Some(missing) if pods.status != "False" => {
            Reason { message: format!("{}; {}", missing.message, pods.message), ..missing.clone() }
        }
        _ => pods,
    }
}

fn pods_ready(seeing: &Seeing<'_>) -> Reason {
    if let Some(refusal) = &seeing.refusal {
        return refusal.clone();
    }
    let desired = i32::try_from(seeing.decision.desired).unwrap_or(i32::MAX);
    let ready = seeing.deployment.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0);
    let trouble = seeing.pods.iter().find_map(|pod| pod.trouble.as_deref());
    let trouble = trouble.map_or_else(String::new, |trouble| format!("; {trouble}"));
    let count = format!("{} of {desired} pods are ready{trouble}", ready.min(desired));
    match rollout::stage(seeing.deployment, seeing.revision, seeing.proven.as_deref()) {
        Rollout::Refused(why) if ready < desired => Reason::no("PodsRefused", format!("{count}: {why}")),
        Rollout::Stuck(why) => Reason::no("RolloutStuck", format!("{count}: {why}")),
        _ if desired == 0 => Reason::yes("ScaledToZero", "no pods are asked for"),
        _ if ready == 0 => Reason::no(WAITING, count),
        Rollout::Going => Reason::unknown("RollingOut", count),
        _ if ready < desired => Reason::yes("ScalingUp", count),
        Rollout::Done | Rollout::Refused(_) => Reason::yes("PodsReady", format!("{desired} pods are ready")),
    }
}

fn scaling(decision: &Decision) -> Reason {
    match decision.basis {
        Basis::Pinned => Reason::no("Pinned", format!("spec.replicas pins it at {}", decision.desired)),
        Basis::Unknown => Reason::no(
            "BrokerUnreachable",
            format!("staying at {}: the depth of a queue is not known", decision.desired),
        ),
        Basis::Incomplete => {
            Reason::no("QueueMissing", format!("not below {}: {}", decision.desired, decision.why))
        }
        Basis::Unproven => Reason::no(
            "NeverReady",
            "no pod of this template was ready yet: no more pods are started before one is",
        ),
        Basis::Work | Basis::Idle => Reason::yes("FollowingWork", "the work says how many pods there are"),
    }
}

fn drain_hook(worker: &Worker) -> Reason {
    let hooks = own_hooks(&worker.spec.template.0);
    if hooks.is_empty() {
        return Reason::yes("Injected", "the app is stopped after its jobs");
    }
    Reason::no(
        "OwnPreStop",
        format!(
            "a preStop hook of its own has {}: call http://127.0.0.1:{ADMIN_PORT}/hooks/app-stop in it, which returns when the jobs have ended",
            hooks.join(", ")
        ),
    )
}

fn faults(pods: &[Seen]) -> Vec<(&'static str, Reason)> {
    let told: Vec<_> =
        pods.iter().filter_map(|pod| pod.status.as_ref()).map(|status| &status.faults).collect();
    let condition = |pick: fn(&Faults) -> Option<bool>, yes: (&str, &str), no: &str| {
        let faulty = told.iter().find(|faults| pick(faults) == Some(false));
        match faulty {
            Some(faults) => Some(Reason::no(no, faults.message.clone().unwrap_or_default())),
            None if told.iter().any(|faults| pick(faults).is_some()) => Some(Reason::yes(yes.0, yes.1)),
            None => None,
        }
    };
    let routable =
        condition(|faults| faults.routable, ("Routed", "the app has a route for its jobs"), "NoRoute");
    let authorized = condition(
        |faults| faults.authorized,
        ("Accepted", "the app accepts the sidecar's requests"),
        "Refused",
    );
    let kinds = [condition::HANDLER_ROUTABLE, condition::HANDLER_AUTHORIZED];
    let reasons = kinds.into_iter().zip([routable, authorized]);
    reasons.filter_map(|(kind, reason)| Some((kind, reason?))).collect()
}

/// Reason and message of a fault that somebody has to do something about.
pub(super) fn complaint(status: &WorkerStatus) -> Option<(String, String)> {
    let mut conditions = status.conditions.iter();
    let ready = conditions.find(|it| it.type_ == condition::READY && it.status == "False")?;
    (ready.reason != WAITING).then(|| (ready.reason.clone(), ready.message.clone()))
}

fn whole_seconds(now: Timestamp) -> Option<Time> {
    Timestamp::from_second(now.as_second()).ok().map(Time)
}

/// Whether the change deserves a write now. `since` tells how long ago the last one was.
pub(super) fn writing(old: Option<&WorkerStatus>, new: &WorkerStatus, since: Option<Duration>) -> Writing {
    let Some(old) = old else { return Writing::Now };
    reporting::writing(old != new, essence(old) != essence(new), since)
}

/// The status without numbers and words: of a number only whether it is zero.
fn essence(status: &WorkerStatus) -> WorkerStatus {
    let sign = |number: Option<u64>| number.map(|number| number.min(1));
    WorkerStatus {
        conditions: status.conditions.iter().map(reporting::quiet).collect(),
        replicas: status.replicas.min(1),
        ready_replicas: status.ready_replicas.min(1),
        desired_replicas: status.desired_replicas.min(1),
        waiting: sign(status.waiting),
        running: sign(status.running),
        scaling_message: None,
        last_scale_time: None,
        ..status.clone()
    }
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
