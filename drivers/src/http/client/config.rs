//! What a client is told when it is made.

use super::TokenSource;
use crate::{Capabilities, Delay, Durability, Error, ErrorKind, IdMemory, Lease, Limits, Result};
use http::{
    Uri,
    uri::{Authority, PathAndQuery, Scheme},
};
use std::time::Duration;

/// The configuration of a client.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    pub(super) base: Base,
    /// The bearer token.
    pub token: TokenSource,
    /// How long a connection may take to be made.
    pub connect_timeout: Duration,
    /// How long a call may take, beside what it asks the broker to wait.
    pub call_timeout: Duration,
    /// What a waiting call gets beyond its wait, for the way there and back.
    pub wait_margin: Duration,
    /// Idle connections are given back after this long. Less than the server's own limit, or a request could meet a
    /// connection that is just being closed.
    pub idle_timeout: Duration,
    /// A wake stream that says nothing for this long is dead; the server says something every 5 s.
    pub silence: Duration,
    /// What the broker is believed to be able to do until it was probed.
    pub assumed: Capabilities,
}

impl HttpConfig {
    /// The usual configuration for the broker at `url`: `http://host:port`, and a prefix of paths if it has one.
    ///
    /// # Errors
    /// `Invalid` for anything that is no such URL; `Unsupported` for https.
    pub fn new(url: &str, token: TokenSource) -> Result<Self> {
        Ok(Self {
            base: Base::parse(url)?,
            token,
            connect_timeout: Duration::from_secs(5),
            call_timeout: Duration::from_secs(30),
            wait_margin: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(15),
            silence: Duration::from_secs(15),
            assumed: embedded(),
        })
    }
}

/// The table of the embedded broker, which is what answers unless a probe says otherwise.
fn embedded() -> Capabilities {
    Capabilities {
        id_memory: IdMemory::UntilAcked,
        fencing: true,
        atomic_settle: true,
        lease: Lease::Extendable,
        delay: Some(Delay { max: Limits::MAX_DELAY }),
        pause: true,
        inspect: true,
        cancel: true,
        result_store: true,
        wake: true,
        exact_depth: true,
        fifo: true,
        durability: Durability::Machine,
        limits: Limits::default(),
    }
}

/// Where a broker's paths start.
#[derive(Debug, Clone)]
pub(super) struct Base {
    authority: Authority,
    prefix: String,
}

impl Base {
    fn parse(url: &str) -> Result<Self> {
        // The URL itself stays out of the errors: it might carry a password.
        let invalid = || Error::invalid("a broker's URL must read http://host:port");
        let parts = url.trim().parse::<Uri>().map_err(|_| invalid())?.into_parts();
        match parts.scheme {
            Some(scheme) if scheme == Scheme::HTTP => {}
            Some(scheme) if scheme == Scheme::HTTPS => {
                return Err(Error::new(ErrorKind::Unsupported, "a broker's URL can't be https yet"));
            }
            _ => return Err(invalid()),
        }
        let authority = parts.authority.filter(|authority| !authority.as_str().contains('@'));
        let path = parts.path_and_query.unwrap_or_else(|| PathAndQuery::from_static("/"));
        if path.query().is_some() {
            return Err(invalid());
        }
        Ok(Self {
            authority: authority.ok_or_else(invalid)?,
            prefix: path.path().trim_end_matches('/').to_owned(),
        })
    }

    /// The URI of `path`, which starts with a slash.
    pub(super) fn join(&self, path: &str) -> Result<Uri> {
        Uri::builder()
            .scheme(Scheme::HTTP)
            .authority(self.authority.clone())
            .path_and_query(format!("{}{path}", self.prefix))
            .build()
            .map_err(|error| Error::invalid(format!("no URI can be made of this request: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_lead_to_uris() {
        for (url, expected) in [
            ("http://broker:7400", "http://broker:7400/v1/probe"),
            ("http://broker:7400/", "http://broker:7400/v1/probe"),
            ("http://[::1]:7400/a/b/", "http://[::1]:7400/a/b/v1/probe"),
        ] {
            assert_eq!(Base::parse(url).unwrap().join("/v1/probe").unwrap(), expected);
        }
    }

    #[test]
    fn other_urls_are_refused() {
        for url in ["", "broker", "broker:7400", "ftp://broker", "http://u:p@broker", "http://broker/?a=b"] {
            assert_eq!(Base::parse(url).unwrap_err().kind, ErrorKind::Invalid, "{url:?}");
        }
        assert_eq!(Base::parse("https://broker").unwrap_err().kind, ErrorKind::Unsupported);
    }
}
