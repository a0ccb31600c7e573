//! The worker-level part of the conformance suite: the real sidecar process, a real broker process and an app that is an
//! ordinary HTTP server. Writes what it found to `target/conformance/workers-<broker>.json`.
//!
//! `LONGSHORE_TEST_WORKER_BROKERS` names the brokers, separated by commas; those that live inside a process (`memory`,
//! `embedded`) are the business of the drivers' own suite. A named broker that can't be started is a failure, a scenario
//! that a named server can't be used for is reported as unsupported.
#![expect(clippy::unwrap_used, clippy::panic, reason = "scenarios fail by panicking and have no public API")]

mod bounds;
mod chronicle;
mod described;
mod frame;
mod history;
mod judge;
mod scenarios;

use bounds::BOUNDS;
use frame::{
    broker::{Ground, keep_files},
    site::Site,
};
use futures::{FutureExt, future::LocalBoxFuture};
use libtest_mimic::{Arguments, Failed, Trial};
use longshore_drivers::conformance::{Bound, Bounds, Broker, Need, Offer};
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
/// Scenarios at once: most of a trial's time is waiting.
const AT_ONCE: usize = 4;

/// One guarantee and its proof.
pub(crate) struct Scenario {
    /// The name, the same for each broker.
    pub(crate) name: &'static str,
    /// What is promised, in one sentence.
    pub(crate) guarantee: &'static str,
    /// What a broker must have for it.
    pub(crate) needs: &'static [&'static Need],
    /// It needs the machine for itself.
    pub(crate) alone: bool,
    /// The longest that it may take.
    pub(crate) patience: fn() -> Duration,
    /// The proof. It fails by panicking.
    pub(crate) run: fn(Site) -> LocalBoxFuture<'static, ()>,
}

impl Scenario {
    /// The first need that a broker does not meet.
    fn missing(&self, offer: &Offer) -> Option<&'static Need> {
        self.needs.iter().copied().find(|need| !(need.holds)(offer))
    }
}

type Findings = Arc<Mutex<BTreeMap<&'static str, Value>>>;

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(AT_ONCE);
    let named = std::env::var("LONGSHORE_TEST_WORKER_BROKERS").unwrap_or_else(|_| BROKERS.to_owned());
    let mut trials = judge::trials();
    trials.extend(chronicle::trials());
    trials.push(described::trial());
    let mut reports = Vec::new();
    for name in named.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        match runtime().block_on(Ground::find(name)) {
            Ok(Some(ground)) => {
                let findings = Findings::default();
                let all = scenarios::ALL.iter();
                trials.extend(all.map(|scenario| trial(&ground, scenario, &findings)));
                reports.push((ground, findings));
            }
            Ok(None) => eprintln!(
                "{name} lives inside a process: no sidecar can reach it, the drivers' suite runs on it"
            ),
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
        for (ground, findings) in reports {
            write(&ground, &findings);
        }
    }
    conclusion.exit();
}

fn runtime() -> Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().expect("a runtime needs only threads")
}

fn trial(ground: &Ground, scenario: &'static Scenario, findings: &Findings) -> Trial {
    let (ground, findings) = (ground.clone(), findings.clone());
    let missing = scenario.missing(&ground.offer).map(|need| need.name);
    let supported = if missing.is_none() { "" } else { "__unsupported" };
    let name = format!("{}::{}{supported}", ground.backend.name(), scenario.name);
    Trial::test(name, move || {
        let bounds = Bounds::default();
        let (verdict, measured) =
            if missing.is_none() { carry_out(&ground, scenario, &bounds) } else { (Ok(()), None) };
        let status = match (&verdict, missing) {
            (Err(_), _) => "failed",
            (Ok(()), None) => "passed",
            (Ok(()), Some(_)) => "unsupported",
        };
        let finding = json!({
            "name": scenario.name,
            "status": status,
            "guarantee": scenario.guarantee,
            "bounds": bounds.all(),
            "needs": scenario.needs.iter().map(|need| need.name).collect::<Vec<_>>(),
            "missing": missing,
            "measured": measured,
        });
        findings.lock().unwrap_or_else(PoisonError::into_inner).insert(scenario.name, finding);
        verdict.map_err(Failed::from)
    })
}

/// Scenarios that need the machine for themselves wait for the others, and the others for them.
static MACHINE: RwLock<()> = RwLock::new(());

fn carry_out(ground: &Ground, scenario: &Scenario, bounds: &Bounds) -> (Result<(), String>, Option<String>) {
    let (_alone, _beside) = if scenario.alone {
        (Some(MACHINE.write().unwrap_or_else(PoisonError::into_inner)), None)
    } else {
        (None, Some(MACHINE.read().unwrap_or_else(PoisonError::into_inner)))
    };
    let directory = match tempfile::tempdir() {
        Ok(directory) => directory,
        Err(error) => return (Err(format!("no temporary directory: {error}")), None),
    };
    let keep = std::env::var_os("LONGSHORE_CONFORMANCE_KEEP").is_some();
    let measured = Arc::default();
    let running = async {
        let broker = ground.start().await?;
        let verdict = bounded(broker.clone(), scenario, directory.path(), &measured).await;
        if verdict.is_err() && keep {
            keep_files(&*broker, directory.path());
        }
        broker.stop().await;
        verdict
    };
    let verdict = runtime().block_on(BOUNDS.scope(bounds.clone(), running));
    if verdict.is_err() && keep {
        eprintln!("{}: its files stay in {}", scenario.name, directory.keep().display());
    }
    let figure = measured.lock().unwrap_or_else(PoisonError::into_inner).take();
    (verdict, figure)
}

async fn bounded(
    broker: Arc<dyn Broker>,
    scenario: &Scenario,
    directory: &Path,
    measured: &Arc<Mutex<Option<String>>>,
) -> Result<(), String> {
    let site = Site::start(broker, directory, measured.clone()).await;
    let site = site.map_err(|error| format!("the broker can't be used: {error}"))?;
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

fn write(ground: &Ground, findings: &Findings) {
    let findings = findings.lock().unwrap_or_else(PoisonError::into_inner);
    let all = scenarios::ALL.iter();
    let scenarios: Vec<&Value> = all.filter_map(|scenario| findings.get(scenario.name)).collect();
    let (name, version) = (ground.backend.name(), &ground.offer.probe.version);
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
