//! Server-side apply: the only place that writes children.

use crate::error::{Error, Result};
use k8s_openapi::NamespaceResourceScope;
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{Patch, PatchParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::fmt::Debug;

/// The field manager of everything that the operator applies.
pub(crate) const FIELD_MANAGER: &str = "longshore";

/// Applies `child`, a full desired object as JSON with apiVersion, kind, name and namespace.
pub(crate) async fn apply<K>(client: &Client, namespace: &str, child: &Value) -> Result<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    let name = child.pointer("/metadata/name").and_then(Value::as_str).ok_or(Error::Incomplete("name"))?;
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    api.patch(name, &parameters, &Patch::Apply(child))
        .await
        .map_err(Error::api(format!("apply {} {name:?}", K::kind(&()))))
}

/// Writes `next` as the status of `object` unless somebody changed the object meanwhile; `None` if somebody did.
pub(crate) async fn replace_status<K>(client: &Client, object: &K) -> Result<Option<K>>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Serialize,
{
    let namespace = object.namespace().ok_or(Error::Incomplete("namespace"))?;
    let name = object.name_any();
    let api: Api<K> = Api::namespaced(client.clone(), &namespace);
    match api.replace_status(&name, &kube::api::PostParams::default(), object).await {
        Ok(stored) => Ok(Some(stored)),
        Err(kube::Error::Api(status)) if status.is_conflict() || status.is_not_found() => Ok(None),
        Err(error) => Err(Error::api(format!("write the status of {} {name:?}", K::kind(&())))(error)),
    }
}

/// The owner reference of `owner` for its children.
pub(crate) fn owner<K: Resource<DynamicType = ()>>(owner: &K) -> Result<Value> {
    let reference = owner.controller_owner_ref(&()).ok_or(Error::Incomplete("uid"))?;
    serde_json::to_value(reference)
        .map_err(|source| Error::Encode { what: "owner reference".to_owned(), source })
}

/// A name made of `name` and `suffix` that fits `limit`: cut and made unique by a hash where it would not.
pub(crate) fn child_name(name: &str, suffix: &str, limit: usize) -> String {
    use sha2::{Digest, Sha256};
    if name.len() + suffix.len() <= limit {
        return format!("{name}{suffix}");
    }
    let hash = Sha256::digest(name.as_bytes());
    let tag: String = hash.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    let keep = limit.saturating_sub(suffix.len() + tag.len() + 1).min(name.len());
    format!("{}-{tag}{suffix}", name[..keep].trim_end_matches('-'))
}

#[cfg(test)]
mod tests {
    use super::child_name;

    #[test]
    fn long_names_stay_unique_and_fit() {
        assert_eq!(child_name("default", "-broker", 52), "default-broker");
        let (one, other) = ("a".repeat(51) + "b", "a".repeat(51) + "c");
        let names = [child_name(&one, "-broker", 52), child_name(&other, "-broker", 52)];
        assert!(names.iter().all(|name| name.len() <= 52), "{names:?}");
        assert_ne!(names[0], names[1]);
    }
}
