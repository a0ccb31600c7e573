//! How fast the Redis driver is on this machine, beside what the same server does at all with the same bytes.
//!
//! `cargo run --release -p longshore-drivers --example bench_redis [OPTIONS] [--rounds N] [--rewrites] [DEPTH]`
//!
//! Starts a server of its own (`appendonly yes`, `appendfsync everysec`) on loopback. Raw and driver take turns, each on an
//! empty database with an append-only file just rewritten; the table shows medians of the rounds (3 unless told otherwise),
//! and ratios within a round. The server rewrites its file only between measurements, so that no side pays for what the other
//! one wrote; `--rewrites` lets it rewrite whenever it wants to. With a depth it also shows what a job costs at growing depths
//! up to that one. `--json FILE` writes the same numbers as an array of `{name, value, unit, raw_ratio}`; `--baseline FILE`
//! compares the ratios with stored ones, and stores them with `--store`.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a program for people at a terminal")]

#[path = "../bench/mod.rs"]
mod bench;
mod raw;

use bench::{
    BATCH, CALLERS, CLAIMERS, Outputs, Table, flag, option, payload,
    rounds::{Cost, Meter, Rounds, Side},
};
use longshore_drivers::{
    DynDriver, QueueName,
    conformance::{Broker, servers::redis::RedisBroker},
    redis::{Redis, RedisConfig},
};
use redis::aio::MultiplexedConnection;
use serde_json::json;
use std::{sync::Arc, time::Duration};

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
    let outputs = Outputs::of(&mut arguments);
    let rounds = option(&mut arguments, "--rounds").map_or(3, |rounds| rounds.parse().unwrap());
    let rewrites = flag(&mut arguments, "--rewrites");
    let deepest = arguments.first().map_or(0, |depth| depth.parse().unwrap());
    let settings = if rewrites { SETTINGS.to_vec() } else { [SETTINGS, CALM].concat() };
    let server = RedisBroker::start(&settings).await.unwrap();
    let mut bench = Bench::new(server).await;
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}");
        bench.rates(1).await;
        bench.rates(BATCH).await;
        bench.idle().await;
    }
    let mut table = Table::default();
    bench.rounds.tell("RPUSH to BLPOP", &mut table);
    bench.deep(deepest, &mut table).await;
    bench.server.stop().await;
    table.end(&outputs);
}

struct Bench {
    server: RedisBroker,
    client: redis::Client,
    raw: MultiplexedConnection,
    rounds: Rounds,
}

impl Bench {
    async fn new(server: RedisBroker) -> Self {
        let client = redis::Client::open(server.url()).unwrap();
        let config = redis::AsyncConnectionConfig::new().set_response_timeout(None);
        let raw = client.get_multiplexed_async_connection_with_config(&config).await.unwrap();
        Self { server, client, raw, rounds: Rounds::default() }
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
            let meter = self.start().await;
            let jobs = match side {
                Side::Bare => raw::bare_enqueues(&self.raw, batch).await,
                Side::Least => raw::least_enqueues(&self.raw, batch).await,
                Side::Driver => {
                    let total = if batch == 1 { SINGLE } else { BATCHED };
                    bench::enqueues(&driver, &queue, CALLERS, total, batch).await
                }
            };
            self.note(&format!("enqueue, {CALLERS} callers, {batch} at a time"), side, meter, jobs).await;
            let meter = self.start().await;
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
        let cost = self.stop(meter, jobs).await;
        self.rounds.note(what, side, cost);
    }

    async fn start(&self) -> Meter {
        Meter::start(server(&self.raw).await)
    }

    async fn stop(&self, meter: Meter, jobs: usize) -> Cost {
        meter.stop(jobs, server(&self.raw)).await
    }

    async fn idle(&mut self) {
        self.fresh().await;
        // On the runtime's own threads, where a service does its work.
        let (client, raw) = (self.client.clone(), self.raw.clone());
        let bare = tokio::spawn(async move { raw::idle(&client, &raw).await }).await.unwrap();
        let (driver, queue) = self.connect().await;
        let same = driver.clone();
        let ours = tokio::spawn(async move { bench::latency(&same, &same, &queue, (IDLE, PAUSE)).await })
            .await
            .unwrap();
        driver.close().await;
        self.rounds.note_idle(bare, ours);
    }

    /// What a batch costs in deeper and deeper queues.
    async fn deep(&self, deepest: usize, table: &mut Table) {
        const ROUNDS: usize = 100;
        self.fresh().await;
        let (driver, queue) = self.connect().await;
        let mut shallow = [None; 2];
        for target in bench::depths(deepest) {
            bench::fill(&driver, &queue, target).await;
            let meter = self.start().await;
            let count = bench::releases(&driver, &queue, ROUNDS).await;
            let released = self.stop(meter, count).await;
            let meter = self.start().await;
            let count = bench::additions(&driver, &queue, ROUNDS).await;
            let added = self.stop(meter, count).await;
            let costs = [("claim and release", released), ("enqueue", added)];
            for ((what, cost), shallow) in costs.into_iter().zip(&mut shallow) {
                let ratio = cost.rate / *shallow.get_or_insert(cost.rate);
                let name = format!("{what} {BATCH}, alone, {target} jobs deep");
                println!(
                    "{name:<64} {:>9.0} {:>5.0} % of shallow {:>8.1} µs {:>6.1} µs",
                    cost.rate,
                    ratio * 100.0,
                    cost.server,
                    cost.client
                );
                table.row(json!({
                    "name": name, "value": cost.rate, "unit": "1/s", "raw_ratio": null, "shallow_ratio": ratio,
                    "server_us": cost.server, "client_us": cost.client,
                }));
            }
        }
        driver.close().await;
    }
}

/// Seconds of the server's main thread.
async fn server(connection: &MultiplexedConnection) -> f64 {
    let mut connection = connection.clone();
    let info: String = redis::cmd("INFO").arg("cpu").query_async(&mut connection).await.unwrap();
    let fields = info.lines().filter_map(|line| line.trim().split_once(':'));
    let main =
        fields.filter(|(name, _)| ["used_cpu_sys_main_thread", "used_cpu_user_main_thread"].contains(name));
    main.map(|(_, seconds)| seconds.parse::<f64>().unwrap()).sum()
}
