//! Brokers tell of new work: this is where it turns into reconciliations. Hints only; polling is the fallback.

use crate::{
    connections::{BrokerKey, Connection},
    context::Context,
};
use futures::StreamExt;
use longshore_drivers::{QueueName, Wake};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How soon a broken subscription is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Listens to every connected broker until it is stopped.
pub(crate) async fn run(context: Arc<Context>, stop: CancellationToken) {
    let mut changes = context.connections.changes();
    let mut listeners: BTreeMap<BrokerKey, (String, JoinHandle<()>)> = BTreeMap::new();
    loop {
        let open = context.connections.all();
        listeners.retain(|key, (fingerprint, task)| {
            let same = open.get(key).is_some_and(|connection| &connection.fingerprint == fingerprint);
            if !same {
                task.abort();
            }
            same
        });
        for (key, connection) in open {
            listeners.entry(key).or_insert_with(|| {
                let fingerprint = connection.fingerprint.clone();
                (fingerprint, tokio::spawn(listen(context.clone(), connection)))
            });
        }
        tokio::select! {
            () = stop.cancelled() => break,
            changed = changes.changed() => if changed.is_err() { break },
        }
    }
    listeners.into_values().for_each(|(_, task)| task.abort());
}

async fn listen(context: Arc<Context>, connection: Connection) {
    loop {
        match connection.driver.wake().await {
            Ok(mut hints) => {
                while let Some(Ok(hint)) = hints.next().await {
                    if let Wake::Queue { queue } = hint {
                        pass_on(&context, &queue);
                    }
                }
            }
            Err(error) => tracing::debug!(%error, "subscription to a broker failed"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

fn pass_on(context: &Context, queue: &QueueName) {
    if let Some(key) = local_name(&context.settings.installation, queue) {
        // Nobody listening is fine: then nobody waits.
        drop(context.woken.send(key));
    }
}

/// Namespace and name of the Queue behind a physical name, if it is ours.
fn local_name(installation: &str, queue: &QueueName) -> Option<(String, String)> {
    let rest = queue.as_str().strip_prefix(installation)?.strip_prefix('.')?;
    let (namespace, name) = rest.split_once('.')?;
    Some((namespace.to_owned(), name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn physical_names_lead_back_to_their_queues() {
        let name = QueueName::physical("prod", "shop", "emails").unwrap();
        assert_eq!(local_name("prod", &name), Some(("shop".to_owned(), "emails".to_owned())));
        assert_eq!(local_name("pro", &name), None);
        assert_eq!(local_name("other", &name), None);
    }
}
