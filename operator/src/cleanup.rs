//! Removing our finalizers, so that objects and namespaces can go away when no operator is there to do it.

use crate::{cli::Cleanup, context::Scope};
use anyhow::{Context as _, ensure};
use futures::{StreamExt, stream};
use k8s_openapi::{NamespaceResourceScope, api::apps::v1::Deployment};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ListParams, Patch, PatchParams},
    core::PartialObjectMeta,
};
use longshore_crds::{Queue, Workflow, finalizer};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::{fmt::Debug, time::Duration};

/// The chart gives the whole job a minute; the start of the pod is part of it.
const DEADLINE: Duration = Duration::from_secs(50);
/// How long one request may take. The client by itself would repeat one for many minutes.
const REQUEST: Duration = Duration::from_secs(10);
const PAGE: u32 = 500;
const AT_ONCE: usize = 16;
/// How often an object may change between reading and writing it.
const CONFLICTS: usize = 10;
/// An operator that still runs may put finalizers back; one that was about to end does so once.
const PASSES: usize = 5;
const BETWEEN_PASSES: Duration = Duration::from_secs(1);
/// How long the operator gets to end before its finalizers are removed.
const OPERATOR_ENDS: Duration = Duration::from_secs(20);

/// Removes our finalizers from everything in scope.
///
/// # Errors
/// Some could not be removed, or came back.
pub(crate) async fn cleanup(settings: &Cleanup) -> anyhow::Result<()> {
    let client = Client::try_default().await.context("failed to find the API server")?;
    if let Some((namespace, name)) = settings.operator_deployment.split_once('/') {
        let stopped = tokio::time::timeout(OPERATOR_ENDS, stop_operator(&client, namespace, name)).await;
        if let Err(error) =
            stopped.unwrap_or_else(|_| Err(anyhow::anyhow!("it took longer than {OPERATOR_ENDS:?}")))
        {
            tracing::warn!(error = format!("{error:#}"), "the operator was not stopped first");
        }
    }
    let scopes = Scope::of(&settings.scope.watch_namespaces);
    let (removed, left) = tokio::time::timeout(DEADLINE, until_gone(&client, &scopes, BETWEEN_PASSES))
        .await
        .with_context(|| format!("finalizers were not removed within {DEADLINE:?}"))?;
    tracing::info!(removed, left, "removed finalizers");
    ensure!(
        left == 0,
        "{left} finalizers or lists of objects could not be dealt with, or finalizers came back: is an operator still running?"
    );
    Ok(())
}

/// Scales the operator to nothing and waits until it is gone: one that runs would put finalizers back.
async fn stop_operator(client: &Client, namespace: &str, name: &str) -> anyhow::Result<()> {
    let api: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let patch = json!({ "spec": { "replicas": 0 } });
    api.patch_scale(name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
    loop {
        let scale = api.get_scale(name).await?;
        if scale.status.is_none_or(|status| status.replicas == 0) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// What a look at everything came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Pass {
    removed: usize,
    failed: usize,
}

impl std::ops::AddAssign for Pass {
    fn add_assign(&mut self, other: Self) {
        self.removed += other.removed;
        self.failed += other.failed;
    }
}

/// Passes until one finds nothing: how many finalizers were removed, and how much the last pass still found or could not
/// find out.
async fn until_gone(client: &Client, scopes: &[Scope], pause: Duration) -> (usize, usize) {
    let (mut removed, mut left) = (0, 0);
    for pass in 0..PASSES {
        if pass > 0 {
            tokio::time::sleep(pause).await;
        }
        let mut found = Pass::default();
        for scope in scopes {
            found += clean::<Queue>(client, scope, finalizer::QUEUE_DATA).await;
            found += clean::<Workflow>(client, scope, finalizer::WORKFLOW_JOBS).await;
        }
        removed += found.removed;
        left = found.removed + found.failed;
        if left == 0 {
            break;
        }
    }
    (removed, left)
}

/// Removes `name` from all objects of one kind. What fails is logged, and the others go on.
async fn clean<K>(client: &Client, scope: &Scope, name: &'static str) -> Pass
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    let api: Api<K> = scope.api(client);
    let mut parameters = ListParams::default().limit(PAGE);
    let mut found = Pass::default();
    loop {
        // Metadata only: an object that we can't read must not keep its finalizer, and none needs much memory.
        let page = match answered(api.list_metadata(&parameters)).await {
            Ok(page) => page,
            // Without the definition there are no objects.
            Err(Refusal::NotFound) => return found,
            Err(refusal) => {
                let kind = K::kind(&());
                tracing::warn!(%kind, ?scope, error = %refusal, "objects can't be listed");
                found.failed += 1;
                return found;
            }
        };
        let next = page.metadata.continue_.filter(|token| !token.is_empty());
        let marked: Vec<_> = page.items.into_iter().filter(|object| has(object.finalizers(), name)).collect();
        let mut outcomes =
            stream::iter(marked).map(|object| clean_one(client, object, name)).buffer_unordered(AT_ONCE);
        while let Some(outcome) = outcomes.next().await {
            found += outcome;
        }
        let Some(token) = next else {
            return found;
        };
        parameters = parameters.continue_token(&token);
    }
}

async fn clean_one<K>(client: &Client, object: PartialObjectMeta<K>, name: &'static str) -> Pass
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    let (namespace, object_name) = (object.namespace().unwrap_or_default(), object.name_any());
    let kind = K::kind(&());
    match remove(client, object, name).await {
        Ok(removed) => Pass { removed: usize::from(removed), failed: 0 },
        Err(refusal) => {
            tracing::warn!(%kind, namespace, name = object_name, error = %refusal, "a finalizer was not removed");
            Pass { removed: 0, failed: 1 }
        }
    }
}

/// Whether there was something to remove. The version that was read goes along, so that a finalizer which somebody else
/// set meanwhile is not lost.
async fn remove<K>(
    client: &Client,
    mut object: PartialObjectMeta<K>,
    name: &'static str,
) -> Result<bool, Refusal>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    let api: Api<K> = Api::namespaced(client.clone(), &object.namespace().unwrap_or_default());
    let object_name = object.name_any();
    for _ in 0..CONFLICTS {
        let Some(patch) = without(&object, name) else {
            return Ok(false);
        };
        let patch = Patch::Merge(patch);
        match answered(api.patch_metadata(&object_name, &PatchParams::default(), &patch)).await {
            Ok(_) => return Ok(true),
            Err(Refusal::NotFound) => return Ok(false),
            Err(Refusal::Conflict) => {}
            Err(refusal) => return Err(refusal),
        }
        match answered(api.get_metadata_opt(&object_name)).await? {
            Some(fresh) => object = fresh,
            None => return Ok(false),
        }
    }
    Err(Refusal::Conflict)
}

fn has(finalizers: &[String], name: &str) -> bool {
    finalizers.iter().any(|finalizer| finalizer == name)
}

/// The patch that removes `name`; nothing if it isn't there.
fn without<K>(object: &PartialObjectMeta<K>, name: &str) -> Option<Value>
where
    K: Resource<DynamicType = ()>,
{
    if !has(object.finalizers(), name) {
        return None;
    }
    let mut finalizers = object.finalizers().to_vec();
    finalizers.retain(|finalizer| finalizer != name);
    Some(json!({
        "metadata": {
            "finalizers": finalizers,
            "resourceVersion": object.resource_version(),
            // What is deleted and made anew under the same name is another object.
            "uid": object.uid(),
        }
    }))
}

#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("it is not there")]
    NotFound,
    #[error("it keeps changing")]
    Conflict,
    #[error(transparent)]
    Api(#[from] Box<kube::Error>),
    #[error("no answer within {REQUEST:?}")]
    Unanswered,
}

async fn answered<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, Refusal> {
    match tokio::time::timeout(REQUEST, request).await {
        Ok(Ok(answer)) => Ok(answer),
        // By the code: of a group that it doesn't know the API server says so in plain text, without a reason.
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => Err(Refusal::NotFound),
        Ok(Err(kube::Error::Api(status))) if status.code == 409 => Err(Refusal::Conflict),
        Ok(Err(error)) => Err(Refusal::Api(Box::new(error))),
        Err(_elapsed) => Err(Refusal::Unanswered),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::{
        Json, Router,
        extract::{Path, Query, State},
        http::StatusCode,
        response::{IntoResponse, Response},
        routing::get,
    };
    use std::{
        collections::{BTreeMap, HashMap},
        sync::{Arc, Mutex},
    };

    /// Queues by name; Workflows have no definition.
    #[derive(Clone, Default)]
    struct Server(Arc<Mutex<Stored>>);

    #[derive(Default)]
    struct Stored {
        queues: BTreeMap<String, Value>,
        /// Conflicts to answer with before writes succeed.
        conflicts: usize,
        /// An operator that puts finalizers back.
        stubborn: bool,
    }

    impl Server {
        fn with(names: impl IntoIterator<Item = String>) -> Self {
            let server = Self::default();
            for name in names {
                let queue = json!({
                    "apiVersion": "meta.k8s.io/v1",
                    "kind": "PartialObjectMetadata",
                    "metadata": {
                        "name": name, "namespace": "ns", "uid": name, "resourceVersion": "1",
                        "finalizers": ["example.com/other", finalizer::QUEUE_DATA],
                    },
                });
                server.0.lock().unwrap().queues.insert(name, queue);
            }
            server
        }

        fn client(&self) -> Client {
            let app = Router::new()
                .route("/apis/longshore.dev/v1alpha1/queues", get(list))
                .route("/apis/longshore.dev/v1alpha1/namespaces/ns/queues/{name}", get(read).patch(write))
                .fallback(|| async { status(404, "NotFound") })
                .with_state(self.clone());
            Client::new(app, "ns")
        }

        async fn cleaned(&self) -> (usize, usize) {
            until_gone(&self.client(), &[Scope::Cluster], Duration::from_millis(1)).await
        }

        fn finalizers(&self, name: &str) -> Value {
            self.0.lock().unwrap().queues[name]["metadata"]["finalizers"].clone()
        }
    }

    fn status(code: u16, reason: &str) -> Response {
        let body = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason });
        (StatusCode::from_u16(code).unwrap(), Json(body)).into_response()
    }

    /// Pages of as many as asked for; the token is the name to start with.
    async fn list(State(server): State<Server>, Query(query): Query<HashMap<String, String>>) -> Json<Value> {
        let stored = server.0.lock().unwrap();
        let from = query.get("continue").cloned().unwrap_or_default();
        let limit: usize = query["limit"].parse().unwrap();
        let mut left = stored.queues.range(from..);
        let items: Vec<_> = left.by_ref().take(limit).map(|(_, queue)| queue.clone()).collect();
        let next = left.next().map(|(name, _)| name.clone());
        Json(json!({
            "apiVersion": "meta.k8s.io/v1",
            "kind": "PartialObjectMetadataList",
            "metadata": { "continue": next, "resourceVersion": "1" },
            "items": items,
        }))
    }

    async fn read(State(server): State<Server>, Path(name): Path<String>) -> Response {
        match server.0.lock().unwrap().queues.get(&name) {
            Some(queue) => Json(queue.clone()).into_response(),
            None => status(404, "NotFound"),
        }
    }

    async fn write(State(server): State<Server>, Path(name): Path<String>, body: String) -> Response {
        let mut stored = server.0.lock().unwrap();
        if stored.conflicts > 0 {
            stored.conflicts -= 1;
            return status(409, "Conflict");
        }
        let stubborn = stored.stubborn;
        let Some(queue) = stored.queues.get_mut(&name) else {
            return status(404, "NotFound");
        };
        let patch: Value = serde_json::from_str(&body).unwrap();
        if patch["metadata"]["resourceVersion"] != queue["metadata"]["resourceVersion"] {
            return status(409, "Conflict");
        }
        if !stubborn {
            queue["metadata"]["finalizers"] = patch["metadata"]["finalizers"].clone();
        }
        Json(queue.clone()).into_response()
    }

    #[tokio::test]
    async fn ours_go_from_every_page_and_others_stay() {
        let server = Server::with((0..1_101).map(|number| format!("queue-{number:04}")));
        assert_eq!(server.cleaned().await, (1_101, 0));
        assert_eq!(server.finalizers("queue-1100"), json!(["example.com/other"]));
        assert_eq!(server.cleaned().await, (0, 0));
    }

    #[tokio::test]
    async fn an_object_that_changes_is_read_again() {
        let server = Server::with(["a".to_owned()]);
        server.0.lock().unwrap().conflicts = CONFLICTS - 1;
        assert_eq!(server.cleaned().await, (1, 0));
        assert_eq!(server.finalizers("a"), json!(["example.com/other"]));
    }

    #[tokio::test]
    async fn an_object_that_vanished_needs_nothing() {
        let server = Server::with(["a".to_owned()]);
        let api: Api<Queue> = Api::all(server.client());
        let listed = api.list_metadata(&ListParams::default().limit(1)).await.unwrap();
        server.0.lock().unwrap().queues.clear();
        let object = listed.items.into_iter().next().unwrap();
        let removed = remove(&server.client(), object, finalizer::QUEUE_DATA).await;
        assert!(!removed.unwrap());
    }

    #[tokio::test]
    async fn finalizers_that_come_back_are_told_of() {
        let server = Server::with(["a".to_owned(), "b".to_owned()]);
        server.0.lock().unwrap().stubborn = true;
        assert_eq!(server.cleaned().await, (2 * PASSES, 2));
    }

    #[tokio::test]
    async fn without_definitions_there_is_nothing_to_do() {
        let unknown = || async { (StatusCode::NOT_FOUND, "404 page not found\n") };
        let client = Client::new(Router::new().fallback(unknown), "ns");
        let scopes = [Scope::Namespace("a".to_owned()), Scope::Namespace("b".to_owned())];
        assert_eq!(until_gone(&client, &scopes, Duration::from_millis(1)).await, (0, 0));
    }

    #[tokio::test]
    async fn what_can_not_be_listed_is_told_of() {
        let client = Client::new(Router::new().fallback(|| async { status(403, "Forbidden") }), "ns");
        let found = until_gone(&client, &[Scope::Cluster], Duration::from_millis(1)).await;
        assert_eq!(found, (0, 2));
    }
}
