//! The command line.

use crate::run::Settings;
use clap::{Args, Parser, Subcommand};
use std::{net::SocketAddr, path::PathBuf};

/// Hands each job to the container beside it and settles it with the broker.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Cli {
    /// What to do; `run` when absent.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Options of `run`.
    #[command(flatten)]
    pub run: Run,
}

/// What to do.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Run the sidecar.
    Run,
    /// Start the drain of the running sidecar and return: its own preStop hook.
    Drain,
}

/// Options.
#[derive(Debug, Clone, Args)]
pub struct Run {
    /// The policy file, usually from a mounted `ConfigMap`.
    #[arg(
        long,
        global = true,
        env = "LONGSHORE_POLICY",
        default_value = "/etc/longshore/policy/policy.json"
    )]
    pub policy: PathBuf,
    /// Where the API for the containers of this pod listens.
    #[arg(long, global = true, env = "LONGSHORE_API", default_value = "127.0.0.1:7420")]
    pub api: SocketAddr,
    /// Where probes, metrics and the app's stop hook are served.
    #[arg(long, global = true, env = "LONGSHORE_ADMIN", default_value = "0.0.0.0:7421")]
    pub admin: SocketAddr,
    /// The name of this pod.
    #[arg(long, global = true, env = "POD_NAME", default_value = "")]
    pub pod_name: String,
    /// Where the sidecar leaves the token that opens its API to the containers of this pod.
    #[arg(
        long,
        global = true,
        env = "LONGSHORE_POD_TOKEN_FILE",
        default_value = "/var/run/longshore/token/token"
    )]
    pub pod_token_file: PathBuf,
}

impl From<Run> for Settings {
    fn from(run: Run) -> Self {
        let Run { policy, api, admin, pod_name, pod_token_file } = run;
        Self { policy, api, admin, pod_name, token_file: pod_token_file }
    }
}
