//! The cluster and the installation that scenarios run on.

use anyhow::{Context, Result, ensure};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use std::{path::PathBuf, process::Stdio};
use tokio::process::Command;

/// Whether the cluster runs on this machine, so that processes can be killed from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Made by `e2e/cluster/cluster`.
    Local,
    /// Named by `KUBECONFIG` and `E2E_CONTEXT`.
    Elsewhere,
}

/// A cluster.
#[derive(Clone)]
pub struct Cluster {
    /// Where it runs.
    pub place: Place,
    /// A client for its API server.
    pub client: Client,
    /// The kubeconfig that the client was made from.
    pub kubeconfig: PathBuf,
    /// The context in it.
    pub context: Option<String>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Cluster")
            .field("place", &self.place)
            .field("kubeconfig", &self.kubeconfig)
            .finish_non_exhaustive()
    }
}

/// The root of the checkout.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

impl Cluster {
    /// The cluster to use: the one that the environment names, else the local one.
    ///
    /// # Errors
    /// When it doesn't answer.
    pub async fn connect() -> Result<Self> {
        let context = std::env::var("E2E_CONTEXT").ok();
        let (place, kubeconfig) = match (std::env::var_os("KUBECONFIG"), &context) {
            (Some(path), Some(_)) => (Place::Elsewhere, PathBuf::from(path)),
            _ => (Place::Local, local_kubeconfig().await?),
        };
        let file = Kubeconfig::read_from(&kubeconfig)
            .context("failed to read the kubeconfig; is the cluster up?")?;
        let options = KubeConfigOptions { context: context.clone(), ..KubeConfigOptions::default() };
        let mut config = Config::from_custom_kubeconfig(file, &options).await?;
        config.default_retry = false;
        let client = Client::try_from(config)?;
        client.apiserver_version().await.context("the API server does not answer")?;
        Ok(Self { place, client, kubeconfig, context })
    }

    /// Runs kubectl and gives what it prints.
    ///
    /// # Errors
    /// When it fails; with what it said.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.run("kubectl", arguments, None).await
    }

    /// Runs kubectl with `input` on its standard input.
    ///
    /// # Errors
    /// When it fails; with what it said.
    pub async fn kubectl_with(&self, arguments: &[&str], input: &str) -> Result<String> {
        self.run("kubectl", arguments, Some(input)).await
    }

    /// Runs helm and gives what it prints.
    ///
    /// # Errors
    /// When it fails; with what it said.
    pub async fn helm(&self, arguments: &[&str]) -> Result<String> {
        self.run("helm", arguments, None).await
    }

    /// Drives the local cluster itself: `stop` and `start` of a component, `ctr` for images.
    ///
    /// # Errors
    /// When the cluster isn't the local one, or when that fails.
    pub async fn control(&self, arguments: &[&str]) -> Result<()> {
        ensure!(self.place == Place::Local, "only the local cluster can be driven");
        let output = Command::new(root().join("e2e/cluster/cluster"))
            .args(arguments)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "cluster {} failed: {}", arguments.join(" "), said.trim());
        Ok(())
    }

    async fn run(&self, program: &str, arguments: &[&str], input: Option<&str>) -> Result<String> {
        use tokio::io::AsyncWriteExt;
        let context_flag = if program == "helm" { "--kube-context" } else { "--context" };
        let mut command = match self.place {
            Place::Local => {
                let mut command = Command::new(root().join("e2e/cluster/cluster"));
                command.arg(program);
                command
            }
            Place::Elsewhere => Command::new(program),
        };
        command.env("KUBECONFIG", &self.kubeconfig).args(arguments);
        if let (Place::Elsewhere, Some(context)) = (self.place, &self.context) {
            command.args([context_flag, context]);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().with_context(|| format!("failed to start {program}"))?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.unwrap_or_default().as_bytes()).await?;
        }
        let output = child.wait_with_output().await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{program} {} failed: {}", arguments.join(" "), said.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

async fn local_kubeconfig() -> Result<PathBuf> {
    let output = Command::new(root().join("e2e/cluster/cluster")).arg("kubeconfig").output().await?;
    ensure!(output.status.success(), "there is no local cluster: run `make cluster`");
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim()))
}
