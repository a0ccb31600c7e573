//! What the benchmarks of all drivers do alike: the same jobs, callers and claimers, a table and its JSON.
#![allow(dead_code, clippy::allow_attributes, reason = "no benchmark needs all of it")]

mod guard;
pub(crate) mod rounds;

use longshore_drivers::{
    Claim, Declaration, DriverExt, DynDriver, NewJob, Owner, Payload, QueueName, QueueSettings, Settle,
    Settlement,
};
use serde_json::{Value, json};
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// Callers that enqueue at once.
pub(crate) const CALLERS: usize = 64;
/// Workers that claim and settle at once.
pub(crate) const CLAIMERS: usize = 100;
/// Jobs of a batch.
pub(crate) const BATCH: usize = 100;
/// Bytes of a payload.
const PAYLOAD: usize = 200;

/// Takes the option `name` and its value out of the arguments.
pub(crate) fn option(arguments: &mut Vec<String>, name: &str) -> Option<String> {
    let at = arguments.iter().position(|argument| argument == name)?;
    arguments.remove(at);
    Some(arguments.remove(at))
}

/// Where the figures go, as the command line says.
pub(crate) struct Outputs {
    json: Option<String>,
    baseline: Option<String>,
    store: bool,
}

impl Outputs {
    /// Takes `--json FILE`, `--baseline FILE` and `--store` out of the arguments.
    pub(crate) fn of(arguments: &mut Vec<String>) -> Self {
        let (json, baseline) = (option(arguments, "--json"), option(arguments, "--baseline"));
        Self { json, baseline, store: flag(arguments, "--store") }
    }
}

/// Takes the option `name` out of the arguments; whether it was there.
pub(crate) fn flag(arguments: &mut Vec<String>, name: &str) -> bool {
    let at = arguments.iter().position(|argument| argument == name);
    at.map(|at| arguments.remove(at)).is_some()
}

/// What a rate is compared with.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Beside {
    Nothing,
    /// What the server does at all.
    Raw(f64),
    /// The same in a queue with few jobs.
    Shallow(f64),
}

/// What was measured.
#[derive(Default)]
pub(crate) struct Table {
    rows: Vec<Value>,
}

impl Table {
    /// Adds a rate, beside another one; the rate is handed back.
    pub(crate) fn add(&mut self, what: &str, count: usize, since: Instant, beside: Beside) -> f64 {
        let seconds = since.elapsed().as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let rate = count as f64 / seconds;
        let (raw, shallow) = match beside {
            Beside::Nothing => (None, None),
            Beside::Raw(raw) => (Some(rate / raw), None),
            Beside::Shallow(shallow) => (None, Some(rate / shallow)),
        };
        let percent = |ratio: Option<f64>, of: &str| {
            ratio.map_or_else(String::new, |ratio| format!("{:>4.0} % of {of}", ratio * 100.0))
        };
        let ratios = percent(raw, "raw") + &percent(shallow, "shallow");
        println!("{what:<56} {rate:>10.0} /s {ratios:>17}   ({count} in {seconds:.2} s)");
        self.row(
            json!({ "name": what, "value": rate, "unit": "1/s", "raw_ratio": raw, "shallow_ratio": shallow }),
        );
        rate
    }

    /// Adds how long half of them and all but one of a hundred took at most.
    pub(crate) fn add_times(&mut self, what: &str, times: &[Duration]) {
        for (share, name) in [(50, "p50"), (99, "p99")] {
            let (what, millis) = (format!("{what}, {name}"), rounds::slow(times, share));
            println!("{what:<56} {millis:>10.3} ms");
            self.row(json!({ "name": what, "value": millis, "unit": "ms" }));
        }
    }

    /// Adds a row to the JSON alone.
    pub(crate) fn row(&mut self, row: Value) {
        self.rows.push(row);
    }

    /// Writes it as JSON, and compares it with what is stored, where somebody named files for that.
    pub(crate) fn end(&self, outputs: &Outputs) {
        if let Some(file) = &outputs.json {
            std::fs::write(file, serde_json::to_string_pretty(&self.rows).unwrap()).unwrap();
        }
        if let Some(file) = &outputs.baseline {
            guard::check(&self.rows, Path::new(file), outputs.store);
        }
    }
}

/// JSON of [`PAYLOAD`] bytes.
pub(crate) fn payload() -> String {
    let start = r#"{"to":"somebody@example.com","template":"welcome","locale":"en","note":""#;
    format!("{start}{}\"}}", "x".repeat(PAYLOAD - start.len() - 2))
}

pub(crate) fn job() -> NewJob {
    NewJob::new("mail", Payload::json(payload()))
}

pub(crate) fn claim(max: usize, wait: Duration) -> Claim {
    let max = u32::try_from(max).unwrap();
    Claim { max, wait, lease: Duration::from_secs(60), worker: "worker".into() }
}

/// A queue that is never full.
pub(crate) async fn declare(driver: &DynDriver, name: &str) -> QueueName {
    let queue: QueueName = name.parse().unwrap();
    let owner = Owner { installation: "bench".into(), uid: "bench".into() };
    let settings = QueueSettings { max_depth: 10_000_000, ..QueueSettings::default() };
    driver.declare(&queue, Declaration { owner, settings, adopt: false }).await.unwrap();
    queue
}

async fn add(driver: &DynDriver, queue: &QueueName, count: usize) {
    let answers = driver.enqueue(queue, vec![job(); count]).await.unwrap();
    assert!(answers.iter().all(Result::is_ok), "a job was refused: {answers:?}");
}

/// Enqueues about `total` jobs, `batch` at a time; how many.
pub(crate) async fn enqueues(
    driver: &DynDriver,
    queue: &QueueName,
    callers: usize,
    total: usize,
    batch: usize,
) -> usize {
    let rounds = total / callers / batch;
    let tasks = (0..callers).map(|_| {
        let (driver, queue) = (driver.clone(), queue.clone());
        tokio::spawn(async move {
            for _ in 0..rounds {
                add(&driver, &queue, batch).await;
            }
        })
    });
    futures::future::join_all(tasks).await.into_iter().for_each(|ended| ended.unwrap());
    rounds * callers * batch
}

/// Claims and settles `total` jobs, `batch` at a time; how many. Whoever finds none asks the broker to wait for so long.
pub(crate) async fn drain(
    driver: &DynDriver,
    queue: &QueueName,
    total: usize,
    batch: usize,
    wait: Duration,
) -> usize {
    let done = Arc::new(AtomicUsize::new(0));
    let tasks = (0..CLAIMERS).map(|_| {
        let (driver, queue, done) = (driver.clone(), queue.clone(), done.clone());
        tokio::spawn(async move {
            // An empty claim is no end: others hold jobs that are not settled yet.
            while done.load(Ordering::Relaxed) < total {
                let settled = take(&driver, &queue, batch, wait, &Settle::Succeed { result: None }).await;
                if settled == 0 {
                    tokio::task::yield_now().await;
                }
                done.fetch_add(settled, Ordering::Relaxed);
            }
        })
    });
    futures::future::join_all(tasks).await.into_iter().for_each(|ended| ended.unwrap());
    done.load(Ordering::Relaxed)
}

/// Claims up to `max` jobs and settles them; how many.
async fn take(driver: &DynDriver, queue: &QueueName, max: usize, wait: Duration, settle: &Settle) -> usize {
    let jobs = driver.claim(queue, claim(max, wait)).await.unwrap();
    if jobs.is_empty() {
        return 0;
    }
    let settlements: Vec<_> =
        jobs.into_iter().map(|job| Settlement { receipt: job.receipt, settle: settle.clone() }).collect();
    let answers = driver.settle(queue, settlements).await.unwrap();
    answers.iter().filter(|answer| answer.is_ok()).count()
}

/// From the begin of each enqueue to the answer of a claim that waits, one job at a time, `pause` apart.
pub(crate) async fn latency(
    producer: &DynDriver,
    worker: &DynDriver,
    queue: &QueueName,
    (jobs, pause): (usize, Duration),
) -> Vec<Duration> {
    // One that found nothing knows how it is woken.
    worker.claim(queue, claim(1, Duration::from_millis(500))).await.unwrap();
    let mut times = Vec::new();
    for _ in 0..jobs {
        let take = async {
            let jobs = worker.claim(queue, claim(1, Duration::from_secs(5))).await.unwrap();
            (Instant::now(), jobs)
        };
        let push = async {
            tokio::time::sleep(pause).await;
            let since = Instant::now();
            producer.enqueue_one(queue, job()).await.unwrap();
            since
        };
        let ((at, jobs), since) = tokio::join!(take, push);
        times.push(at.saturating_duration_since(since));
        worker.settle_one(queue, &jobs[0].receipt, Settle::Succeed { result: None }).await.unwrap();
    }
    times
}

/// How many jobs wait.
pub(crate) async fn depth(driver: &DynDriver, queue: &QueueName) -> usize {
    usize::try_from(driver.stats(queue).await.unwrap().ready.unwrap()).unwrap()
}

/// Fills a queue up to `depth` jobs.
pub(crate) async fn fill(driver: &DynDriver, queue: &QueueName, target: usize) {
    while depth(driver, queue).await < target {
        futures::future::join_all((0..4).map(|_| add(driver, queue, 250))).await;
    }
}

/// Takes and gives back a batch so many times.
pub(crate) async fn releases(driver: &DynDriver, queue: &QueueName, rounds: usize) -> usize {
    let mut released = 0;
    for _ in 0..rounds {
        let release = Settle::Release { delay: Duration::ZERO };
        released += take(driver, queue, BATCH, Duration::ZERO, &release).await;
    }
    released
}

/// Enqueues a batch so many times, alone.
pub(crate) async fn additions(driver: &DynDriver, queue: &QueueName, rounds: usize) -> usize {
    for _ in 0..rounds {
        add(driver, queue, BATCH).await;
    }
    rounds * BATCH
}

/// Depths that grow tenfold from a thousand to `deepest`.
pub(crate) fn depths(deepest: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(1000_usize), |depth| depth.checked_mul(10))
        .take_while(move |it| *it <= deepest)
}

/// What a batch costs in deeper and deeper queues.
pub(crate) async fn deep(driver: &DynDriver, queue: &QueueName, deepest: usize, table: &mut Table) {
    const ROUNDS: usize = 100;
    let mut shallow = [Beside::Nothing; 3];
    for target in depths(deepest) {
        fill(driver, queue, target).await;
        let since = Instant::now();
        let released = releases(driver, queue, ROUNDS).await;
        let what = format!("claim and release {BATCH}, alone, {target} jobs deep");
        let released = table.add(&what, released, since, shallow[0]);
        let since = Instant::now();
        let added = additions(driver, queue, ROUNDS).await;
        let added =
            table.add(&format!("enqueue {BATCH}, alone, {target} jobs deep"), added, since, shallow[1]);
        let since = Instant::now();
        for _ in 0..ROUNDS {
            driver.stats(queue).await.unwrap();
        }
        let looked = table.add(&format!("stats, alone, {target} jobs deep"), ROUNDS, since, shallow[2]);
        if matches!(shallow[0], Beside::Nothing) {
            shallow = [released, added, looked].map(Beside::Shallow);
        }
    }
}
