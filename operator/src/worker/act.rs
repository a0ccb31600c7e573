//! Makes the cluster look as it was decided.

use super::{
    Desk,
    build::{self, Pods},
    memory::{Applied, Memory, Refused},
    observe::World,
    pods, policy,
    scale::Decision,
    victims::{Retirement, costs},
};
use crate::{
    apply::apply,
    context::Context,
    error::{Error, Result},
    reporting::event,
};
use k8s_openapi::{
    api::{apps::v1::Deployment, core::v1::ConfigMap},
    jiff::Timestamp,
};
use kube::{Resource, ResourceExt};
use longshore_crds::Worker;
use serde_json::Value;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// How often sidecars are asked for faults.
const ASK_PODS_EVERY: Duration = Duration::from_secs(10);
/// How often they are asked whether they have finished.
const ASK_VICTIMS_EVERY: Duration = Duration::from_secs(2);

/// What there is to be done.
pub(super) struct Plan<'a> {
    pub(super) worker: &'a Worker,
    pub(super) namespace: &'a str,
    pub(super) world: &'a World,
    pub(super) decision: &'a Decision,
    pub(super) retirement: &'a Retirement,
    pub(super) pods: &'a Pods,
    /// They are those of an older template, because the newer one is refused.
    pub(super) kept: bool,
    pub(super) now: Instant,
    pub(super) clock: Timestamp,
}

/// Tells those who are to go, sets the number. Answers the Deployment as it is now.
pub(super) async fn act(desk: &Desk, plan: &Plan<'_>, memory: &mut Memory) -> Result<Arc<Deployment>> {
    if !desk.context.leadership.is_leader() {
        return Err(Error::LeadershipLost);
    }
    let current = plan.world.current();
    apply_policy(&desk.context, plan, plan.retirement.told.clone()).await?;
    // When all go nobody is chosen. The policy comes first: what a pod costs is what makes its kubelet look at it.
    if plan.decision.desired > 0 {
        let costs = costs(&memory.pods, plan.retirement);
        pods::mark(&desk.context, plan.namespace, &costs).await;
        memory.marked(costs);
    }
    let deployment = apply_deployment(&desk.context, plan, memory).await?;
    let refused = memory.refuses(&plan.pods.revision(), plan.now);
    if current != plan.decision.desired && !refused {
        memory.scaled_at = Some(plan.clock);
        announce(&desk.context, plan, current).await;
    }
    Ok(deployment)
}

/// Whom to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asking {
    Nobody,
    /// A few, for faults.
    Some,
    All,
}

/// What depends on what the pods say.
#[derive(Debug, Clone, Copy)]
pub(super) struct Need {
    /// Some are to go.
    pub(super) leaving: bool,
    /// And right now.
    pub(super) at_once: bool,
    /// Only they know what runs here, because other Workers have a part of the queues.
    pub(super) shared: bool,
}

/// Whom to ask when the last time was so long ago, and all answered then or only some were asked.
pub(super) fn asking(need: Need, elapsed: Option<Duration>, all: bool) -> Asking {
    let over = |limit: Duration| elapsed.is_none_or(|elapsed| elapsed >= limit);
    if need.leaving && (need.at_once || !all || over(ASK_VICTIMS_EVERY)) {
        return Asking::All;
    }
    match over(ASK_PODS_EVERY) {
        true if need.shared => Asking::All,
        true => Asking::Some,
        false => Asking::Nobody,
    }
}

/// Asks the pods what they do, if it is time. Tells whom it asked.
pub(super) async fn ask_pods(
    desk: &Desk,
    worker: &Worker,
    world: &World,
    need: Need,
    memory: &mut Memory,
    now: Instant,
) -> Result<Asking> {
    if world.current() == 0 {
        memory.pods.clear();
        memory.asked_at = None;
        return Ok(Asking::Nobody);
    }
    let elapsed = memory.asked_at.map(|at| now.saturating_duration_since(at));
    let asked = asking(need, elapsed, memory.asked_all);
    if asked != Asking::Nobody {
        let namespace = worker.namespace().unwrap_or_default();
        let all = asked == Asking::All;
        memory.pods = pods::look(&desk.context, &desk.asker, &namespace, &worker.name_any(), all).await?;
        memory.asked_all = all || memory.pods.len() < pods::SAMPLE;
        memory.asked_at = Some(now);
    }
    Ok(asked)
}

async fn apply_policy(context: &Context, plan: &Plan<'_>, draining: Vec<String>) -> Result<()> {
    let worker = plan.worker;
    let there = plan.world.config_map.as_deref();
    let kept = there.filter(|_| plan.kept).and_then(build::policy_in);
    let (name, queues) = (worker.name_any(), &plan.world.queues);
    let policy = policy::policy(plan.namespace, &name, &worker.spec, queues, draining, kept);
    let wanted = build::config_map(worker, &policy)?;
    if there.is_some_and(|there| has_metadata(there, &wanted) && has_data(there, &wanted)) {
        return Ok(());
    }
    apply::<ConfigMap>(&context.client, plan.namespace, &wanted).await?;
    Ok(())
}

async fn apply_deployment(
    context: &Context,
    plan: &Plan<'_>,
    memory: &mut Memory,
) -> Result<Arc<Deployment>> {
    let revision = plan.pods.revision();
    let live = || plan.world.deployment.clone().unwrap_or_default();
    if memory.refuses(&revision, plan.now) {
        return Ok(live());
    }
    match put(context, plan, memory).await {
        Ok(stored) => {
            memory.refused.take_if(|refused| refused.revision == revision);
            Ok(stored)
        }
        Err(error) => {
            let message = error.refusal().ok_or(error)?;
            memory.refused = Some(Refused { revision, message, at: plan.now });
            Ok(live())
        }
    }
}

/// Applies the Deployment, unless it stands there already.
async fn put(context: &Context, plan: &Plan<'_>, memory: &mut Memory) -> Result<Arc<Deployment>> {
    let wanted = build::deployment(plan.worker, plan.pods, plan.decision.desired)?;
    let text = wanted.to_string();
    if let (Some(live), Some(applied)) = (&plan.world.deployment, &memory.applied)
        && applied.wanted == text
        && applied.stored.metadata.uid == live.metadata.uid
        // Rises with every change of the spec, whoever made it.
        && applied.stored.metadata.generation == live.metadata.generation
        && has_metadata(live.as_ref(), &wanted)
    {
        return Ok(live.clone());
    }
    let stored: Arc<Deployment> = Arc::new(apply(&context.client, plan.namespace, &wanted).await?);
    memory.applied = Some(Applied { wanted: text, stored: stored.clone() });
    Ok(stored)
}

/// Whether `there` has the labels, annotations and owners of `wanted`.
fn has_metadata<K: Resource<DynamicType = ()>>(there: &K, wanted: &Value) -> bool {
    let metadata = &wanted["metadata"];
    let all_in = |field: &str, found: &std::collections::BTreeMap<String, String>| {
        let wanted = metadata[field].as_object().into_iter().flatten();
        wanted.into_iter().all(|(name, value)| found.get(name).map(String::as_str) == value.as_str())
    };
    let owners = metadata["ownerReferences"].as_array().into_iter().flatten();
    all_in("labels", there.labels())
        && all_in("annotations", there.annotations())
        && owners
            .into_iter()
            .all(|owner| there.owner_references().iter().any(|found| owner["uid"] == *found.uid))
}

fn has_data(there: &ConfigMap, wanted: &Value) -> bool {
    let mut fields = wanted["data"].as_object().into_iter().flatten();
    fields.all(|(name, value)| {
        let found = there.data.as_ref().and_then(|data| data.get(name));
        found.map(String::as_str) == value.as_str()
    })
}

async fn announce(context: &Context, plan: &Plan<'_>, current: u32) {
    let desired = plan.decision.desired;
    let reason = if desired > current { "ScaledUp" } else { "ScaledDown" };
    let note = format!("from {current} to {desired} ({})", plan.decision.why);
    // Events that differ in nothing but the note are counted together under the first one.
    let action = format!("Scale{current}To{desired}");
    event(context, plan.worker, false, reason, &action, note).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::fixture;
    use kube::core::Status;
    use serde_json::json;

    fn error(code: u16, message: &str) -> Error {
        let status: Status = serde_json::from_value(json!({
            "status": "Failure", "message": message, "reason": "", "code": code,
        }))
        .unwrap();
        Error::api("apply Deployment")(kube::Error::Api(Box::new(status)))
    }

    #[test]
    fn refusals_are_told_from_failures() {
        for (code, message, refused) in [
            (422, "Deployment.apps \"mailer\" is invalid", true),
            (400, "admission webhook \"x\" denied the request", true),
            (403, "admission webhook \"x\" denied the request: no", true),
            (403, "deployments.apps is forbidden: User cannot patch", false),
            (500, "failed to create typed patch object (shop/mailer): duplicate entries", true),
            (500, "etcdserver: request timed out", false),
            (409, "the object has been modified", false),
            (429, "too many requests", false),
        ] {
            assert_eq!(error(code, message).refusal().is_some(), refused, "{code} {message}");
        }
        assert_eq!(Error::LeadershipLost.refusal(), None);
    }

    #[test]
    fn pods_are_asked_as_often_as_it_matters() {
        let second = |seconds| Some(Duration::from_secs(seconds));
        let need = |leaving, at_once, shared| Need { leaving, at_once, shared };
        let quiet = need(false, false, false);
        for (need, elapsed, all, expected) in [
            (quiet, None, false, Asking::Some),
            (quiet, second(9), true, Asking::Nobody),
            (quiet, second(10), true, Asking::Some),
            (need(false, false, true), second(9), true, Asking::Nobody),
            (need(false, false, true), second(10), true, Asking::All),
            (need(true, false, false), second(1), true, Asking::Nobody),
            (need(true, false, false), second(1), false, Asking::All),
            (need(true, false, false), second(2), true, Asking::All),
            (need(true, true, false), second(0), true, Asking::All),
        ] {
            assert_eq!(asking(need, elapsed, all), expected, "{need:?} {elapsed:?} {all}");
        }
    }

    #[test]
    fn what_is_missing_of_metadata_and_data_is_noticed() {
        let worker = fixture::worker(&json!({}));
        let queues = [fixture::bound("emails", 1, &json!({}))];
        let policy = policy::policy("shop", "mailer", &worker.spec, &queues, Vec::new(), None);
        let wanted = build::config_map(&worker, &policy).unwrap();
        let there = |change: fn(&mut Value)| {
            let mut object = wanted.clone();
            object["metadata"]["labels"]["theirs"] = json!("too");
            change(&mut object);
            let there: ConfigMap = serde_json::from_value(object).unwrap();
            has_metadata(&there, &wanted) && has_data(&there, &wanted)
        };
        assert!(there(|_| {}));
        assert!(!there(|it| it["data"]["policy.json"] = json!("{}")));
        assert!(!there(|it| it["metadata"]["labels"] = json!({})));
        assert!(!there(|it| it["metadata"]["ownerReferences"] = json!([])));
    }
}
