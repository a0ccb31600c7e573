//! A server that dies, freezes and comes back, under load.

use super::{Bench, claim, job};
use crate::{Driver, DriverExt, ErrorKind, JobId, Settle};
use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// Adds jobs until it is told to stop; the ids that were acknowledged.
async fn produce(bench: &Bench, task: usize, stop: &AtomicBool) -> BTreeSet<JobId> {
    let mut known = BTreeSet::new();
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        let id = JobId::new(format!("{task}-{number}")).unwrap();
        match bench.driver.enqueue_one(&bench.queue, job().with_id(id.clone())).await {
            Ok(_) => {
                known.insert(id);
                number += 1;
            }
            Err(error) => {
                assert!(error.kind.is_transient(), "{error}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
    known
}

/// Claims and settles until it is told to stop; what was settled, for sure or perhaps.
async fn work(bench: &Bench, stop: &AtomicBool, settled: &Mutex<BTreeSet<JobId>>) {
    while !stop.load(Ordering::Relaxed) {
        let jobs = claim(&bench.driver, &bench.queue, 10, Duration::from_millis(200)).await;
        let jobs = match jobs {
            Ok(jobs) => jobs,
            Err(error) => {
                assert!(error.kind.is_transient(), "{error}");
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        for job in jobs {
            let succeed = Settle::Succeed { result: None };
            match bench.driver.settle_one(&bench.queue, &job.receipt, succeed).await {
                Ok(()) => assert!(settled.lock().unwrap().insert(job.id), "a job was settled twice"),
                Err(error) => {
                    assert!(error.kind.is_transient() || error.kind == ErrorKind::StaleReceipt, "{error}")
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_loses_nothing_that_it_acknowledged() {
    let bench = Arc::new(Bench::start().await);
    let stop = AtomicBool::new(false);
    let settled = Mutex::new(BTreeSet::new());
    let fault = async {
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(400)).await;
            bench.server.kill().await.unwrap();
            bench.server.restart().await.unwrap();
        }
        let before = settled.lock().unwrap().len();
        let deadline = Instant::now() + Duration::from_secs(20);
        while settled.lock().unwrap().len() < before + 20 {
            assert!(Instant::now() < deadline, "the same handle doesn't go on");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        stop.store(true, Ordering::Relaxed);
    };
    let producers = futures::future::join_all((0..4).map(|task| produce(&bench, task, &stop)));
    let workers = futures::future::join_all((0..3).map(|_| work(&bench, &stop, &settled)));
    let (known, _, ()) = tokio::join!(producers, workers, fault);
    let known: BTreeSet<JobId> = known.into_iter().flatten().collect();
    assert!(known.len() > 50, "too little happened: {}", known.len());
    let ids: Vec<_> = known.iter().cloned().collect();
    for id in ids {
        let record = bench.driver.inspect(&bench.queue, &id).await.unwrap();
        assert!(record.is_some(), "acknowledged job {id} is lost");
    }
    let settled = settled.into_inner().unwrap();
    for id in &settled {
        let record = bench.driver.inspect(&bench.queue, id).await.unwrap().unwrap();
        assert!(record.state.is_terminal(), "settled job {id} is {:?}", record.state);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_end_while_the_server_is_frozen_and_go_on_after() {
    let bench = Bench::start().await;
    bench.driver.enqueue_one(&bench.queue, job()).await.unwrap();
    bench.server.freeze().await.unwrap();
    let (since, any) = (Instant::now(), JobId::new("any").unwrap());
    let (added, read) = tokio::join!(
        bench.driver.enqueue_one(&bench.queue, job()),
        bench.driver.inspect(&bench.queue, &any),
    );
    let took = since.elapsed();
    bench.server.thaw().await.unwrap();
    assert!(took < Duration::from_secs(25), "calls took {took:?}");
    let added = added.unwrap_err();
    assert!(matches!(added.kind, ErrorKind::Ambiguous | ErrorKind::Unavailable), "{added}");
    let read = read.unwrap_err();
    assert!(matches!(read.kind, ErrorKind::Timeout | ErrorKind::Unavailable), "{read}");
    let deadline = Instant::now() + Duration::from_secs(20);
    while bench.driver.stats(&bench.queue).await.is_err() {
        assert!(Instant::now() < deadline, "the same handle doesn't go on");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
