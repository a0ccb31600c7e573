//! The policy file: reads it again when it changed and keeps the last good one.
//!
//! It is polled because the kubelet replaces a `ConfigMap` by swapping a symlink, which file watches see late or not at all.

use crate::{
    core::Core,
    plan::{Lane, Plan, Target},
};
use futures::future::{BoxFuture, join_all};
use longshore_drivers::{
    DynDriver,
    policy::{BrokerAccess, Handler, WorkerPolicy},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::time::{sleep, timeout};

/// How often the file is looked at.
const EVERY: Duration = Duration::from_secs(1);
/// A connection that takes longer is tried again.
const CONNECT: Duration = Duration::from_secs(5);

/// Connects to a broker. A function, so that tests bring their own brokers.
pub type Connect =
    Arc<dyn Fn(BrokerAccess) -> BoxFuture<'static, longshore_drivers::Result<DynDriver>> + Send + Sync>;

/// Why a policy file was not taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It can't be read.
    #[error("failed to read the policy")]
    Read(#[source] std::io::Error),
    /// It is no policy.
    #[error("failed to parse the policy")]
    Parse(#[source] serde_json::Error),
    /// A newer operator wrote it.
    #[error("the policy has version {0}, this sidecar reads up to {max}", max = WorkerPolicy::VERSION)]
    Newer(u32),
    /// It contradicts itself.
    #[error("the policy is invalid: {0}")]
    Invalid(String),
}

#[derive(serde::Deserialize)]
struct Version {
    version: u32,
}

/// Reads `bytes` as a policy. The version is looked at first: a newer form need not parse as this one.
pub fn parse(bytes: &[u8]) -> Result<WorkerPolicy, Error> {
    let Version { version } = serde_json::from_slice(bytes).map_err(Error::Parse)?;
    if version > WorkerPolicy::VERSION {
        return Err(Error::Newer(version));
    }
    let policy: WorkerPolicy = serde_json::from_slice(bytes).map_err(Error::Parse)?;
    validate(&policy)?;
    Ok(policy)
}

fn validate(policy: &WorkerPolicy) -> Result<(), Error> {
    let check = |holds: bool, message: &dyn Fn() -> String| {
        if holds { Ok(()) } else { Err(Error::Invalid(message())) }
    };
    check(policy.concurrency > 0, &|| "concurrency is 0".to_owned())?;
    check_handler(&policy.handler)?;
    let brokers: BTreeSet<_> = policy.brokers.iter().map(|broker| &broker.name).collect();
    let mut names = BTreeSet::new();
    for queue in &policy.queues {
        let name = &queue.name;
        check(names.insert(name), &|| format!("queue {name} stands there twice"))?;
        check(brokers.contains(&queue.broker), &|| format!("queue {name} has an unknown broker"))?;
        check(!queue.lease.is_zero(), &|| format!("queue {name} has no lease"))?;
    }
    Ok(())
}

/// Whether jobs can reach an app in this way.
pub(crate) fn check_handler(handler: &Handler) -> Result<(), Error> {
    if matches!(handler, Handler::Http { port: 0, .. }) {
        return Err(Error::Invalid("the handler's port is 0".to_owned()));
    }
    match Target::of(handler) {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::Invalid(format!("the handler's path is no path: {error}"))),
    }
}

/// What belongs to this pod and not to all pods of the Worker: the policy may be that of a newer template already.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Own {
    /// How jobs reach this app.
    pub handler: Option<Handler>,
    /// How long running jobs get before this pod ends.
    pub drain_timeout: Option<Duration>,
}

impl Own {
    /// The policy as it is for this pod.
    fn over(&self, mut policy: WorkerPolicy) -> WorkerPolicy {
        if let Some(handler) = &self.handler {
            policy.handler = handler.clone();
        }
        policy.drain_timeout = self.drain_timeout.unwrap_or(policy.drain_timeout);
        policy
    }
}

/// Reads the file over and over, and keeps the plan in line with it.
pub(crate) async fn follow(core: Arc<Core>, path: PathBuf, own: Own, connect: Connect) {
    let mut follower =
        Follower { core, own, connect, bytes: None, policy: None, connections: BTreeMap::new() };
    loop {
        follower.turn(&path).await;
        sleep(EVERY).await;
    }
}

struct Follower {
    core: Arc<Core>,
    own: Own,
    connect: Connect,
    bytes: Option<Vec<u8>>,
    policy: Option<Arc<WorkerPolicy>>,
    connections: BTreeMap<String, (BrokerAccess, DynDriver)>,
}

impl Follower {
    async fn turn(&mut self, path: &Path) {
        let changed = self.read(path);
        let Some(policy) = self.policy.clone() else { return };
        if changed {
            let names = policy.brokers.iter().map(|broker| broker.name.clone());
            self.core.health.keep_brokers(names.collect());
        }
        let connected = self.connect_missing(&policy).await;
        if changed || connected {
            self.install(&policy);
        }
    }

    /// Takes a new policy from the file, if there is one.
    fn read(&mut self, path: &Path) -> bool {
        // A few kilobytes from the node's memory: not worth a thread.
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) => {
                self.reject(&Error::Read(error));
                return false;
            }
        };
        if self.bytes.as_ref() == Some(&bytes) {
            return false;
        }
        let parsed = parse(&bytes);
        self.bytes = Some(bytes);
        match parsed {
            Ok(policy) => {
                tracing::info!(
                    queues = policy.queues.len(),
                    concurrency = policy.concurrency,
                    "policy taken"
                );
                self.core.health.policy_taken();
                self.core.metrics.policy_ok.set(1);
                self.policy = Some(Arc::new(self.own.over(policy)));
                true
            }
            Err(error) => {
                self.reject(&error);
                false
            }
        }
    }

    fn reject(&mut self, error: &Error) {
        // A file that comes back unchanged after it was unreadable has to clear the error.
        if matches!(error, Error::Read(_)) {
            self.bytes = None;
        }
        self.core.metrics.policy_ok.set(0);
        let text = chain(error);
        if self.core.health.policy_rejected(&text) {
            tracing::warn!(error = text, kept = self.policy.is_some(), "policy not taken");
        }
    }

    /// Connects to brokers that are new or changed; those that can't be reached are tried again with the next turn. Until a
    /// changed one is, the connection from before has to do: files that a newer template mounts are in no older pod.
    async fn connect_missing(&mut self, policy: &WorkerPolicy) -> bool {
        let is_named = |name: &str| policy.brokers.iter().any(|access| access.name == name);
        let dropped = self.connections.extract_if(.., |name, _| !is_named(name));
        dropped.for_each(|(_, (_, driver))| retire(driver));
        let is_open = |access: &BrokerAccess| {
            self.connections.get(&access.name).is_some_and(|(open, _)| open == access)
        };
        let missing: Vec<_> = policy.brokers.iter().filter(|access| !is_open(access)).collect();
        let attempts = missing.into_iter().map(|access| {
            let connecting = (self.connect)(access.clone());
            async move { (access, timeout(CONNECT, connecting).await) }
        });
        let mut connected = false;
        for (access, attempt) in join_all(attempts).await {
            match attempt {
                Ok(Ok(driver)) => {
                    let before = self.connections.insert(access.name.clone(), (access.clone(), driver));
                    before.into_iter().for_each(|(_, driver)| retire(driver));
                    connected = true;
                }
                Ok(Err(error)) => self.core.health.broker_failed(&access.name, &error.to_string()),
                Err(_) => self.core.health.broker_failed(&access.name, "no answer to the connection"),
            }
        }
        connected
    }

    fn install(&self, policy: &Arc<WorkerPolicy>) {
        let lanes = policy.queues.iter().filter_map(|queue| {
            let (_, driver) = self.connections.get(&queue.broker)?;
            let lane = Lane::new(queue.clone(), policy.namespace.clone(), driver.clone());
            Some(Arc::new(lane))
        });
        let plan = Plan {
            lanes: lanes.collect(),
            target: Target::of(&policy.handler).ok().flatten(),
            policy: Some(policy.clone()),
        };
        self.core.install(plan);
    }
}

/// Closes a connection once no job of it is left.
fn retire(driver: DynDriver) {
    tokio::spawn(async move {
        while Arc::strong_count(&driver) > 1 {
            sleep(EVERY).await;
        }
        driver.close().await;
    });
}

/// An error with its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::policy;

    fn with(change: impl FnOnce(&mut WorkerPolicy)) -> Result<WorkerPolicy, Error> {
        let mut policy = policy(8080, &["emails", "images"]);
        change(&mut policy);
        parse(&serde_json::to_vec(&policy).unwrap())
    }

    #[test]
    fn a_good_policy_is_taken() {
        assert!(with(|_| {}).is_ok());
        assert!(with(|policy| policy.handler = Handler::Pull {}).is_ok());
    }

    #[test]
    fn a_newer_policy_is_refused_even_if_it_looks_different() {
        let error = parse(br#"{"version": 2, "concurrency": "auto"}"#).unwrap_err();
        assert!(matches!(error, Error::Newer(2)), "{error}");
    }

    #[test]
    fn what_belongs_to_the_pod_holds_whatever_the_policy_says() {
        let newer = policy(9090, &["emails"]);
        assert_eq!(Own::default().over(newer.clone()), newer);
        let own = Own { handler: Some(Handler::Pull {}), drain_timeout: Some(Duration::from_secs(7)) };
        let mine = own.over(newer.clone());
        assert_eq!((mine.handler, mine.drain_timeout), (Handler::Pull {}, Duration::from_secs(7)));
        assert_eq!(mine.queues, newer.queues);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_closed_after_its_last_job() {
        let driver: DynDriver = Arc::new(longshore_drivers::memory::Memory::new());
        let (job, left) = (driver.clone(), Arc::downgrade(&driver));
        retire(driver);
        sleep(EVERY * 3).await;
        assert!(job.probe().await.is_ok());
        drop(job);
        sleep(EVERY * 2).await;
        assert!(left.upgrade().is_none());
    }

    #[test]
    fn contradictions_are_refused() {
        for refused in [
            with(|policy| policy.concurrency = 0),
            with(|policy| policy.brokers.clear()),
            with(|policy| policy.queues[1].name = "emails".into()),
            with(|policy| policy.queues[0].lease = Duration::ZERO),
            with(|policy| policy.handler = Handler::Http { port: 0, path: "/".into() }),
            with(|policy| policy.handler = Handler::Http { port: 1, path: "/a b".into() }),
        ] {
            assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
        }
        assert!(matches!(parse(b"{"), Err(Error::Parse(_))));
    }
}
