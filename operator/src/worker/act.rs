//! Makes the cluster look as it was decided.

use super::{
    Desk,
    build::{self, Pods},
    memory::{Applied, Memory, Refused},
    observe::World,
    pods::{self, Seen},
    policy,
    scale::Decision,
    victims::{costs, victims},
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

/// What there is to be done.
pub(super) struct Plan<'a> {
    pub(super) worker: &'a Worker,
    pub(super) namespace: &'a str,
    pub(super) world: &'a World,
    pub(super) decision: &'a Decision,
    pub(super) pods: &'a Pods,
    pub(super) now: Instant,
    pub(super) clock: Timestamp,
}

/// Asks the pods, tells the victims, sets the number. Answers the Deployment as it is now.
pub(super) async fn act(desk: &Desk, plan: &Plan<'_>, memory: &mut Memory) -> Result<Arc<Deployment>> {
    if !desk.context.leadership.is_leader() {
        return Err(Error::LeadershipLost);
    }
    let current = plan.world.current();
    let leaving = current.saturating_sub(plan.decision.desired);
    let pods = ask_pods(desk, plan, memory, leaving > 0).await?;
    let victims = victims(&pods, leaving as usize);
    apply_policy(&desk.context, plan, victims.clone()).await?;
    // When all go nobody is chosen.
    if leaving > 0 && plan.decision.desired > 0 {
        pods::mark(&desk.context, plan.namespace, &costs(&pods, &victims)).await;
    }
    let deployment = apply_deployment(&desk.context, plan, memory).await?;
    let refused = memory.refuses(&plan.pods.revision(), plan.now);
    if current != plan.decision.desired && !refused {
        memory.scaled_at = Some(plan.clock);
        announce(&desk.context, plan, current).await;
    }
    Ok(deployment)
}

/// What the pods say: all of them when some have to go, a sample now and then for faults.
async fn ask_pods(desk: &Desk, plan: &Plan<'_>, memory: &mut Memory, all: bool) -> Result<Vec<Seen>> {
    if plan.world.current() == 0 {
        memory.pods.clear();
        return Ok(Vec::new());
    }
    let elapsed = memory.asked_at.map(|at| plan.now.duration_since(at));
    if !all && elapsed.is_some_and(|elapsed| elapsed < ASK_PODS_EVERY) {
        return Ok(Vec::new());
    }
    let name = plan.worker.name_any();
    let pods = pods::look(&desk.context, &desk.asker, plan.namespace, &name, all).await?;
    memory.asked_at = Some(plan.now);
    memory.pods = pods.iter().take(pods::SAMPLE).cloned().collect();
    Ok(pods)
}

async fn apply_policy(context: &Context, plan: &Plan<'_>, draining: Vec<String>) -> Result<()> {
    let worker = plan.worker;
    let policy =
        policy::policy(plan.namespace, &worker.name_any(), &worker.spec, &plan.world.queues, draining);
    let wanted = build::config_map(worker, &policy)?;
    let there = plan.world.config_map.as_deref();
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
            let message = refusal(&error).ok_or(error)?;
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

/// The API server's words, if it said that it will not take this.
fn refusal(error: &Error) -> Option<String> {
    let Error::Api { source, .. } = error else {
        return None;
    };
    let kube::Error::Api(status) = source.as_ref() else {
        return None;
    };
    let by_admission = status.code == 403
        && (status.message.contains("admission") || status.message.contains("denied the request"));
    let untyped = status.code == 500 && status.message.contains("failed to create typed patch object");
    (matches!(status.code, 400 | 422) || by_admission || untyped).then(|| status.message.clone())
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
            assert_eq!(refusal(&error(code, message)).is_some(), refused, "{code} {message}");
        }
        assert_eq!(refusal(&Error::LeadershipLost), None);
    }

    #[test]
    fn what_is_missing_of_metadata_and_data_is_noticed() {
        let worker = fixture::worker(&json!({}));
        let queues = [fixture::bound("emails", 1, &json!({}))];
        let policy = policy::policy("shop", "mailer", &worker.spec, &queues, Vec::new());
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
