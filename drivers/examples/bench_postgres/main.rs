//! How fast the driver for PostgreSQL is, beside what the same server does with plain statements in the same run.
//!
//! `cargo run --release -p longshore-drivers --example bench_postgres [OPTIONS] [--rounds N] [DEPTH]`
//!
//! Starts a server of its own (`fsync` and `synchronous_commit` on), or uses the one of `LONGSHORE_TEST_POSTGRES_URL`. Raw and
//! driver take turns in a schema made for the round, each after a checkpoint; who begins changes from round to round. The
//! table shows medians of the rounds (3 unless told otherwise), and ratios within a round. The raw sides have a connection for
//! each of 64 clients that add one job at a time, 16 that claim one, 4 that do batches; the driver has its usual few. With a depth it also shows what a job costs at growing depths up to that one.
//! `--json FILE` writes the same numbers as an array of `{name, value, unit, raw_ratio}`; `--baseline FILE` compares the
//! ratios with stored ones, and stores them with `--store`.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a program for people at a terminal")]

#[path = "../bench/mod.rs"]
mod bench;
mod raw;

use bench::{
    BATCH, CALLERS, CLAIMERS, Outputs, Table, option, payload,
    rounds::{Meter, Rounds, Side},
};
use longshore_drivers::{
    DynDriver, QueueName,
    conformance::servers::postgres::{Server, URL},
    postgres::{Postgres, PostgresConfig},
};
use raw::{Raw, connect};
use std::{sync::Arc, time::Duration};

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
    let mut bench = Bench { server, url, rounds: Rounds::default() };
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        bench.round(round).await;
    }
    let mut table = Table::default();
    bench.rounds.tell("INSERT and NOTIFY to claim", &mut table);
    let place = Place::new(&bench.url, rounds).await;
    let queue = bench::declare(&place.driver, "deep").await;
    bench::deep(&place.driver, &queue, deepest, &mut table).await;
    place.remove(&bench.url).await;
    table.end(&outputs);
}

/// A schema of its own for one round.
struct Place {
    config: PostgresConfig,
    driver: DynDriver,
    queue: QueueName,
    bare: Raw,
    least: Raw,
}

impl Place {
    async fn new(url: &str, round: usize) -> Self {
        let mut config = PostgresConfig::new(url).unwrap();
        config.schema = format!("bench_{}_{round}", std::process::id());
        let driver: DynDriver = Arc::new(Postgres::new(config.clone()).unwrap());
        let probe = driver.probe().await.unwrap();
        eprintln!("PostgreSQL {}, {:?}", probe.version, probe.capabilities.durability);
        let queue = bench::declare(&driver, "bench").await;
        // The first statements of a connection make plans.
        bench::additions(&driver, &queue, 20).await;
        let total = bench::depth(&driver, &queue).await;
        bench::drain(&driver, &queue, total, BATCH, WAIT).await;
        let (bare, least) =
            (Raw::new(url, &config.schema, false).await, Raw::new(url, &config.schema, true).await);
        Self { config, driver, queue, bare, least }
    }

    async fn remove(self, url: &str) {
        self.driver.close().await;
        let drop = format!("DROP SCHEMA {} CASCADE", self.config.schema);
        connect(url).await.batch_execute(&drop).await.unwrap();
    }

    fn raw(&self, side: Side) -> &Raw {
        if side == Side::Bare { &self.bare } else { &self.least }
    }
}

struct Bench {
    /// `None` for somebody else's.
    server: Option<Server>,
    url: String,
    rounds: Rounds,
}

impl Bench {
    /// Everything once, on all sides.
    async fn round(&mut self, round: usize) {
        let place = Place::new(&self.url, round).await;
        let mut sides = Side::ALL;
        sides.rotate_left(round % Side::ALL.len());
        for side in sides {
            for (total, batch) in [(SINGLE, 1), (BATCHED, BATCH)] {
                self.enqueues(&place, side, total, batch).await;
                self.drain(&place, side, batch).await;
            }
        }
        place.least.fresh().await;
        let raw = raw::idle(&place.least, IDLE).await;
        let ours = latency(&place).await;
        self.rounds.note_idle(raw, ours);
        place.remove(&self.url).await;
    }

    async fn enqueues(&mut self, place: &Place, side: Side, total: usize, batch: usize) {
        self.checkpoint().await;
        let work = format!("enqueue, {CALLERS} callers, {batch} at a time");
        if side == Side::Driver {
            let meter = self.start().await;
            let jobs = bench::enqueues(&place.driver, &place.queue, CALLERS, total, batch).await;
            self.note(&work, side, meter, jobs).await;
        } else {
            let mut producers = place.raw(side).producers(total, batch).await;
            let meter = self.start().await;
            let jobs = producers.run().await;
            // Its connections are still there: what ended can't be measured.
            self.note(&work, side, meter, jobs).await;
        }
    }

    /// Claims and settles all that waits.
    async fn drain(&mut self, place: &Place, side: Side, batch: usize) {
        self.checkpoint().await;
        let work = format!("claim and settle, {CLAIMERS} workers, {batch} at a time");
        if side == Side::Driver {
            let waiting = bench::depth(&place.driver, &place.queue).await;
            let meter = self.start().await;
            let jobs = bench::drain(&place.driver, &place.queue, waiting, batch, WAIT).await;
            self.note(&work, side, meter, jobs).await;
        } else {
            let mut claimers = place.raw(side).claimers(batch).await;
            let meter = self.start().await;
            let jobs = claimers.run().await;
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
}

/// Producer and worker are processes of their own elsewhere, so they have drivers of their own.
async fn latency(place: &Place) -> Vec<Duration> {
    let queue = bench::declare(&place.driver, "idle").await;
    let worker: DynDriver = Arc::new(Postgres::new(place.config.clone()).unwrap());
    let times = bench::latency(&place.driver, &worker, &queue, (IDLE, PAUSE)).await;
    worker.close().await;
    times
}
