//! Many jobs over several sidecar processes that are killed and frozen at random, and a broker that is killed once.
//!
//! `LONGSHORE_SOAK=1` makes it a million, `LONGSHORE_HISTORY` any number, `LONGSHORE_SEED` repeats the faults of a run.

use crate::{
    bounds::{at_least, at_most, over},
    frame::{
        app::{Answer, Order},
        pod::Pod,
        site::{LEASE, Site, job},
    },
    judge::{Freeze, History},
};
use longshore_drivers::{JobId, NewJob};
use std::{
    cell::Cell,
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};
use tokio::{sync::Mutex, time::sleep};

const PODS: usize = 4;
/// What a worker runs at once.
const AT_ONCE: u32 = 16;
const GATE: usize = 20_000;
const SOAK: usize = 1_000_000;
/// How long a broker that was killed may take until it takes jobs again.
const BROKER_RETURNS: Duration = Duration::from_secs(90);
/// Jobs in one request.
const BATCH: usize = 500;
/// How often a worker dies at least, and how often one stands still for longer than a lease.
const KILLS: usize = 5;
const FREEZES: usize = 2;

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

/// What the workers have gone through.
#[derive(Default)]
struct Faults {
    kills: Cell<usize>,
    freezes: Cell<usize>,
}

impl Faults {
    fn are_enough(&self) -> bool {
        self.kills.get() >= KILLS && self.freezes.get() >= FREEZES
    }
}

/// A worker, which one at a time may disturb.
type Victim = Mutex<Pod>;

pub(crate) async fn history_random_kills(site: Site) {
    // Losing workers is the point here, not what becomes of a job that loses too many.
    site.declare(|settings| (settings.max_deliveries, settings.max_depth) = (1000, 2 * SOAK as u64)).await;
    let mut pods = Vec::new();
    for _ in 0..PODS {
        pods.push(Mutex::new(site.pod(|policy| policy.concurrency = AT_ONCE).await));
    }
    let seed = number("LONGSHORE_SEED").unwrap_or_else(|| u64::from(std::process::id())).max(1);
    let total = over("jobs", count());
    over("workers", PODS);
    over("kill of the broker", 1_usize);
    let (began, faults) = (Instant::now(), Faults::default());
    let (acknowledged, (), freezes) = futures::join!(
        produce(&site, total, &faults),
        kills(&site, &pods, total, Dice(seed), &faults),
        freezes(&site, &pods, total, Dice(!seed), &faults),
    );
    site.drained_within(patience()).await;
    let took = began.elapsed();
    let accepted = accepted(&site, &acknowledged).await;
    assert_eq!(site.stats().await.dead, Some(0), "dead jobs");
    let (kills, stood) = (faults.kills.get(), freezes.len());
    let history = History { runs: site.ledger.runs(), acknowledged, accepted, freezes };
    let figures = history.judge().unwrap_or_else(|found| panic!("{found} (LONGSHORE_SEED={seed})"));
    assert_eq!(figures.jobs, total, "jobs that were acknowledged");
    assert!(kills >= at_least("kills of workers", KILLS), "{kills} kills");
    assert!(stood >= at_least("freezes of workers over a lease", FREEZES), "{stood} freezes");
    // What it was about to start when it was frozen; what it claims then is its own again.
    let woken = at_most("runs without a lease for each freeze", AT_ONCE) as usize;
    assert!(figures.unleased <= woken * stood, "{} runs without a lease (seed {seed})", figures.unleased);
    site.measure(format!(
        "{} jobs, {PODS} workers with {kills} kills and {stood} freezes over a lease, one kill of the broker, {} runs \
         were repeated, {} of them after a success that nobody heard of, {} began without a lease, {} jobs/s, seed {seed}",
        figures.jobs,
        figures.repeated,
        figures.done_twice,
        figures.unleased,
        total as u128 * 1000 / took.as_millis().max(1),
    ));
}

/// Enqueues everything, and again what nobody acknowledged. The last jobs come when there were faults enough, however fast the
/// machine is.
async fn produce(site: &Site, total: usize, faults: &Faults) -> BTreeSet<String> {
    let orders = [
        Order::default(),
        Order { work_ms: 2, ..Order::default() },
        Order { work_ms: 5, ..Order::default() },
        Order { answers: vec![500, 200], ..Order::default() },
    ];
    let mut acknowledged = BTreeSet::new();
    let mut made = 0;
    while made < total {
        while made >= total * 4 / 5 && !faults.are_enough() {
            sleep(Duration::from_millis(10)).await;
        }
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

/// Until about everything is done.
fn goes_on(site: &Site, total: usize, faults: &Faults) -> bool {
    site.ledger.begun() < total || !faults.are_enough()
}

/// Kills a worker now and then, and the broker once.
async fn kills(site: &Site, pods: &[Victim], total: usize, mut dice: Dice, faults: &Faults) {
    let (least, most) = (300, 1500);
    over("between kills at most", Duration::from_millis(most));
    let mut broker_lives = true;
    while goes_on(site, total, faults) {
        sleep(Duration::from_millis(least + dice.roll(most - least))).await;
        if broker_lives && site.ledger.begun() > total * 2 / 5 {
            broker_lives = false;
            site.kill_broker().await;
            sleep(Duration::from_millis(dice.roll(500))).await;
            site.start_broker().await;
            continue;
        }
        let first = usize::try_from(dice.roll(PODS as u64)).unwrap();
        // Another one where that one stands still.
        let mut victims = (first..first + PODS).filter_map(|pod| pods[pod % PODS].try_lock().ok());
        let victim = victims.next().expect("one stands still at a time");
        victim.kill();
        faults.kills.set(faults.kills.get() + 1);
        sleep(Duration::from_millis(dice.roll(300))).await;
        victim.start().await;
    }
    assert!(!broker_lives, "the broker was never killed");
}

/// Freezes a worker now and then, for longer than a lease: its app works on, its jobs run elsewhere, and what it does when
/// it wakes is of no account.
async fn freezes(site: &Site, pods: &[Victim], total: usize, mut dice: Dice, faults: &Faults) -> Vec<Freeze> {
    let mut freezes = Vec::new();
    over("lease", LEASE);
    while goes_on(site, total, faults) {
        sleep(Duration::from_millis(dice.roll(1000))).await;
        let victim = pods[usize::try_from(dice.roll(PODS as u64)).unwrap()].lock().await;
        let sidecar = victim.sidecar();
        let from = Instant::now();
        sidecar.process.freeze();
        sleep(LEASE + Duration::from_millis(100 + dice.roll(900))).await;
        sidecar.process.thaw();
        freezes.push(Freeze { pod: victim.number, from, to: Instant::now() });
        faults.freezes.set(faults.freezes.get() + 1);
    }
    freezes
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
