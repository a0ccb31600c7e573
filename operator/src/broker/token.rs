//! Access tokens. That of an embedded broker is made here and rotated by `tokenRevision`; that of a broker elsewhere is read
//! from the Secret that the user names.
//!
//! A pod sees a change of its Secret up to a minute late, each at another moment. So a new token is first put beside the
//! others, where only the broker looks (`next`); once the broker takes it, it becomes `current`, and the one before stays
//! valid as `previous`. Whoever reads `current` is let in at every moment.

use super::{
    build::{CURRENT, NEXT, PREVIOUS, token_secret_name},
    secret::{self, value},
};
use crate::{
    apply::{FIELD_MANAGER, owner},
    context::Context,
    error::{Error, Result},
    seat,
};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use longshore_crds::{Broker, Reason, SecretKey, annotation, label};
use serde_json::{Value, json};

/// Tokens that may let one in, the one to try first at the front. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tokens {
    pub(super) current: String,
    /// The one before.
    pub(super) previous: Option<String>,
    /// The rotation that the spec asks for.
    pub(super) owed: Option<Rotation>,
}

/// A rotation that has to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rotation {
    resource_version: Option<String>,
    revision: i64,
    /// The token that is to come, once it was made.
    pub(super) next: Option<String>,
}

/// The token that the user's Secret holds, or what is missing.
pub(super) async fn read(
    context: &Context,
    namespace: &str,
    from: &SecretKey,
) -> Result<std::result::Result<Tokens, Reason>> {
    let current = secret::text(context, namespace, from, "spec.http.tokenFrom").await?;
    Ok(current.map(|current| Tokens { current, previous: None, owed: None }))
}

/// The tokens to use now, or why there are none. Makes the Secret.
pub(super) async fn ensure(
    context: &Context,
    broker: &Broker,
    namespace: &str,
    revision: i64,
) -> Result<std::result::Result<Tokens, Reason>> {
    let name = token_secret_name(&broker.name_any());
    let api: Api<Secret> = Api::namespaced(context.client.clone(), namespace);
    let found = api.get_opt(&name).await.map_err(Error::api(format!("get Secret {name:?}")))?;
    if let Some(reason) = seat::claim(broker, label::BROKER, found.as_ref()).into_reason() {
        return Ok(Err(reason));
    }
    let Some(secret) = found else {
        return create(&api, broker, namespace, &name, revision).await.map(Ok);
    };
    let current = value(&secret, CURRENT).ok_or(Error::Incomplete("key `current` in its token Secret"))?;
    let written = secret.annotations().get(annotation::TOKEN_REVISION).and_then(|text| text.parse().ok());
    let owed = is_owed(written, revision).then(|| Rotation {
        resource_version: secret.resource_version(),
        revision,
        next: value(&secret, NEXT),
    });
    Ok(Ok(Tokens { current, previous: value(&secret, PREVIOUS), owed }))
}

/// Whether a token of `written` is too old. Going back to a lower revision makes none.
fn is_owed(written: Option<i64>, revision: i64) -> bool {
    written.is_none_or(|written| written < revision)
}

/// Makes the token that is to come, or brings it in: the broker takes it already.
pub(super) async fn rotate(
    context: &Context,
    broker: &Broker,
    namespace: &str,
    current: &str,
    rotation: &Rotation,
) -> Result<()> {
    let name = token_secret_name(&broker.name_any());
    let api: Api<Secret> = Api::namespaced(context.client.clone(), namespace);
    let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    api.patch(&name, &parameters, &Patch::Merge(&patch(current, rotation)))
        .await
        .map_err(Error::api(format!("rotate Secret {name:?}")))?;
    Ok(())
}

fn patch(current: &str, rotation: &Rotation) -> Value {
    let version = &rotation.resource_version;
    match &rotation.next {
        None => json!({ "metadata": { "resourceVersion": version }, "stringData": { NEXT: random_token() } }),
        Some(next) => json!({
            "metadata": {
                "resourceVersion": version,
                "annotations": { annotation::TOKEN_REVISION: rotation.revision.to_string() },
            },
            "data": { NEXT: null },
            "stringData": { CURRENT: next, PREVIOUS: current },
        }),
    }
}

async fn create(
    api: &Api<Secret>,
    broker: &Broker,
    namespace: &str,
    name: &str,
    revision: i64,
) -> Result<Tokens> {
    let token = random_token();
    let secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": { label::MANAGED_BY: label::MANAGED_BY_VALUE, label::BROKER: broker.name_any() },
            "annotations": { annotation::TOKEN_REVISION: revision.to_string() },
            "ownerReferences": [owner(broker)?],
        },
        "type": "Opaque",
        // Nobody is told the first `previous`: it is there so that the file exists.
        "stringData": { CURRENT: token, PREVIOUS: random_token() },
    });
    let secret: Secret = serde_json::from_value(secret)
        .map_err(|source| Error::Encode { what: "token Secret".to_owned(), source })?;
    let parameters = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
    api.create(&parameters, &secret).await.map_err(Error::api(format!("create Secret {name:?}")))?;
    Ok(Tokens { current: token, previous: None, owed: None })
}

/// 244 random bits in hexadecimal.
fn random_token() -> String {
    format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_token_stands_beside_the_others_before_anybody_is_told_to_use_it() {
        let rotation = |next: Option<&str>| Rotation {
            resource_version: Some("7".to_owned()),
            revision: 3,
            next: next.map(str::to_owned),
        };
        let staged = patch("one", &rotation(None));
        assert_eq!(staged["stringData"].as_object().unwrap().keys().collect::<Vec<_>>(), ["next"]);
        assert_eq!(staged["metadata"], json!({ "resourceVersion": "7" }), "it is not done yet");
        let brought_in = patch("one", &rotation(Some("two")));
        assert_eq!(brought_in["stringData"], json!({ "current": "two", "previous": "one" }));
        assert_eq!(brought_in["data"], json!({ "next": null }));
        assert_eq!(brought_in["metadata"]["annotations"], json!({ annotation::TOKEN_REVISION: "3" }));
    }

    #[test]
    fn tokens_are_rotated_upward_only() {
        for (written, revision, owed) in
            [(Some(1), 1, false), (Some(1), 2, true), (Some(3), 2, false), (None, 1, true)]
        {
            assert_eq!(is_owed(written, revision), owed, "{written:?} {revision}");
        }
    }
}
