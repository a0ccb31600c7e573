//! From how a broker is reached to a driver for it.
//!
//! The operator has the credentials of a server in memory and opens a [`Server`] with them; a sidecar has them in files and
//! opens a [`Via`], whose driver reads the files again when the server refuses what stood in them.

mod renewing;

use crate::{DynDriver, Error, ErrorKind, Result, policy::Via};
use renewing::{Files, Renewing};
use std::{fmt, sync::Arc};

/// What opens a server.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Its URL, with user and password.
    pub url: String,
    /// Certificates, in PEM, that may have signed the server's.
    pub ca: Option<Vec<u8>>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ca = self.ca.as_ref().map_or(0, Vec::len);
        write!(out, "Credentials {{ url: …, ca: {ca} bytes }}")
    }
}

/// A server that a driver speaks to by itself, and the place of the jobs on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Server {
    /// Redis.
    Redis {
        /// All keys begin with it.
        prefix: String,
    },
    /// PostgreSQL.
    Postgres {
        /// The schema of all tables.
        schema: String,
        /// Whether a connection of its own may listen for notifications.
        listen: bool,
    },
}

impl Server {
    /// A driver for this server. No connection is made yet: the server need not be there.
    ///
    /// # Errors
    /// `Invalid` when the URL or a certificate is none; the message has nothing of either. `Unsupported` when this program
    /// was built without the backend.
    pub fn open(&self, credentials: &Credentials) -> Result<DynDriver> {
        match self {
            Self::Redis { prefix } => redis(prefix, credentials),
            Self::Postgres { schema, listen } => postgres(schema, *listen, credentials),
        }
    }
}

/// A driver for a broker whose credentials are files. No connection is made yet: the broker need not be there.
///
/// # Errors
/// `Invalid` when a URL or certificate is none; `Unauthorized` when a server's file can't be read; `Unsupported` when this
/// program was built without the backend.
pub fn open(via: &Via) -> Result<DynDriver> {
    let (server, files) = match via {
        Via::Http { url, token_files } => return http(url, token_files),
        Via::Redis { url_file, ca_file, prefix } => {
            (Server::Redis { prefix: prefix.clone() }, Files::new(url_file, ca_file.as_deref()))
        }
        Via::Postgres { url_file, ca_file, schema, listen } => {
            let server = Server::Postgres { schema: schema.clone(), listen: *listen };
            (server, Files::new(url_file, ca_file.as_deref()))
        }
    };
    let opener = move |credentials: &Credentials| server.open(credentials);
    Ok(Arc::new(Renewing::open(files, Box::new(opener))?))
}

#[cfg(feature = "http-client")]
fn http(url: &str, token_files: &[String]) -> Result<DynDriver> {
    use crate::http::client::{HttpConfig, HttpDriver, TokenSource};
    let tokens = TokenSource::files(token_files.iter().map(Into::into).collect());
    Ok(Arc::new(HttpDriver::new(HttpConfig::new(url, tokens)?)))
}

#[cfg(not(feature = "http-client"))]
fn http(_: &str, _: &[String]) -> Result<DynDriver> {
    Err(without("http"))
}

#[cfg(feature = "redis")]
fn redis(prefix: &str, credentials: &Credentials) -> Result<DynDriver> {
    use crate::redis::{Redis, RedisConfig};
    let mut config = RedisConfig::new(&credentials.url)?;
    config.ca.clone_from(&credentials.ca);
    prefix.clone_into(&mut config.prefix);
    Ok(Arc::new(Redis::new(config)?))
}

#[cfg(not(feature = "redis"))]
fn redis(_: &str, _: &Credentials) -> Result<DynDriver> {
    Err(without("redis"))
}

#[cfg(feature = "postgres")]
fn postgres(schema: &str, listen: bool, credentials: &Credentials) -> Result<DynDriver> {
    use crate::postgres::{Postgres, PostgresConfig};
    let mut config = PostgresConfig::new(&credentials.url)?;
    config.ca.clone_from(&credentials.ca);
    schema.clone_into(&mut config.schema);
    config.listen = listen;
    Ok(Arc::new(Postgres::new(config)?))
}

#[cfg(not(feature = "postgres"))]
fn postgres(_: &str, _: bool, _: &Credentials) -> Result<DynDriver> {
    Err(without("postgres"))
}

#[cfg_attr(
    all(feature = "http-client", feature = "redis", feature = "postgres"),
    expect(dead_code, reason = "this build has every backend")
)]
fn without(backend: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("this program was built without the backend {backend}"))
}
