//! Connections to brokers, one per Broker, shared by all controllers.
//!
//! The Broker's controller opens and renews them; everybody else only takes them.

use longshore_drivers::{DynDriver, Error, ErrorKind};
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::watch;

/// Namespace and name of a Broker.
pub(crate) type BrokerKey = (String, String);

/// One connection.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    pub(crate) driver: DynDriver,
    /// The id of the broker's data.
    pub(crate) backend_id: String,
    /// The uid of the Broker that it was made for: one that comes later under its name is another one.
    pub(crate) broker_uid: String,
    /// What the connection was made from: another value means another connection.
    pub(crate) fingerprint: String,
}

/// All connections.
#[derive(Debug)]
pub(crate) struct Connections {
    open: Mutex<BTreeMap<BrokerKey, Connection>>,
    changes: watch::Sender<u64>,
}

impl Default for Connections {
    fn default() -> Self {
        Self { open: Mutex::default(), changes: watch::channel(0).0 }
    }
}

impl Connections {
    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<Connection> {
        self.lock().get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    /// Puts `connection` in the place of the one before and tells the watchers.
    pub(crate) fn put(&self, key: BrokerKey, connection: Connection) {
        self.lock().insert(key, connection);
        self.changes.send_modify(|version| *version += 1);
    }

    /// Forgets the connection to a Broker if it is one that `hit` says, and gives it to whoever closes it.
    pub(crate) fn remove_if(&self, key: &BrokerKey, hit: impl Fn(&Connection) -> bool) -> Option<Connection> {
        let removed = {
            let mut open = self.lock();
            open.get(key).is_some_and(hit).then(|| open.remove(key)).flatten()
        };
        if removed.is_some() {
            self.changes.send_modify(|version| *version += 1);
        }
        removed
    }

    /// All of them as they are now.
    pub(crate) fn all(&self) -> BTreeMap<BrokerKey, Connection> {
        self.lock().clone()
    }

    /// Changes whenever a connection comes, goes or is replaced.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<BrokerKey, Connection>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Calls a broker, but doesn't wait longer than `limit`: one that takes connections and never answers must hold nobody up.
pub(crate) async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    tokio::time::timeout(limit, call).await.unwrap_or_else(|_| {
        Err(Error::new(ErrorKind::Timeout, format!("the broker did not answer within {limit:?}")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_broker_that_never_answers_is_not_waited_for() {
        let limit = Duration::from_millis(10);
        let silent = within(limit, std::future::pending::<Result<(), Error>>()).await.unwrap_err();
        assert_eq!(silent.kind, ErrorKind::Timeout);
        assert_eq!(within(limit, std::future::ready(Ok(7))).await.unwrap(), 7);
    }
}
