//! The command line.

use crate::{
    policy::{self, Own},
    run::Settings,
};
use clap::{Args, Parser, Subcommand};
use longshore_drivers::policy::Handler;
use std::{net::SocketAddr, path::PathBuf, time::Duration};

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
    /// How jobs reach the app of this pod, as JSON; the policy says it otherwise.
    #[arg(long, global = true, env = "LONGSHORE_HANDLER", value_parser = handler)]
    pub handler: Option<Handler>,
    /// How many milliseconds running jobs get when this pod goes away; the policy says it otherwise.
    #[arg(long, global = true, env = "LONGSHORE_DRAIN_TIMEOUT_MS")]
    pub drain_timeout_ms: Option<u64>,
}

fn handler(text: &str) -> Result<Handler, String> {
    let handler: Handler = serde_json::from_str(text).map_err(|error| error.to_string())?;
    policy::check_handler(&handler).map_err(|error| error.to_string())?;
    Ok(handler)
}

impl From<Run> for Settings {
    fn from(run: Run) -> Self {
        let Run { policy, api, admin, pod_name, pod_token_file, handler, drain_timeout_ms } = run;
        let own = Own { handler, drain_timeout: drain_timeout_ms.map(Duration::from_millis) };
        Self { policy, api, admin, pod_name, token_file: pod_token_file, own }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_says_what_is_its_own() {
        let own = |arguments: &[&str]| {
            let line = ["sidecar"].iter().chain(arguments);
            Cli::try_parse_from(line).map(|cli| Settings::from(cli.run).own)
        };
        assert_eq!(own(&[]).unwrap(), Own::default());
        let given = own(&[r#"--handler={"http":{"port":8080,"path":"/jobs"}}"#, "--drain-timeout-ms=1500"]);
        let handler = Handler::Http { port: 8080, path: "/jobs".to_owned() };
        let drain_timeout = Some(Duration::from_millis(1500));
        assert_eq!(given.unwrap(), Own { handler: Some(handler), drain_timeout });
        assert_eq!(own(&[r#"--handler={"pull":{}}"#]).unwrap().handler, Some(Handler::Pull {}));
        for refused in ["--handler={}", r#"--handler={"http":{"port":0,"path":"/"}}"#, "--handler=pull"] {
            assert!(own(&[refused]).is_err(), "{refused}");
        }
    }
}
