//! The worker-level part of the conformance suite: the real sidecar process, a real broker process and an app that is an
//! ordinary HTTP server. Writes what it found to `target/conformance/workers-<broker>.json`.
//!
//! `LONGSHORE_TEST_WORKER_BROKERS` names the brokers, separated by commas; those that live inside a process (`memory`,
//! `embedded`) are the business of the drivers' own suite. A named broker that can't be started is a failure.
#![expect(clippy::unwrap_used, clippy::panic, reason = "scenarios fail by panicking and have no public API")]

mod bounds;
mod described;
mod frame;
mod history;
mod judge;
mod scenarios;

use bounds::BOUNDS;
use frame::{
    broker::{Door, IN_PROCESS, by_name},
    site::Site,
};
use futures::{FutureExt, future::LocalBoxFuture};
use libtest_mimic::{Arguments, Failed, Trial};
use longshore_drivers::conformance::{Bound, Bounds};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};
use tokio::runtime::Runtime;

const BROKERS: &str = "http";

/// One guarantee and its proof.
pub(crate) struct Scenario {
    /// The name, the same for each broker.
    pub(crate) name: &'static str,
    /// What is promised, in one sentence.
    pub(crate) guarantee: &'static str,
    /// It needs the machine for itself.
    pub(crate) alone: bool,
    /// The longest that it may take.
    pub(crate) patience: fn() -> Duration,
    /// The proof. It fails by panicking.
    pub(crate) run: fn(Site) -> LocalBoxFuture<'static, ()>,
}

type Findings = Arc<Mutex<BTreeMap<&'static str, Value>>>;

fn main() {
    let mut arguments = Arguments::from_args();
    // Most of a trial's time is waiting.
    arguments.test_threads.get_or_insert(4);
    let named = std::env::var("LONGSHORE_TEST_WORKER_BROKERS").unwrap_or_else(|_| BROKERS.to_owned());
    let mut trials = judge::trials();
    trials.push(described::trial());
    let mut reports = Vec::new();
    for name in named.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        if IN_PROCESS.contains(&name) {
            eprintln!(
                "{name} lives inside a process: no sidecar can reach it, the drivers' suite runs on it"
            );
            continue;
        }
        let started = by_name(name).ok_or_else(|| "no such broker".to_owned());
        match started.and_then(|door| version(&*door).map(|version| (door, version))) {
            Ok((door, version)) => {
                let findings = Findings::default();
                let all = scenarios::ALL.iter();
                trials.extend(all.map(|scenario| trial(&door, scenario, &findings)));
                reports.push((door.name(), version, findings));
            }
            Err(error) => {
                let error = format!("{name} can't be started: {error}");
                trials.push(Trial::test(format!("{name}::starts"), || Err(Failed::from(error))));
            }
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    let complete =
        arguments.filter.is_none() && arguments.skip.is_empty() && !arguments.list && !arguments.ignored;
    if complete {
        for (name, version, findings) in reports {
            write(name, &version, &findings);
        }
    }
    conclusion.exit();
}

fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().expect("a runtime needs only threads")
}

/// The version that the broker tells.
fn version(door: &dyn Door) -> Result<String, String> {
    let directory = tempfile::tempdir().map_err(|error| format!("no temporary directory: {error}"))?;
    runtime().block_on(async {
        let broker = door.start(directory.path()).await?;
        let probe = broker.driver().await?.probe().await.map_err(|error| error.to_string())?;
        Ok(probe.version)
    })
}

fn trial(door: &Arc<dyn Door>, scenario: &'static Scenario, findings: &Findings) -> Trial {
    let (door, findings) = (door.clone(), findings.clone());
    Trial::test(format!("{}::{}", door.name(), scenario.name), move || {
        let bounds = Bounds::default();
        let (verdict, measured) = carry_out(&*door, scenario, &bounds);
        let finding = json!({
            "name": scenario.name,
            "status": if verdict.is_ok() { "passed" } else { "failed" },
            "guarantee": scenario.guarantee,
            "bounds": bounds.all(),
            "measured": measured,
        });
        findings.lock().unwrap_or_else(PoisonError::into_inner).insert(scenario.name, finding);
        verdict.map_err(Failed::from)
    })
}

/// Scenarios that need the machine for themselves wait for the others, and the others for them.
static MACHINE: RwLock<()> = RwLock::new(());

fn carry_out(door: &dyn Door, scenario: &Scenario, bounds: &Bounds) -> (Result<(), String>, Option<String>) {
    let (_alone, _beside) = if scenario.alone {
        (Some(MACHINE.write().unwrap_or_else(PoisonError::into_inner)), None)
    } else {
        (None, Some(MACHINE.read().unwrap_or_else(PoisonError::into_inner)))
    };
    let directory = match tempfile::tempdir() {
        Ok(directory) => directory,
        Err(error) => return (Err(format!("no temporary directory: {error}")), None),
    };
    let measured = Arc::default();
    let running = bounded(door, scenario, directory.path(), &measured);
    let verdict = runtime().block_on(BOUNDS.scope(bounds.clone(), running));
    if verdict.is_err() && std::env::var_os("LONGSHORE_CONFORMANCE_KEEP").is_some() {
        eprintln!("{}: its files stay in {}", scenario.name, directory.keep().display());
    }
    let figure = measured.lock().unwrap_or_else(PoisonError::into_inner).take();
    (verdict, figure)
}

async fn bounded(
    door: &dyn Door,
    scenario: &Scenario,
    directory: &Path,
    measured: &Arc<Mutex<Option<String>>>,
) -> Result<(), String> {
    let site = Site::start(door, directory, measured.clone()).await;
    let site = site.map_err(|error| format!("the broker can't be started: {error}"))?;
    // A panic must not leave processes running.
    let running = AssertUnwindSafe((scenario.run)(site)).catch_unwind();
    let patience = (scenario.patience)();
    match tokio::time::timeout(patience, running).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(panic)) => Err(text(&*panic)),
        Err(_) => Err(format!("the scenario was not over after {patience:?}")),
    }
}

fn text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "the scenario panicked".to_owned())
}

/// What holds for each scenario beside its own bounds.
fn of_all() -> Vec<Bound> {
    let bounds = Bounds::default();
    bounds.at_most("until anything comes that is waited for", frame::DEADLINE);
    bounds.all()
}

fn write(name: &str, version: &str, findings: &Findings) {
    let findings = findings.lock().unwrap_or_else(PoisonError::into_inner);
    let all = scenarios::ALL.iter();
    let scenarios: Vec<&Value> = all.filter_map(|scenario| findings.get(scenario.name)).collect();
    let report = json!({
        "broker": name,
        "server_version": version,
        "bounds": of_all(),
        "scenarios": scenarios,
    });
    let directory = std::env::var_os("LONGSHORE_CONFORMANCE_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/conformance"), PathBuf::from);
    let path = directory.join(format!("workers-{name}.json"));
    let text = serde_json::to_string_pretty(&report).expect("a report is plain data");
    if let Err(error) = std::fs::create_dir_all(&directory).and_then(|()| std::fs::write(&path, text + "\n"))
    {
        eprintln!("{} can't be written: {error}", path.display());
        std::process::exit(1);
    }
}
