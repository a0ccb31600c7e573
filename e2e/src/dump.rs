//! What a namespace looks like, for whoever has to find out why a scenario failed.

use crate::cluster::Cluster;
use std::fmt::Write;

/// Objects, events and logs of `namespace` and of the operator, as text.
pub async fn dump(cluster: &Cluster, namespace: &str) -> String {
    let kinds = "brokers,queues,workers,workflows,deployments,statefulsets,pods,pvc";
    let mut out = String::new();
    for (title, arguments) in [
        ("objects", vec!["get", kinds, "-n", namespace, "-o", "wide"]),
        ("status", vec!["get", "brokers,queues,workers,workflows", "-n", namespace, "-o", "yaml"]),
        ("events", vec!["get", "events", "-n", namespace, "--sort-by=.lastTimestamp"]),
        (
            "operator",
            vec![
                "logs",
                "-n",
                "longshore-system",
                "-l",
                "app.kubernetes.io/name=longshore",
                "--tail=150",
                "--prefix",
            ],
        ),
    ] {
        section(&mut out, title, cluster.kubectl(&arguments).await);
    }
    let names = cluster.kubectl(&["get", "pods", "-n", namespace, "-o", "name"]).await.unwrap_or_default();
    for name in names.lines().take(12) {
        let arguments = ["logs", "-n", namespace, name, "--all-containers", "--prefix", "--tail=60"];
        section(&mut out, name, cluster.kubectl(&arguments).await);
    }
    out
}

fn section(out: &mut String, title: &str, text: anyhow::Result<String>) {
    let text = text.unwrap_or_else(|error| format!("{error:#}"));
    let _ = writeln!(out, "--- {title}\n{}", text.trim_end());
}
