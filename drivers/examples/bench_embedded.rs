//! How fast the embedded broker is on this machine, beside what its disk and SQLite can do at all.
//!
//! `cargo run --release -p longshore-drivers --no-default-features --features embedded --example bench_embedded [DIR [DEPTH]]`
//!
//! With a depth it also shows what a claim and a settle cost at growing depths up to that one.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a program for people at a terminal")]

use longshore_drivers::{
    Claim, Declaration, Driver, DriverExt, NewJob, Owner, Payload, QueueName, QueueSettings, Settle,
    Settlement,
    embedded::{Config, Embedded},
};
use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

const CALLERS: usize = 64;
const SINGLE: usize = 60_000;
const BATCHED: usize = 200_000;
const BATCH: usize = 100;
const CLAIMERS: usize = 100;
const PAYLOAD: &str = r#"{"to":"somebody@example.com","template":"welcome","locale":"en"}"#;

#[tokio::main]
async fn main() {
    let directory = std::env::args().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let directory = directory.join(format!("longshore-bench-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    syncs(&directory);
    for group in [32, 64, 1000] {
        raw_inserts(&directory, group);
    }
    let driver = Arc::new(Embedded::open(Config::new(directory.join("jobs.db"))).unwrap());
    let queue: QueueName = "bench".parse().unwrap();
    let owner = Owner { installation: "bench".into(), uid: "bench".into() };
    let settings = QueueSettings { max_depth: u64::MAX, ..QueueSettings::default() };
    let declaration = Declaration { owner, settings, adopt: false };
    driver.declare(&queue, declaration).await.unwrap();
    lone(&driver, &queue).await;
    single(&driver, &queue).await;
    batched(&driver, &queue).await;
    drain(&driver, &queue).await;
    let deepest = std::env::args().nth(2).map_or(0, |depth| depth.parse().unwrap());
    deep(&driver, &queue, deepest).await;
    driver.close().await;
    std::fs::remove_dir_all(&directory).unwrap();
}

fn report(what: &str, count: usize, since: Instant) {
    let seconds = since.elapsed().as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let rate = count as f64 / seconds;
    println!("{what:<56} {rate:>10.0} /s   ({count} in {seconds:.2} s)");
}

fn syncs(directory: &Path) {
    let mut file = File::create(directory.join("syncs")).unwrap();
    let since = Instant::now();
    let count = 1000;
    for _ in 0..count {
        file.write_all(&[7; 4096]).unwrap();
        file.sync_data().unwrap();
    }
    report("raw: appends of 4 KiB, each synced", count, since);
}

fn raw_inserts(directory: &Path, group: usize) {
    let db = rusqlite::Connection::open(directory.join(format!("raw-{group}.db"))).unwrap();
    db.execute_batch("PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; CREATE TABLE t (seq INTEGER PRIMARY KEY, id TEXT UNIQUE, payload BLOB)")
        .unwrap();
    let rounds = (20_000 / group).min(500);
    let since = Instant::now();
    for round in 0..rounds {
        db.execute_batch("BEGIN IMMEDIATE").unwrap();
        for item in 0..group {
            db.prepare_cached("INSERT INTO t (id, payload) VALUES (?1, ?2)")
                .unwrap()
                .execute((format!("job-{round}-{item}"), PAYLOAD.as_bytes()))
                .unwrap();
        }
        db.execute_batch("COMMIT").unwrap();
    }
    report(&format!("raw: SQLite inserts, {group} in a transaction"), rounds * group, since);
}

fn job() -> NewJob {
    NewJob::new("mail", Payload::json(PAYLOAD))
}

async fn lone(driver: &Arc<Embedded>, queue: &QueueName) {
    let count = 500;
    let since = Instant::now();
    for _ in 0..count {
        driver.enqueue_one(queue, job()).await.unwrap();
    }
    report("enqueue: a lone caller, one by one", count, since);
}

async fn single(driver: &Arc<Embedded>, queue: &QueueName) {
    let since = Instant::now();
    let tasks = (0..CALLERS).map(|_| {
        let (driver, queue) = (driver.clone(), queue.clone());
        tokio::spawn(async move {
            for _ in 0..SINGLE / CALLERS {
                driver.enqueue_one(&queue, job()).await.unwrap();
            }
        })
    });
    futures::future::join_all(tasks).await;
    report(&format!("enqueue: {CALLERS} callers, one by one"), SINGLE / CALLERS * CALLERS, since);
}

async fn batched(driver: &Arc<Embedded>, queue: &QueueName) {
    let since = Instant::now();
    let callers = 4;
    let tasks = (0..callers).map(|_| {
        let (driver, queue) = (driver.clone(), queue.clone());
        tokio::spawn(async move {
            for _ in 0..BATCHED / BATCH / callers {
                let jobs = (0..BATCH).map(|_| job()).collect();
                driver.enqueue(&queue, jobs).await.unwrap();
            }
        })
    });
    futures::future::join_all(tasks).await;
    report(&format!("enqueue: {callers} callers, batches of {BATCH}"), BATCHED, since);
}

async fn drain(driver: &Arc<Embedded>, queue: &QueueName) {
    let since = Instant::now();
    let done = Arc::new(AtomicUsize::new(0));
    let tasks = (0..CLAIMERS).map(|worker| {
        let (driver, queue, done) = (driver.clone(), queue.clone(), done.clone());
        tokio::spawn(async move {
            loop {
                let claim = Claim {
                    max: 100,
                    wait: Duration::ZERO,
                    lease: Duration::from_secs(30),
                    worker: format!("worker-{worker}"),
                };
                let jobs = driver.claim(&queue, claim).await.unwrap();
                if jobs.is_empty() {
                    break;
                }
                let settlements = jobs
                    .into_iter()
                    .map(|job| Settlement { receipt: job.receipt, settle: Settle::Succeed { result: None } });
                let answers = driver.settle(&queue, settlements.collect()).await.unwrap();
                done.fetch_add(answers.iter().filter(|answer| answer.is_ok()).count(), Ordering::Relaxed);
            }
        })
    });
    futures::future::join_all(tasks).await;
    report(
        &format!("claim and settle: {CLAIMERS} workers, 100 at a time"),
        done.load(Ordering::Relaxed),
        since,
    );
}

/// Fills the queue tenfold again and again, and each time takes and returns the same number of jobs.
async fn deep(driver: &Arc<Embedded>, queue: &QueueName, deepest: u64) {
    let mut target = 1000;
    while target <= deepest {
        while driver.stats(queue).await.unwrap().ready.unwrap() < target {
            let batches = (0..4).map(|_| driver.enqueue(queue, (0..250).map(|_| job()).collect()));
            futures::future::join_all(batches).await;
        }
        let since = Instant::now();
        let rounds = 20;
        for _ in 0..rounds {
            let claim = Claim {
                max: 100,
                wait: Duration::ZERO,
                lease: Duration::from_secs(30),
                worker: "deep".into(),
            };
            let jobs = driver.claim(queue, claim).await.unwrap();
            let settlements = jobs.into_iter().map(|job| Settlement {
                receipt: job.receipt,
                settle: Settle::Release { delay: Duration::ZERO },
            });
            driver.settle(queue, settlements.collect()).await.unwrap();
        }
        report(&format!("claim and release 100, alone, {target} jobs deep"), rounds * 100, since);
        let since = Instant::now();
        for _ in 0..rounds {
            driver.enqueue(queue, (0..100).map(|_| job()).collect()).await.unwrap();
        }
        report(&format!("enqueue 100, alone, {target} jobs deep"), rounds * 100, since);
        target *= 10;
    }
}
