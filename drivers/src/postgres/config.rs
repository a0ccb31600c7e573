//! What a driver is told about its server.

use crate::{Error, Result};
use std::{fmt, str::FromStr, time::Duration};
use tokio_postgres::config::{SslMode, TargetSessionAttrs};

/// How long a connection may take to be made.
const CONNECTS: Duration = Duration::from_secs(5);
const ANSWERS: Duration = Duration::from_secs(10);
/// Where tables and functions are unless somebody says otherwise.
const SCHEMA: &str = "longshore";
/// Bytes of a schema's name: it is also the name of the notifications' channel.
const SCHEMA_BYTES: usize = 48;

/// The configuration of a driver for PostgreSQL. What it prints holds no credentials.
#[derive(Clone)]
pub struct PostgresConfig {
    pub(super) server: tokio_postgres::Config,
    /// Certificates, as PEM, of those whom the server's certificate may be signed by. With them the connection is
    /// encrypted and the server's name checked, whatever `sslmode` says.
    pub ca: Option<Vec<u8>>,
    /// The schema that everything is in, `longshore` by default: 1 to 48 lowercase letters, digits and underscores.
    pub schema: String,
    /// Whether to LISTEN for new jobs, on a connection of its own. Without it the driver polls and keeps no state in a
    /// session, as PgBouncer needs it in transaction mode.
    pub listen: bool,
    /// How many connections carry calls, at most.
    pub connections: usize,
    /// How long the server may take to take a connection: 5 s by default.
    pub connects: Duration,
    /// How long it may take to answer a statement: 10 s by default. It is told to give up a little earlier.
    pub answers: Duration,
}

impl PostgresConfig {
    /// The configuration for the server at `url`: `postgres://user:password@host:port/database?sslmode=…`, or
    /// `key=value` pairs as libpq reads them. `sslmode` is `disable`, `prefer` (encrypted if the server can, without a
    /// look at its certificate), `require`, `verify-ca` or `verify-full`; the last three check the certificate and the
    /// server's name, with the system's roots unless [`PostgresConfig::ca`] is given.
    ///
    /// # Errors
    /// `Invalid` when it makes no sense. The text never holds the URL.
    pub fn new(url: &str) -> Result<Self> {
        // The library knows `require` only; here it is as strict as these two.
        let known = url.replace("sslmode=verify-full", "sslmode=require");
        let known = known.replace("sslmode=verify-ca", "sslmode=require");
        let mut server = tokio_postgres::Config::from_str(known.trim()).map_err(|error| {
            // What the library says names the parameter, not its value; its cause may quote a part of the URL.
            let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            let named = if cause.starts_with("invalid value for option") { cause } else { String::new() };
            Error::invalid(format!("the URL of PostgreSQL can't be read {named}").trim_end().to_owned())
        })?;
        if server.get_hosts().is_empty() && server.get_hostaddrs().is_empty() {
            return Err(Error::invalid("the URL of PostgreSQL names no host"));
        }
        if server.get_user().is_none() {
            return Err(Error::invalid("the URL of PostgreSQL names no user"));
        }
        server
            .tcp_user_timeout(Duration::from_secs(15))
            .keepalives_idle(Duration::from_secs(30))
            .keepalives_interval(Duration::from_secs(10))
            .keepalives_retries(3);
        if server.get_hosts().len().max(server.get_hostaddrs().len()) > 1 {
            // Of several servers the one that takes changes.
            server.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        if server.get_application_name().is_none() {
            server.application_name("longshore");
        }
        Ok(Self {
            server,
            ca: None,
            schema: SCHEMA.to_owned(),
            listen: true,
            connections: 4,
            connects: CONNECTS,
            answers: ANSWERS,
        })
    }

    /// Checks what the fields say.
    pub(super) fn validate(&self) -> Result<()> {
        let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        let begins = self.schema.bytes().next().is_some_and(|byte| !byte.is_ascii_digit());
        if !begins || self.schema.len() > SCHEMA_BYTES || !self.schema.bytes().all(legal) {
            return Err(Error::invalid(format!(
                "a schema's name must be 1 to {SCHEMA_BYTES} lowercase letters, digits and underscores, and begin with no \
                 digit"
            )));
        }
        if self.schema.starts_with("pg_") {
            return Err(Error::invalid("a schema whose name begins with pg_ belongs to PostgreSQL"));
        }
        if self.connections == 0 {
            return Err(Error::invalid("a driver needs 1 connection at least"));
        }
        Ok(())
    }

    /// How a connection is encrypted. Whoever names whom to trust doesn't want to go on without.
    pub(super) fn ssl_mode(&self) -> SslMode {
        if self.ca.is_some() { SslMode::Require } else { self.server.get_ssl_mode() }
    }
}

impl fmt::Debug for PostgresConfig {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("PostgresConfig")
            .field("schema", &self.schema)
            .field("listen", &self.listen)
            .field("connections", &self.connections)
            .field("ca", &self.ca.as_ref().map(Vec::len))
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_and_pairs_are_read() {
        for url in [
            "postgres://user:secret@host:5433/db",
            "postgresql://user@host/db?sslmode=require",
            "host=host port=5433 user=user password=secret dbname=db sslmode=disable",
            "postgres://user:secret@host/db?sslmode=verify-full",
        ] {
            assert!(PostgresConfig::new(url).is_ok(), "{url}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_not_repeated() {
        for url in ["postgres://user:s3cret@host:port/db", "s3cret", "postgres://host/s3cret", "user=s3cret"]
        {
            let error = PostgresConfig::new(url).unwrap_err();
            assert_eq!(error.kind, crate::ErrorKind::Invalid);
            assert!(!error.message.contains("s3cret"), "{error}");
        }
        let config = PostgresConfig::new("postgres://me:s3cret@inside/db").unwrap();
        let shown = format!("{config:?}");
        assert!(!shown.contains("s3cret") && !shown.contains("inside"), "{shown}");
    }

    #[test]
    fn names_that_could_be_more_than_names_are_refused() {
        let mut config = PostgresConfig::new("postgres://me@host/db").unwrap();
        config.validate().unwrap();
        for bad in ["", "a b", "a;b", "\"a\"", "1a", "pg_a", &"x".repeat(49)] {
            config.schema = bad.to_owned();
            assert!(config.validate().is_err(), "{bad:?}");
        }
    }
}
