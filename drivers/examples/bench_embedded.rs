//! How fast the embedded broker is on this machine, beside what its disk and SQLite can do at all.
//!
//! `cargo run --release -p longshore-drivers --no-default-features --features embedded --example bench_embedded [OPTIONS] [DIR [DEPTH]]`
//!
//! With a depth it also shows what a claim and a settle cost at growing depths up to that one. `--json FILE` writes the same
//! numbers as an array of `{name, value, unit, raw_ratio}`; `--baseline FILE` compares the ratios with stored ones, and stores
//! them with `--store`. A directory in memory is refused: nothing is synced there.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a program for people at a terminal")]

#[path = "bench/mod.rs"]
mod bench;

use bench::{BATCH, Beside, CALLERS, CLAIMERS, Outputs, Table, payload};
use longshore_drivers::{
    DynDriver, QueueName,
    embedded::{Config, Embedded},
};
use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

const SINGLE: usize = 60_000;
const BATCHED: usize = 200_000;
/// Idle jobs, and the pause before each.
const IDLE: usize = 300;
const PAUSE: Duration = Duration::from_millis(10);

#[tokio::main]
async fn main() {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let outputs = Outputs::of(&mut arguments);
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
    table.end(&outputs);
}

async fn measure(directory: &Path, deepest: usize, table: &mut Table) {
    let synced = syncs(directory, table);
    let grouped = raw_inserts(directory, CALLERS, table);
    let batches = raw_inserts(directory, BATCH, table);
    let settles = raw_settles(directory, table);
    let driver: DynDriver = Arc::new(Embedded::open(Config::new(directory.join("jobs.db"))).unwrap());
    let queue = bench::declare(&driver, "bench").await;
    ours(&driver, &queue, [synced, grouped, batches, settles], table).await;
    let idle = bench::declare(&driver, "idle").await;
    let times = bench::latency(&driver, &driver, &idle, (IDLE, PAUSE)).await;
    table.add_times("enqueue to claim, idle", &times);
    bench::deep(&driver, &queue, deepest, table).await;
    driver.close().await;
}

/// What the driver does, beside what the disk and SQLite do for a lone caller, single jobs, batches and claims.
async fn ours(driver: &DynDriver, queue: &QueueName, raw: [f64; 4], table: &mut Table) {
    let [alone, grouped, batches, settles] = raw.map(Beside::Raw);
    let since = Instant::now();
    let count = bench::enqueues(driver, queue, 1, 500, 1).await;
    table.add("enqueue: a lone caller, one by one", count, since, alone);
    let since = Instant::now();
    let count = bench::enqueues(driver, queue, CALLERS, SINGLE, 1).await;
    table.add(&format!("enqueue: {CALLERS} callers, one by one"), count, since, grouped);
    let since = Instant::now();
    let count = bench::enqueues(driver, queue, CALLERS, BATCHED, BATCH).await;
    table.add(&format!("enqueue: {CALLERS} callers, batches of {BATCH}"), count, since, batches);
    let total = bench::depth(driver, queue).await;
    let since = Instant::now();
    let count = bench::drain(driver, queue, total, BATCH, Duration::ZERO).await;
    table.add(&format!("claim and settle: {CLAIMERS} workers, {BATCH} at a time"), count, since, settles);
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
    table.add("raw: appends of 4 KiB, each synced", count, since, Beside::Nothing)
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
    table.add(
        &format!("raw: SQLite inserts, {group} in a transaction"),
        rounds * group,
        since,
        Beside::Nothing,
    )
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
        Beside::Nothing,
    )
}
