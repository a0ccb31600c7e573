//! A scenario: data, and the world it runs in.

use crate::{cluster::Cluster, ledger::Ledger, wait::eventually};
use anyhow::{Context, Result, ensure};
use futures::future::BoxFuture;
use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::{Namespace, Pod, ServiceAccount},
};
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, ListParams, ObjectMeta, PostParams},
};
use longshore_crds::{Workflow, WorkflowPhase};
use serde::de::DeserializeOwned;
use std::{fmt::Debug, time::Duration};

/// One scenario.
#[derive(Clone, Copy)]
pub struct Scenario {
    /// Its name; the guarantee's, where it proves one.
    pub name: &'static str,
    /// It signals processes on this machine.
    pub needs_host: bool,
    /// It disturbs the installation that the others share, so it runs alone.
    pub alone: bool,
    /// Runs it.
    pub run: fn(World) -> BoxFuture<'static, Result<()>>,
}

impl Debug for Scenario {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Scenario").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What a scenario works with: a cluster and a namespace of its own.
#[derive(Debug, Clone)]
pub struct World {
    /// The cluster.
    pub cluster: Cluster,
    /// The namespace.
    pub namespace: String,
}

impl World {
    /// Makes another namespace for the scenario, as strict as its own; whoever makes it takes it away.
    ///
    /// # Errors
    /// When it can't be made.
    pub async fn sibling(&self, suffix: &str) -> Result<Self> {
        let world = Self { cluster: self.cluster.clone(), namespace: format!("{}-{suffix}", self.namespace) };
        world.create().await?;
        Ok(world)
    }

    /// Makes the scenario's namespace, with restricted pods.
    ///
    /// # Errors
    /// When it can't be made.
    pub async fn create(&self) -> Result<()> {
        let labels = [("pod-security.kubernetes.io/enforce".to_owned(), "restricted".to_owned())];
        let metadata = ObjectMeta {
            name: Some(self.namespace.clone()),
            labels: Some(labels.into()),
            ..ObjectMeta::default()
        };
        let object = Namespace { metadata, ..Namespace::default() };
        self.namespaces()
            .create(&PostParams::default(), &object)
            .await
            .context("failed to create a namespace")?;
        // No pod is let in before there is one; after an outage of the API server that takes a while.
        eventually("the namespace's service account", Duration::from_secs(120), || async {
            self.get::<ServiceAccount>("default").await.map(drop)
        })
        .await
    }

    /// Has the scenario's namespace deleted.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn delete(&self) -> Result<()> {
        self.namespaces().delete(&self.namespace, &DeleteParams::default()).await?;
        Ok(())
    }

    /// The API of namespaces.
    pub fn namespaces(&self) -> Api<Namespace> {
        Api::all(self.cluster.client.clone())
    }

    /// The API of `K` in the scenario's namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.cluster.client.clone(), &self.namespace)
    }

    /// Applies manifests as a user would.
    ///
    /// # Errors
    /// When kubectl fails.
    pub async fn apply(&self, manifests: &str) -> Result<String> {
        self.cluster.kubectl_with(&["apply", "-n", &self.namespace, "-f", "-"], manifests).await
    }

    /// The object named `name`.
    ///
    /// # Errors
    /// When it is not there.
    pub async fn get<K>(&self, name: &str) -> Result<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        Ok(self.api::<K>().get(name).await?)
    }

    /// Pods with these labels, those on their way out too.
    ///
    /// # Errors
    /// When they can't be listed.
    pub async fn pods(&self, labels: &str) -> Result<Vec<Pod>> {
        Ok(self.api::<Pod>().list(&ListParams::default().labels(labels)).await?.items)
    }

    /// Pods of the Worker `name`.
    ///
    /// # Errors
    /// When they can't be listed.
    pub async fn worker_pods(&self, name: &str) -> Result<Vec<Pod>> {
        self.pods(&format!("longshore.dev/worker={name}")).await
    }

    /// What the handlers wrote down so far.
    ///
    /// # Errors
    /// When the ledger can't be read.
    pub async fn ledger(&self) -> Result<Ledger> {
        let path = format!("/api/v1/namespaces/{}/pods/ledger:8080/proxy/", self.namespace);
        let request = http_get(&path)?;
        let text = self.cluster.client.request_text(request).await.context("failed to read the ledger")?;
        Ledger::parse(&text)
    }

    /// Lets everybody through who waits at `gate`, now and later.
    ///
    /// # Errors
    /// When the ledger can't be reached.
    pub async fn open_gate(&self, gate: &str) -> Result<()> {
        let path = format!("/api/v1/namespaces/{}/pods/ledger:8080/proxy/gates/{gate}", self.namespace);
        let request = http::Request::post(path).body(Vec::new())?;
        self.cluster.client.request_text(request).await.context("failed to open a gate")?;
        Ok(())
    }

    /// Waits until the ledger satisfies `check`.
    ///
    /// # Errors
    /// When it doesn't in time.
    pub async fn ledger_shows(
        &self,
        what: &str,
        limit: Duration,
        check: impl Fn(&Ledger) -> Result<()>,
    ) -> Result<Ledger> {
        eventually(what, limit, || async {
            let ledger = self.ledger().await?;
            check(&ledger)?;
            Ok(ledger)
        })
        .await
    }

    /// Waits until the Workflow `name` ends, and checks how.
    ///
    /// # Errors
    /// When it ends otherwise or not in time.
    pub async fn workflow_ends(&self, name: &str, phase: WorkflowPhase, limit: Duration) -> Result<Workflow> {
        let over = [WorkflowPhase::Succeeded, WorkflowPhase::Failed, WorkflowPhase::Cancelled];
        let workflow: Workflow = eventually(&format!("Workflow {name} to end"), limit, || async {
            let workflow: Workflow = self.get(name).await?;
            let status = workflow.status.clone().unwrap_or_default();
            ensure!(over.contains(&status.phase), "it is {:?} at {}", status.phase, status.progress);
            Ok(workflow)
        })
        .await?;
        let status = workflow.status.clone().unwrap_or_default();
        ensure!(
            status.phase == phase,
            "Workflow {name} ended {:?}, not {phase:?}: {:?}",
            status.phase,
            status.message
        );
        Ok(workflow)
    }

    /// Waits until the Worker `name` has `count` ready pods and no others.
    ///
    /// # Errors
    /// When it hasn't in time.
    pub async fn worker_has(&self, name: &str, count: usize, limit: Duration) -> Result<Vec<Pod>> {
        eventually(&format!("Worker {name} to have {count} pods"), limit, || async {
            let pods = self.worker_pods(name).await?;
            let ready = pods.iter().filter(|pod| is_ready(pod)).count();
            ensure!(pods.len() == count && ready == count, "{} pods, {ready} ready", pods.len());
            Ok(pods)
        })
        .await
    }
}

/// Whether `pod` is ready and stays.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready =
        conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    ready && pod.meta().deletion_timestamp.is_none() && !pod.name_any().is_empty()
}

fn http_get(path: &str) -> Result<http::Request<Vec<u8>>> {
    Ok(http::Request::get(path).body(Vec::new())?)
}
