//! Servers that somebody else looks after: Redis, PostgreSQL.

use super::secret;
use crate::{context::Context, error::Result};
use longshore_crds::{BrokerSpec, PostgresWake, Reason, SecretKey, ServerTls};
use longshore_drivers::open::{Credentials, Server};

/// A server, and where its credentials are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) server: Server,
    /// The arm of the spec.
    arm: &'static str,
    url_from: SecretKey,
    tls: Option<ServerTls>,
}

impl Named {
    /// The server that the spec names, if it names one.
    pub(super) fn of(spec: &BrokerSpec) -> Option<Self> {
        match (&spec.redis, &spec.postgres) {
            (Some(redis), _) => Some(Self {
                server: Server::Redis { prefix: redis.prefix.clone() },
                arm: "spec.redis",
                url_from: redis.url_from.clone(),
                tls: redis.tls.clone(),
            }),
            (None, Some(postgres)) => Some(Self {
                server: Server::Postgres {
                    schema: postgres.schema.clone(),
                    listen: postgres.wake == PostgresWake::Listen,
                },
                arm: "spec.postgres",
                url_from: postgres.url_from.clone(),
                tls: postgres.tls.clone(),
            }),
            (None, None) => None,
        }
    }

    /// What opens it, as the Secrets say now, or what is missing.
    pub(super) async fn credentials(
        &self,
        context: &Context,
        namespace: &str,
    ) -> Result<std::result::Result<Credentials, Reason>> {
        let field = format!("{}.urlFrom", self.arm);
        let url = match secret::text(context, namespace, &self.url_from, &field).await? {
            Ok(url) => url.trim().to_owned(),
            Err(missing) => return Ok(Err(missing)),
        };
        let Some(tls) = &self.tls else { return Ok(Ok(Credentials { url, ca: None })) };
        let field = format!("{}.tls.caFrom", self.arm);
        let ca = secret::bytes(context, namespace, &tls.ca_from, &field).await?;
        Ok(ca.map(|ca| Credentials { url, ca: Some(ca) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_spec_says_where_the_jobs_are() {
        let named = |spec| Named::of(&serde_json::from_value(spec).unwrap());
        assert_eq!(named(json!({ "embedded": {} })), None);
        let from = json!({ "name": "s", "key": "url" });
        let redis = named(json!({ "redis": { "urlFrom": from, "prefix": "shop" } })).unwrap();
        assert_eq!(redis.server, Server::Redis { prefix: "shop".to_owned() });
        let listens = |wake: &str| {
            let spec = json!({ "postgres": { "urlFrom": from, "tls": { "caFrom": from }, "wake": wake } });
            let named = named(spec).unwrap();
            assert!(named.tls.is_some());
            named.server
        };
        let server = |listen| Server::Postgres { schema: "longshore".to_owned(), listen };
        assert_eq!((listens("Listen"), listens("Poll")), (server(true), server(false)));
    }
}
