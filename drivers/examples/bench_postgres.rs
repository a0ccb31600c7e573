//! How fast the driver for PostgreSQL is, beside what the same server does with plain statements in the same run.
//!
//! `cargo run --release -p longshore-drivers --no-default-features --features conformance --example bench_postgres [--json FILE] [DEPTH]`
//!
//! Starts a server of its own (`fsync` and `synchronous_commit` on), or uses the one of `LONGSHORE_TEST_POSTGRES_URL`.
//! With a depth it also shows what a claim and a settle cost at growing depths up to that one. `--json` writes the same
//! numbers as an array of `{name, value, unit, raw_ratio}`.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a program for people at a terminal")]

#[path = "bench/mod.rs"]
mod bench;

use bench::{BATCH, CALLERS, CLAIMERS, Table, claim, payload};
use longshore_drivers::{
    Driver, DriverExt, DynDriver, NewJob, Payload, QueueName, Settle,
    conformance::servers::postgres::{Server, URL},
    postgres::{Postgres, PostgresConfig},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio_postgres::{Client, NoTls, types::Type};

const SINGLE: usize = 40_000;
const RAW_SINGLE: usize = 20_000;
const BATCHED: usize = 200_000;
/// Connections that batches go over, of the driver and raw.
const LINES: usize = 4;
/// How long a worker that finds nothing waits at the server, as a sidecar does.
const WAIT: Duration = Duration::from_millis(20);

#[tokio::main]
async fn main() {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let json = bench::option(&mut arguments, "--json");
    let deepest = arguments.first().map_or(0, |depth| depth.parse().unwrap());
    let (server, url) = if let Ok(url) = std::env::var(URL) {
        (None, url)
    } else {
        let server =
            Server::start(&["max_connections = 300", "shared_buffers = 512MB", "max_wal_size = 4GB"]);
        let server = server.await.unwrap();
        let url = server.url(server.address());
        (Some(server), url)
    };
    let mut table = Table::default();
    measure(&url, deepest, &mut table).await;
    drop(server);
    table.write(json);
}

async fn measure(url: &str, deepest: usize, table: &mut Table) {
    let mut config = PostgresConfig::new(url).unwrap();
    config.schema = format!("bench_{}", std::process::id());
    let schema = config.schema.clone();
    let driver: DynDriver = Arc::new(Postgres::new(config.clone()).unwrap());
    let probe = driver.probe().await.unwrap();
    println!("PostgreSQL {}, {:?}", probe.version, probe.capabilities.durability);
    let queue = bench::declare(&driver, "bench").await;
    let admin = connect(url).await;
    admin.batch_execute(&format!("CREATE TABLE {schema}.raw {RAW}")).await.unwrap();
    // One warms up: files grow, plans are made.
    bench::additions(&driver, &queue, 20).await;
    latency(&config, &driver, table).await;
    let raw = raw_single(url, &schema, table).await;
    enqueues(&driver, &queue, (CALLERS, SINGLE, 1), raw, table).await;
    let raw = raw_batches(url, &schema, table).await;
    enqueues(&driver, &queue, (LINES, BATCHED, BATCH), raw, table).await;
    enqueues(&driver, &queue, (CALLERS, BATCHED, BATCH), raw, table).await;
    let raw = raw_drain(url, &schema, table).await;
    drain(&driver, &queue, BATCH, Some(raw), table).await;
    bench::fill(&driver, &queue, 20_000).await;
    drain(&driver, &queue, 1, None, table).await;
    let queue = bench::declare(&driver, "deep").await;
    bench::deep(&driver, &queue, deepest, table).await;
    driver.close().await;
    admin.batch_execute(&format!("DROP SCHEMA {schema} CASCADE")).await.unwrap();
}

/// The table of the raw figures: an id, a state and a payload, indexed for claims.
const RAW: &str = "(seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, id text UNIQUE, at bigint NOT NULL DEFAULT 0, \
    state smallint NOT NULL DEFAULT 0, token bigint, payload bytea NOT NULL)";

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// From the begin of an enqueue by one driver to the end of a waiting claim by another, at 50 jobs a second.
async fn latency(config: &PostgresConfig, driver: &DynDriver, table: &mut Table) {
    const JOBS: usize = 300;
    let queue = bench::declare(driver, "latency").await;
    let worker = Postgres::new(config.clone()).unwrap();
    worker.claim(&queue, claim(1, Duration::from_millis(500))).await.unwrap();
    let sent = Arc::new(std::sync::Mutex::new(std::collections::HashMap::new()));
    let producer = {
        let (driver, queue, sent) = (driver.clone(), queue.clone(), sent.clone());
        tokio::spawn(async move {
            for number in 0..JOBS {
                tokio::time::sleep(Duration::from_millis(20)).await;
                sent.lock().unwrap().insert(number.to_string(), Instant::now());
                let job = NewJob::new("mail", Payload::json(number.to_string()));
                driver.enqueue_one(&queue, job).await.unwrap();
            }
        })
    };
    let mut times = Vec::new();
    while times.len() < JOBS {
        for job in worker.claim(&queue, claim(10, Duration::from_secs(5))).await.unwrap() {
            let number = String::from_utf8(job.payload.bytes.to_vec()).unwrap();
            times.push(sent.lock().unwrap()[&number].elapsed());
            worker.settle_one(&queue, &job.receipt, Settle::Succeed { result: None }).await.unwrap();
        }
    }
    producer.await.unwrap();
    worker.close().await;
    times.sort();
    table.add_time("idle: enqueue to claim, p50", times[JOBS / 2]);
    table.add_time("idle: enqueue to claim, p99", times[JOBS * 99 / 100]);
}

async fn raw_single(url: &str, schema: &str, table: &mut Table) -> f64 {
    let statement = format!("INSERT INTO {schema}.raw (id, payload) VALUES ($1, $2)");
    let mut clients = Vec::new();
    for _ in 0..CALLERS {
        let client = connect(url).await;
        let prepared = client.prepare(&statement).await.unwrap();
        clients.push((client, prepared));
    }
    let since = Instant::now();
    let tasks = clients.into_iter().enumerate().map(|(caller, (client, prepared))| {
        tokio::spawn(async move {
            let payload = payload();
            for number in 0..RAW_SINGLE / CALLERS {
                let id = format!("raw-{caller}-{number}");
                client.execute(&prepared, &[&id, &payload.as_bytes()]).await.unwrap();
            }
        })
    });
    futures::future::join_all(tasks).await.into_iter().for_each(|ended| ended.unwrap());
    let what = format!("raw: {CALLERS} clients insert, row by row");
    table.add(&what, RAW_SINGLE / CALLERS * CALLERS, since, None)
}

async fn raw_batches(url: &str, schema: &str, table: &mut Table) -> f64 {
    let statement =
        format!("INSERT INTO {schema}.raw (id, payload) SELECT * FROM unnest($1::text[], $2::bytea[])");
    let since = Instant::now();
    let rounds = BATCHED / BATCH / LINES;
    let tasks = (0..LINES).map(|line| {
        let (url, statement) = (url.to_owned(), statement.clone());
        tokio::spawn(async move {
            let client = connect(&url).await;
            let prepared = client.prepare(&statement).await.unwrap();
            let payload = payload();
            for round in 0..rounds {
                let ids: Vec<String> = (0..BATCH).map(|at| format!("batch-{line}-{round}-{at}")).collect();
                let payloads = vec![payload.as_bytes(); BATCH];
                client.execute(&prepared, &[&ids, &payloads]).await.unwrap();
            }
        })
    });
    futures::future::join_all(tasks).await.into_iter().for_each(|ended| ended.unwrap());
    let what = format!("raw: {LINES} clients insert {BATCH} rows at a time");
    table.add(&what, rounds * LINES * BATCH, since, None)
}

/// Claims with SKIP LOCKED, deletes by number and token, 100 at a time.
async fn raw_drain(url: &str, schema: &str, table: &mut Table) -> f64 {
    let claim = format!(
        "WITH best AS MATERIALIZED (SELECT seq FROM {schema}.raw WHERE state = 0 ORDER BY at, seq LIMIT $1 \
         FOR UPDATE SKIP LOCKED) UPDATE {schema}.raw r SET state = 1, token = 7 FROM best b WHERE r.seq = b.seq \
         RETURNING r.seq, r.id, r.payload"
    );
    let delete = format!(
        "DELETE FROM {schema}.raw r USING unnest($1::bigint[]) AS u(seq) WHERE r.seq = u.seq AND r.token = 7"
    );
    let admin = connect(url).await;
    let index = format!("CREATE INDEX ON {schema}.raw (at, seq) WHERE state = 0; ANALYZE {schema}.raw");
    admin.batch_execute(&index).await.unwrap();
    let since = Instant::now();
    let done = Arc::new(AtomicUsize::new(0));
    let tasks = (0..LINES).map(|_| {
        let (url, claim, delete, done) = (url.to_owned(), claim.clone(), delete.clone(), done.clone());
        tokio::spawn(async move {
            let client = connect(&url).await;
            let claim = client.prepare_typed(&claim, &[Type::INT8]).await.unwrap();
            let delete = client.prepare(&delete).await.unwrap();
            loop {
                let rows = client.query(&claim, &[&i64::try_from(BATCH).unwrap()]).await.unwrap();
                if rows.is_empty() {
                    return;
                }
                let seqs: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
                client.execute(&delete, &[&seqs]).await.unwrap();
                done.fetch_add(seqs.len(), Ordering::Relaxed);
            }
        })
    });
    futures::future::join_all(tasks).await.into_iter().for_each(|ended| ended.unwrap());
    let what = format!("raw: {LINES} clients claim and delete, {BATCH} at a time");
    table.add(&what, done.load(Ordering::Relaxed), since, None)
}

/// So many callers enqueue so many jobs, so many at a time.
async fn enqueues(
    driver: &DynDriver,
    queue: &QueueName,
    (callers, total, batch): (usize, usize, usize),
    raw: f64,
    table: &mut Table,
) {
    let since = Instant::now();
    let count = bench::enqueues(driver, queue, callers, total, batch).await;
    table.add(&format!("enqueue: {callers} callers, {batch} at a time"), count, since, Some(raw));
}

/// 100 workers claim and settle all that waits, as sidecars do.
async fn drain(driver: &DynDriver, queue: &QueueName, batch: usize, raw: Option<f64>, table: &mut Table) {
    let total = bench::depth(driver, queue).await;
    let since = Instant::now();
    let count = bench::drain(driver, queue, total, batch, WAIT).await;
    table.add(&format!("claim and settle: {CLAIMERS} workers, {batch} at a time"), count, since, raw);
}
