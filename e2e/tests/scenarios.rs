//! Runs the scenarios on the cluster, several at once, those that disturb the others alone and last.

#![expect(clippy::print_stdout, reason = "the closing line is for whoever runs it")]

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};
use longshore_e2e::{
    Scenario, World,
    cluster::{Cluster, Place},
    dump, scenarios,
};
use std::{process::ExitCode, sync::Arc, time::Duration};
use tokio::runtime::Runtime;

/// A scenario that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(420);

fn main() -> Result<ExitCode> {
    let mut arguments = Arguments::from_args();
    let runtime = Arc::new(Runtime::new()?);
    if arguments.list {
        let trials =
            scenarios::all().into_iter().map(|scenario| Trial::test(scenario.name, || Ok(()))).collect();
        return Ok(libtest_mimic::run(&arguments, trials).exit_code());
    }
    let cluster = runtime.block_on(Cluster::connect())?;
    let (alone, together): (Vec<_>, Vec<_>) =
        scenarios::all().into_iter().partition(|scenario| scenario.alone);
    let trials = |scenarios: Vec<Scenario>| {
        let make = |scenario| trial(scenario, cluster.clone(), runtime.clone());
        scenarios.into_iter().map(make).collect::<Vec<_>>()
    };
    arguments.test_threads = arguments.test_threads.or(Some(4));
    let first = libtest_mimic::run(&arguments, trials(together));
    arguments.test_threads = Some(1);
    let second = libtest_mimic::run(&arguments, trials(alone));
    let failed = first.has_failed() || second.has_failed();
    println!(
        "{} passed, {} failed",
        first.num_passed + second.num_passed,
        first.num_failed + second.num_failed
    );
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn trial(scenario: Scenario, cluster: Cluster, runtime: Arc<Runtime>) -> Trial {
    // What needs the host can't run elsewhere; it is reported as not run.
    let unavailable = scenario.needs_host && cluster.place == Place::Elsewhere;
    let run =
        move || runtime.block_on(run(scenario, cluster)).map_err(|error| Failed::from(format!("{error:#}")));
    Trial::test(scenario.name, run).with_ignored_flag(unavailable)
}

async fn run(scenario: Scenario, cluster: Cluster) -> Result<()> {
    let namespace = format!(
        "e2e-{}-{:x}",
        scenario.name.replace('_', "-").chars().take(40).collect::<String>(),
        std::process::id()
    );
    let world = World { cluster: cluster.clone(), namespace: namespace.clone() };
    world.create().await?;
    let outcome = tokio::time::timeout(LIMIT, (scenario.run)(world.clone())).await;
    let outcome = outcome.unwrap_or_else(|_| Err(anyhow::anyhow!("it took longer than {LIMIT:?}")));
    if outcome.is_err() {
        eprintln!("{}: {:?}\n{}", scenario.name, outcome, dump::dump(&cluster, &namespace).await);
    }
    if std::env::var_os("E2E_KEEP").is_none() {
        world.delete().await?;
    }
    outcome
}
