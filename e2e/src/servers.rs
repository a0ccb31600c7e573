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
    brokers(&["up", name]).await?;
    Ok(brokers(&["url", name, "pods"]).await?.trim().to_owned())
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
    ensure!(output.status.success(), "brokers {} failed: {}", arguments.join(" "), said.trim());
    Ok(String::from_utf8(output.stdout)?)
}
