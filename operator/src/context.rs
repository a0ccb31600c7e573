//! What every controller shares.

use crate::{
    backoff::Backoff, cli::Settings, connections::Connections, leader::Leadership, lookup::Lookup,
    metrics::Metrics,
};
use k8s_openapi::{NamespaceResourceScope, jiff::Timestamp};
use kube::{Api, Client, Resource, runtime::events::Recorder};
use longshore_drivers::Address;
use std::{sync::Arc, time::Duration};

/// What every controller shares.
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) settings: Settings,
    pub(crate) leadership: Leadership,
    pub(crate) connections: Connections,
    pub(crate) lookup: Lookup,
    pub(crate) recorder: Recorder,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) backoff: Backoff,
    /// What follows a commit and needn't be waited for: acknowledgements, Events. Losing it does no harm.
    pub(crate) background: tokio_util::task::TaskTracker,
    /// Queues, by namespace and name, that have work they had not before.
    pub(crate) woken: tokio::sync::broadcast::Sender<(String, String)>,
    /// Completions on their way to their workflows.
    pub(crate) inbox: crate::workflows::Inbox,
    /// What this process knows of workflows beyond what the watch has shown it.
    pub(crate) memory: crate::workflows::Memory,
    /// What workflows may write of their status together.
    pub(crate) bucket: crate::workflows::Bucket,
}

impl Context {
    /// Where completions of the workflows of `namespace` go. One of each namespace, so that namespaces that share a broker
    /// take nothing away from each other.
    pub(crate) fn address(&self, namespace: &str) -> longshore_drivers::Result<Address> {
        address(&self.settings.installation, namespace)
    }

    /// The wall clock; read here and nowhere else.
    #[expect(clippy::unused_self, reason = "a context is where a test can put another clock")]
    pub(crate) fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}

/// Neither an installation's name nor a namespace has a dot.
pub(crate) fn address(installation: &str, namespace: &str) -> longshore_drivers::Result<Address> {
    Address::new(format!("{installation}.{namespace}"))
}

/// A reconciliation that takes longer is given up and tried again.
pub(crate) const RECONCILE_DEADLINE: Duration = Duration::from_secs(30);

/// The part of the cluster that one set of controllers looks after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Scope {
    /// All namespaces.
    Cluster,
    /// One namespace.
    Namespace(String),
}

impl Scope {
    /// The scopes that `namespaces` mean.
    pub(crate) fn of(namespaces: &[String]) -> Vec<Self> {
        let mut names: Vec<_> =
            namespaces.iter().map(|name| name.trim()).filter(|name| !name.is_empty()).collect();
        names.sort_unstable();
        names.dedup();
        if names.is_empty() {
            return vec![Self::Cluster];
        }
        names.into_iter().map(|name| Self::Namespace(name.to_owned())).collect()
    }

    /// The API of `K` in this scope.
    pub(crate) fn api<K>(&self, client: &Client) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        match self {
            Self::Cluster => Api::all(client.clone()),
            Self::Namespace(name) => Api::namespaced(client.clone(), name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Scope;

    #[test]
    fn no_namespaces_mean_all_and_repeated_ones_count_once() {
        assert_eq!(Scope::of(&[]), [Scope::Cluster]);
        assert_eq!(Scope::of(&[String::new()]), [Scope::Cluster]);
        let twice = ["b".to_owned(), " a".to_owned(), "b".to_owned()];
        assert_eq!(Scope::of(&twice), [Scope::Namespace("a".to_owned()), Scope::Namespace("b".to_owned())]);
    }
}
