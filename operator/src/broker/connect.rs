//! From a Broker to a connection.

use super::{build::url, token::Tokens};
use crate::{
    connections::{Connection, Connections, within},
    context::Context,
};
use kube::ResourceExt;
use longshore_crds::Broker;
use longshore_drivers::{Driver, Error, ErrorKind, Probe};
use sha2::{Digest, Sha256};
use std::{sync::Arc, time::Duration};

const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// Asks the broker who it is, and keeps the connection it was asked over. Also tells whether the current token let it in.
pub(super) async fn probe(
    context: &Context,
    broker: &Broker,
    namespace: &str,
    tokens: &Tokens,
) -> (Result<Probe, Error>, bool) {
    let first = probe_with(context, broker, namespace, &tokens.current).await;
    match (&first, &tokens.previous) {
        (Err(error), Some(previous)) if error.kind == ErrorKind::Unauthorized => {
            (probe_with(context, broker, namespace, previous).await, false)
        }
        _ => {
            let current = first.is_ok();
            (first, current)
        }
    }
}

/// Whether the broker takes `token`.
pub(super) async fn accepts(broker: &Broker, token: &str) -> bool {
    let Ok(driver) = open(&url(broker), token) else { return false };
    within(PROBE_TIMEOUT, driver.probe()).await.is_ok()
}

async fn probe_with(
    context: &Context,
    broker: &Broker,
    namespace: &str,
    token: &str,
) -> Result<Probe, Error> {
    let key = (namespace.to_owned(), broker.name_any());
    let url = url(broker);
    let fingerprint = fingerprint(&url, token);
    let known =
        context.connections.get(&key.0, &key.1).filter(|connection| connection.fingerprint == fingerprint);
    let driver = match &known {
        Some(connection) => connection.driver.clone(),
        None => open(&url, token)?,
    };
    let probe = within(PROBE_TIMEOUT, driver.probe()).await?;
    let same_data = known.as_ref().is_some_and(|connection| connection.backend_id == probe.backend_id);
    if !same_data {
        put(
            &context.connections,
            key,
            Connection { driver, backend_id: probe.backend_id.clone(), fingerprint },
        );
    }
    Ok(probe)
}

fn put(connections: &Connections, key: (String, String), connection: Connection) {
    tracing::info!(namespace = key.0, broker = key.1, backend_id = connection.backend_id, "connected");
    connections.put(key, connection);
}

fn open(url: &str, token: &str) -> Result<Arc<dyn Driver>, Error> {
    use longshore_drivers::http::client::{HttpConfig, HttpDriver, TokenSource};
    let config = HttpConfig::new(url, TokenSource::fixed(token))?;
    Ok(Arc::new(HttpDriver::new(config)))
}

/// What a connection is made from. The token goes in as a hash only.
fn fingerprint(url: &str, token: &str) -> String {
    let hash = Sha256::digest(token.as_bytes());
    let tag: String = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("{url}#{tag}")
}
