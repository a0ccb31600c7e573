//! The installation that all scenarios share: its operator's pods, and `helm` on it. Only scenarios that run alone may
//! disturb it, and they put it back.

use crate::{World, cluster::root, wait::eventually};
use anyhow::{Context, Result, ensure};
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Pod};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams},
};
use std::{future::Future, time::Duration};

/// Where the installation lives.
pub const NAMESPACE: &str = "longshore-system";
const RELEASE: &str = "longshore";
/// The Lease of the leader: namespace and Deployment.
const LEASE: &str = "longshore-system-longshore-operator";
const OPERATOR: &str = "app.kubernetes.io/component=operator";
/// The port of an operator's metrics.
const METRICS: u16 = 8080;
const LIMIT: Duration = Duration::from_secs(90);

impl World {
    /// The operator's pods.
    pub fn operators(&self) -> Api<Pod> {
        Api::namespaced(self.cluster.client.clone(), NAMESPACE)
    }

    /// The pods of the operator that are there, those on their way out too.
    ///
    /// # Errors
    /// When they can't be listed.
    pub async fn operator_pods(&self) -> Result<Vec<Pod>> {
        Ok(self.operators().list(&ListParams::default().labels(OPERATOR)).await?.items)
    }

    /// The name of the pod that leads.
    ///
    /// # Errors
    /// When none does in time.
    pub async fn leader(&self) -> Result<String> {
        let leases: Api<Lease> = Api::namespaced(self.cluster.client.clone(), NAMESPACE);
        eventually("a leader", LIMIT, || async {
            let lease = leases.get(LEASE).await?;
            let holder = lease.spec.and_then(|spec| spec.holder_identity).filter(|name| !name.is_empty());
            let holder = holder.context("nobody holds the lease")?;
            ensure!(self.operators().get_opt(&holder).await?.is_some(), "its holder {holder} is gone");
            Ok(holder)
        })
        .await
    }

    /// Takes a pod of the operator away without a word, as when its node is lost.
    ///
    /// # Errors
    /// When it can't be deleted.
    pub async fn lose_operator(&self, name: &str) -> Result<()> {
        let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        self.operators().delete(name, &now).await?;
        Ok(())
    }

    /// Runs `count` operators and waits until that many are ready and no others are there. Through Helm, which owns the
    /// field: whoever else writes it makes the next upgrade conflict.
    ///
    /// # Errors
    /// When they aren't in time.
    pub async fn scale_operator(&self, count: usize) -> Result<()> {
        let (chart, replicas) = (root().join("charts/longshore"), format!("operator.replicas={count}"));
        let chart = chart.to_string_lossy();
        let mut arguments = vec!["upgrade", RELEASE, &*chart, "--namespace", NAMESPACE, "--reuse-values"];
        arguments.extend(["--set", &replicas]);
        self.cluster.helm(&arguments).await?;
        eventually(&format!("{count} operators"), LIMIT, || async {
            let pods = self.operator_pods().await?;
            let ready = pods.iter().filter(|pod| crate::scenario::is_ready(pod)).count();
            ensure!(pods.len() == count && ready == count, "{} pods, {ready} ready", pods.len());
            Ok(())
        })
        .await
    }

    /// `helm upgrade --install` of this checkout's chart with `more` settings, as `make install` does it.
    ///
    /// # Errors
    /// When helm fails.
    pub async fn helm_install(&self, more: &[&str]) -> Result<()> {
        self.helm_release(RELEASE, NAMESPACE, more).await
    }

    /// The same as another release in another namespace.
    ///
    /// # Errors
    /// When helm fails.
    pub async fn helm_release(&self, release: &str, namespace: &str, more: &[&str]) -> Result<()> {
        let chart = root().join("charts/longshore");
        let tag = std::env::var("LONGSHORE_TAG").unwrap_or_else(|_| "dev".to_owned());
        let tag = format!("image.tag={tag}");
        let chart = chart.to_string_lossy();
        let mut arguments = vec!["upgrade", "--install", release, &*chart, "--namespace", namespace];
        arguments.extend(["--create-namespace", "--wait", "--timeout", "2m", "--set", "operator.replicas=1"]);
        arguments.extend(["--set", &tag, "--set", "defaultBroker.enabled=false"]);
        more.iter().for_each(|setting| arguments.extend(["--set", setting]));
        self.cluster.helm(&arguments).await?;
        Ok(())
    }

    /// The value of a counter of the operators in `namespace`, all of them together.
    ///
    /// # Errors
    /// When they can't be asked or don't have it.
    pub async fn operator_counter(&self, namespace: &str, name: &str) -> Result<f64> {
        let pods: Api<Pod> = Api::namespaced(self.cluster.client.clone(), namespace);
        let mut sum = 0.0;
        for pod in pods.list(&ListParams::default().labels(OPERATOR)).await?.items {
            let path =
                format!("/api/v1/namespaces/{namespace}/pods/{}:{METRICS}/proxy/metrics", pod.name_any());
            let text = self.cluster.client.request_text(http::Request::get(path).body(Vec::new())?).await?;
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            sum += line.with_context(|| format!("no counter {name}"))?.trim().parse::<f64>()?;
        }
        Ok(sum)
    }

    /// `helm uninstall`.
    ///
    /// # Errors
    /// When helm fails.
    pub async fn helm_uninstall(&self) -> Result<()> {
        let arguments = ["uninstall", RELEASE, "--namespace", NAMESPACE, "--wait", "--timeout", "2m"];
        self.cluster.helm(&arguments).await?;
        Ok(())
    }

    /// Runs `disturb`, then puts the installation back as the other scenarios expect it, however it went.
    ///
    /// # Errors
    /// What went wrong first.
    pub async fn disturbing<F: Future<Output = Result<()>>>(&self, disturb: F) -> Result<()> {
        let outcome = disturb.await;
        let installed = self.helm_install(&[]).await;
        let back = match installed {
            Ok(()) => self.scale_operator(1).await,
            Err(error) => Err(error),
        };
        outcome.and(back)
    }

    /// Kills the process of the operator that leads, and its pod with it, so that another one has to lead.
    ///
    /// # Errors
    /// When there is none.
    pub async fn kill_leader(&self) -> Result<String> {
        let leader = self.leader().await?;
        crate::host::kill(&self.operators(), &leader, "operator").await?;
        self.lose_operator(&leader).await?;
        Ok(leader)
    }
}

/// The first pod's name.
///
/// # Errors
/// When there is none.
pub fn first_name(pods: &[Pod]) -> Result<String> {
    Ok(pods.first().context("no pod")?.name_any())
}
