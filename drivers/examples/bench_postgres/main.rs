//! How fast the driver for PostgreSQL is, beside what the same server does with plain statements in the same run.
//!
//! `cargo run --release -p longshore-drivers --example bench_postgres [OPTIONS] [--rounds N] [DEPTH]`
//!
//! Starts a server of its own (`fsync` and `synchronous_commit` on), or uses the one of `LONGSHORE_TEST_POSTGRES_URL`. Raw and
//! driver take turns, each after a checkpoint, raw on empty tables; the table shows medians of the rounds (3 unless told
//! otherwise), and ratios within a round. With a depth it also shows what a job costs at growing depths up to that one.
//! `--json FILE` writes the same numbers as an array of `{name, value, unit, raw_ratio}`; `--baseline FILE` compares the
//! ratios with stored ones, and stores them with `--store`.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a program for people at a terminal")]

#[path = "../bench/mod.rs"]
mod bench;
mod raw;

use bench::{
    BATCH, CALLERS, CLAIMERS, Outputs, Table, claim, job, option, payload,
    rounds::{Meter, Rounds, Side},
};
use longshore_drivers::{
    Driver, DriverExt, DynDriver, QueueName, Settle,
    conformance::servers::postgres::{Server, URL},
    postgres::{Postgres, PostgresConfig},
};
use raw::{Raw, connect};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// Jobs of a measurement, enqueued one by one and in batches.
const SINGLE: usize = 40_000;
const BATCHED: usize = 200_000;
/// Idle jobs in a round, and the pause before each.
const IDLE: usize = 300;
const PAUSE: Duration = Duration::from_millis(20);
/// How long a worker that finds nothing waits at the server, as a sidecar does.
const WAIT: Duration = Duration::from_millis(20);

#[tokio::main]
async fn main() {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let outputs = Outputs::of(&mut arguments);
    let rounds = option(&mut arguments, "--rounds").map_or(3, |rounds| rounds.parse().unwrap());
    let deepest = arguments.first().map_or(0, |depth| depth.parse().unwrap());
    let (server, url) = if let Ok(url) = std::env::var(URL) {
        (None, url)
    } else {
        let settings = ["max_connections = 300", "shared_buffers = 512MB", "max_wal_size = 4GB"];
        let server = Server::start(&settings).await.unwrap();
        let url = server.url(server.address());
        (Some(server), url)
    };
    let mut table = Table::default();
    let mut bench = Bench::new(server, &url).await;
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}");
        bench.round(round).await;
    }
    bench.rounds.tell("INSERT and NOTIFY to claim", &mut table);
    let queue = bench::declare(&bench.driver, "deep").await;
    bench::deep(&bench.driver, &queue, deepest, &mut table).await;
    bench.end().await;
    table.end(&outputs);
}

struct Bench {
    /// `None` for somebody else's.
    server: Option<Server>,
    url: String,
    config: PostgresConfig,
    driver: DynDriver,
    bare: Raw,
    least: Raw,
    rounds: Rounds,
}

impl Bench {
    async fn new(server: Option<Server>, url: &str) -> Self {
        let mut config = PostgresConfig::new(url).unwrap();
        config.schema = format!("bench_{}", std::process::id());
        let driver: DynDriver = Arc::new(Postgres::new(config.clone()).unwrap());
        let probe = driver.probe().await.unwrap();
        println!("PostgreSQL {}, {:?}", probe.version, probe.capabilities.durability);
        let (bare, least) =
            (Raw::new(url, &config.schema, false).await, Raw::new(url, &config.schema, true).await);
        Self { server, url: url.to_owned(), config, driver, bare, least, rounds: Rounds::default() }
    }

    async fn end(self) {
        self.driver.close().await;
        let drop = format!("DROP SCHEMA {} CASCADE", self.config.schema);
        connect(&self.url).await.batch_execute(&drop).await.unwrap();
    }

    /// Everything once, on all sides.
    async fn round(&mut self, round: usize) {
        let queue = bench::declare(&self.driver, &format!("bench-{round}")).await;
        // The first statements of a connection make plans.
        bench::additions(&self.driver, &queue, 20).await;
        let total = bench::depth(&self.driver, &queue).await;
        bench::drain(&self.driver, &queue, total, BATCH, WAIT).await;
        for side in Side::ALL {
            self.rates(side, &queue).await;
        }
        self.least.fresh().await;
        let raw = raw::idle(&self.least, IDLE).await;
        let ours = self.latency(round).await;
        self.rounds.note_idle(raw, ours);
    }

    fn raw(&self, side: Side) -> &Raw {
        if side == Side::Bare { &self.bare } else { &self.least }
    }

    /// Enqueues and drains, one by one and in batches.
    async fn rates(&mut self, side: Side, queue: &QueueName) {
        if side != Side::Driver {
            self.raw(side).fresh().await;
        }
        self.enqueues(side, queue, SINGLE, 1).await;
        self.drain(side, queue, SINGLE, 1).await;
        self.enqueues(side, queue, BATCHED, BATCH).await;
        self.drain(side, queue, BATCHED, BATCH).await;
    }

    async fn enqueues(&mut self, side: Side, queue: &QueueName, total: usize, batch: usize) {
        self.checkpoint().await;
        let work = format!("enqueue, {CALLERS} callers, {batch} at a time");
        if side == Side::Driver {
            let meter = self.start().await;
            let jobs = bench::enqueues(&self.driver, queue, CALLERS, total, batch).await;
            self.note(&work, side, meter, jobs).await;
        } else {
            let producers = self.raw(side).producers(total, batch).await;
            let meter = self.start().await;
            let jobs = producers.run().await;
            self.note(&work, side, meter, jobs).await;
        }
    }

    async fn drain(&mut self, side: Side, queue: &QueueName, total: usize, batch: usize) {
        self.checkpoint().await;
        let work = format!("claim and settle, {CLAIMERS} workers, {batch} at a time");
        if side == Side::Driver {
            let waiting = bench::depth(&self.driver, queue).await;
            let meter = self.start().await;
            let jobs = bench::drain(&self.driver, queue, waiting, batch, WAIT).await;
            self.note(&work, side, meter, jobs).await;
        } else {
            let claimers = self.raw(side).claimers(batch).await;
            let meter = self.start().await;
            let jobs = claimers.run().await;
            assert!(jobs <= total);
            self.note(&work, side, meter, jobs).await;
        }
    }

    /// Whoever writes pages for the first time since a checkpoint writes them whole: all sides begin after one.
    async fn checkpoint(&self) {
        connect(&self.url).await.batch_execute("CHECKPOINT").await.unwrap();
    }

    /// Seconds that the server's processes have used; nothing is known of somebody else's.
    async fn used(&self) -> f64 {
        match &self.server {
            Some(server) => server.processor_time().await.as_secs_f64(),
            None => f64::NAN,
        }
    }

    async fn start(&self) -> Meter {
        Meter::start(self.used().await)
    }

    async fn note(&mut self, work: &str, side: Side, meter: Meter, jobs: usize) {
        let cost = meter.stop(jobs, self.used()).await;
        self.rounds.note(work, side, cost);
    }

    /// From the begin of an enqueue by one driver to the end of a waiting claim by another, one job at a time.
    async fn latency(&self, round: usize) -> Vec<Duration> {
        let queue = bench::declare(&self.driver, &format!("idle-{round}")).await;
        let worker = Postgres::new(self.config.clone()).unwrap();
        worker.claim(&queue, claim(1, Duration::from_millis(500))).await.unwrap();
        let mut times = Vec::new();
        for _ in 0..IDLE {
            let take = async {
                let jobs = worker.claim(&queue, claim(10, Duration::from_secs(5))).await.unwrap();
                (Instant::now(), jobs)
            };
            let push = async {
                tokio::time::sleep(PAUSE).await;
                let since = Instant::now();
                self.driver.enqueue_one(&queue, job()).await.unwrap();
                since
            };
            let ((at, jobs), since) = tokio::join!(take, push);
            times.push(at.saturating_duration_since(since));
            worker.settle_one(&queue, &jobs[0].receipt, Settle::Succeed { result: None }).await.unwrap();
        }
        worker.close().await;
        times
    }
}
