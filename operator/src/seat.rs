//! Whether the names that an object's children need are free. Pure.
//!
//! Server-side apply would take over whatever has the name; somebody's own Deployment must not become ours by accident.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource, ResourceExt};
use longshore_crds::Reason;

/// What stands at a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Nothing, or what belongs to this object.
    Free,
    /// What belonged to an object of this kind and name before; it is on its way out.
    Leaving(String),
    /// Somebody else's.
    Taken(String),
}

impl Claim {
    /// Why nothing can be done, if so.
    pub(crate) fn into_reason(self) -> Option<Reason> {
        match self {
            Self::Free => None,
            Self::Leaving(message) => Some(Reason::unknown("WaitingForPredecessor", message)),
            Self::Taken(message) => Some(Reason::no("NameTaken", message)),
        }
    }
}

/// Whether `parent` may have the name at which `found` stands. What belongs to it carries its name in the label `mark`.
pub(crate) fn claim<P, K>(parent: &P, mark: &str, found: Option<&K>) -> Claim
where
    P: Resource<DynamicType = ()>,
    K: Resource<DynamicType = ()>,
{
    let (kind, whose) = (K::kind(&()), P::kind(&()));
    let Some(found) = found else {
        return Claim::Free;
    };
    let name = found.name_any();
    let controller = found.owner_references().iter().find(|owner| owner.controller == Some(true));
    match controller {
        Some(owner) if Some(&owner.uid) == parent.meta().uid.as_ref() => {
            if found.meta().deletion_timestamp.is_some() {
                Claim::Leaving(format!("{kind} {name:?} is being deleted"))
            } else {
                Claim::Free
            }
        }
        Some(owner) if is_predecessor(owner, parent) => Claim::Leaving(format!(
            "{kind} {name:?} of the {whose} that had this name before is not gone yet"
        )),
        Some(owner) => Claim::Taken(format!(
            "{kind} {name:?} belongs to {} {:?}; delete it or give the {whose} another name",
            owner.kind, owner.name
        )),
        // Left behind by one of this kind and name that was deleted without what belongs to it.
        None if found.labels().get(mark) == parent.meta().name.as_ref() => Claim::Free,
        None => Claim::Taken(format!(
            "{kind} {name:?} is not Longshore's; delete it or give the {whose} another name"
        )),
    }
}

fn is_predecessor<P: Resource<DynamicType = ()>>(owner: &OwnerReference, parent: &P) -> bool {
    owner.kind == P::kind(&())
        && owner.api_version == P::api_version(&())
        && Some(&owner.name) == parent.meta().name.as_ref()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::fixture::{UID, worker};
    use k8s_openapi::api::apps::v1::Deployment;
    use longshore_crds::label;
    use serde_json::{Value, json};

    fn at(metadata: &Value) -> Option<Reason> {
        let found: Deployment = serde_json::from_value(json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata,
        }))
        .unwrap();
        claim(&worker(&json!({})), label::WORKER, Some(&found)).into_reason()
    }

    fn owner(kind: &str, version: &str, name: &str, uid: &str) -> Value {
        json!([{ "apiVersion": version, "kind": kind, "name": name, "uid": uid, "controller": true }])
    }

    #[test]
    fn only_what_is_ours_may_be_overwritten() {
        let version = "longshore.dev/v1alpha1";
        let reason = |metadata: Value| at(&metadata).map(|reason| reason.reason);
        let mine = owner("Worker", version, "mailer", UID);
        assert_eq!(reason(json!({ "name": "mailer", "ownerReferences": mine })), None);
        assert_eq!(reason(json!({ "name": "mailer", "labels": { "longshore.dev/worker": "mailer" } })), None);
        let leaving =
            json!({ "name": "mailer", "ownerReferences": mine, "deletionTimestamp": "2026-01-01T00:00:00Z" });
        assert_eq!(reason(leaving).unwrap(), "WaitingForPredecessor");
        let before = owner("Worker", version, "mailer", "another");
        let before = json!({ "name": "mailer", "ownerReferences": before });
        assert_eq!(reason(before).unwrap(), "WaitingForPredecessor");
        for theirs in [
            json!({ "name": "mailer" }),
            json!({ "name": "mailer", "labels": { "longshore.dev/worker": "other" } }),
            json!({ "name": "mailer", "ownerReferences": owner("Worker", version, "other", "another") }),
            json!({ "name": "mailer", "ownerReferences": owner("Rollout", "argoproj.io/v1", "mailer", "x") }),
        ] {
            assert_eq!(reason(theirs).unwrap(), "NameTaken");
        }
        assert_eq!(claim::<_, Deployment>(&worker(&json!({})), label::WORKER, None), Claim::Free);
    }
}
