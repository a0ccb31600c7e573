//! Processes of containers on this machine: images from scratch have no shell, so they are signalled from outside.

use crate::wait::eventually;
use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use std::{fs, time::Duration};

/// Kills the first process of `container` in the pod `name`. Right after a restart the pod's status may still name the
/// container before, so it is looked at until the process is found.
///
/// # Errors
/// When there is no such process on this machine for a minute.
pub async fn kill(pods: &Api<Pod>, name: &str, container: &str) -> Result<()> {
    eventually(&format!("{container} of {name} to be killed"), Duration::from_secs(60), || async {
        signal(&pods.get(name).await?, container, "KILL")
    })
    .await
}

/// Sends `signal` (`KILL`, `STOP`, `CONT`) to the first process of `container` in `pod`.
///
/// # Errors
/// When there is no such process on this machine.
pub fn signal(pod: &Pod, container: &str, signal: &str) -> Result<()> {
    let pid = process(pod, container)?;
    let status =
        std::process::Command::new("kill").args([&format!("-{signal}"), &pid.to_string()]).status()?;
    ensure!(status.success(), "kill -{signal} {pid} failed");
    Ok(())
}

/// Resident memory of the first process of `container` in `pod`, in MiB.
///
/// # Errors
/// When there is no such process on this machine.
pub fn resident_mib(pod: &Pod, container: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{}/status", process(pod, container)?))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib / 1024.0)
}

fn process(pod: &Pod, container: &str) -> Result<u32> {
    let status = pod.status.as_ref().context("pod without status")?;
    let statuses =
        status.container_statuses.iter().flatten().chain(status.init_container_statuses.iter().flatten());
    let id = statuses
        .filter(|status| status.name == container)
        .find_map(|status| status.container_id.as_deref())
        .with_context(|| format!("container {container:?} has not started"))?;
    let id = id.rsplit('/').next().unwrap_or(id);
    let mut found: Vec<u32> = fs::read_dir("/proc")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| text.contains(id)))
        .collect();
    found.sort_unstable();
    found
        .first()
        .copied()
        .with_context(|| format!("no process of container {container:?} runs on this machine"))
}
