//! The policy file of a Worker's sidecars. Pure.

use super::{inject::handler, observe::BoundQueue};
use longshore_crds::{Queue, WorkerSpec, condition};
use longshore_drivers::policy::{BrokerAccess, QueuePolicy, RetryPolicy, WorkerPolicy};

/// The policy that the sidecars of this Worker keep to. `kept` is the one whose handler and drain timeout stay, because the
/// pods that belong to the new ones are refused: sidecars that are told neither by their pod take them from here.
pub(super) fn policy(
    namespace: &str,
    worker: &str,
    spec: &WorkerSpec,
    queues: &[BoundQueue],
    draining: Vec<String>,
    kept: Option<WorkerPolicy>,
) -> WorkerPolicy {
    let (handler, drain_timeout) = match kept {
        Some(kept) => (kept.handler, kept.drain_timeout),
        None => (handler(spec), spec.drain_timeout.get()),
    };
    let mut brokers: Vec<BrokerAccess> = queues
        .iter()
        .map(|queue| BrokerAccess { name: queue.broker.clone(), via: queue.via.clone() })
        .collect();
    brokers.sort_by(|one, other| one.name.cmp(&other.name));
    brokers.dedup();
    WorkerPolicy {
        version: WorkerPolicy::VERSION,
        namespace: namespace.to_owned(),
        worker: worker.to_owned(),
        concurrency: spec.concurrency,
        drain_timeout,
        handler,
        brokers,
        queues: queues.iter().map(queue).collect(),
        draining,
    }
}

/// Whether somebody said that nothing of `queue` may be started, or its data turned out to be somebody else's.
pub(super) fn is_held(queue: &Queue) -> bool {
    let frozen = |reason: &str| matches!(reason, "BackendChanged" | "OwnedByAnother" | "OrderingDiffers");
    let conditions = queue.status.iter().flat_map(|status| &status.conditions);
    let mut ready = conditions.filter(|condition| condition.type_ == condition::READY);
    queue.spec.suspend || ready.any(|ready| ready.status == "False" && frozen(&ready.reason))
}

/// Whether nothing of `queue` is worth a pod: it is held, or was never declared.
///
/// Sidecars may ask for jobs of one that was never declared: a policy that says otherwise would reach them up to a minute
/// after the declaration, and a broker that doesn't know the queue hands out nothing.
pub(super) fn rests(queue: &Queue) -> bool {
    let declared = queue.status.as_ref().is_some_and(|status| status.backend_id.is_some());
    is_held(queue) || !declared
}

fn queue(bound: &BoundQueue) -> QueuePolicy {
    let spec = &bound.queue.spec;
    QueuePolicy {
        name: bound.name.clone(),
        physical: bound.physical.clone(),
        broker: bound.broker.clone(),
        weight: bound.weight,
        suspended: is_held(&bound.queue),
        lease: spec.lease.get(),
        timeout: spec.timeout.get(),
        retry: RetryPolicy {
            max_attempts: spec.retry.max_attempts,
            initial: spec.retry.backoff.initial.get(),
            multiplier: spec.retry.backoff.multiplier,
            max: spec.retry.backoff.max.get(),
            jitter_percent: spec.retry.backoff.jitter_percent,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::fixture;
    use longshore_drivers::policy::Handler;
    use serde_json::{Value, json};

    #[test]
    fn the_file_holds_what_the_queues_say() {
        let worker =
            fixture::worker(&json!({ "queues": [{ "name": "emails", "weight": 3 }, { "name": "images" }] }));
        let queues = [
            fixture::bound("emails", 3, &json!({ "timeout": "1m", "retry": { "maxAttempts": 7 } })),
            fixture::bound("images", 1, &json!({ "suspend": true })),
        ];
        let policy = policy("shop", "mailer", &worker.spec, &queues, vec!["mailer-1".to_owned()], None);
        let retry = |attempts: u32| json!({ "maxAttempts": attempts, "initialMs": 1000, "multiplier": 2, "maxMs": 300_000, "jitterPercent": 10 });
        assert_eq!(
            serde_json::to_value(&policy).unwrap(),
            json!({
                "version": 1,
                "namespace": "shop",
                "worker": "mailer",
                "concurrency": 10,
                "drainTimeoutMs": 600_000,
                "handler": { "http": { "port": 8080, "path": "/" } },
                "brokers": [{
                    "name": "default",
                    "http": {
                        "url": "http://default-broker.shop.svc:7400",
                        "tokenFiles": ["/etc/longshore/brokers/default/current", "/etc/longshore/brokers/default/previous"],
                    },
                }],
                "queues": [
                    {
                        "name": "emails", "physical": "prod.shop.emails", "broker": "default", "weight": 3,
                        "suspended": false, "leaseMs": 30_000, "timeoutMs": 60_000, "retry": retry(7),
                    },
                    {
                        "name": "images", "physical": "prod.shop.images", "broker": "default", "weight": 1,
                        "suspended": true, "leaseMs": 30_000, "timeoutMs": 30_000, "retry": retry(5),
                    },
                ],
                "draining": ["mailer-1"],
            })
        );
    }

    #[test]
    fn an_app_that_pulls_has_no_address() {
        let worker = fixture::worker(&json!({ "handler": { "pull": {} } }));
        let policy = policy("shop", "mailer", &worker.spec, &[], Vec::new(), None);
        assert_eq!(policy.handler, Handler::Pull {});
    }

    #[test]
    fn pods_whose_successors_are_refused_keep_their_handler_and_their_time() {
        let of =
            |spec: &Value, kept| policy("shop", "mailer", &fixture::worker(spec).spec, &[], Vec::new(), kept);
        let before = of(&json!({ "drainTimeout": "10m" }), None);
        let wanted =
            json!({ "drainTimeout": "30m", "handler": { "http": { "port": 9090 } }, "concurrency": 3 });
        let kept = of(&wanted, Some(before.clone()));
        assert_eq!((&kept.handler, kept.drain_timeout), (&before.handler, before.drain_timeout));
        assert_eq!(kept.concurrency, 3);
        assert_ne!(of(&wanted, None).handler, before.handler);
    }

    #[test]
    fn queues_with_somebody_elses_data_rest() {
        let with = |status: &str, reason: &str| -> Queue {
            let ready = json!({ "type": "Ready", "status": status, "reason": reason, "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z" });
            let spec: Value = json!({ "brokerRef": { "name": "default" } });
            serde_json::from_value(json!({
                "apiVersion": "longshore.dev/v1alpha1", "kind": "Queue", "metadata": { "name": "q" },
                "spec": spec, "status": { "conditions": [ready], "backendId": "a" },
            }))
            .unwrap()
        };
        let mut new = with("Unknown", "WaitingForBroker");
        new.status.as_mut().unwrap().backend_id = None;
        assert!(rests(&new) && !is_held(&new), "never declared");
        new.status = None;
        assert!(rests(&new), "not even looked at");
        assert!(rests(&with("False", "BackendChanged")));
        assert!(rests(&with("False", "OwnedByAnother")));
        assert!(rests(&with("False", "OrderingDiffers")));
        // A broker that is away is no reason: sidecars go on by themselves when it is back.
        assert!(!rests(&with("False", "BrokerUnreachable")));
        assert!(!rests(&with("True", "Declared")));
    }
}
