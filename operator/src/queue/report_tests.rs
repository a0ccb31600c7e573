use super::*;
use crate::reporting::WRITE_EVERY;
use serde_json::{Value, json};

fn queue(spec: &Value) -> Queue {
    let mut full = json!({ "brokerRef": { "name": "default" } });
    for (name, value) in spec.as_object().into_iter().flatten() {
        full[name] = value.clone();
    }
    serde_json::from_value(json!({
        "apiVersion": "longshore.dev/v1alpha1", "kind": "Queue",
        "metadata": { "name": "emails", "namespace": "shop", "generation": 2 }, "spec": full,
    }))
    .unwrap()
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn seen(ready: Option<u64>) -> Observation {
    Observation::Seen {
        name: QueueName::physical("prod", "shop", "emails").unwrap(),
        stats: QueueStats { ready, active: Some(3), ..QueueStats::default() },
        backend_id: "a".to_owned(),
        max_payload: 1024,
    }
}

#[test]
fn conditions_tell_what_was_seen() {
    let changed = Observation::BackendChanged { known: "a".to_owned(), found: "b".to_owned() };
    let suspended = json!({ "suspend": true });
    for (spec, observation, expected) in [
        (json!({}), Observation::NoBroker, ("Unknown", "WaitingForBroker")),
        (json!({}), Observation::NotConnected, ("Unknown", "WaitingForBroker")),
        (json!({}), Observation::Unreachable("no".to_owned()), ("False", "BrokerUnreachable")),
        (json!({}), Observation::OwnedByAnother("no".to_owned()), ("False", "OwnedByAnother")),
        (json!({}), changed, ("False", "BackendChanged")),
        (json!({}), Observation::OrderingDiffers("no".to_owned()), ("False", "OrderingDiffers")),
        (json!({}), Observation::Unsupported("fifo: no".to_owned()), ("False", "Unsupported")),
        (json!({}), seen(Some(1)), ("True", "Declared")),
        (suspended, seen(Some(1)), ("True", "Suspended")),
    ] {
        let status = status(&queue(&spec), &observation, at(1));
        let ready = &status.conditions[0];
        assert_eq!((ready.status.as_str(), ready.reason.as_str()), expected);
        assert_eq!(ready.observed_generation, Some(2));
    }
}

#[test]
fn blocked_jobs_are_counted() {
    let mut seen = seen(Some(1));
    let with = |blocked: Option<u64>, seen: &mut Observation| {
        let Observation::Seen { stats, .. } = seen else { unreachable!() };
        stats.blocked = blocked;
        status(&queue(&json!({ "ordering": "Fifo" })), seen, at(1))
    };
    let (many, more) = (with(Some(7), &mut seen), with(Some(8), &mut seen));
    assert_eq!(many.depth.as_ref().unwrap().blocked, Some(7));
    let soon = Some(Duration::from_secs(4));
    assert_eq!(writing(Some(&many), &more, soon), Writing::In(Duration::from_secs(6)));
    assert_eq!(writing(Some(&many), &with(Some(0), &mut seen), soon), Writing::Now);
    assert_eq!(with(None, &mut seen).depth.unwrap().blocked, None);
}

#[test]
fn numbers_that_nobody_could_read_are_taken_away() {
    let mut queue = queue(&json!({}));
    queue.status = Some(status(&queue, &seen(Some(7)), at(1)));
    assert_eq!(queue.status.as_ref().unwrap().depth.as_ref().unwrap().ready, Some(7));
    let gone = status(&queue, &Observation::Unreachable("no".to_owned()), at(2));
    assert_eq!((gone.depth, gone.backend_id.as_deref()), (None, Some("a")));
    assert!(gone.effective.is_some());
}

#[test]
fn the_policy_that_holds_is_told_with_its_source() {
    let queue = queue(&json!({ "timeout": "2m", "retry": { "maxAttempts": 7 }, "ordering": "Fifo" }));
    let effective = status(&queue, &seen(None), at(1)).effective.unwrap();
    let told = |name: &str| {
        let value = effective.values.iter().find(|value| value.name == name).unwrap();
        (value.value.as_str(), value.source)
    };
    assert_eq!(told("timeout"), ("2m", ValueSource::Spec));
    assert_eq!(told("ordering"), ("Fifo", ValueSource::Spec));
    assert_eq!(told("retry.maxAttempts"), ("7", ValueSource::Spec));
    assert_eq!(told("lease"), ("30s", ValueSource::Default));
    assert_eq!(told("retry.backoff.max"), ("5m", ValueSource::Default));
    assert_eq!(told("deletionPolicy"), ("Retain", ValueSource::Default));
    assert_eq!(told("maxPayloadBytes"), ("1024", ValueSource::Broker));
}

#[test]
fn defaults_are_those_of_the_schema() {
    assert_eq!(queue(&json!({})).spec, QueueSpec::on("default"));
}

#[test]
fn numbers_wait_and_conditions_do_not() {
    let queue = queue(&json!({}));
    let old = status(&queue, &seen(Some(5)), at(1));
    let mut known = queue.clone();
    known.status = Some(old.clone());
    let soon = Some(Duration::from_secs(4));
    let written =
        |observation: &Observation, since| writing(Some(&old), &status(&known, observation, at(5)), since);
    assert_eq!(written(&seen(Some(5)), soon), Writing::Nothing, "nothing but time changed");
    assert_eq!(written(&seen(Some(6)), soon), Writing::In(Duration::from_secs(6)));
    assert_eq!(written(&seen(Some(6)), Some(WRITE_EVERY)), Writing::Now);
    assert_eq!(written(&seen(Some(6)), None), Writing::Now);
    assert_eq!(written(&seen(Some(0)), soon), Writing::Now, "zero is another thing");
    assert_eq!(written(&seen(None), soon), Writing::Now, "and so is unknown");
    assert_eq!(written(&Observation::NotConnected, soon), Writing::Now);
    assert_eq!(writing(None, &old, soon), Writing::Now);
}
