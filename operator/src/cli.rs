//! Flags and environment of the operator.

use crate::{cleanup, run};
use clap::{Args, Parser, Subcommand};
use std::{net::SocketAddr, process::ExitCode};
use tracing_subscriber::EnvFilter;

/// The operator of Longshore.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the controllers.
    Run(Settings),
    /// Remove Longshore's finalizers, so that namespaces can go away without the operator. The chart runs it before it is
    /// uninstalled.
    Cleanup(Cleanup),
}

/// The part of the cluster that is looked after.
#[derive(Debug, Clone, Args)]
pub(crate) struct Scoped {
    /// Namespaces to watch, separated by commas; all of them without it.
    #[arg(long, env = "LONGSHORE_WATCH_NAMESPACES", value_delimiter = ',')]
    pub(crate) watch_namespaces: Vec<String>,
}

/// What the removal of finalizers needs to know.
#[derive(Debug, Clone, Args)]
pub(crate) struct Cleanup {
    #[command(flatten)]
    pub(crate) scope: Scoped,
    /// The operator's Deployment, as namespace/name: it is stopped first, or it would put finalizers back.
    #[arg(long, env = "LONGSHORE_OPERATOR_DEPLOYMENT", default_value = "")]
    pub(crate) operator_deployment: String,
}

/// What the controllers need to know.
#[derive(Debug, Clone, Args)]
pub(crate) struct Settings {
    /// The name of this installation; data on brokers carries it.
    #[arg(long, env = "LONGSHORE_INSTALLATION")]
    pub(crate) installation: String,
    #[command(flatten)]
    pub(crate) scope: Scoped,
    /// The image of the sidecar.
    #[arg(long, env = "LONGSHORE_SIDECAR_IMAGE")]
    pub(crate) sidecar_image: String,
    /// The image of the embedded broker.
    #[arg(long, env = "LONGSHORE_BROKER_IMAGE")]
    pub(crate) broker_image: String,
    /// The pull policy of both.
    #[arg(long, env = "LONGSHORE_IMAGE_PULL_POLICY", default_value = "IfNotPresent")]
    pub(crate) image_pull_policy: String,
    /// A Broker to create at start if it is absent, as namespace/name.
    #[arg(long, env = "LONGSHORE_DEFAULT_BROKER", default_value = "")]
    pub(crate) default_broker: String,
    /// The name of this pod; the identity in the election of a leader.
    #[arg(long, env = "POD_NAME")]
    pub(crate) pod_name: String,
    /// The namespace of this pod; the lease lives there.
    #[arg(long, env = "POD_NAMESPACE")]
    pub(crate) pod_namespace: String,
    /// Where health, readiness and metrics are served.
    #[arg(long, env = "LONGSHORE_HTTP", default_value = "0.0.0.0:8080")]
    pub(crate) http: SocketAddr,
}

/// Runs what the command line says.
///
/// # Errors
/// What went wrong, for people.
pub fn execute(cli: Cli) -> anyhow::Result<ExitCode> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,kube=warn"));
    tracing_subscriber::fmt().json().with_env_filter(filter).init();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    match cli.command {
        Command::Run(settings) => runtime.block_on(run::run(settings)),
        Command::Cleanup(scope) => runtime.block_on(cleanup::cleanup(&scope)).map(|()| ExitCode::SUCCESS),
    }
}
