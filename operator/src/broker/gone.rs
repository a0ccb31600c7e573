//! Connections of Brokers that are gone. A deletion in the background leaves the controller no last look at the object, so
//! somebody has to look for connections that nobody stands for.

use super::connect;
use crate::{
    connections::{BrokerKey, Connection},
    context::Context,
};
use kube::ResourceExt;
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A Queue whose jobs are to be deleted with it may go in the same sweep as its Broker, and is given 30 s.
const KEEP: Duration = Duration::from_secs(45);

/// Closes the connections of Brokers that are gone, until it is stopped.
pub(crate) async fn run(context: Arc<Context>, stop: CancellationToken) {
    let mut gone = Gone::default();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let stands = |key: &BrokerKey, uid: &str| {
            let broker = context.lookup.broker(&key.0, &key.1);
            broker.is_some_and(|broker| broker.uid().as_deref() == Some(uid))
        };
        for (key, uid) in gone.over(&context.connections.all(), stands, Instant::now()) {
            close(&context, &key, |connection| connection.broker_uid == uid);
        }
    }
}

/// Closes the connection to a Broker if it is one that `hit` says, and forgets what was heard over it.
pub(super) fn close(context: &Context, key: &BrokerKey, hit: impl Fn(&Connection) -> bool) {
    if let Some(connection) = context.connections.remove_if(key, hit) {
        tracing::info!(namespace = key.0, broker = key.1, "the Broker is gone: closing its connection");
        context.inbox.forget(key);
        connect::retire(connection);
    }
}

/// Since when connections have had no Broker.
#[derive(Debug, Default)]
struct Gone(BTreeMap<(BrokerKey, String), Instant>);

impl Gone {
    /// Those that have had none for long enough.
    fn over(
        &mut self,
        open: &BTreeMap<BrokerKey, Connection>,
        stands: impl Fn(&BrokerKey, &str) -> bool,
        now: Instant,
    ) -> Vec<(BrokerKey, String)> {
        let alone = open
            .iter()
            .map(|(key, connection)| (key.clone(), connection.broker_uid.clone()))
            .filter(|(key, uid)| !stands(key, uid));
        self.0 = alone.map(|alone| (alone.clone(), self.0.get(&alone).copied().unwrap_or(now))).collect();
        let over = self.0.iter().filter(|(_, since)| now.saturating_duration_since(**since) >= KEEP);
        over.map(|(alone, _)| alone.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use longshore_drivers::memory::Memory;

    #[test]
    fn a_connection_whose_broker_is_gone_is_kept_for_its_queues_and_then_closed() {
        let key = |name: &str| ("shop".to_owned(), name.to_owned());
        let connection = |uid: &str| Connection {
            driver: Arc::new(Memory::new()),
            backend_id: "data".to_owned(),
            broker_uid: uid.to_owned(),
            fingerprint: String::new(),
        };
        let open = BTreeMap::from([(key("stays"), connection("1")), (key("left"), connection("2"))]);
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let left = |key: &BrokerKey, _: &str| key.1 != "left";
        let mut gone = Gone::default();
        assert!(gone.over(&open, left, at(0)).is_empty());
        assert!(gone.over(&open, left, at(44)).is_empty());
        assert_eq!(gone.over(&open, left, at(45)), [(key("left"), "2".to_owned())]);
        // It was only late to be seen, and goes later.
        assert!(gone.over(&open, |_, _| true, at(46)).is_empty());
        assert!(gone.over(&open, left, at(90)).is_empty());
        // Another one has come under the name.
        assert!(gone.over(&open, |_, uid| uid != "1", at(91)).is_empty());
        assert_eq!(gone.over(&open, |_, uid| uid != "1", at(136)), [(key("stays"), "1".to_owned())]);
    }
}
