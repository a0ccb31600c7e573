//! How fast the driver for PostgreSQL is, beside what the same server does with plain statements in the same run.
//!
//! `cargo run --release -p longshore-drivers --no-default-features --features conformance --example bench_postgres [--json FILE] [DEPTH]`
//!
//! Starts a server of its own (`fsync` and `synchronous_commit` on), or uses the one of `LONGSHORE_TEST_POSTGRES_URL`.
//! With a depth it also shows what a claim and a settle cost at growing depths up to that one. `--json` writes the same
//! numbers as an array of `{name, value, unit, raw_ratio}`.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a program for people at a terminal")]

use longshore_drivers::{
    Claim, Declaration, Driver, DriverExt, NewJob, Owner, Payload, QueueName, QueueSettings, Settle,
    Settlement,
    conformance::servers::postgres::{Server, URL},
    postgres::{Postgres, PostgresConfig},
};
use serde_json::{Value, json};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio_postgres::{Client, NoTls, types::Type};

const CALLERS: usize = 64;
const SINGLE: usize = 40_000;
const RAW_SINGLE: usize = 20_000;
const BATCHED: usize = 200_000;
const BATCH: usize = 100;
const CLAIMERS: usize = 100;
/// Connections that batches go over, of the driver and raw.
const LINES: usize = 4;
/// Bytes of a payload.
const PAYLOAD: usize = 200;

#[tokio::main]
async fn main() {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let json = arguments.iter().position(|argument| argument == "--json").map(|at| {
        arguments.remove(at);
        arguments.remove(at)
    });
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
    if let Some(file) = json {
        std::fs::write(file, serde_json::to_string_pretty(&table.rows).unwrap()).unwrap();
    }
}

async fn measure(url: &str, deepest: u64, table: &mut Table) {
    let mut config = PostgresConfig::new(url).unwrap();
    config.schema = format!("bench_{}", std::process::id());
    let schema = config.schema.clone();
    let driver = Arc::new(Postgres::new(config.clone()).unwrap());
    let probe = driver.probe().await.unwrap();
    println!("PostgreSQL {}, {:?}", probe.version, probe.capabilities.durability);
    let queue = declare(&driver, "bench").await;
    let admin = connect(url).await;
    admin.batch_execute(&format!("CREATE TABLE {schema}.raw {RAW}")).await.unwrap();
    // One warms up: files grow, plans are made.
    for _ in 0..20 {
        driver.enqueue(&queue, (0..BATCH).map(|_| job()).collect()).await.unwrap();
    }
    latency(&config, &driver, table).await;
    let raw = raw_single(url, &schema, table).await;
    single(&driver, &queue, raw, table).await;
    let raw = raw_batches(url, &schema, table).await;
    batched(&driver, &queue, raw, table).await;
    let raw = raw_drain(url, &schema, table).await;
    drain(&driver, &queue, raw, table).await;
    one_by_one(&driver, &queue, table).await;
    deep(&driver, deepest, table).await;
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

async fn declare(driver: &Arc<Postgres>, name: &str) -> QueueName {
    let queue: QueueName = name.parse().unwrap();
    let owner = Owner { installation: "bench".into(), uid: "bench".into() };
    let settings = QueueSettings { max_depth: u64::MAX, ..QueueSettings::default() };
    driver.declare(&queue, Declaration { owner, settings, adopt: false }).await.unwrap();
    queue
}

/// What was measured.
#[derive(Default)]
struct Table {
    rows: Vec<Value>,
}

impl Table {
    /// Adds a rate, beside what plain statements do; the rate is handed back.
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

    fn add_time(&mut self, what: &str, time: Duration) {
        let millis = time.as_secs_f64() * 1000.0;
        println!("{what:<56} {millis:>10.2} ms");
        self.rows.push(json!({ "name": what, "value": millis, "unit": "ms", "raw_ratio": null }));
    }
}

/// JSON of [`PAYLOAD`] bytes.
fn payload() -> String {
    let start = r#"{"to":"somebody@example.com","template":"welcome","locale":"en","note":""#;
    format!("{start}{}\"}}", "x".repeat(PAYLOAD - start.len() - 2))
}

fn job() -> NewJob {
    NewJob::new("mail", Payload::json(payload()))
}

fn claim(max: u32, wait: Duration, worker: &str) -> Claim {
    Claim { max, wait, lease: Duration::from_secs(60), worker: worker.into() }
}

/// From the begin of an enqueue by one driver to the end of a waiting claim by another, at 50 jobs a second.
async fn latency(config: &PostgresConfig, driver: &Arc<Postgres>, table: &mut Table) {
    const JOBS: usize = 300;
    let queue = declare(driver, "latency").await;
    let worker = Postgres::new(config.clone()).unwrap();
    worker.claim(&queue, claim(1, Duration::from_millis(500), "idle")).await.unwrap();
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
        for job in worker.claim(&queue, claim(10, Duration::from_secs(5), "idle")).await.unwrap() {
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
    futures::future::join_all(tasks).await;
    let what = format!("raw: {CALLERS} clients insert, row by row");
    table.add(&what, RAW_SINGLE / CALLERS * CALLERS, since, None)
}

async fn single(driver: &Arc<Postgres>, queue: &QueueName, raw: f64, table: &mut Table) {
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
    futures::future::join_all(tasks).await;
    let what = format!("raw: {LINES} clients insert {BATCH} rows at a time");
    table.add(&what, rounds * LINES * BATCH, since, None)
}

async fn batched(driver: &Arc<Postgres>, queue: &QueueName, raw: f64, table: &mut Table) {
    for (callers, beside) in [(LINES, Some(raw)), (CALLERS, Some(raw))] {
        let since = Instant::now();
        let rounds = BATCHED / BATCH / callers;
        let tasks = (0..callers).map(|_| {
            let (driver, queue) = (driver.clone(), queue.clone());
            tokio::spawn(async move {
                for _ in 0..rounds {
                    driver.enqueue(&queue, (0..BATCH).map(|_| job()).collect()).await.unwrap();
                }
            })
        });
        futures::future::join_all(tasks).await;
        let what = format!("enqueue: {callers} callers, batches of {BATCH}");
        table.add(&what, rounds * callers * BATCH, since, beside);
    }
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
    futures::future::join_all(tasks).await;
    let what = format!("raw: {LINES} clients claim and delete, {BATCH} at a time");
    table.add(&what, done.load(Ordering::Relaxed), since, None)
}

/// 100 workers that claim up to 100 jobs and settle them, as a sidecar does.
async fn drain(driver: &Arc<Postgres>, queue: &QueueName, raw: f64, table: &mut Table) {
    let total = usize::try_from(driver.stats(queue).await.unwrap().ready.unwrap()).unwrap();
    let since = Instant::now();
    let done = Arc::new(AtomicUsize::new(0));
    let tasks = (0..CLAIMERS).map(|_| {
        let (driver, queue, done) = (driver.clone(), queue.clone(), done.clone());
        tokio::spawn(async move {
            // An empty claim is no end: others hold jobs that are not settled yet.
            while done.load(Ordering::Relaxed) < total {
                let wait = Duration::from_millis(20);
                let jobs = driver.claim(&queue, claim(100, wait, "drain")).await.unwrap();
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

/// 100 workers that each claim and settle single jobs.
async fn one_by_one(driver: &Arc<Postgres>, queue: &QueueName, table: &mut Table) {
    let total = 20_000;
    for _ in 0..total / 1000 {
        driver.enqueue(queue, (0..1000).map(|_| job()).collect()).await.unwrap();
    }
    let since = Instant::now();
    let done = Arc::new(AtomicUsize::new(0));
    let tasks = (0..CLAIMERS).map(|_| {
        let (driver, queue, done) = (driver.clone(), queue.clone(), done.clone());
        tokio::spawn(async move {
            while done.load(Ordering::Relaxed) < total {
                let wait = Duration::from_millis(20);
                for job in driver.claim(&queue, claim(1, wait, "single")).await.unwrap() {
                    let succeed = Settle::Succeed { result: None };
                    driver.settle_one(&queue, &job.receipt, succeed).await.unwrap();
                    done.fetch_add(1, Ordering::Relaxed);
                }
            }
        })
    });
    futures::future::join_all(tasks).await;
    let what = format!("claim and settle: {CLAIMERS} workers, one by one");
    table.add(&what, done.load(Ordering::Relaxed), since, None);
}

/// Fills a queue tenfold again and again, and each time takes and returns the same number of jobs.
async fn deep(driver: &Arc<Postgres>, deepest: u64, table: &mut Table) {
    let queue = declare(driver, "deep").await;
    let mut target = 1000;
    while target <= deepest {
        while driver.stats(&queue).await.unwrap().ready.unwrap() < target {
            let fill = (0..4).map(|_| driver.enqueue(&queue, (0..250).map(|_| job()).collect()));
            futures::future::try_join_all(fill).await.unwrap();
        }
        let rounds = 100;
        let since = Instant::now();
        for _ in 0..rounds {
            let jobs = driver.claim(&queue, claim(100, Duration::ZERO, "deep")).await.unwrap();
            let release = Settle::Release { delay: Duration::ZERO };
            let settlements =
                jobs.into_iter().map(|job| Settlement { receipt: job.receipt, settle: release.clone() });
            driver.settle(&queue, settlements.collect()).await.unwrap();
        }
        table.add(&format!("claim and release 100, alone, {target} jobs deep"), rounds * 100, since, None);
        let since = Instant::now();
        for _ in 0..rounds {
            driver.enqueue(&queue, (0..100).map(|_| job()).collect()).await.unwrap();
        }
        table.add(&format!("enqueue 100, alone, {target} jobs deep"), rounds * 100, since, None);
        let since = Instant::now();
        for _ in 0..rounds {
            driver.stats(&queue).await.unwrap();
        }
        table.add(&format!("stats, alone, {target} jobs deep"), rounds, since, None);
        target *= 10;
    }
}
