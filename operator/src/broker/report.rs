//! The status of a Broker, from what was seen of it. Pure.

use super::build::{credentials_of, url};
use k8s_openapi::jiff::Timestamp;
use longshore_crds::{Broker, BrokerStatus, Reason, condition, set_condition};
use longshore_drivers::{Durability, ErrorKind, Probe};

/// What was seen of a broker.
pub(super) enum Seen {
    /// It can't be asked: something that the spec names isn't there.
    Missing(Reason),
    /// It was asked.
    Asked {
        answer: std::result::Result<Probe, longshore_drivers::Error>,
        /// Pods that are ready, where they are ours.
        pods: Option<i32>,
        /// Why none is.
        trouble: Option<String>,
        /// The API server doesn't take what it is to consist of.
        fault: Option<Reason>,
    },
}

/// The status that what was seen amounts to.
pub(super) fn status(broker: &Broker, seen: &Seen, now: Timestamp) -> BrokerStatus {
    let generation = broker.metadata.generation;
    let mut status = broker.status.clone().unwrap_or_default();
    status.observed_generation = generation;
    status.url = url(broker);
    let ready = ready(broker, seen);
    if let Seen::Asked { answer: Ok(probe), .. } = seen {
        status.backend = Some(probe.backend.clone());
        status.version = Some(probe.version.clone());
        // Queues know by themselves what they were declared on, and stand still if it is something else.
        status.backend_id = Some(probe.backend_id.clone());
        status.capabilities = serde_json::to_value(&probe.capabilities).ok();
    }
    set_condition(&mut status.conditions, condition::READY, ready, generation, now);
    set_condition(&mut status.conditions, condition::DURABLE, durable(broker, seen), generation, now);
    status
}

/// What to tell when the broker holds other data than it did before.
pub(super) fn changed_backend(broker: &Broker, next: &BrokerStatus) -> Option<String> {
    let known = broker.status.as_ref()?.backend_id.as_ref()?;
    let found = next.backend_id.as_ref().filter(|found| *found != known)?;
    Some(format!(
        "the data is not what it was ({found} instead of {known}): its queues stand still until they adopt it"
    ))
}

fn ready(broker: &Broker, seen: &Seen) -> Reason {
    match seen {
        Seen::Missing(reason) | Seen::Asked { fault: Some(reason), .. } => reason.clone(),
        Seen::Asked { answer: Ok(probe), .. } => {
            Reason::yes("Connected", format!("{} {} answers", probe.backend, probe.version))
        }
        Seen::Asked { answer: Err(_), pods: Some(0), trouble, .. } => {
            let trouble = trouble.as_ref().map_or_else(String::new, |trouble| format!(": {trouble}"));
            Reason::unknown("WaitingForPod", format!("the broker's pod is not ready yet{trouble}"))
        }
        Seen::Asked { answer: Err(error), .. } => refused(broker, error),
    }
}

/// Why a broker can't be worked with. What the user has to look at is named, what stands in it never is.
fn refused(broker: &Broker, error: &longshore_drivers::Error) -> Reason {
    let secret = credentials_of(broker);
    let key = secret.keys.first().map_or("", String::as_str);
    let place = format!("see Secret {:?}, key {key:?}", secret.name);
    match error.kind {
        ErrorKind::Unauthorized => Reason::no("Unauthorized", format!("{error}; {place}")),
        // A URL or certificate that is none.
        ErrorKind::Invalid => Reason::no("Unusable", format!("{error}; {place}")),
        ErrorKind::Unsupported | ErrorKind::Fatal => Reason::no("Unusable", error.to_string()),
        _ => Reason::no("Unreachable", error.to_string()),
    }
}

fn durable(broker: &Broker, seen: &Seen) -> Reason {
    match (&broker.spec.embedded, seen) {
        (Some(embedded), _) if embedded.ephemeral => {
            Reason::no("Ephemeral", "jobs are kept in an emptyDir and are gone with the pod")
        }
        (Some(_), _) => {
            Reason::yes("Volume", "jobs are kept on a claimed volume, every acknowledgement after fsync")
        }
        (None, Seen::Asked { answer: Ok(probe), .. }) => match probe.capabilities.durability {
            Durability::Machine => {
                Reason::yes("Reported", "the broker says that it keeps what it acknowledged")
            }
            Durability::Process => Reason::no(
                "ProcessOnly",
                "the last moments of acknowledged work can be lost with the machine; a restart of the broker loses nothing",
            ),
            Durability::Mostly => Reason::no(
                "LastSeconds",
                "up to two seconds of acknowledged work can be lost with the broker's process or machine",
            ),
            Durability::None => Reason::no("Reported", "the broker says that jobs are gone with it"),
        },
        (None, _) => {
            known_before(broker).unwrap_or_else(|| Reason::unknown("NotAsked", "the broker has not answered"))
        }
    }
}

/// What was said of durability when the broker answered last: it doesn't change while nobody answers.
fn known_before(broker: &Broker) -> Option<Reason> {
    let mut conditions = broker.status.iter().flat_map(|status| &status.conditions);
    let known = conditions.find(|condition| condition.type_ == condition::DURABLE)?;
    let (reason, message) = (known.reason.as_str(), known.message.as_str());
    match known.status.as_str() {
        "True" => Some(Reason::yes(reason, message)),
        "False" => Some(Reason::no(reason, message)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use longshore_drivers::{
        Error, ErrorKind,
        http::client::{HttpConfig, TokenSource},
    };
    use serde_json::{Value, json};

    fn broker(spec: &Value, backend_id: Option<&str>) -> Broker {
        let mut broker = json!({
            "apiVersion": "longshore.dev/v1alpha1", "kind": "Broker",
            "metadata": { "name": "default", "namespace": "shop", "generation": 2 }, "spec": spec,
        });
        if let Some(id) = backend_id {
            broker["status"] = json!({ "backendId": id });
        }
        serde_json::from_value(broker).unwrap()
    }

    fn elsewhere() -> Value {
        json!({ "http": { "url": "http://broker.other:7400", "tokenFrom": { "name": "s", "key": "k" } } })
    }

    fn server(name: &str) -> Value {
        json!({ name: { "urlFrom": { "name": "s", "key": "url" } } })
    }

    fn answer(id: &str, durable: bool) -> Seen {
        answers(id, if durable { Durability::Machine } else { Durability::None })
    }

    fn answers(id: &str, durability: Durability) -> Seen {
        let mut capabilities = HttpConfig::new("http://x", TokenSource::fixed("t")).unwrap().assumed;
        capabilities.durability = durability;
        let probe = Probe {
            backend: "embedded".to_owned(),
            version: "3".to_owned(),
            backend_id: id.to_owned(),
            capabilities,
        };
        Seen::Asked { answer: Ok(probe), pods: None, trouble: None, fault: None }
    }

    fn silence(pods: Option<i32>) -> Seen {
        let answer = Err(Error::new(ErrorKind::Unavailable, "nobody is there"));
        Seen::Asked { answer, pods, trouble: None, fault: None }
    }

    /// Status and reason of the conditions Ready and Durable.
    fn says(broker: &Broker, seen: &Seen) -> [(String, String); 2] {
        let status = status(broker, seen, Timestamp::UNIX_EPOCH);
        [condition::READY, condition::DURABLE].map(|kind| {
            let found = status.conditions.iter().find(|condition| condition.type_ == kind).unwrap();
            (found.status.clone(), found.reason.clone())
        })
    }

    #[test]
    fn what_was_said_of_durability_holds_while_nobody_answers() {
        let mut broker = broker(&server("redis"), Some("a"));
        broker.status = Some(status(&broker, &answers("a", Durability::Mostly), Timestamp::UNIX_EPOCH));
        let said = says(&broker, &silence(None));
        assert_eq!(
            said,
            [("False", "Unreachable"), ("False", "LastSeconds")].map(|(a, b)| (a.into(), b.into()))
        );
    }

    #[test]
    fn conditions_tell_what_was_seen() {
        let missing = || Seen::Missing(Reason::unknown("WaitingForSecret", "there is no Secret"));
        for (spec, known, seen, ready, durable) in [
            (json!({ "embedded": {} }), None, answer("a", true), ("True", "Connected"), ("True", "Volume")),
            (
                json!({ "embedded": {} }),
                None,
                silence(Some(0)),
                ("Unknown", "WaitingForPod"),
                ("True", "Volume"),
            ),
            (json!({ "embedded": {} }), None, silence(Some(1)), ("False", "Unreachable"), ("True", "Volume")),
            (
                json!({ "embedded": { "ephemeral": true } }),
                Some("a"),
                answer("b", false),
                ("True", "Connected"),
                ("False", "Ephemeral"),
            ),
            (elsewhere(), None, missing(), ("Unknown", "WaitingForSecret"), ("Unknown", "NotAsked")),
            (elsewhere(), None, silence(None), ("False", "Unreachable"), ("Unknown", "NotAsked")),
            (elsewhere(), Some("a"), answer("a", true), ("True", "Connected"), ("True", "Reported")),
            (elsewhere(), None, answer("a", false), ("True", "Connected"), ("False", "Reported")),
            (server("redis"), None, missing(), ("Unknown", "WaitingForSecret"), ("Unknown", "NotAsked")),
            (server("redis"), None, answer("a", true), ("True", "Connected"), ("True", "Reported")),
            (
                server("redis"),
                Some("a"),
                answers("b", Durability::Process),
                ("True", "Connected"),
                ("False", "ProcessOnly"),
            ),
            (
                server("redis"),
                Some("a"),
                answers("a", Durability::Mostly),
                ("True", "Connected"),
                ("False", "LastSeconds"),
            ),
            (server("redis"), None, answer("a", false), ("True", "Connected"), ("False", "Reported")),
            (server("postgres"), None, answer("a", true), ("True", "Connected"), ("True", "Reported")),
            (server("postgres"), None, silence(None), ("False", "Unreachable"), ("Unknown", "NotAsked")),
        ] {
            let said = says(&broker(&spec, known), &seen);
            let pair = |(status, reason): (&str, &str)| (status.to_owned(), reason.to_owned());
            assert_eq!(said, [pair(ready), pair(durable)], "{spec}");
        }
    }

    #[test]
    fn other_data_is_told_once_and_taken_as_it_is() {
        let spec = json!({ "embedded": {} });
        let before = broker(&spec, Some("a"));
        let next = status(&before, &answer("b", true), Timestamp::UNIX_EPOCH);
        assert_eq!(next.backend_id.as_deref(), Some("b"));
        assert!(changed_backend(&before, &next).unwrap().contains("b instead of a"));
        assert_eq!(changed_backend(&broker(&spec, Some("b")), &next), None);
        assert_eq!(changed_backend(&broker(&spec, None), &next), None);
        let silent = status(&before, &silence(Some(0)), Timestamp::UNIX_EPOCH);
        assert_eq!(silent.backend_id.as_deref(), Some("a"));
    }

    #[test]
    fn what_stands_in_the_way_is_told() {
        let broker = broker(&json!({ "embedded": {} }), None);
        let told = |trouble: Option<&str>, fault: Option<Reason>| {
            let answer = Err(Error::new(ErrorKind::Unavailable, "nobody is there"));
            let seen = Seen::Asked { answer, pods: Some(0), trouble: trouble.map(str::to_owned), fault };
            let ready = ready(&broker, &seen);
            (ready.reason, ready.message)
        };
        let (reason, message) = told(Some("pod default-broker-0 is not scheduled: no volume"), None);
        assert_eq!(reason, "WaitingForPod");
        assert!(message.ends_with("is not ready yet: pod default-broker-0 is not scheduled: no volume"));
        let refused = told(None, Some(Reason::no("ObjectRefused", "the size can't change")));
        assert_eq!(refused, ("ObjectRefused".to_owned(), "the size can't change".to_owned()));
        assert_eq!(says(&broker, &silence(Some(0)))[0].1, "WaitingForPod");
    }

    #[test]
    fn what_was_refused_is_told_with_the_place_to_look_at() {
        let told = |spec: &Value, kind| {
            let answer = Err(Error::new(kind, "no"));
            let seen = Seen::Asked { answer, pods: None, trouble: None, fault: None };
            let ready = ready(&broker(spec, None), &seen);
            assert_eq!(ready.status, "False");
            format!("{}: {}", ready.reason, ready.message)
        };
        for (spec, kind, says) in [
            (server("redis"), ErrorKind::Unauthorized, "Unauthorized: no; see Secret \"s\", key \"url\""),
            (server("postgres"), ErrorKind::Invalid, "Unusable: no; see Secret \"s\", key \"url\""),
            (server("redis"), ErrorKind::Unsupported, "Unusable: no"),
            (server("postgres"), ErrorKind::Fatal, "Unusable: no"),
            (server("postgres"), ErrorKind::Timeout, "Unreachable: no"),
            (elsewhere(), ErrorKind::Unauthorized, "Unauthorized: no; see Secret \"s\", key \"k\""),
        ] {
            assert_eq!(told(&spec, kind), says);
        }
    }

    #[test]
    fn the_address_is_the_service_or_what_the_user_wrote() {
        let address = |spec: Value| status(&broker(&spec, None), &silence(None), Timestamp::UNIX_EPOCH).url;
        assert_eq!(address(server("redis")), None, "a server's has a password in it");
        assert_eq!(address(json!({ "embedded": {} })).unwrap(), "http://default-broker.shop.svc:7400");
        assert_eq!(address(elsewhere()).unwrap(), "http://broker.other:7400");
    }
}
