//! Random operations on each backend and on the reference model beside it: both must answer the same.
//!
//! `LONGSHORE_TEST_DRIVERS` names the backends (default `embedded,http`), `LONGSHORE_MODEL_CASES` how many histories each
//! of them gets. A failure is shrunk and prints the operations that are left. Leases are long and time hardly passes:
//! what comes by itself is the matter of other scenarios.
#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

#[path = "model/compare.rs"]
mod compare;
#[path = "model/operations.rs"]
mod operations;

use compare::Pair;
use futures::FutureExt;
use libtest_mimic::{Arguments, Failed, Trial};
use longshore_drivers::conformance::{Backend, by_name};
use operations::Operation;
use proptest::{
    prelude::ProptestConfig,
    test_runner::{TestCaseError, TestError, TestRunner},
};
use std::sync::Arc;
use tokio::runtime::Runtime;

const BACKENDS: &str = "embedded,http";
const CASES: u32 = 64;

fn main() {
    let mut arguments = Arguments::from_args();
    // Most of a trial's time is waiting.
    arguments.test_threads.get_or_insert(4);
    let named = std::env::var("LONGSHORE_TEST_DRIVERS").unwrap_or_else(|_| BACKENDS.to_owned());
    let mut trials = Vec::new();
    for name in named.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        let title = format!("{name}::answers_as_the_reference_model");
        trials.push(match by_name(name) {
            Some(backend) => Trial::test(title, move || compare_all(&*backend, cases(), false)),
            None => Trial::test(title, || Err(Failed::from("no such backend"))),
        });
    }
    trials.push(Trial::test("a_driver_that_deviates_is_found", deviation_is_found));
    libtest_mimic::run(&arguments, trials).exit();
}

fn cases() -> u32 {
    std::env::var("LONGSHORE_MODEL_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(CASES)
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn compare_all(backend: &dyn Backend, cases: u32, deviates: bool) -> Result<(), Failed> {
    let runtime = runtime();
    let (broker, reference) = runtime.block_on(async {
        let reference = by_name("memory").ok_or("no reference model")?;
        let started = (backend.start().await, reference.start().await);
        Ok::<_, Failed>((started.0.map_err(|error| text(&error))?, started.1.map_err(|error| text(&error))?))
    })?;
    let handles = runtime.block_on(async { (broker.handle().await, reference.handle().await) });
    let (subject, model) =
        (handles.0.map_err(|error| text(&error))?, handles.1.map_err(|error| text(&error))?);
    let config = ProptestConfig {
        cases,
        failure_persistence: None,
        max_shrink_iters: if deviates { 100 } else { 2000 },
        ..ProptestConfig::default()
    };
    let compare = |history: operations::History| {
        let pair = Pair::new(subject.clone(), model.clone(), deviates);
        // The runner shrinks what returns an error; a panic inside is one too.
        let carried = std::panic::AssertUnwindSafe(carry_out(pair, &history)).catch_unwind();
        match runtime.block_on(carried) {
            Ok(carried) => carried.map_err(TestCaseError::fail),
            Err(_) => Err(TestCaseError::fail("it panicked")),
        }
    };
    let known = if deviates { Vec::new() } else { operations::known(subject.capabilities()) };
    let known = known.into_iter().try_for_each(|history| {
        compare(history.clone()).map_err(|error| TestError::Fail(error.to_string().into(), history))
    });
    let outcome = known
        .and_then(|()| TestRunner::new(config).run(&operations::histories(subject.capabilities()), compare));
    runtime.block_on(async {
        broker.stop().await;
        reference.stop().await;
    });
    outcome.map_err(|error| match error {
        TestError::Fail(reason, history) => {
            let lines: Vec<_> =
                history.operations.iter().enumerate().map(|(at, op)| format!("{at:>3} {op:?}")).collect();
            Failed::from(format!("{reason}\nfifo: {}\n{}", history.fifo, lines.join("\n")))
        }
        TestError::Abort(reason) => Failed::from(format!("given up: {reason}")),
    })
}

fn text(error: &longshore_drivers::Error) -> Failed {
    Failed::from(error.to_string())
}

async fn carry_out(mut pair: Pair, history: &operations::History) -> Result<(), String> {
    pair.declare(history.fifo).await?;
    for (at, operation) in history.operations.iter().enumerate() {
        let done: Result<(), String> = pair.run(operation).await;
        done.map_err(|error| format!("operation {at} {operation:?}: {error}"))?;
    }
    // Whatever was not looked at on the way.
    for operation in Operation::final_looks() {
        pair.run(&operation).await.map_err(|error| format!("in the end {operation:?}: {error}"))?;
    }
    pair.end().await
}

/// The reference model beside itself, where one of the two gets a release for every retry: if nobody saw that, nobody
/// would see anything.
fn deviation_is_found() -> Result<(), Failed> {
    let backend: Arc<dyn Backend> = by_name("memory").ok_or("no reference model")?;
    match compare_all(&*backend, 1000, true) {
        Err(failed) if failed.message().is_some_and(|text| text.contains("Retry")) => Ok(()),
        Err(failed) => Err(failed),
        Ok(()) => Err(Failed::from("a driver that releases what is to be retried was not found")),
    }
}
