//! From a Broker to a connection.

use super::token::{Rotation, Tokens};
use crate::{
    connections::{Connection, within},
    context::Context,
};
use kube::ResourceExt;
use longshore_crds::Broker;
use longshore_drivers::{
    DynDriver, Error, ErrorKind, Probe,
    open::{Credentials, Server},
};
use sha2::{Digest, Sha256};
use std::{sync::Arc, time::Duration};

const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// Calls that are under way on a connection that was replaced get this long to end.
const RETIRE: Duration = Duration::from_secs(60);

/// What a broker is reached with.
pub(super) enum Access {
    /// Over its HTTP API.
    Http { url: String, tokens: Tokens },
    /// A server that speaks a protocol of its own.
    Server { server: Server, credentials: Credentials },
}

impl Access {
    /// The rotation of its token that the spec asks for.
    pub(super) fn owed(&self) -> Option<(&Tokens, &Rotation)> {
        match self {
            Self::Http { tokens, .. } => Some((tokens, tokens.owed.as_ref()?)),
            Self::Server { .. } => None,
        }
    }
}

/// What one connection is made from.
enum Dial<'a> {
    Http { url: &'a str, token: &'a str },
    Server { server: &'a Server, credentials: &'a Credentials },
}

impl Dial<'_> {
    fn open(&self) -> Result<DynDriver, Error> {
        use longshore_drivers::http::client::{HttpConfig, HttpDriver, TokenSource};
        match self {
            Self::Http { url, token } => {
                let config = HttpConfig::new(url, TokenSource::fixed(*token))?;
                Ok(Arc::new(HttpDriver::new(config)))
            }
            Self::Server { server, credentials } => server.open(credentials),
        }
    }

    /// Tells it from others. Secrets go in as a hash only.
    fn fingerprint(&self) -> String {
        match self {
            Self::Http { url, token } => format!("{url}#{}", hash(&[token.as_bytes()])),
            Self::Server { server, credentials } => {
                let ca = credentials.ca.as_deref().unwrap_or_default();
                format!("{server:?}#{}", hash(&[credentials.url.as_bytes(), ca]))
            }
        }
    }
}

/// Asks the broker who it is, and keeps the connection it was asked over. Also tells whether the current token let it in.
pub(super) async fn probe(
    context: &Context,
    broker: &Broker,
    namespace: &str,
    access: &Access,
) -> (Result<Probe, Error>, bool) {
    let ask = async |dial: Dial<'_>| probe_with(context, broker, namespace, &dial).await;
    let (url, tokens) = match access {
        Access::Http { url, tokens } => (url, tokens),
        Access::Server { server, credentials } => {
            let answer = ask(Dial::Server { server, credentials }).await;
            let current = answer.is_ok();
            return (answer, current);
        }
    };
    let first = ask(Dial::Http { url, token: &tokens.current }).await;
    match (&first, &tokens.previous) {
        (Err(error), Some(previous)) if error.kind == ErrorKind::Unauthorized => {
            (ask(Dial::Http { url, token: previous }).await, false)
        }
        _ => {
            let current = first.is_ok();
            (first, current)
        }
    }
}

/// Whether the broker takes `token`.
pub(super) async fn accepts(access: &Access, token: &str) -> bool {
    let Access::Http { url, .. } = access else { return false };
    let Ok(driver) = (Dial::Http { url, token }).open() else { return false };
    within(PROBE_TIMEOUT, driver.probe()).await.is_ok()
}

async fn probe_with(
    context: &Context,
    broker: &Broker,
    namespace: &str,
    dial: &Dial<'_>,
) -> Result<Probe, Error> {
    let key = (namespace.to_owned(), broker.name_any());
    let fingerprint = dial.fingerprint();
    let broker_uid = broker.uid().unwrap_or_default();
    let there = context.connections.get(&key.0, &key.1);
    let known = there.as_ref().filter(|connection| connection.fingerprint == fingerprint);
    let driver = match known {
        Some(connection) => connection.driver.clone(),
        None => dial.open()?,
    };
    let probe = within(PROBE_TIMEOUT, driver.probe()).await;
    if let (Err(_), None) = (&probe, known) {
        // Nobody else has it.
        driver.close().await;
    }
    let probe = probe?;
    let same_data = known.is_some_and(|connection| connection.backend_id == probe.backend_id);
    if !same_data {
        tracing::info!(namespace, broker = key.1, backend_id = probe.backend_id, "connected");
        let replaced = there.clone().filter(|there| !Arc::ptr_eq(&there.driver, &driver));
        let backend_id = probe.backend_id.clone();
        if there.is_some_and(|there| there.backend_id != backend_id) {
            context.inbox.forget(&key);
        }
        context.connections.put(key, Connection { driver, backend_id, broker_uid, fingerprint });
        replaced.into_iter().for_each(retire);
    }
    Ok(probe)
}

/// Closes a connection once the calls on it have ended.
pub(super) fn retire(connection: Connection) {
    tokio::spawn(async move {
        tokio::time::sleep(RETIRE).await;
        connection.driver.close().await;
    });
}

fn hash(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_password_or_place_is_another_connection_and_none_shows() {
        let server = |prefix: &str| Server::Redis { prefix: prefix.to_owned() };
        let credentials =
            |url: &str, ca: Option<&[u8]>| Credentials { url: url.to_owned(), ca: ca.map(<[u8]>::to_vec) };
        let of =
            |server: &Server, credentials: &Credentials| Dial::Server { server, credentials }.fingerprint();
        let one = of(&server("a"), &credentials("redis://:hunter2@host", None));
        assert_eq!(one, of(&server("a"), &credentials("redis://:hunter2@host", None)));
        for other in [
            of(&server("b"), &credentials("redis://:hunter2@host", None)),
            of(&server("a"), &credentials("redis://:hunter3@host", None)),
            of(&server("a"), &credentials("redis://:hunter2@host", Some(b"pem"))),
            of(&server("a"), &credentials("redis://:hunter2@hostpem", None)),
        ] {
            assert_ne!(one, other);
        }
        assert!(!one.contains("hunter2") && !one.contains("host"), "{one}");
        let http = Dial::Http { url: "http://broker", token: "hunter2" }.fingerprint();
        assert!(http.starts_with("http://broker#") && !http.contains("hunter2"), "{http}");
    }
}
