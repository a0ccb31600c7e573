//! What users put into Secrets, read one by one: there is no right to list or watch them.

use crate::{
    context::Context,
    error::{Error, Result},
};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use longshore_crds::{Reason, SecretKey};

/// The bytes that stand under the key, or what is missing. `field` is where the spec names the Secret.
pub(super) async fn bytes(
    context: &Context,
    namespace: &str,
    from: &SecretKey,
    field: &str,
) -> Result<std::result::Result<Vec<u8>, Reason>> {
    let name = &from.name;
    let api: Api<Secret> = Api::namespaced(context.client.clone(), namespace);
    let found = api.get_opt(name).await.map_err(Error::api(format!("get Secret {name:?}")))?;
    Ok(found_in(found.as_ref(), from, field))
}

/// The text that stands under the key, or what is missing.
pub(super) async fn text(
    context: &Context,
    namespace: &str,
    from: &SecretKey,
    field: &str,
) -> Result<std::result::Result<String, Reason>> {
    let bytes = bytes(context, namespace, from, field).await?;
    Ok(bytes.and_then(|bytes| String::from_utf8(bytes).map_err(|_| nothing_in(from, field))))
}

fn found_in(secret: Option<&Secret>, from: &SecretKey, field: &str) -> std::result::Result<Vec<u8>, Reason> {
    let Some(secret) = secret else {
        return Err(missing(field, &format!("there is no Secret {:?} in this namespace", from.name)));
    };
    let bytes = secret.data.as_ref().and_then(|data| data.get(&from.key));
    match bytes {
        Some(bytes) if !bytes.0.trim_ascii().is_empty() => Ok(bytes.0.clone()),
        _ => Err(nothing_in(from, field)),
    }
}

/// The text under `key`, if there is one.
pub(super) fn value(secret: &Secret, key: &str) -> Option<String> {
    let bytes = secret.data.as_ref()?.get(key)?;
    String::from_utf8(bytes.0.clone()).ok()
}

fn nothing_in(from: &SecretKey, field: &str) -> Reason {
    missing(field, &format!("Secret {:?} has no text under the key {:?}", from.name, from.key))
}

fn missing(field: &str, what: &str) -> Reason {
    Reason::unknown("WaitingForSecret", format!("{field}: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_missing_is_named() {
        let from = SecretKey { name: "redis".to_owned(), key: "url".to_owned() };
        let secret = |data: serde_json::Value| -> Secret {
            serde_json::from_value(json!({ "metadata": { "name": "redis" }, "data": data })).unwrap()
        };
        let says = |secret: Option<&Secret>| {
            let reason = found_in(secret, &from, "spec.redis.urlFrom").unwrap_err();
            assert_eq!((reason.status, reason.reason.as_str()), ("Unknown", "WaitingForSecret"));
            reason.message
        };
        assert_eq!(says(None), "spec.redis.urlFrom: there is no Secret \"redis\" in this namespace");
        // Nothing, another key, only white space.
        for data in [json!(null), json!({ "uri": "eA==" }), json!({ "url": "" }), json!({ "url": "IAo=" })] {
            let message = says(Some(&secret(data)));
            assert_eq!(message, "spec.redis.urlFrom: Secret \"redis\" has no text under the key \"url\"");
        }
        assert_eq!(found_in(Some(&secret(json!({ "url": "eA==" }))), &from, "").unwrap(), b"x");
    }
}
