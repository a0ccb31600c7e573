//! How fast the Redis driver is on this machine, beside what the same server does at all with the same bytes.
//!
//! `cargo run --release -p longshore-drivers --example bench_redis [--json FILE] [DEPTH]`
//!
//! Starts a server of its own (`appendonly yes`, `appendfsync everysec`) on loopback. With a depth it also shows what a job
//! costs at growing depths up to that one. `--json` writes the same numbers as an array of `{name, value, unit, raw_ratio}`.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a program for people at a terminal")]

use longshore_drivers::{
    Claim, Declaration, Driver, DriverExt, NewJob, Owner, Payload, QueueName, QueueSettings, Settle,
    Settlement,
    conformance::{Broker, servers::redis::RedisBroker},
    redis::{Redis, RedisConfig},
};
use redis::aio::MultiplexedConnection;
use serde_json::{Value, json};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

const SETTINGS: &[&str] = &["--appendonly", "yes", "--appendfsync", "everysec"];
const CALLERS: usize = 64;
const SINGLE: usize = 192_000;
const BATCHED: usize = 256_000;
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
    let deepest = arguments.first().map_or(0, |depth| depth.parse().unwrap());
    let mut table = Table::default();
    let server = RedisBroker::start(SETTINGS).await.unwrap();
    let raw = raw(&server, &mut table).await;
    let driver = Arc::new(Redis::new(RedisConfig::new(&server.url()).unwrap()).unwrap());
    let queue = declared(&driver, "bench").await;
    single(&driver, &queue, raw.single, &mut table).await;
    batched(&driver, &queue, raw.batched, &mut table).await;
    drain(&driver, &queue, BATCH, raw.drain, &mut table).await;
    let queue = declared(&driver, "one-by-one").await;
    fill(&driver, &queue, 100_000).await;
    drain(&driver, &queue, 1, raw.drain_one, &mut table).await;
    latency(&driver, &queue, raw.latency, &mut table).await;
    let queue = declared(&driver, "deep").await;
    deep(&driver, &queue, deepest, &mut table).await;
    driver.close().await;
    server.stop().await;
    if let Some(file) = json {
        std::fs::write(file, serde_json::to_string_pretty(&table.rows).unwrap()).unwrap();
    }
}

/// What was measured.
#[derive(Default)]
struct Table {
    rows: Vec<Value>,
}

impl Table {
    /// Adds a rate, beside what the server does at all; the rate is handed back.
    fn add(&mut self, what: &str, count: usize, since: Instant, raw: Option<f64>) -> f64 {
        let seconds = since.elapsed().as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let rate = count as f64 / seconds;
        let ratio = raw.map(|raw| rate / raw);
        let beside = ratio.map_or_else(String::new, |ratio| format!("{:>4.0} % of raw", ratio * 100.0));
        println!("{what:<60} {rate:>10.0} /s {beside:>14}   ({count} in {seconds:.2} s)");
        self.rows.push(json!({ "name": what, "value": rate, "unit": "1/s", "raw_ratio": ratio }));
        rate
    }

    /// Adds the middle and the slow end of some times; the middle is handed back.
    fn times(&mut self, what: &str, mut times: Vec<Duration>, raw: Option<Duration>) -> Duration {
        times.sort();
        for (name, share) in [("p50", 50), ("p99", 99)] {
            let time = times[times.len() * share / 100].as_secs_f64() * 1000.0;
            println!("{:<60} {time:>10.3} ms", format!("{what}, {name}"));
            let ratio = raw.filter(|_| share == 50).map(|raw| time / (raw.as_secs_f64() * 1000.0));
            self.rows.push(json!({
                "name": format!("{what}, {name}"), "value": time, "unit": "ms", "raw_ratio": ratio,
            }));
        }
        times[times.len() / 2]
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

struct Raw {
    single: f64,
    batched: f64,
    drain: f64,
    drain_one: f64,
    latency: Duration,
}

/// Takes jobs out of a list and notes that they are held.
const POP: &str = "local ids = redis.call('LPOP', KEYS[1], ARGV[1]) \
    if not ids then return {} end \
    local keys, held = {}, {} \
    for at, id in ipairs(ids) do keys[at] = 'raw:' .. id held[2 * at - 1] = 1 held[2 * at] = id end \
    redis.call('ZADD', 'raw-active', unpack(held)) \
    return { ids, redis.call('MGET', unpack(keys)) }";
/// Notes that they are over.
const DONE: &str = "redis.call('ZREM', KEYS[1], unpack(ARGV)) \
    for _, id in ipairs(ARGV) do redis.call('DEL', 'raw:' .. id) end return 1";

async fn raw(server: &RedisBroker, table: &mut Table) -> Raw {
    let client = redis::Client::open(server.url()).unwrap();
    let connection = client.get_multiplexed_async_connection().await.unwrap();
    let single = raw_enqueues(&connection, SINGLE, 1, table).await;
    let drain_one = raw_drain(&connection, SINGLE, 1, table).await;
    let batched = raw_enqueues(&connection, BATCHED, BATCH, table).await;
    let drain = raw_drain(&connection, BATCHED, BATCH, table).await;
    let latency = raw_latency(&client, &connection, table).await;
    Raw { single, batched, drain, drain_one, latency }
}

/// Stores payloads by id and pushes the ids to a list, from [`CALLERS`] callers over one connection.
async fn raw_enqueues(
    connection: &MultiplexedConnection,
    total: usize,
    batch: usize,
    table: &mut Table,
) -> f64 {
    let rounds = total / CALLERS / batch;
    let since = Instant::now();
    let tasks = (0..CALLERS).map(|_| {
        let mut connection = connection.clone();
        tokio::spawn(async move {
            for _ in 0..rounds {
                let mut pipe = redis::pipe();
                for _ in 0..batch {
                    let id = longshore_drivers::JobId::generate();
                    pipe.cmd("SET").arg(format!("raw:{id}")).arg(payload()).ignore();
                    pipe.cmd("RPUSH").arg("raw-ready").arg(id.as_str()).ignore();
                }
                pipe.exec_async(&mut connection).await.unwrap();
            }
        })
    });
    futures::future::join_all(tasks).await;
    table.add(
        &format!("raw: SET and RPUSH, {CALLERS} callers, {batch} at a time"),
        rounds * CALLERS * batch,
        since,
        None,
    )
}

/// Pops and forgets by script, from [`CLAIMERS`] callers over one connection.
async fn raw_drain(connection: &MultiplexedConnection, total: usize, batch: usize, table: &mut Table) -> f64 {
    let since = Instant::now();
    let tasks = (0..CLAIMERS).map(|_| {
        let mut connection = connection.clone();
        tokio::spawn(async move {
            let (pop, done) = (redis::Script::new(POP), redis::Script::new(DONE));
            let mut count = 0;
            loop {
                let popped: Vec<Vec<String>> =
                    pop.key("raw-ready").arg(batch).invoke_async(&mut connection).await.unwrap();
                let Some(ids) = popped.first() else { return count };
                let () = done.key("raw-active").arg(ids).invoke_async(&mut connection).await.unwrap();
                count += ids.len();
            }
        })
    });
    let counts = futures::future::join_all(tasks).await;
    let count: usize = counts.into_iter().map(Result::unwrap).sum();
    assert!(count >= total - CALLERS * batch, "{count} of {total}");
    table.add(
        &format!("raw: pop and forget by script, {CLAIMERS} callers, {batch} at a time"),
        count,
        since,
        None,
    )
}

async fn raw_latency(
    client: &redis::Client,
    connection: &MultiplexedConnection,
    table: &mut Table,
) -> Duration {
    let mut times = Vec::new();
    let mut pusher = connection.clone();
    let config = redis::AsyncConnectionConfig::new().set_response_timeout(None);
    let mut popper = client.get_multiplexed_async_connection_with_config(&config).await.unwrap();
    for _ in 0..300 {
        let wait = async {
            let _: Vec<String> =
                redis::cmd("BLPOP").arg("raw-idle").arg(5).query_async(&mut popper).await.unwrap();
            Instant::now()
        };
        let push = async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let since = Instant::now();
            let () =
                redis::cmd("RPUSH").arg("raw-idle").arg(payload()).query_async(&mut pusher).await.unwrap();
            since
        };
        let (at, since) = tokio::join!(wait, push);
        times.push(at.saturating_duration_since(since));
    }
    table.times("raw: RPUSH to BLPOP, idle", times, None)
}

async fn declared(driver: &Redis, name: &str) -> QueueName {
    let queue: QueueName = name.parse().unwrap();
    let owner = Owner { installation: "bench".into(), uid: "bench".into() };
    let settings = QueueSettings { max_depth: u64::MAX, ..QueueSettings::default() };
    driver.declare(&queue, Declaration { owner, settings, adopt: false }).await.unwrap();
    queue
}

async fn single(driver: &Arc<Redis>, queue: &QueueName, raw: f64, table: &mut Table) {
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

async fn batched(driver: &Arc<Redis>, queue: &QueueName, raw: f64, table: &mut Table) {
    let since = Instant::now();
    let rounds = BATCHED / BATCH / CALLERS;
    let tasks = (0..CALLERS).map(|_| {
        let (driver, queue) = (driver.clone(), queue.clone());
        tokio::spawn(async move {
            for _ in 0..rounds {
                driver.enqueue(&queue, vec![job(); BATCH]).await.unwrap();
            }
        })
    });
    futures::future::join_all(tasks).await;
    let what = format!("enqueue: {CALLERS} callers, batches of {BATCH}");
    table.add(&what, rounds * CALLERS * BATCH, since, Some(raw));
}

async fn fill(driver: &Redis, queue: &QueueName, until: u64) {
    while driver.stats(queue).await.unwrap().ready.unwrap() < until {
        let batches = (0..4).map(|_| driver.enqueue(queue, vec![job(); 250]));
        futures::future::try_join_all(batches).await.unwrap();
    }
}

fn claim(max: usize, wait: Duration) -> Claim {
    let max = u32::try_from(max).unwrap();
    Claim { max, wait, lease: Duration::from_secs(30), worker: "worker".into() }
}

async fn drain(driver: &Arc<Redis>, queue: &QueueName, batch: usize, raw: f64, table: &mut Table) {
    let total = usize::try_from(driver.stats(queue).await.unwrap().ready.unwrap()).unwrap();
    let since = Instant::now();
    let done = Arc::new(AtomicUsize::new(0));
    let tasks = (0..CLAIMERS).map(|_| {
        let (driver, queue, done) = (driver.clone(), queue.clone(), done.clone());
        tokio::spawn(async move {
            // An empty claim is no end: others hold jobs that are not settled yet.
            while done.load(Ordering::Relaxed) < total {
                let jobs = driver.claim(&queue, claim(batch, Duration::ZERO)).await.unwrap();
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
    let what = format!("claim and settle: {CLAIMERS} workers, {batch} at a time");
    table.add(&what, done.load(Ordering::Relaxed), since, Some(raw));
}

/// From the enqueue to the answer of a claim that waits.
async fn latency(driver: &Arc<Redis>, queue: &QueueName, raw: Duration, table: &mut Table) {
    let mut times = Vec::new();
    for _ in 0..300 {
        let wait = async {
            let jobs = driver.claim(queue, claim(1, Duration::from_secs(5))).await.unwrap();
            (Instant::now(), jobs)
        };
        let push = async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let since = Instant::now();
            driver.enqueue_one(queue, job()).await.unwrap();
            since
        };
        let ((at, jobs), since) = tokio::join!(wait, push);
        times.push(at.saturating_duration_since(since));
        driver.settle_one(queue, &jobs[0].receipt, Settle::Succeed { result: None }).await.unwrap();
    }
    table.times("enqueue to claim, idle", times, Some(raw));
}

/// Fills the queue tenfold again and again, and each time takes and returns the same number of jobs.
async fn deep(driver: &Arc<Redis>, queue: &QueueName, deepest: u64, table: &mut Table) {
    let mut target = 1000;
    while target <= deepest {
        fill(driver, queue, target).await;
        let rounds = 50;
        let since = Instant::now();
        for _ in 0..rounds {
            let jobs = driver.claim(queue, claim(BATCH, Duration::ZERO)).await.unwrap();
            let settlements = jobs.into_iter().map(|job| Settlement {
                receipt: job.receipt,
                settle: Settle::Release { delay: Duration::ZERO },
            });
            driver.settle(queue, settlements.collect()).await.unwrap();
        }
        table.add(
            &format!("claim and release {BATCH}, alone, {target} jobs deep"),
            rounds * BATCH,
            since,
            None,
        );
        let since = Instant::now();
        for _ in 0..rounds {
            driver.enqueue(queue, vec![job(); BATCH]).await.unwrap();
        }
        table.add(&format!("enqueue {BATCH}, alone, {target} jobs deep"), rounds * BATCH, since, None);
        target *= 10;
    }
}
