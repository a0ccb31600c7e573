//! Servers that Brokers stand for, as pods reach them.

use crate::cluster::{Cluster, Place, root};
use anyhow::{Context, Result, bail, ensure};
use std::process::Stdio;
use tokio::process::Command;

/// The URL of the server `name` (`redis`, `postgres`), credentials included. The local cluster's is started if it has to be;
/// for another cluster the environment names it.
///
/// # Errors
/// When there is none or it can't be started: a server that was asked for is never done without.
pub async fn url(cluster: &Cluster, name: &str) -> Result<String> {
    let variable = format!("LONGSHORE_E2E_{}_URL", name.to_uppercase());
    if let Ok(url) = std::env::var(&variable) {
        return Ok(url);
    }
    if cluster.place == Place::Elsewhere {
        bail!("{variable} has to name a {name} server that pods of this cluster reach");
    }
    start(name).await?;
    local_url(name).await
}

/// Starts the local server `name`, if it doesn't run.
///
/// # Errors
/// When it can't be started.
pub async fn start(name: &str) -> Result<()> {
    brokers(&["up", name]).await.map(drop)
}

/// The URL of the local server `name`, as pods of the local cluster reach it.
///
/// # Errors
/// When it was never started.
pub async fn local_url(name: &str) -> Result<String> {
    Ok(brokers(&["url", name, "pods"]).await?.trim().to_owned())
}

/// Runs the client of the local server `name` as its owner, and gives what it prints.
///
/// # Errors
/// When it fails; with what it said.
pub async fn client(name: &str, arguments: &[String]) -> Result<String> {
    let all: Vec<_> = ["client", name].into_iter().chain(arguments.iter().map(String::as_str)).collect();
    brokers(&all).await
}

async fn brokers(arguments: &[&str]) -> Result<String> {
    let output = Command::new(root().join("e2e/lib/brokers"))
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .context("failed to start e2e/lib/brokers")?;
    let said = String::from_utf8_lossy(&output.stderr);
    // What it was told may have a password in it.
    let verb = arguments.iter().take(2).copied().collect::<Vec<_>>().join(" ");
    ensure!(output.status.success(), "brokers {verb} failed: {}", said.trim());
    Ok(String::from_utf8(output.stdout)?)
}
