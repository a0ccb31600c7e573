use super::*;
use serde_json::Value;

fn queue(change: impl FnOnce(&mut Value)) -> Queue {
    let mut object = json!({
        "apiVersion": "longshore.dev/v1alpha1", "kind": "Queue",
        "metadata": { "name": "emails", "namespace": "shop", "uid": "1", "generation": 2 },
        "spec": { "brokerRef": { "name": "default" } },
        "status": { "backendId": "a" },
    });
    change(&mut object);
    serde_json::from_value(object).unwrap()
}

fn ready(status: &str, reason: &str) -> Value {
    json!([{ "type": "Ready", "status": status, "reason": reason, "message": "why", "lastTransitionTime": "2026-01-01T00:00:00Z" }])
}

#[test]
fn its_own_status_is_no_news() {
    let news = |change: fn(&mut Value)| news_of(&queue(change));
    let before = news(|_| {});
    assert_eq!(news(|it| it["status"] = json!({ "depth": { "ready": 7 } })), before);
    for change in [
        (|it| it["metadata"]["generation"] = json!(3)) as fn(&mut Value),
        |it| it["metadata"]["finalizers"] = json!(["x"]),
        |it| it["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"),
        |it| it["metadata"]["uid"] = json!("2"),
    ] {
        assert_ne!(news(change), before);
    }
}

#[test]
fn other_data_is_noticed_unless_it_is_adopted() {
    let changed = |change: fn(&mut Value), found: &str| changed_backend(&queue(change), found).is_some();
    assert!(changed(|_| {}, "b"));
    assert!(!changed(|_| {}, "a"));
    assert!(!changed(|it| it["spec"]["adopt"] = json!(true), "b"));
    assert!(!changed(|it| it["status"] = json!(null), "b"), "declared for the first time");
}

#[test]
fn only_its_own_data_is_deleted_with_a_queue() {
    let kept = |change: &dyn Fn(&mut Value), found: &str| not_ours(&queue(|it| change(it)), found);
    assert_eq!(kept(&|_| {}, "a"), None);
    assert_eq!(kept(&|it| it["status"]["conditions"] = ready("True", "Declared"), "a"), None);
    assert_eq!(kept(&|it| it["status"]["conditions"] = ready("False", "BrokerUnreachable"), "a"), None);
    assert!(kept(&|_| {}, "b").unwrap().contains("data b"));
    assert!(kept(&|it| it["status"] = json!({}), "a").unwrap().contains("never declared"));
    for reason in ["OwnedByAnother", "BackendChanged", "OrderingDiffers"] {
        assert_eq!(kept(&|it| it["status"]["conditions"] = ready("False", reason), "a").unwrap(), "why");
    }
}

#[test]
fn a_deletion_is_not_waited_for_longer_than_its_deadline() {
    let leaving = queue(|it| it["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"));
    let at = |text: &str| is_late(&leaving, text.parse().unwrap());
    assert!(!at("2026-01-01T00:00:30Z"));
    assert!(at("2026-01-01T00:00:31Z"));
    // Each try is bounded, so that the last one ends soon after the deadline.
    assert!(CALL * 2 < crate::context::RECONCILE_DEADLINE);
}

#[test]
fn what_the_broker_cannot_do_is_named_and_nothing_weaker_declared() {
    let token = longshore_drivers::http::client::TokenSource::fixed("t");
    let mut able = longshore_drivers::http::client::HttpConfig::new("http://x", token).unwrap().assumed;
    let strict = queue(|it| it["spec"]["ordering"] = json!("Fifo"));
    assert_eq!(policy::lacking(&strict.spec, &able), None);
    assert_eq!(settings(&strict.spec).ordering, longshore_drivers::Ordering::Fifo);
    able.fifo = false;
    assert!(policy::lacking(&strict.spec, &able).unwrap().starts_with("fifo: "));
    let loose = queue(|_| {});
    assert_eq!(policy::lacking(&loose.spec, &able), None);
    assert_eq!(settings(&loose.spec).ordering, longshore_drivers::Ordering::BestEffort);
}

#[test]
fn a_refused_declaration_says_what_is_in_the_way() {
    let refused = |kind: ErrorKind, adopt: bool| {
        let queue = queue(|it| it["spec"]["adopt"] = json!(adopt));
        refused(&queue, longshore_drivers::Error::new(kind, "why"))
    };
    assert!(matches!(refused(ErrorKind::Conflict, false), Observation::OwnedByAnother(_)));
    assert!(matches!(refused(ErrorKind::Conflict, true), Observation::OrderingDiffers(_)));
    assert!(matches!(refused(ErrorKind::Unsupported, true), Observation::Unsupported(_)));
    assert!(matches!(refused(ErrorKind::Timeout, true), Observation::Unreachable(_)));
}
