//! Raw sides and a driver that take turns for some rounds, so that whatever the machine does meets all of them.

use super::Table;
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

/// Who does the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Side {
    /// The server with the fewest commands that move the same bytes.
    Bare,
    /// The server with no more than the contract asks for: what a figure is held against.
    Least,
    Driver,
}

impl Side {
    pub(crate) const ALL: [Self; 3] = [Self::Bare, Self::Least, Self::Driver];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Bare => "raw: bare",
            Self::Least => "raw: the contract's minimum",
            Self::Driver => "driver",
        }
    }
}

/// What was measured of one piece of work.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    /// Jobs per second.
    pub(crate) rate: f64,
    /// Microseconds of the server for a job.
    pub(crate) server: f64,
    /// Microseconds of this process for a job.
    pub(crate) client: f64,
}

/// A piece of work that began; `server` is what the server had used by then, in seconds.
pub(crate) struct Meter {
    since: Instant,
    server: f64,
    client: f64,
}

impl Meter {
    pub(crate) fn start(server: f64) -> Self {
        Self { server, client: client(), since: Instant::now() }
    }

    /// It is over. What the server has used is asked for once the time is taken.
    pub(crate) async fn stop(self, jobs: usize, server: impl Future<Output = f64>) -> Cost {
        let seconds = self.since.elapsed().as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "numbers for people")]
        let jobs = jobs as f64;
        let client = (client() - self.client) * 1e6 / jobs;
        Cost { rate: jobs / seconds, server: (server.await - self.server) * 1e6 / jobs, client }
    }
}

/// Seconds of this process: the fields after the program's name, in hundredths.
fn client() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<_> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

/// The one in the middle.
pub(crate) fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

/// Milliseconds that so many of a hundred stay below.
pub(crate) fn slow(times: &[Duration], share: usize) -> f64 {
    let mut times = times.to_vec();
    times.sort();
    times[times.len() * share / 100].as_secs_f64() * 1000.0
}

/// What was measured, by work and side, round by round.
#[derive(Default)]
pub(crate) struct Rounds {
    costs: BTreeMap<(String, Side), Vec<Cost>>,
    /// How long raw and driver took when they were idle.
    idle: [Vec<Vec<Duration>>; 2],
}

impl Rounds {
    pub(crate) fn note(&mut self, work: &str, side: Side, cost: Cost) {
        eprintln!("  {work}, {}: {:.0} /s", side.name(), cost.rate);
        self.costs.entry((work.to_owned(), side)).or_default().push(cost);
    }

    pub(crate) fn note_idle(&mut self, raw: Vec<Duration>, driver: Vec<Duration>) {
        let percent = |times: &[Duration]| format!("{:.3} / {:.3} ms", slow(times, 50), slow(times, 99));
        eprintln!("  idle, p50 / p99: raw {}, driver {}", percent(&raw), percent(&driver));
        self.idle[0].push(raw);
        self.idle[1].push(driver);
    }

    /// Medians, and ratios to both raw sides within a round; `idle_raw` says what the raw side did when it was idle.
    pub(crate) fn tell(&self, idle_raw: &str, table: &mut Table) {
        println!("{:<76} {:>9}  of least of bare    server    client", "", "jobs/s");
        let works: BTreeSet<_> = self.costs.keys().map(|(work, _)| work.clone()).collect();
        for work in works {
            for side in Side::ALL {
                if let Some(costs) = self.costs.get(&(work.clone(), side)) {
                    self.tell_costs(&work, side, costs, table);
                }
            }
        }
        if !self.idle[0].is_empty() {
            self.tell_idle(idle_raw, table);
        }
    }

    fn tell_costs(&self, work: &str, side: Side, costs: &[Cost], table: &mut Table) {
        let of = |other: Side| {
            let others = self.costs.get(&(work.to_owned(), other))?;
            Some(median(costs.iter().zip(others).map(|(cost, other)| cost.rate / other.rate).collect()))
        };
        let middle = |what: fn(&Cost) -> f64| median(costs.iter().map(what).collect());
        let name = format!("{}, {work}", side.name());
        let (rate, least, bare) = (middle(|cost| cost.rate), of(Side::Least), of(Side::Bare));
        let (server, client) = (middle(|cost| cost.server), middle(|cost| cost.client));
        let percent =
            |ratio: Option<f64>| ratio.map_or_else(String::new, |it| format!("{:.0} %", it * 100.0));
        println!(
            "{name:<76} {rate:>9.0} {:>9} {:>7} {server:>6.1} µs {client:>6.1} µs",
            percent(least),
            percent(bare)
        );
        table.row(json!({
            "name": name, "value": rate, "unit": "1/s",
            "raw_ratio": least.filter(|_| side == Side::Driver), "bare_ratio": bare,
            "server_us": server, "client_us": client,
        }));
    }

    fn tell_idle(&self, raw_work: &str, table: &mut Table) {
        for (share, name) in [(50, "p50"), (99, "p99")] {
            let middle =
                |side: usize| median(self.idle[side].iter().map(|times| slow(times, share)).collect());
            let (raw, ours) = (middle(0), middle(1));
            println!("idle, {raw_work}, {name}: {raw:.3} ms; enqueue to claim: {ours:.3} ms");
            table
                .row(json!({ "name": format!("raw: {raw_work}, idle, {name}"), "value": raw, "unit": "ms" }));
            table.row(json!({
                "name": format!("enqueue to claim, idle, {name}"), "value": ours, "unit": "ms",
                "raw_ratio": ours / raw,
            }));
        }
    }
}
