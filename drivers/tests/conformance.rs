//! Runs the conformance suite on each backend and writes what it found to `target/conformance/<backend>.json`.
//!
//! `LONGSHORE_TEST_DRIVERS` names the backends, separated by commas. A named backend that can't be started is a failure.

use futures::FutureExt;
use libtest_mimic::{Arguments, Failed, Trial};
use longshore_drivers::conformance::{
    ALL, Backend, Bound, Bounds, Broker, Fixture, Offer, Run, SOON, Scenario, by_name, use_broker_binary,
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};
use tokio::runtime::Runtime;

const BACKENDS: &str = "memory,embedded,http";
/// No trial takes longer than this, once it has begun.
const PATIENCE: Duration = Duration::from_secs(60);
/// Those that have another patience: they look into windows, which are longer on a slow machine.
const PATIENT: [(&str, Duration); 10] = [
    ("extend_keeps_the_job", Duration::from_secs(240)),
    ("heartbeat_keeps_one_leased_run", Duration::from_secs(400)),
    ("ordering_fifo_retry_blocks_key", Duration::from_secs(120)),
    ("ordering_fifo_delay_blocks_key", Duration::from_secs(120)),
    ("worker_restart_delay_recovery", Duration::from_secs(240)),
    ("shutdown_during_delay_retry", Duration::from_secs(240)),
    ("error_contract_broker_faults", Duration::from_secs(180)),
    ("consume_after_broker_recovery", Duration::from_secs(180)),
    ("dispatch_during_broker_fault", Duration::from_secs(180)),
    ("ordering_fifo_broker_faults", Duration::from_secs(180)),
];
/// Those that keep every core busy run by themselves: the others would measure them. So does one that counts what this process
/// has open.
const HEAVY: [(&str, Duration); 4] = [
    ("closed_handles_leave_nothing", Duration::from_secs(120)),
    ("soak_broker_faults", Duration::from_secs(400)),
    ("scheduled_100k_due_at_once", Duration::from_secs(240)),
    ("soak_mixed_load", Duration::from_secs(180)),
];
/// Whoever is heavy has the machine for itself.
static MACHINE: RwLock<()> = RwLock::new(());
/// The same with `LONGSHORE_SOAK=1`, where one of them does a million jobs.
const SOAK: Duration = Duration::from_secs(4 * 3600);

/// What a scenario leaves behind beside its verdict.
#[derive(Default)]
struct Found {
    measured: Option<String>,
    bounds: Vec<Bound>,
}

type Findings = Arc<Mutex<BTreeMap<&'static str, Value>>>;

fn main() {
    for (name, _) in PATIENT.iter().chain(&HEAVY) {
        assert!(ALL.iter().any(|scenario| scenario.name == *name), "there is no scenario {name}");
    }
    let mut arguments = Arguments::from_args();
    use_broker_binary(env!("CARGO_BIN_EXE_longshore-broker"));
    // Most of a trial's time is waiting.
    arguments.test_threads.get_or_insert(4);
    let named = std::env::var("LONGSHORE_TEST_DRIVERS").unwrap_or_else(|_| BACKENDS.to_owned());
    let mut trials = Vec::new();
    let mut reports = Vec::new();
    for name in named.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        match by_name(name)
            .ok_or_else(|| "no such backend".to_owned())
            .and_then(|backend| look(&*backend).map(|offer| (backend, offer)))
        {
            Ok((backend, offer)) => {
                let findings = Findings::default();
                trials.extend(ALL.iter().map(|scenario| trial(&backend, &offer, scenario, &findings)));
                reports.push((backend.name(), offer, findings));
            }
            Err(error) => {
                let error = format!("{name} can't be started: {error}");
                trials.push(Trial::test(format!("{name}::starts"), || Err(Failed::from(error))));
            }
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    let mut written = true;
    let complete =
        arguments.filter.is_none() && arguments.skip.is_empty() && !arguments.list && !arguments.ignored;
    if complete {
        for (name, offer, findings) in reports {
            written &= write(name, &offer, &findings);
        }
    }
    if !written {
        std::process::exit(1);
    }
    conclusion.exit();
}

/// What stands beside a scenario's name.
fn told<const N: usize>(table: &[(&str, Duration); N], scenario: &Scenario) -> Option<Duration> {
    table.iter().find(|(name, _)| *name == scenario.name).map(|(_, patience)| *patience)
}

fn patience(scenario: &Scenario) -> Duration {
    if std::env::var_os("LONGSHORE_SOAK").is_some() {
        return SOAK;
    }
    told(&HEAVY, scenario).or_else(|| told(&PATIENT, scenario)).unwrap_or(PATIENCE)
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime needs only threads")
}

fn look(backend: &dyn Backend) -> Result<Offer, String> {
    runtime().block_on(Offer::of(backend)).map_err(|error| error.to_string())
}

fn trial(
    backend: &Arc<dyn Backend>,
    offer: &Offer,
    scenario: &'static Scenario,
    findings: &Findings,
) -> Trial {
    let (backend, findings) = (backend.clone(), findings.clone());
    let missing = scenario.missing(offer);
    let (name, run) = match missing {
        None => (format!("{}::{}", backend.name(), scenario.name), Some(scenario.run)),
        Some(need) => (format!("{}::{}__unsupported", backend.name(), scenario.name), need.refused),
    };
    let supported = missing.is_none();
    let alone = scenario.alone && offer.alone;
    Trial::test(name, move || {
        let (verdict, found) =
            run.map_or_else(|| (Ok(()), Found::default()), |run| carry_out(&*backend, scenario, run, alone));
        let status = match (&verdict, supported) {
            (Err(_), _) => "failed",
            (Ok(()), true) => "passed",
            (Ok(()), false) => "unsupported",
        };
        let finding = json!({
            "name": scenario.name,
            "status": status,
            "guarantee": scenario.guarantee,
            "needs": scenario.needs.iter().map(|need| need.name).collect::<Vec<_>>(),
            // Where it is unsupported: for want of what, and whether its twin proved what is there instead.
            "missing": missing.map(|need| need.name),
            "twin": !supported && run.is_some(),
            "bounds": found.bounds,
            "measured": found.measured,
        });
        let mut findings = findings.lock().unwrap_or_else(PoisonError::into_inner);
        findings.insert(scenario.name, finding);
        verdict.map_err(Failed::from)
    })
}

fn carry_out(
    backend: &dyn Backend,
    scenario: &Scenario,
    run: Run,
    alone: bool,
) -> (Result<(), String>, Found) {
    let heavy = told(&HEAVY, scenario).is_some();
    let _alone = heavy.then(|| MACHINE.write().unwrap_or_else(PoisonError::into_inner));
    let _beside = (!heavy).then(|| MACHINE.read().unwrap_or_else(PoisonError::into_inner));
    runtime().block_on(async {
        let started = if alone { backend.start_alone().await } else { backend.start().await };
        let broker = match started {
            Ok(broker) => broker,
            Err(error) => return (Err(format!("the broker can't be started: {error}")), Found::default()),
        };
        let answer = bounded(broker.clone(), scenario, run).await;
        broker.stop().await;
        answer
    })
}

async fn bounded(broker: Arc<dyn Broker>, scenario: &Scenario, run: Run) -> (Result<(), String>, Found) {
    let prefix: String =
        scenario.name.chars().take(12).map(|letter| if letter == '_' { '-' } else { letter }).collect();
    let fixture = Fixture::new(broker, prefix);
    let (measured, bounds) = (fixture.measured(), fixture.bounds());
    // A panic must not leave the broker running.
    let caught = std::panic::AssertUnwindSafe(run(fixture)).catch_unwind();
    let patience = patience(scenario);
    let verdict = match tokio::time::timeout(patience, caught).await {
        Ok(Ok(verdict)) => verdict.map_err(|failed| failed.to_string()),
        Ok(Err(_)) => Err("the scenario panicked".to_owned()),
        Err(_) => Err(format!("the scenario was not over after {patience:?}")),
    };
    let measured = measured.lock().unwrap_or_else(PoisonError::into_inner).take();
    (verdict, Found { measured, bounds: bounds.all() })
}

/// What holds for each scenario beside its own bounds.
fn of_all() -> Vec<Bound> {
    let bounds = Bounds::default();
    bounds.at_most("until anything comes that is waited for", SOON);
    bounds.at_most("for most scenarios", PATIENCE);
    bounds.all()
}

/// Whether the report could be written.
fn write(name: &str, offer: &Offer, findings: &Findings) -> bool {
    let findings = findings.lock().unwrap_or_else(PoisonError::into_inner);
    let scenarios: Vec<&Value> = ALL.iter().filter_map(|scenario| findings.get(scenario.name)).collect();
    let report = json!({
        "broker": name,
        "server_version": offer.probe.version,
        "capabilities": offer.probe.capabilities,
        "bounds": of_all(),
        "scenarios": scenarios,
    });
    let directory = std::env::var_os("LONGSHORE_CONFORMANCE_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/conformance"), PathBuf::from);
    let path = directory.join(format!("{name}.json"));
    let text = serde_json::to_string_pretty(&report).expect("a report is plain data");
    let written = std::fs::create_dir_all(&directory).and_then(|()| std::fs::write(&path, text + "\n"));
    if let Err(error) = &written {
        eprintln!("{} can't be written: {error}", path.display());
    }
    written.is_ok()
}
