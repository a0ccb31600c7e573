//! How fast the Redis driver is on this machine, beside what the same server does at all with the same bytes.
//!
//! `cargo run --release -p longshore-drivers --example bench_redis [--json FILE] [--rounds N] [--rewrites] [DEPTH]`
//!
//! Starts a server of its own (`appendonly yes`, `appendfsync everysec`) on loopback. Raw and driver take turns, each on an
//! empty database with an append-only file just rewritten; the table shows medians of the rounds (3 unless told otherwise),
//! and ratios within a round. The server rewrites its file only between measurements, so that no side pays for what the other
//! one wrote; `--rewrites` lets it rewrite whenever it wants to. With a depth it also shows what a job costs at growing depths
//! up to that one. `--json` writes the same numbers as an array of `{name, value, unit, raw_ratio}`.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a program for people at a terminal")]

#[path = "../bench/mod.rs"]
mod bench;
mod meter;
mod raw;

use bench::{BATCH, CALLERS, CLAIMERS, Table, claim, job, option, payload};
use longshore_drivers::{
    DriverExt, DynDriver, QueueName, Settle,
    conformance::{Broker, servers::redis::RedisBroker},
    redis::{Redis, RedisConfig},
};
use meter::{Cost, Meter, median};
use redis::aio::MultiplexedConnection;
use serde_json::json;
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

const SETTINGS: &[&str] = &["--appendonly", "yes", "--appendfsync", "everysec"];
const CALM: &[&str] = &["--auto-aof-rewrite-percentage", "0"];
const SINGLE: usize = 192_000;
const BATCHED: usize = 256_000;
/// Idle jobs in a round, and the pause before each.
const IDLE: usize = 300;
const PAUSE: Duration = Duration::from_millis(10);

#[tokio::main]
async fn main() {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let json = option(&mut arguments, "--json");
    let rounds = option(&mut arguments, "--rounds").map_or(3, |rounds| rounds.parse().unwrap());
    let rewrites = arguments.iter().position(|argument| argument == "--rewrites");
    if let Some(at) = rewrites {
        arguments.remove(at);
    }
    let deepest = arguments.first().map_or(0, |depth| depth.parse().unwrap());
    let settings = if rewrites.is_some() { SETTINGS.to_vec() } else { [SETTINGS, CALM].concat() };
    let server = RedisBroker::start(&settings).await.unwrap();
    let mut bench = Bench::new(server).await;
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}");
        bench.rates(1).await;
        bench.rates(BATCH).await;
        bench.idle().await;
    }
    let mut table = Table::default();
    bench.tell(&mut table);
    bench.deep(deepest, &mut table).await;
    bench.server.stop().await;
    table.write(json);
}

/// Who does the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Side {
    Bare,
    Least,
    Driver,
}

impl Side {
    const ALL: [Self; 3] = [Self::Bare, Self::Least, Self::Driver];

    const fn name(self) -> &'static str {
        match self {
            Self::Bare => "raw: bare",
            Self::Least => "raw: the contract's minimum",
            Self::Driver => "driver",
        }
    }
}

struct Bench {
    server: RedisBroker,
    client: redis::Client,
    raw: MultiplexedConnection,
    /// By work and side, round by round.
    costs: BTreeMap<(String, Side), Vec<Cost>>,
    idle: [Vec<Vec<Duration>>; 2],
}

impl Bench {
    async fn new(server: RedisBroker) -> Self {
        let client = redis::Client::open(server.url()).unwrap();
        let config = redis::AsyncConnectionConfig::new().set_response_timeout(None);
        let raw = client.get_multiplexed_async_connection_with_config(&config).await.unwrap();
        Self { server, client, raw, costs: BTreeMap::new(), idle: [Vec::new(), Vec::new()] }
    }

    /// Empties the database and its file.
    async fn fresh(&self) {
        let mut raw = self.raw.clone();
        let () = redis::cmd("FLUSHALL").arg("SYNC").query_async(&mut raw).await.unwrap();
        let rewriting = |info: &str| {
            info.contains("aof_rewrite_in_progress:1") || info.contains("aof_rewrite_scheduled:1")
        };
        // One that the server began by itself comes first.
        for begin in [false, true] {
            if begin {
                let _: String = redis::cmd("BGREWRITEAOF").query_async(&mut raw).await.unwrap();
            }
            loop {
                let info: String = redis::cmd("INFO").arg("persistence").query_async(&mut raw).await.unwrap();
                if !rewriting(&info) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        let () = redis::cmd("CONFIG").arg("RESETSTAT").query_async(&mut raw).await.unwrap();
    }

    async fn connect(&self) -> (DynDriver, QueueName) {
        let driver: DynDriver = Arc::new(Redis::new(RedisConfig::new(&self.server.url()).unwrap()).unwrap());
        let queue = bench::declare(&driver, "bench").await;
        (driver, queue)
    }

    /// Enqueues and drains on all sides, `batch` at a time.
    async fn rates(&mut self, batch: usize) {
        for side in Side::ALL {
            self.fresh().await;
            let (driver, queue) = self.connect().await;
            let meter = Meter::start(&self.raw).await;
            let jobs = match side {
                Side::Bare => raw::bare_enqueues(&self.raw, batch).await,
                Side::Least => raw::least_enqueues(&self.raw, batch).await,
                Side::Driver => {
                    let total = if batch == 1 { SINGLE } else { BATCHED };
                    bench::enqueues(&driver, &queue, CALLERS, total, batch).await
                }
            };
            self.note(&format!("enqueue, {CALLERS} callers, {batch} at a time"), side, meter, jobs).await;
            let meter = Meter::start(&self.raw).await;
            let drained = match side {
                Side::Bare => raw::bare_drain(&self.raw, batch).await,
                Side::Least => raw::least_drain(&self.raw, jobs, batch).await,
                Side::Driver => bench::drain(&driver, &queue, jobs, batch, Duration::ZERO).await,
            };
            assert_eq!(jobs, drained, "{side:?}");
            let what = format!("claim and settle, {CLAIMERS} workers, {batch} at a time");
            self.note(&what, side, meter, jobs).await;
            driver.close().await;
        }
    }

    async fn note(&mut self, what: &str, side: Side, meter: Meter, jobs: usize) {
        let cost = meter.stop(jobs).await;
        eprintln!("  {what}, {}: {:.0} /s", side.name(), cost.rate);
        self.costs.entry((what.to_owned(), side)).or_default().push(cost);
    }

    async fn idle(&mut self) {
        self.fresh().await;
        // On the runtime's own threads, where a service does its work.
        let (client, raw) = (self.client.clone(), self.raw.clone());
        let bare = tokio::spawn(async move { raw::idle(&client, &raw).await }).await.unwrap();
        let (driver, queue) = self.connect().await;
        let same = driver.clone();
        let ours = tokio::spawn(async move { latency(&same, &queue).await }).await.unwrap();
        driver.close().await;
        let percent = |times: &[Duration]| format!("{:.3} / {:.3} ms", slow(times, 50), slow(times, 99));
        eprintln!("  idle, p50 / p99: raw {}, driver {}", percent(&bare), percent(&ours));
        self.idle[0].push(bare);
        self.idle[1].push(ours);
    }

    /// Medians, and ratios to both raw sides within a round.
    fn tell(&self, table: &mut Table) {
        println!("{:<76} {:>9}  of least of bare   server   client", "", "jobs/s");
        let works: std::collections::BTreeSet<_> = self.costs.keys().map(|(work, _)| work.clone()).collect();
        for work in works {
            for side in Side::ALL {
                let costs = &self.costs[&(work.clone(), side)];
                let of = |other: Side| {
                    let others = &self.costs[&(work.clone(), other)];
                    median(costs.iter().zip(others).map(|(cost, other)| cost.rate / other.rate).collect())
                };
                let middle = |what: fn(&Cost) -> f64| median(costs.iter().map(what).collect());
                let name = format!("{}, {work}", side.name());
                let (rate, least, bare) = (middle(|cost| cost.rate), of(Side::Least), of(Side::Bare));
                let (server, client) = (middle(|cost| cost.server), middle(|cost| cost.client));
                println!(
                    "{name:<76} {rate:>9.0} {:>7.0} % {:>5.0} % {server:>5.1} µs {client:>5.1} µs",
                    least * 100.0,
                    bare * 100.0
                );
                table.row(json!({
                    "name": name, "value": rate, "unit": "1/s",
                    "raw_ratio": (side == Side::Driver).then_some(least), "bare_ratio": bare,
                    "server_us": server, "client_us": client,
                }));
            }
        }
        if self.idle[0].is_empty() {
            return;
        }
        for (share, name) in [(50, "p50"), (99, "p99")] {
            let [raw, ours] = [0, 1].map(|side: usize| {
                let rounds: Vec<f64> = self.idle[side].iter().map(|times| slow(times, share)).collect();
                median(rounds)
            });
            println!("idle, RPUSH to BLPOP, {name}: {raw:.3} ms; enqueue to claim: {ours:.3} ms");
            table.row(
                json!({ "name": format!("raw: RPUSH to BLPOP, idle, {name}"), "value": raw, "unit": "ms" }),
            );
            table.row(json!({
                "name": format!("enqueue to claim, idle, {name}"), "value": ours, "unit": "ms",
                "raw_ratio": ours / raw,
            }));
        }
    }

    /// What a batch costs in deeper and deeper queues.
    async fn deep(&self, deepest: usize, table: &mut Table) {
        const ROUNDS: usize = 100;
        self.fresh().await;
        let (driver, queue) = self.connect().await;
        for target in bench::depths(deepest) {
            bench::fill(&driver, &queue, target).await;
            let meter = Meter::start(&self.raw).await;
            let count = bench::releases(&driver, &queue, ROUNDS).await;
            let released = meter.stop(count).await;
            let meter = Meter::start(&self.raw).await;
            let count = bench::additions(&driver, &queue, ROUNDS).await;
            let added = meter.stop(count).await;
            for (what, cost) in [("claim and release", released), ("enqueue", added)] {
                let name = format!("{what} {BATCH}, alone, {target} jobs deep");
                println!("{name:<76} {:>9.0} {:>23.1} µs {:>5.1} µs", cost.rate, cost.server, cost.client);
                table.row(json!({
                    "name": name, "value": cost.rate, "unit": "1/s", "raw_ratio": null,
                    "server_us": cost.server, "client_us": cost.client,
                }));
            }
        }
        driver.close().await;
    }
}

/// Milliseconds that so many of a hundred stay below.
fn slow(times: &[Duration], share: usize) -> f64 {
    let mut times = times.to_vec();
    times.sort();
    times[times.len() * share / 100].as_secs_f64() * 1000.0
}

/// From the enqueue to the answer of a claim that waits.
async fn latency(driver: &DynDriver, queue: &QueueName) -> Vec<Duration> {
    let mut times = Vec::new();
    for _ in 0..IDLE {
        let wait = async {
            let jobs = driver.claim(queue, claim(1, Duration::from_secs(5))).await.unwrap();
            (Instant::now(), jobs)
        };
        let push = async {
            tokio::time::sleep(PAUSE).await;
            let since = Instant::now();
            driver.enqueue_one(queue, job()).await.unwrap();
            since
        };
        let ((at, jobs), since) = tokio::join!(wait, push);
        times.push(at.saturating_duration_since(since));
        driver.settle_one(queue, &jobs[0].receipt, Settle::Succeed { result: None }).await.unwrap();
    }
    times
}
