//! What the watches have seen: brokers and queues by name, without asking the API server each time.

use kube::runtime::reflector::{ObjectRef, Store};
use longshore_crds::{Broker, Queue};
use std::sync::Arc;

/// Stores of all scopes.
#[derive(Clone, Default)]
pub(crate) struct Lookup {
    pub(crate) brokers: Vec<Store<Broker>>,
    pub(crate) queues: Vec<Store<Queue>>,
}

impl Lookup {
    pub(crate) fn broker(&self, namespace: &str, name: &str) -> Option<Arc<Broker>> {
        let key = ObjectRef::new(name).within(namespace);
        self.brokers.iter().find_map(|store| store.get(&key))
    }

    pub(crate) fn queue(&self, namespace: &str, name: &str) -> Option<Arc<Queue>> {
        let key = ObjectRef::new(name).within(namespace);
        self.queues.iter().find_map(|store| store.get(&key))
    }
}
