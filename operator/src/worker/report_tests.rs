use super::*;
use crate::reporting::WRITE_EVERY;
use crate::worker::{
    build::{self, Pods},
    fixture,
    pods::Status,
};
use serde_json::{Value, json};

const IMAGE: &str = "registry.example:5000/longshore/sidecar:1.2.3";

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn demand(ready: u64, active: u64) -> Demand {
    Demand {
        ready: Some(ready),
        active: Some(active),
        blocked: Some(0),
        service_time: None,
        due_in: None,
        suspended: false,
        share: 1000,
    }
}

fn pod(faults: &Value, trouble: Option<&str>) -> Seen {
    Seen {
        name: "mailer-1".to_owned(),
        ready: true,
        deletion_cost: 0,
        trouble: trouble.map(str::to_owned),
        status: Some(Status { faults: serde_json::from_value(faults.clone()).unwrap(), ..Status::default() }),
    }
}

/// What a test changes of a Worker with three pods that all work.
struct Case {
    worker: Worker,
    live: Value,
    desired: u32,
    basis: Basis,
    demands: Vec<Demand>,
    pods: Vec<Seen>,
    proven: bool,
    refusal: Option<Reason>,
    missing: Option<Reason>,
}

impl Default for Case {
    fn default() -> Self {
        Self {
            worker: fixture::worker(&json!({})),
            live: json!({ "observedGeneration": 3, "replicas": 3, "updatedReplicas": 3, "readyReplicas": 3 }),
            desired: 3,
            basis: Basis::Work,
            demands: vec![demand(7, 2), demand(1, 0)],
            pods: Vec::new(),
            proven: true,
            refusal: None,
            missing: None,
        }
    }
}

impl Case {
    fn status(&self, now: Timestamp) -> WorkerStatus {
        let settings = fixture::settings(IMAGE);
        let pods = Pods::of(&self.worker, &settings, &[fixture::secrets("default")], None).unwrap();
        let wanted = build::deployment(&self.worker, &pods, self.desired).unwrap();
        let decision = Decision {
            desired: self.desired,
            basis: self.basis,
            why: "8 waiting".to_owned(),
            busy: true,
            wanted: self.desired,
        };
        let seeing = Seeing {
            deployment: &fixture::deployment(&wanted, &self.live),
            decision: &decision,
            demands: &self.demands,
            pods: &self.pods,
            image: &pods.image,
            revision: &pods.revision(),
            proven: self.proven.then(|| pods.revision()),
            refusal: self.refusal.clone(),
            missing: self.missing.clone(),
            scaled_at: Some(at(50)),
        };
        status(&self.worker, &seeing, now)
    }

    fn told(&self, kind: &str) -> Option<(String, String, String)> {
        let status = self.status(at(100));
        let found = status.conditions.into_iter().find(|condition| condition.type_ == kind)?;
        Some((found.status, found.reason, found.message))
    }

    fn ready(&self) -> (String, String, String) {
        self.told("Ready").unwrap()
    }
}

#[test]
fn the_status_holds_what_was_seen() {
    let status = Case::default().status(at(100));
    let text = serde_json::to_value(&status).unwrap();
    for (field, expected) in [
        ("observedGeneration", json!(4)),
        ("replicas", json!(3)),
        ("readyReplicas", json!(3)),
        ("desiredReplicas", json!(3)),
        ("selector", json!("longshore.dev/worker=mailer")),
        ("scalingMessage", json!("desired 3: 8 waiting")),
        ("lastScaleTime", json!("1970-01-01T00:00:50Z")),
        ("waiting", json!(8)),
        ("running", json!(2)),
        ("sidecarVersion", json!("1.2.3")),
        ("concurrency", json!(10)),
    ] {
        assert_eq!(text[field], expected, "{field}");
    }
    let kinds: Vec<_> = status.conditions.iter().map(|it| (it.type_.as_str(), it.status.as_str())).collect();
    assert_eq!(kinds, [("Ready", "True"), ("ScalingActive", "True"), ("DrainHook", "True")]);
    assert!(status.conditions.iter().all(|it| it.observed_generation == Some(4)));
}

#[test]
fn unknown_depths_are_absent() {
    let mut case = Case::default();
    case.demands[1].ready = None;
    let status = case.status(at(100));
    assert_eq!((status.waiting, status.running), (None, Some(2)));
}

#[test]
fn ready_tells_what_the_pods_are_at() {
    let deployment = |replicas: i32, updated: i32, ready: i32| json!({ "observedGeneration": 3, "replicas": replicas, "updatedReplicas": updated, "readyReplicas": ready });
    for (live, desired, expected) in [
        (deployment(3, 3, 3), 3, ("True", "PodsReady")),
        (deployment(0, 0, 0), 0, ("True", "ScaledToZero")),
        (deployment(2, 2, 2), 0, ("True", "ScaledToZero")),
        (deployment(3, 3, 0), 3, ("False", "WaitingForPods")),
        (json!({}), 1, ("False", "WaitingForPods")),
        (deployment(3, 3, 1), 3, ("True", "ScalingUp")),
        (deployment(4, 1, 3), 3, ("Unknown", "RollingOut")),
    ] {
        let case = Case { live, desired, ..Case::default() };
        let (status, reason, message) = case.ready();
        assert_eq!((status.as_str(), reason.as_str()), expected, "{message}");
    }
}

#[test]
fn scaling_alone_is_no_rollout_but_a_new_template_is() {
    let live = json!({ "observedGeneration": 2, "replicas": 3, "updatedReplicas": 3, "readyReplicas": 3 });
    let scaled = Case { live, desired: 5, ..Case::default() };
    assert_eq!(scaled.ready().1, "ScalingUp");
    let new = Case { proven: false, ..scaled };
    assert_eq!(new.ready().1, "RollingOut");
}

#[test]
fn what_goes_wrong_with_pods_is_told() {
    let condition = |kind: &str, status: &str, reason: &str| json!({ "type": kind, "status": status, "reason": reason, "message": "exceeded quota" });
    let quota = Case {
        live: json!({ "readyReplicas": 1, "replicas": 1, "updatedReplicas": 1, "conditions": [condition("ReplicaFailure", "True", "FailedCreate")] }),
        ..Case::default()
    };
    let told = quota.ready();
    assert_eq!((told.0.as_str(), told.1.as_str()), ("False", "PodsRefused"));
    assert_eq!(told.2, "1 of 3 pods are ready: exceeded quota");
    let stuck = Case {
        live: json!({ "readyReplicas": 3, "replicas": 4, "updatedReplicas": 1, "conditions": [condition("Progressing", "False", "ProgressDeadlineExceeded")] }),
        pods: vec![pod(&json!({}), Some("container app of pod mailer-1: ImagePullBackOff"))],
        ..Case::default()
    };
    let told = stuck.ready();
    assert_eq!(told.1, "RolloutStuck");
    assert!(told.2.contains("ImagePullBackOff"), "{}", told.2);
    let refused = Case { refusal: Some(Reason::no("TemplateRefused", "no")), ..Case::default() };
    assert_eq!(refused.ready().1, "TemplateRefused");
}

#[test]
fn scaling_tells_what_it_rests_on() {
    for (basis, expected) in [
        (Basis::Work, ("True", "FollowingWork")),
        (Basis::Idle, ("True", "FollowingWork")),
        (Basis::Pinned, ("False", "Pinned")),
        (Basis::Unknown, ("False", "BrokerUnreachable")),
        (Basis::Incomplete, ("False", "QueueMissing")),
        (Basis::Unproven, ("False", "NeverReady")),
    ] {
        let told = Case { basis, ..Case::default() }.told("ScalingActive").unwrap();
        assert_eq!((told.0.as_str(), told.1.as_str()), expected);
    }
}

#[test]
fn a_missing_queue_is_named_unless_something_is_worse() {
    let missing = || Some(Reason::unknown("WaitingForQueue", "there is no Queue \"images\""));
    let told = Case { missing: missing(), ..Case::default() }.ready();
    assert_eq!((told.0.as_str(), told.1.as_str()), ("Unknown", "WaitingForQueue"));
    assert_eq!(told.2, "there is no Queue \"images\"; 3 pods are ready");
    let worse =
        Case { missing: missing(), refusal: Some(Reason::no("TemplateRefused", "no")), ..Case::default() };
    assert_eq!(worse.ready().1, "TemplateRefused");
}

#[test]
fn a_hook_of_its_own_is_told() {
    let hook = json!({ "exec": { "command": ["bye"] } });
    let template = json!({ "spec": { "containers": [{ "name": "app", "lifecycle": { "preStop": hook } }, { "name": "other" }] } });
    let case = Case { worker: fixture::worker(&json!({ "template": template })), ..Case::default() };
    let (status, reason, message) = case.told("DrainHook").unwrap();
    assert_eq!((status.as_str(), reason.as_str()), ("False", "OwnPreStop"));
    assert!(message.contains("has app: call http://127.0.0.1:7421/hooks/app-stop"), "{message}");
}

#[test]
fn faults_of_the_handler_are_told_once_a_sidecar_spoke() {
    assert_eq!(Case::default().told("HandlerRoutable"), None);
    let fine = json!({ "routable": true, "authorized": true });
    let lost = json!({ "routable": false, "authorized": true, "message": "it answered 404" });
    let case = |pods: Vec<Seen>| Case { pods, ..Case::default() };
    let told = case(vec![pod(&fine, None)]).told("HandlerRoutable").unwrap();
    assert_eq!((told.0.as_str(), told.1.as_str()), ("True", "Routed"));
    let one_lost = case(vec![pod(&fine, None), pod(&lost, None)]);
    let told = one_lost.told("HandlerRoutable").unwrap();
    assert_eq!((told.0.as_str(), told.1.as_str(), told.2.as_str()), ("False", "NoRoute", "it answered 404"));
    assert_eq!(one_lost.told("HandlerAuthorized").unwrap().0, "True");
    // A sidecar that doesn't speak of faults says nothing about them.
    assert_eq!(case(vec![pod(&json!({}), None)]).told("HandlerRoutable"), None);
}

#[test]
fn a_blocked_worker_says_why_and_keeps_its_numbers() {
    let mut worker = fixture::worker(&json!({}));
    worker.status = Some(Case::default().status(at(100)));
    let next = blocked(&worker, Reason::unknown("WaitingForQueue", "there is no Queue \"emails\""), at(200));
    assert_eq!(next.replicas, 3);
    for kind in ["Ready", "ScalingActive"] {
        let found = next.conditions.iter().find(|it| it.type_ == kind).unwrap();
        assert_eq!((found.status.as_str(), found.reason.as_str()), ("Unknown", "WaitingForQueue"));
    }
    worker.status = Some(next.clone());
    let again = blocked(&worker, Reason::unknown("WaitingForQueue", "there is no Queue \"emails\""), at(300));
    assert_eq!(again, next, "nothing but time changed");
}

#[test]
fn numbers_wait_and_conditions_do_not() {
    let old = Case::default().status(at(100));
    let soon = Some(Duration::from_secs(4));
    let case = |change: fn(&mut Case)| {
        let mut case = Case::default();
        case.worker.status = Some(old.clone());
        change(&mut case);
        case.status(at(104))
    };
    let now = |change: fn(&mut Case)| writing(Some(&old), &case(change), soon);
    assert_eq!(now(|_| {}), Writing::Nothing);
    assert_eq!(now(|it| it.demands[0].ready = Some(9)), Writing::In(Duration::from_secs(6)));
    let idle: fn(&mut Case) = |it| it.demands = vec![demand(0, 2)];
    assert_eq!(now(idle), Writing::Now);
    assert_eq!(now(|it| it.demands[0].ready = None), Writing::Now);
    assert_eq!(now(|it| it.basis = Basis::Unknown), Writing::Now);
    assert_eq!(now(|it| it.live["readyReplicas"] = json!(2)), Writing::Now, "another reason");
    let more = case(|it| it.demands[0].ready = Some(9));
    assert_eq!(writing(Some(&old), &more, Some(WRITE_EVERY)), Writing::Now);
    assert_eq!(writing(Some(&old), &more, None), Writing::Now);
    assert_eq!(writing(None, &more, soon), Writing::Now);
}

#[test]
fn faults_are_complaints_and_starting_is_not() {
    let reason = |case: &Case| complaint(&case.status(at(100))).map(|(reason, _)| reason);
    assert_eq!(reason(&Case::default()), None);
    assert_eq!(reason(&Case { live: json!({}), ..Case::default() }), None);
    let refused = Case { refusal: Some(Reason::no("InvalidTemplate", "no")), ..Case::default() };
    assert_eq!(reason(&refused).as_deref(), Some("InvalidTemplate"));
}

#[test]
fn versions_are_tags_or_digests() {
    for (image, expected) in [
        ("longshore/sidecar:1.2.3", Some("1.2.3")),
        ("registry.example:5000/longshore/sidecar:1.2.3", Some("1.2.3")),
        ("registry.example:5000/longshore/sidecar", None),
        ("sidecar:1.2.3@sha256:abc", Some("1.2.3")),
        ("registry.example:5000/sidecar@sha256:abc", Some("sha256:abc")),
        ("", None),
    ] {
        assert_eq!(version(image).as_deref(), expected, "{image}");
    }
}
