//! How fast the embedded broker is on this machine, beside what its disk and SQLite can do at all.
//!
//! `cargo run --release -p longshore-drivers --no-default-features --features embedded --example bench_embedded [--json FILE] [DIR [DEPTH]]`
//!
//! With a depth it also shows what a claim and a settle cost at growing depths up to that one. `--json` writes the same
//! numbers as an array of `{name, value, unit, raw_ratio}`. A directory in memory is refused: nothing is synced there.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a program for people at a terminal")]

use longshore_drivers::{
    Claim, Declaration, Driver, DriverExt, NewJob, Owner, Payload, QueueName, QueueSettings, Settle,
    Settlement,
    embedded::{Config, Embedded},
};
use serde_json::{Value, json};
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
/// Bytes of a payload.
const PAYLOAD: usize = 200;

#[tokio::main]
async fn main() {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let json = arguments.iter().position(|argument| argument == "--json").map(|at| {
        arguments.remove(at);
        arguments.remove(at)
    });
    let directory = arguments.first().map_or_else(std::env::temp_dir, PathBuf::from).canonicalize().unwrap();
    let kind = filesystem(&directory);
    println!("{} is on {kind}", directory.display());
    assert!(
        !["tmpfs", "ramfs"].contains(&kind.as_str()),
        "nothing is synced in memory: name a directory on a disk"
    );
    let directory = directory.join(format!("longshore-bench-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let mut table = Table::default();
    let deepest = arguments.get(1).map_or(0, |depth| depth.parse().unwrap());
    measure(&directory, deepest, &mut table).await;
    std::fs::remove_dir_all(&directory).unwrap();
    if let Some(file) = json {
        std::fs::write(file, serde_json::to_string_pretty(&table.rows).unwrap()).unwrap();
    }
}

async fn measure(directory: &Path, deepest: u64, table: &mut Table) {
    let synced = syncs(directory, table);
    let grouped = raw_inserts(directory, CALLERS, table);
    let batches = raw_inserts(directory, BATCH, table);
    let settles = raw_settles(directory, table);
    let driver = Arc::new(Embedded::open(Config::new(directory.join("jobs.db"))).unwrap());
    let queue: QueueName = "bench".parse().unwrap();
    let owner = Owner { installation: "bench".into(), uid: "bench".into() };
    let settings = QueueSettings { max_depth: u64::MAX, ..QueueSettings::default() };
    let declaration = Declaration { owner, settings, adopt: false };
    driver.declare(&queue, declaration).await.unwrap();
    lone(&driver, &queue, synced, table).await;
    single(&driver, &queue, grouped, table).await;
    batched(&driver, &queue, batches, table).await;
    drain(&driver, &queue, settles, table).await;
    deep(&driver, &queue, deepest, table).await;
    driver.close().await;
}

/// What was measured.
#[derive(Default)]
struct Table {
    rows: Vec<Value>,
}

impl Table {
    /// Adds a rate, beside what the disk or SQLite does at all; the rate is handed back.
    fn add(&mut self, what: &str, count: usize, since: Instant, raw: Option<f64>) -> f64 {
        let seconds = since.elapsed().as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let rate = count as f64 / seconds;
        let ratio = raw.map(|raw| rate / raw);
        let beside = ratio.map_or_else(String::new, |ratio| format!("{:>4.0} % of raw", ratio * 100.0));
        println!("{what:<56} {rate:>10.0} /s {beside:>14}   ({count} in {seconds:.2} s)");
        self.rows.push(json!({ "name": what, "value": rate, "unit": "1/s", "raw_ratio": ratio }));
        rate
    }
}

/// The type of the file system that `path` is on.
fn filesystem(path: &Path) -> String {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    let mounts = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        Some((words.next()?, words.next()?))
    });
    let covering = mounts.filter(|(point, _)| path.starts_with(point)).max_by_key(|(point, _)| point.len());
    covering.map_or_else(|| "an unknown file system".to_owned(), |(_, kind)| kind.to_owned())
}

fn syncs(directory: &Path, table: &mut Table) -> f64 {
    let mut file = File::create(directory.join("syncs")).unwrap();
    let since = Instant::now();
    let count = 1000;
    for _ in 0..count {
        file.write_all(&[7; 4096]).unwrap();
        file.sync_data().unwrap();
    }
    table.add("raw: appends of 4 KiB, each synced", count, since, None)
}

fn database(path: &Path) -> rusqlite::Connection {
    let db = rusqlite::Connection::open(path).unwrap();
    db.execute_batch(
        "PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; \
         CREATE TABLE t (seq INTEGER PRIMARY KEY, id TEXT UNIQUE, payload BLOB, state INTEGER DEFAULT 0); \
         CREATE INDEX ready ON t (state, seq)",
    )
    .unwrap();
    db
}

/// One transaction that inserts `group` rows.
fn insert(db: &rusqlite::Connection, round: usize, group: usize) {
    db.execute_batch("BEGIN IMMEDIATE").unwrap();
    for item in 0..group {
        db.prepare_cached("INSERT INTO t (id, payload) VALUES (?1, ?2)")
            .unwrap()
            .execute((format!("job-{round}-{item}"), payload().as_bytes()))
            .unwrap();
    }
    db.execute_batch("COMMIT").unwrap();
}

fn raw_inserts(directory: &Path, group: usize, table: &mut Table) -> f64 {
    let db = database(&directory.join(format!("raw-{group}.db")));
    let rounds = (20_000 / group).min(500);
    let since = Instant::now();
    for round in 0..rounds {
        insert(&db, round, group);
    }
    table.add(&format!("raw: SQLite inserts, {group} in a transaction"), rounds * group, since, None)
}

/// Claims a batch in one transaction and settles it in another.
fn raw_settles(directory: &Path, table: &mut Table) -> f64 {
    let db = database(&directory.join("raw-settles.db"));
    let rounds = 200;
    (0..rounds).for_each(|round| insert(&db, round, BATCH));
    let since = Instant::now();
    for _ in 0..rounds {
        let claim = "UPDATE t SET state = 1 WHERE seq IN (SELECT seq FROM t WHERE state = 0 ORDER BY seq LIMIT ?1) \
                     RETURNING seq, id, payload";
        let claimed: Vec<i64> = {
            let mut claim = db.prepare_cached(claim).unwrap();
            let rows = claim.query_map([i64::try_from(BATCH).unwrap()], |row| row.get(0)).unwrap();
            rows.map(Result::unwrap).collect()
        };
        db.execute_batch("BEGIN IMMEDIATE").unwrap();
        for seq in claimed {
            db.prepare_cached("UPDATE t SET state = 2, payload = NULL WHERE seq = ?1")
                .unwrap()
                .execute([seq])
                .unwrap();
        }
        db.execute_batch("COMMIT").unwrap();
    }
    table.add(
        &format!("raw: SQLite claims and settles, {BATCH} in a transaction"),
        rounds * BATCH,
        since,
        None,
    )
}

/// JSON of [`PAYLOAD`] bytes.
fn payload() -> String {
    let start = r#"{"to":"somebody@example.com","template":"welcome","locale":"en","note":""#;
    format!("{start}{}\"}}", "x".repeat(PAYLOAD - start.len() - 2))
}

fn job() -> NewJob {
    NewJob::new("mail", Payload::json(payload()))
}

async fn lone(driver: &Arc<Embedded>, queue: &QueueName, raw: f64, table: &mut Table) {
    let count = 500;
    let since = Instant::now();
    for _ in 0..count {
        driver.enqueue_one(queue, job()).await.unwrap();
    }
    table.add("enqueue: a lone caller, one by one", count, since, Some(raw));
}

async fn single(driver: &Arc<Embedded>, queue: &QueueName, raw: f64, table: &mut Table) {
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
    let what = format!("enqueue: {CALLERS} callers, one by one");
    table.add(&what, SINGLE / CALLERS * CALLERS, since, Some(raw));
}

async fn batched(driver: &Arc<Embedded>, queue: &QueueName, raw: f64, table: &mut Table) {
    let since = Instant::now();
    let rounds = BATCHED / BATCH / CALLERS;
    let tasks = (0..CALLERS).map(|_| {
        let (driver, queue) = (driver.clone(), queue.clone());
        tokio::spawn(async move {
            for _ in 0..rounds {
                let jobs = (0..BATCH).map(|_| job()).collect();
                driver.enqueue(&queue, jobs).await.unwrap();
            }
        })
    });
    futures::future::join_all(tasks).await;
    let what = format!("enqueue: {CALLERS} callers, batches of {BATCH}");
    table.add(&what, rounds * CALLERS * BATCH, since, Some(raw));
}

async fn drain(driver: &Arc<Embedded>, queue: &QueueName, raw: f64, table: &mut Table) {
    let total = usize::try_from(driver.stats(queue).await.unwrap().ready.unwrap()).unwrap();
    let since = Instant::now();
    let done = Arc::new(AtomicUsize::new(0));
    let tasks = (0..CLAIMERS).map(|worker| {
        let (driver, queue, done) = (driver.clone(), queue.clone(), done.clone());
        tokio::spawn(async move {
            // An empty claim is no end: others hold jobs that are not settled yet.
            while done.load(Ordering::Relaxed) < total {
                let claim = Claim {
                    max: 100,
                    wait: Duration::ZERO,
                    lease: Duration::from_secs(30),
                    worker: format!("worker-{worker}"),
                };
                let jobs = driver.claim(&queue, claim).await.unwrap();
                if jobs.is_empty() {
                    tokio::task::yield_now().await;
                    continue;
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
    let what = format!("claim and settle: {CLAIMERS} workers, {BATCH} at a time");
    table.add(&what, done.load(Ordering::Relaxed), since, Some(raw));
}

/// Fills the queue tenfold again and again, and each time takes and returns the same number of jobs.
async fn deep(driver: &Arc<Embedded>, queue: &QueueName, deepest: u64, table: &mut Table) {
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
        let what = format!("claim and release 100, alone, {target} jobs deep");
        table.add(&what, rounds * 100, since, None);
        let since = Instant::now();
        for _ in 0..rounds {
            driver.enqueue(queue, (0..100).map(|_| job()).collect()).await.unwrap();
        }
        table.add(&format!("enqueue 100, alone, {target} jobs deep"), rounds * 100, since, None);
        target *= 10;
    }
}
