//! What `/status` shows: faults of the app, brokers, the policy file. Kept here, decided elsewhere.

use crate::outcome::Signal;
use longshore_drivers::{Error, ErrorKind};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// A fault stands until no job has met it for this long: released jobs come back every minute at the latest.
const FAULT_STANDS: Duration = Duration::from_secs(120);

/// Locks a mutex whose data is whole after every statement, so that a panic elsewhere does not matter.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug, Default)]
pub(crate) struct Health {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    unroutable: Option<Fault>,
    unauthorized: Option<Fault>,
    brokers: BTreeMap<String, Broker>,
    /// The brokers of the policy, once there is one.
    named: Option<BTreeSet<String>>,
    policy_loaded: bool,
    policy_error: Option<String>,
}

/// An answer that shows a fault of the deployment.
#[derive(Debug, Clone)]
struct Fault {
    status: u16,
    job_type: String,
    at: Instant,
}

/// One broker as the sidecar sees it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Broker {
    name: String,
    reachable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

/// Faults of the deployment, for the Worker's conditions.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Faults {
    /// The app has a route for all that it was sent.
    pub(crate) routable: bool,
    /// The app lets the sidecar in.
    pub(crate) authorized: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) message: Option<String>,
}

/// The state of the policy file.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PolicyState {
    pub(crate) loaded: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

impl Health {
    /// Remembers a fault that an answer of the app to a job of `job_type` shows, and forgets it when one of that type works.
    pub(crate) fn learn(&self, signal: Signal, job_type: &str, now: Instant) {
        let fault = |status| Some(Fault { status, job_type: job_type.to_owned(), at: now });
        let mut inner = lock(&self.inner);
        match signal {
            Signal::Unroutable(status) => inner.unroutable = fault(status),
            Signal::Unauthorized(status) => inner.unauthorized = fault(status),
            Signal::Works => {
                inner.unroutable.take_if(|fault| fault.job_type == job_type);
                inner.unauthorized.take_if(|fault| fault.job_type == job_type);
            }
            Signal::Throttled(_) | Signal::Unreachable | Signal::Silent => {}
        }
    }

    pub(crate) fn faults(&self, now: Instant) -> Faults {
        let inner = lock(&self.inner);
        let standing = |fault: &Option<Fault>| {
            fault
                .as_ref()
                .filter(|fault| now.duration_since(fault.at) < FAULT_STANDS)
                .map(|fault| fault.status)
        };
        let (unroutable, unauthorized) = (standing(&inner.unroutable), standing(&inner.unauthorized));
        let texts = [
            unroutable.map(|status| format!("the app has no route for a job: it answered {status}")),
            unauthorized.map(|status| format!("the app refuses the sidecar: it answered {status}")),
        ];
        let texts: Vec<_> = texts.into_iter().flatten().collect();
        Faults {
            routable: unroutable.is_none(),
            authorized: unauthorized.is_none(),
            message: (!texts.is_empty()).then(|| texts.join("; ")),
        }
    }

    /// Learns from a call whether its broker is there. An answer that refuses is an answer.
    pub(crate) fn broker_answered<T>(&self, name: &str, answer: &longshore_drivers::Result<T>) {
        match answer {
            Err(error) if is_absence(error) => self.broker_failed(name, &error.message),
            Ok(_) | Err(_) => self.note(name, true, None),
        }
    }

    pub(crate) fn broker_failed(&self, name: &str, message: &str) {
        self.note(name, false, Some(message));
    }

    fn note(&self, name: &str, reachable: bool, message: Option<&str>) {
        let mut inner = lock(&self.inner);
        // A late answer of a broker that is no longer ours.
        if inner.named.as_ref().is_some_and(|named| !named.contains(name)) {
            return;
        }
        let known = inner.brokers.get(name);
        let turned = known.is_none_or(|known| known.reachable != reachable);
        if !turned && known.is_some_and(|known| known.message.as_deref() == message) {
            return;
        }
        let broker = Broker { name: name.to_owned(), reachable, message: message.map(str::to_owned) };
        inner.brokers.insert(name.to_owned(), broker);
        drop(inner);
        match message {
            Some(message) if turned => tracing::warn!(broker = name, error = message, "broker unreachable"),
            None if turned => tracing::info!(broker = name, "broker reachable"),
            Some(_) | None => {}
        }
    }

    /// Forgets brokers that the policy no longer names, for good.
    pub(crate) fn keep_brokers(&self, named: BTreeSet<String>) {
        let mut inner = lock(&self.inner);
        inner.brokers.retain(|name, _| named.contains(name));
        inner.named = Some(named);
    }

    pub(crate) fn brokers(&self) -> Vec<Broker> {
        lock(&self.inner).brokers.values().cloned().collect()
    }

    pub(crate) fn policy_taken(&self) {
        let mut inner = lock(&self.inner);
        inner.policy_loaded = true;
        inner.policy_error = None;
    }

    /// Tells whether this is news.
    pub(crate) fn policy_rejected(&self, error: &str) -> bool {
        let mut inner = lock(&self.inner);
        let news = inner.policy_error.as_deref() != Some(error);
        inner.policy_error = Some(error.to_owned());
        news
    }

    pub(crate) fn policy(&self) -> PolicyState {
        let inner = lock(&self.inner);
        PolicyState { loaded: inner.policy_loaded, error: inner.policy_error.clone() }
    }
}

fn is_absence(error: &Error) -> bool {
    matches!(
        error.kind,
        ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Ambiguous | ErrorKind::Unauthorized
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_stands_for_two_minutes_unless_jobs_of_its_type_work_again() {
        let (health, now) = (Health::default(), Instant::now());
        health.learn(Signal::Unroutable(404), "lost", now);
        health.learn(Signal::Works, "fine", now);
        let faults = health.faults(now + FAULT_STANDS / 2);
        assert!(!faults.routable && faults.authorized, "other routes say nothing of this one");
        assert!(faults.message.unwrap().contains("404"));
        assert!(health.faults(now + FAULT_STANDS).routable);
        health.learn(Signal::Unauthorized(401), "lost", now);
        health.learn(Signal::Works, "lost", now);
        let faults = health.faults(now);
        assert!(faults.routable && faults.authorized && faults.message.is_none(), "{faults:?}");
    }

    #[test]
    fn a_late_answer_brings_no_broker_back_that_the_policy_dropped() {
        let health = Health::default();
        health.keep_brokers(["old".to_owned(), "new".to_owned()].into());
        health.broker_answered::<()>("old", &Ok(()));
        health.keep_brokers(["new".to_owned()].into());
        health.broker_answered::<()>("old", &Ok(()));
        health.broker_answered::<()>("new", &Ok(()));
        let names: Vec<_> = health.brokers().into_iter().map(|broker| broker.name).collect();
        assert_eq!(names, ["new"]);
    }

    #[test]
    fn a_broker_that_refuses_is_reachable() {
        let health = Health::default();
        health.broker_answered::<()>("default", &Err(Error::unavailable("gone")));
        assert!(!health.brokers()[0].reachable);
        health.broker_answered::<()>("default", &Err(Error::invalid("no")));
        assert!(health.brokers()[0].reachable);
    }
}
