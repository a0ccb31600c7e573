//! Many jobs over several sidecar processes that are killed at random, and a broker that is killed once.
//!
//! `LONGSHORE_SOAK=1` makes it a million, `LONGSHORE_HISTORY` any number, `LONGSHORE_SEED` repeats the kills of a run.

use crate::{
    bounds::{at_least, over},
    frame::{
        app::{Answer, Order},
        pod::Pod,
        site::{Site, job},
    },
    judge::History,
};
use longshore_drivers::{JobId, NewJob};
use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};
use tokio::time::sleep;

const PODS: usize = 4;
const GATE: usize = 20_000;
const SOAK: usize = 1_000_000;
/// How long a broker that was killed may take until it takes jobs again.
const BROKER_RETURNS: Duration = Duration::from_secs(90);
/// Jobs in one request.
const BATCH: usize = 500;

pub(crate) fn is_soak() -> bool {
    std::env::var("LONGSHORE_SOAK").is_ok_and(|text| text == "1")
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// How many jobs.
fn count() -> usize {
    let own = number("LONGSHORE_HISTORY").and_then(|count| usize::try_from(count).ok());
    own.unwrap_or_else(|| if is_soak() { SOAK } else { GATE })
}

/// A machine that runs fewer than 100 jobs a second is no machine to prove anything on.
pub(crate) fn patience() -> Duration {
    Duration::from_secs(120 + count() as u64 / 100)
}

/// Numbers that look random and can be had again.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

pub(crate) async fn history_random_kills(site: Site) {
    // Losing workers is the point here, not what becomes of a job that loses too many.
    site.declare(|settings| (settings.max_deliveries, settings.max_depth) = (1000, 2 * SOAK as u64)).await;
    let mut pods = Vec::new();
    for _ in 0..PODS {
        pods.push(site.pod(|policy| policy.concurrency = 16).await);
    }
    let seed = number("LONGSHORE_SEED").unwrap_or_else(|| u64::from(std::process::id())).max(1);
    let total = over("jobs", count());
    over("workers", PODS);
    over("kill of the broker", 1_usize);
    let began = Instant::now();
    let chaos = chaos(&site, &pods, total, Dice(seed));
    let (acknowledged, kills) = futures::join!(produce(&site, total), chaos);
    site.drained_within(patience()).await;
    let took = began.elapsed();
    let accepted = accepted(&site, &acknowledged).await;
    assert_eq!(site.stats().await.dead, Some(0), "dead jobs");
    let history = History { runs: site.ledger.runs(), acknowledged, accepted };
    let figures = history.judge().unwrap_or_else(|found| panic!("{found} (LONGSHORE_SEED={seed})"));
    assert_eq!(figures.jobs, total, "jobs that were acknowledged");
    site.measure(format!(
        "{} jobs, {PODS} workers with {kills} kills, one kill of the broker, {} runs were repeated, {} of \
         them after a success that nobody heard of, {} jobs/s, seed {seed}",
        figures.jobs,
        figures.repeated,
        figures.done_twice,
        total as u128 * 1000 / took.as_millis().max(1),
    ));
}

/// Enqueues everything, and again what nobody acknowledged.
async fn produce(site: &Site, total: usize) -> BTreeSet<String> {
    let orders = [
        Order::default(),
        Order { work_ms: 2, ..Order::default() },
        Order { work_ms: 5, ..Order::default() },
        Order { answers: vec![500, 200], ..Order::default() },
    ];
    let mut acknowledged = BTreeSet::new();
    let mut made = 0;
    while made < total {
        let size = BATCH.min(total - made);
        // One in twenty fails once.
        let order = |number: usize| if number % 20 == 7 { &orders[3] } else { &orders[number % 3] };
        let batch: Vec<NewJob> =
            (made..made + size).map(|number| job(&format!("job-{number}"), order(number))).collect();
        made += size;
        // The same ids until they are acknowledged: the answer to a request may be lost with the broker.
        let deadline = Instant::now() + BROKER_RETURNS;
        while Instant::now() < deadline {
            let Ok(answers) = site.driver.enqueue(&site.queue, batch.clone()).await else {
                sleep(Duration::from_millis(50)).await;
                continue;
            };
            let taken = answers.iter().filter_map(|answer| answer.as_ref().ok());
            acknowledged.extend(taken.map(|enqueued| enqueued.id().to_string()));
            if answers.iter().all(Result::is_ok) {
                break;
            }
        }
    }
    acknowledged
}

/// Kills a worker now and then, and the broker once, until about everything is done.
async fn chaos(site: &Site, pods: &[Pod], total: usize, mut dice: Dice) -> usize {
    let mut kills = 0;
    let (least, most) = (300, 1500);
    over("between kills at most", Duration::from_millis(most));
    let mut broker_lives = true;
    while site.ledger.begun() < total {
        sleep(Duration::from_millis(least + dice.roll(most - least))).await;
        if broker_lives && site.ledger.begun() > total * 2 / 5 {
            broker_lives = false;
            site.kill_broker().await;
            sleep(Duration::from_millis(dice.roll(500))).await;
            site.start_broker().await;
            continue;
        }
        let victim = &pods[usize::try_from(dice.roll(PODS as u64)).unwrap()];
        victim.kill();
        kills += 1;
        sleep(Duration::from_millis(dice.roll(300))).await;
        victim.start().await;
    }
    assert!(!broker_lives, "the broker was never killed");
    assert!(kills >= at_least("kill of a worker", 1_usize), "no worker was killed: {total} jobs are too few");
    kills
}

/// The run whose settle was taken, of each job.
async fn accepted(site: &Site, ids: &BTreeSet<String>) -> HashMap<String, u64> {
    let mut accepted = HashMap::new();
    let ids: Vec<_> = ids.iter().map(|id| JobId::new(id.as_str()).unwrap()).collect();
    for page in ids.chunks(BATCH) {
        let results = site.driver.results(&site.queue, page.to_vec()).await.unwrap();
        for (id, result) in page.iter().zip(results) {
            if let Some(result) = result {
                let answer: Answer = serde_json::from_slice(&result.bytes).unwrap();
                accepted.insert(id.to_string(), answer.run);
            }
        }
    }
    accepted
}
