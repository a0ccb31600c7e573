//! A connection to a backend.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One connection to a backend that keeps jobs.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "longshore.dev",
    version = "v1alpha1",
    kind = "Broker",
    plural = "brokers",
    shortname = "lsb",
    doc = "One connection to a backend that keeps jobs.",
    category = "longshore",
    namespaced,
    status = "BrokerStatus",
    printcolumn(name = "Backend", type_ = "string", json_path = ".status.backend"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Durable", type_ = "string", json_path = ".status.conditions[?(@.type==\"Durable\")].status", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.size() <= 52 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("the name must be a DNS label of at most 52 characters"),
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.embedded), has(self.http), has(self.redis), has(self.postgres)].filter(it, it).size() == 1").message("exactly one backend must be set: embedded, http, redis or postgres"),
    // Of the four exactly one is there, before and after: where three agree, the fourth does.
    validation = Rule::new("has(self.embedded) == has(oldSelf.embedded) && has(self.http) == has(oldSelf.http) && has(self.redis) == has(oldSelf.redis)").message("the backend of a Broker can't be changed; make another Broker")
)]
pub struct BrokerSpec {
    /// SQLite behind Longshore's own small server, in a pod of its own. It claims a volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embedded: Option<EmbeddedBroker>,
    /// A `longshore-broker` that runs elsewhere: one that another namespace or another installation has, or that runs
    /// outside of the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpBroker>,
    /// A Redis server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redis: Option<RedisBroker>,
    /// A PostgreSQL server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postgres: Option<PostgresBroker>,
}

impl BrokerSpec {
    /// The embedded broker with all its defaults.
    pub fn embedded() -> Self {
        let embedded = EmbeddedBroker { token_revision: 1, ..EmbeddedBroker::default() };
        Self { embedded: Some(embedded), http: None, redis: None, postgres: None }
    }
}

/// A Redis server that somebody else looks after.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RedisBroker {
    /// The Secret with the URL, credentials included: `redis://user:password@host:port/database`, or `rediss://` for TLS.
    pub url_from: SecretKey,
    /// How the server's certificate is checked; needs a URL that asks for TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ServerTls>,
    /// What all keys begin with. Brokers that share a database need different ones.
    #[serde(default = "default_place")]
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[A-Za-z0-9]([-A-Za-z0-9._:]*[A-Za-z0-9])?$"))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("the prefix of a Broker can't be changed: its jobs are there; make another Broker"))]
    pub prefix: String,
}

/// A PostgreSQL server that somebody else looks after.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PostgresBroker {
    /// The Secret with the URL, credentials included: `postgres://user:password@host:port/database`.
    pub url_from: SecretKey,
    /// How the server's certificate is checked; needs a URL that asks for TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ServerTls>,
    /// The schema of all tables; it is made if it is not there. Brokers that share a database need different ones.
    #[serde(default = "default_place")]
    #[schemars(length(min = 1, max = 48), regex(pattern = r"^[a-z][a-z0-9_]*$"))]
    #[x_kube(
        validation = Rule::new("!self.startsWith('pg_') && self != 'information_schema'").message("the server keeps this schema for itself"),
        validation = Rule::new("self == oldSelf").message("the schema of a Broker can't be changed: its jobs are there; make another Broker")
    )]
    pub schema: String,
    /// How new jobs are noticed.
    #[serde(default)]
    pub wake: PostgresWake,
}

/// How new jobs in a PostgreSQL database are noticed.
#[derive(JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum PostgresWake {
    /// The server tells, over a connection of its own that each process keeps.
    #[default]
    Listen,
    /// By asking again and again: for poolers that hand out connections by transaction, as PgBouncer does.
    Poll,
}

/// How a server's certificate is checked.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerTls {
    /// The Secret with the certificates, in PEM, that may have signed the server's.
    pub ca_from: SecretKey,
}

fn default_place() -> String {
    "longshore".to_owned()
}

/// A broker that is reached over its HTTP API.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpBroker {
    /// Where its API is: `http://host:port`, and a path before it if it has one. There is no TLS yet: the network has to
    /// be trusted.
    #[schemars(
        length(max = 512),
        regex(pattern = r"^http://[A-Za-z0-9.-]+(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?$")
    )]
    pub url: String,
    /// The Secret with the bearer token, in the Broker's namespace.
    pub token_from: SecretKey,
}

/// A key of a Secret in the same namespace.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretKey {
    /// The Secret.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
    /// The key in it.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}

/// The embedded broker.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!(self.ephemeral && has(self.storage))").message("ephemeral: true keeps nothing, so storage can't be set"),
    validation = Rule::new("self.ephemeral == oldSelf.ephemeral").message("ephemeral can't be changed; make another Broker"),
    // The rule at Storage sees only a storage that stays; one that comes or goes is seen here.
    validation = Rule::new("has(self.storage) == has(oldSelf.storage)").message("the volume of a Broker can't be changed")
)]
pub struct EmbeddedBroker {
    /// Keep the jobs in an emptyDir: they are gone with the pod.
    #[serde(default)]
    pub ephemeral: bool,
    /// The volume that is claimed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<Storage>,
    /// Raise it to make a new access token; the one before stays valid until the next change.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    #[x_kube(validation = Rule::new("self >= oldSelf").message("tokenRevision can only rise"))]
    pub token_revision: i64,
}

const fn one() -> i64 {
    1
}

/// A volume claim.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self == oldSelf").message("the volume of a Broker can't be changed"))]
pub struct Storage {
    /// The size that is asked for.
    #[serde(default = "default_size")]
    #[schemars(regex(pattern = r"^[1-9][0-9]{0,5}(Mi|Gi|Ti)$"))]
    pub size: String,
    /// The storage class; the cluster's default one without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    pub storage_class_name: Option<String>,
}

fn default_size() -> String {
    "1Gi".to_owned()
}

impl Default for Storage {
    fn default() -> Self {
        Self { size: default_size(), storage_class_name: None }
    }
}

/// What the operator saw of a Broker.
#[derive(KubeSchema, Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BrokerStatus {
    /// Ready, Durable.
    #[serde(default)]
    #[x_kube(merge_strategy = kube::core::ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The generation that the conditions speak of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// The server's version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The id of the broker's data: another one means other data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend_id: Option<String>,
    /// Where its HTTP API is; none for a backend without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// What it can do.
    #[serde(default, deserialize_with = "crate::json::cut", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::pod_template::any_object")]
    pub capabilities: Option<serde_json::Value>,
}
