//! What the sidecars of a Worker reach brokers with: Secrets, mounted as files, with only the keys that are needed. Pure.

use super::inject::VOLUME_PREFIX;
use crate::{
    apply::child_name,
    broker::{SecretKeys, authority_of, credentials_of},
};
use kube::ResourceExt;
use longshore_crds::{Broker, PostgresWake};
use longshore_drivers::policy::Via;
use serde::Serialize;
use serde_json::{Value, json};

/// Where the sidecar finds tokens of brokers, or URLs with passwords.
const CREDENTIALS: Place = Place { directory: "/etc/longshore/brokers", volume: "broker" };
/// Where it finds certificates that may have signed theirs.
const AUTHORITIES: Place = Place { directory: "/etc/longshore/authorities", volume: "authority" };

/// A Broker, as far as pods have to do with it: the Secrets that are mounted into them. A hash is made of it, so what was
/// not there before is left out where it is empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct BrokerSecrets {
    pub(super) broker: String,
    #[serde(rename = "tokens")]
    pub(super) credentials: SecretKeys,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) authority: Option<SecretKeys>,
}

/// A kind of files.
struct Place {
    directory: &'static str,
    volume: &'static str,
}

impl Place {
    fn directory(&self, broker: &str) -> String {
        format!("{}/{broker}", self.directory)
    }

    fn files(&self, broker: &str, secret: &SecretKeys) -> Vec<String> {
        secret.keys.iter().map(|key| format!("{}/{key}", self.directory(broker))).collect()
    }

    /// The one file of a Secret of which one key is mounted.
    fn file(&self, broker: &str, secret: &SecretKeys) -> Option<String> {
        self.files(broker, secret).into_iter().next()
    }

    fn volume_name(&self, broker: &str) -> String {
        child_name(&format!("{VOLUME_PREFIX}{}-{broker}", self.volume), "", 63)
    }

    fn mount(&self, broker: &str) -> Value {
        json!({ "name": self.volume_name(broker), "mountPath": self.directory(broker), "readOnly": true })
    }

    fn volume(&self, broker: &str, secret: &SecretKeys) -> Value {
        let items: Vec<_> = secret.keys.iter().map(|key| json!({ "key": key, "path": key })).collect();
        let secret = json!({ "secretName": secret.name, "items": items, "defaultMode": 0o444 });
        json!({ "name": self.volume_name(broker), "secret": secret })
    }

    /// The Brokers that have files of this kind among `mounts`, and the Secrets that those come from.
    fn found_in(&self, mounts: &Value, volumes: &[Value]) -> Vec<(String, SecretKeys)> {
        let mounts = mounts.as_array().into_iter().flatten();
        let found = mounts.filter_map(|mount| {
            let broker = mount["mountPath"].as_str()?.strip_prefix(self.directory)?.strip_prefix('/')?;
            let secret = &volumes.iter().find(|volume| volume["name"] == mount["name"])?["secret"];
            let keys = secret["items"].as_array()?.iter().filter_map(|item| item["key"].as_str());
            let (name, keys) = (secret["secretName"].as_str()?.to_owned(), keys.map(str::to_owned).collect());
            Some((broker.to_owned(), SecretKeys { name, keys }))
        });
        found.collect()
    }
}

impl BrokerSecrets {
    /// The Secrets of `broker`.
    pub(super) fn of(broker: &Broker) -> Self {
        Self {
            broker: broker.name_any(),
            credentials: credentials_of(broker),
            authority: authority_of(broker),
        }
    }

    fn parts(&self) -> impl Iterator<Item = (&'static Place, &SecretKeys)> {
        let authority = self.authority.as_ref().map(|secret| (&AUTHORITIES, secret));
        [(&CREDENTIALS, &self.credentials)].into_iter().chain(authority)
    }

    /// The mounts of the sidecar.
    pub(super) fn mounts(&self) -> impl Iterator<Item = Value> {
        self.parts().map(|(place, _)| place.mount(&self.broker))
    }

    /// The volumes of the pod.
    pub(super) fn volumes(&self) -> impl Iterator<Item = Value> {
        self.parts().map(|(place, secret)| place.volume(&self.broker, secret))
    }

    /// The Brokers whose Secrets a sidecar mounts.
    pub(super) fn mounted(sidecar: &Value, volumes: &[Value]) -> Vec<Self> {
        let mounts = &sidecar["volumeMounts"];
        let mut authorities = AUTHORITIES.found_in(mounts, volumes);
        let with_authority = |(broker, credentials): (String, SecretKeys)| {
            let index = authorities.iter().position(|(name, _)| *name == broker);
            let authority = index.map(|index| authorities.swap_remove(index).1);
            Self { broker, credentials, authority }
        };
        CREDENTIALS.found_in(mounts, volumes).into_iter().map(with_authority).collect()
    }

    /// How sidecars reach `broker`; nothing while it has no address.
    pub(super) fn via(&self, broker: &Broker) -> Option<Via> {
        let ca_file = || self.authority.as_ref().and_then(|secret| AUTHORITIES.file(&self.broker, secret));
        let url_file = || CREDENTIALS.file(&self.broker, &self.credentials);
        let spec = &broker.spec;
        Some(match (&spec.redis, &spec.postgres) {
            (Some(redis), _) => {
                Via::Redis { url_file: url_file()?, ca_file: ca_file(), prefix: redis.prefix.clone() }
            }
            (None, Some(postgres)) => Via::Postgres {
                url_file: url_file()?,
                ca_file: ca_file(),
                schema: postgres.schema.clone(),
                listen: postgres.wake == PostgresWake::Listen,
            },
            (None, None) => Via::Http {
                url: broker.status.as_ref()?.url.clone()?,
                token_files: CREDENTIALS.files(&self.broker, &self.credentials),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broker(spec: &Value) -> Broker {
        let object = json!({
            "apiVersion": "longshore.dev/v1alpha1", "kind": "Broker", "metadata": { "name": "jobs" }, "spec": spec,
        });
        serde_json::from_value(object).unwrap()
    }

    fn from(name: &str, key: &str) -> Value {
        json!({ "name": name, "key": key })
    }

    #[test]
    fn only_the_keys_that_are_named_become_files() {
        let tls = json!({ "caFrom": from("authority", "ca.crt") });
        let redis = broker(&json!({ "redis": { "urlFrom": from("redis", "url"), "tls": tls } }));
        let secrets = BrokerSecrets::of(&redis);
        let volumes: Vec<_> = secrets.volumes().collect();
        let of = |volume: &Value| volume["secret"].clone();
        let items = |key: &str| json!([{ "key": key, "path": key }]);
        assert_eq!(
            of(&volumes[0]),
            json!({ "secretName": "redis", "items": items("url"), "defaultMode": 0o444 })
        );
        let authority = json!({ "secretName": "authority", "items": items("ca.crt"), "defaultMode": 0o444 });
        assert_eq!(of(&volumes[1]), authority);
        assert_eq!(volumes.len(), 2);
        let sidecar = json!({ "volumeMounts": secrets.mounts().collect::<Vec<_>>() });
        assert_eq!(BrokerSecrets::mounted(&sidecar, &volumes), std::slice::from_ref(&secrets));
        assert_eq!(
            serde_json::to_value(secrets.via(&redis)).unwrap(),
            json!({ "redis": {
                "urlFile": "/etc/longshore/brokers/jobs/url",
                "caFile": "/etc/longshore/authorities/jobs/ca.crt",
                "prefix": "longshore",
            } })
        );
    }

    #[test]
    fn how_jobs_are_noticed_belongs_to_the_policy() {
        for (wake, listen) in [("Listen", true), ("Poll", false)] {
            let postgres = json!({ "urlFrom": from("db", "uri"), "schema": "shop", "wake": wake });
            let postgres = broker(&json!({ "postgres": postgres }));
            let secrets = BrokerSecrets::of(&postgres);
            assert_eq!((secrets.volumes().count(), secrets.mounts().count()), (1, 1));
            assert_eq!(
                serde_json::to_value(secrets.via(&postgres)).unwrap(),
                json!({ "postgres": { "urlFile": "/etc/longshore/brokers/jobs/uri", "schema": "shop", "listen": listen } })
            );
        }
    }

    #[test]
    fn a_broker_without_an_address_is_waited_for() {
        let embedded = broker(&json!({ "embedded": {} }));
        assert_eq!(BrokerSecrets::of(&embedded).via(&embedded), None);
    }

    #[test]
    fn what_pods_have_of_an_embedded_broker_is_written_as_ever() {
        let secrets = BrokerSecrets::of(&broker(&json!({ "embedded": {} })));
        let tokens = json!({ "name": "jobs-broker-token", "keys": ["current", "previous"] });
        assert_eq!(
            serde_json::to_value(&secrets).unwrap(),
            json!({ "broker": "jobs", "tokens": tokens }),
            "another hash would roll every Worker"
        );
        let volume = secrets.volumes().next().unwrap();
        assert_eq!(volume["name"], "longshore-broker-jobs");
    }
}
