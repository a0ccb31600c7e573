//! Where a Redis server is, and how to get in.

use crate::{Error, Result};
use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, io::tcp::TcpSettings};
use std::fmt;

/// How to reach a Redis server.
#[derive(Clone)]
pub struct RedisConfig {
    info: ConnectionInfo,
    /// The certificates (PEM) that may sign the server's; without them those of this machine. Only for `rediss://`.
    pub ca: Option<Vec<u8>>,
    /// All keys begin with it: 1 to 64 letters, digits, dots, dashes, underscores and colons. `longshore` by default.
    pub prefix: String,
}

impl RedisConfig {
    /// The server at `url`: `redis://[user:password@]host[:port][/db]`, or `rediss://` for TLS.
    ///
    /// # Errors
    /// `Invalid` when it is no such URL; the message doesn't repeat it, there may be a password in it.
    pub fn new(url: &str) -> Result<Self> {
        let invalid = || {
            Error::invalid(
                "the URL of a Redis server must be redis://[user:password@]host[:port][/db], or rediss:// for TLS",
            )
        };
        let url = url.trim();
        if !url.starts_with("redis://") && !url.starts_with("rediss://") {
            return Err(invalid());
        }
        let info = url.into_connection_info().map_err(|_| invalid())?;
        match info.addr() {
            ConnectionAddr::Tcp(..) | ConnectionAddr::TcpTls { insecure: false, .. } => {}
            _ => return Err(invalid()),
        }
        let info = info.set_tcp_settings(TcpSettings::default().set_nodelay(true));
        Ok(Self { info, ca: None, prefix: "longshore".to_owned() })
    }

    pub(super) fn client(&self) -> Result<redis::Client> {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':');
        if self.prefix.is_empty() || self.prefix.len() > 64 || !self.prefix.bytes().all(legal) {
            return Err(Error::invalid(
                "the prefix of a Redis broker must be 1 to 64 letters, digits, dots, dashes, underscores and colons",
            ));
        }
        let tls = matches!(self.info.addr(), ConnectionAddr::TcpTls { .. });
        if tls {
            // Whoever was first decides for the process; there is one already then.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        match &self.ca {
            Some(pem) if tls => {
                let certificates = redis::TlsCertificates { client_tls: None, root_cert: Some(pem.clone()) };
                redis::Client::build_with_tls(self.info.clone(), certificates)
            }
            Some(_) => return Err(Error::invalid("certificates are given, but the URL isn't rediss://")),
            None => redis::Client::open(self.info.clone()),
        }
        .map_err(|error| Error::invalid(format!("the Redis client can't be made: {}", error.category())))
    }
}

impl fmt::Debug for RedisConfig {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("RedisConfig").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn urls_are_read_and_never_shown() {
        for good in ["redis://h", "redis://:secret@h:1/2", "rediss://user:secret@h:6380", " redis://h\n"] {
            let config = RedisConfig::new(good).unwrap();
            assert!(!format!("{config:?}").contains("secret"));
        }
        for bad in [
            "",
            "secret",
            "http://secret@h",
            "redis://secret@:x",
            "unix:///secret",
            "rediss://secret@h/#insecure",
        ] {
            let error = RedisConfig::new(bad).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Invalid, "{bad}");
            assert!(!error.message.contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_prefix_that_would_break_the_keys_is_refused() {
        for bad in ["", "a{b}", "a b", &"x".repeat(65)] {
            let config = RedisConfig { prefix: bad.to_owned(), ..RedisConfig::new("redis://h").unwrap() };
            assert_eq!(config.client().unwrap_err().kind, ErrorKind::Invalid, "{bad}");
        }
    }
}
