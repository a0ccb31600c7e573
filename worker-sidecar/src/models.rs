//! Models of the concurrent core under the model checker: the product's own code, then twins of it with one bug each.

mod lease;
mod settle;
mod table;

use crate::{fixture::queue, plan::Lane, sync::sleeps};
use async_trait::async_trait;
use longshore_drivers::{
    Address, Capabilities, Claim, Claimed, CompletionPage, CompletionReceipt, Declaration, Declared, Driver,
    Enqueued, Error, ErrorKind, Extension, JobId, JobPage, JobRecord, JobState, ListJobs, NewJob, Owner,
    Payload, Probe, QueueName, QueueStats, ReadCompletions, Receipt, Result, Settlement, WakeStream,
    memory::Memory,
};
use shuttle::{
    Config, Runner,
    rand::Rng,
    scheduler::{PctScheduler, RandomScheduler, Scheduler},
};
use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, LazyLock, Mutex},
    time::Duration,
};

/// Schedules per checker; `make race SCHEDULES=…` sets it.
fn schedules() -> usize {
    std::env::var("LONGSHORE_SCHEDULES").ok().and_then(|text| text.parse().ok()).unwrap_or(20_000)
}

fn run(scheduler: impl Scheduler + 'static, model: fn()) {
    let mut config = Config::new();
    // Debug builds of futures are large.
    config.stack_size = 256 * 1024;
    config.max_steps = shuttle::MaxSteps::FailAfter(20_000);
    Runner::new(scheduler, config).run(model);
}

/// No schedule that was tried breaks `model`.
fn holds(model: fn()) {
    run(RandomScheduler::new(schedules()), model);
    run(PctScheduler::new(3, schedules()), model);
}

/// Some schedule breaks `model` in one of the ways that `how` says: that is what makes [`holds`] worth something.
fn breaks(model: fn(), how: &[&str]) {
    let caught = catch_unwind(AssertUnwindSafe(|| holds(model)));
    let panic = caught.expect_err("no schedule broke the twin: the model sees nothing");
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or_default();
    assert!(how.iter().any(|how| text.contains(how)), "it broke in another way: {text}");
}

/// Somewhere between the parts of the model itself.
fn point() {
    shuttle::thread::yield_now();
}

fn chance(of: f64) -> bool {
    shuttle::rand::thread_rng().gen_bool(of)
}

static CAPABILITIES: LazyLock<Capabilities> = LazyLock::new(|| Memory::default().capabilities().clone());

/// One lease in the broker.
#[derive(Debug, Default, Clone, Copy)]
struct Held {
    lost: bool,
    settled: usize,
    extended: usize,
}

/// A broker that knows leases only. Its faults come by chance, and end.
#[derive(Debug, Default)]
struct Broker {
    leases: Mutex<BTreeMap<String, Held>>,
    /// How many requests may still go wrong.
    faults: Mutex<usize>,
    /// A lease is lost after so many extensions.
    keeps: usize,
    /// It never answers an extension.
    hangs: bool,
    under_way: Mutex<usize>,
    /// The most requests at once.
    most: Mutex<usize>,
    /// How often somebody had slept when the first settle came.
    slept: Mutex<Option<usize>>,
}

struct UnderWay<'a>(&'a Broker);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        *self.0.under_way.lock().unwrap() -= 1;
    }
}

impl Broker {
    fn holding(count: usize, faults: usize) -> Self {
        let leases = (0..count).map(|number| (format!("receipt-of-{number}"), Held::default())).collect();
        Self { leases: Mutex::new(leases), faults: Mutex::new(faults), ..Self::default() }
    }

    fn lane(self: &Arc<Self>, name: &str) -> Arc<Lane> {
        Arc::new(Lane::new(queue(name), "shop".to_owned(), self.clone()))
    }

    fn of(&self, receipt: &str) -> Held {
        self.leases.lock().unwrap()[receipt]
    }

    fn fails(&self) -> bool {
        let mut faults = self.faults.lock().unwrap();
        let fails = *faults > 0 && chance(0.5);
        *faults -= usize::from(fails);
        fails
    }

    fn begin(&self) -> UnderWay<'_> {
        let mut under_way = self.under_way.lock().unwrap();
        *under_way += 1;
        let mut most = self.most.lock().unwrap();
        *most = (*most).max(*under_way);
        self.slept.lock().unwrap().get_or_insert_with(sleeps);
        UnderWay(self)
    }

    fn end(&self, settlement: &Settlement) -> Result<()> {
        let mut leases = self.leases.lock().unwrap();
        let held = leases.get_mut(&settlement.receipt.0).unwrap();
        if held.lost || held.settled > 0 {
            return Err(Error::stale(&settlement.receipt));
        }
        held.settled += 1;
        Ok(())
    }
}

fn unused<T>() -> Result<T> {
    Err(Error::new(ErrorKind::Unsupported, "not part of this broker"))
}

#[async_trait]
impl Driver for Broker {
    fn capabilities(&self) -> &Capabilities {
        &CAPABILITIES
    }

    async fn extend(
        &self,
        _: &QueueName,
        receipts: Vec<Receipt>,
        _: Duration,
    ) -> Result<Vec<Result<Extension>>> {
        shuttle::future::yield_now().await;
        if self.hangs {
            return std::future::pending().await;
        }
        if self.fails() {
            return Err(Error::unavailable("not now"));
        }
        let extend = |receipt: Receipt| {
            let mut leases = self.leases.lock().unwrap();
            let held = leases.get_mut(&receipt.0).unwrap();
            held.extended += 1;
            held.lost |= held.extended > self.keeps;
            if held.lost {
                return Err(Error::stale(&receipt));
            }
            let lease_until = longshore_drivers::Timestamp::from_millis(1_700_000_000_000);
            Ok(Extension { lease_until, cancel_requested: false })
        };
        Ok(receipts.into_iter().map(extend).collect())
    }

    async fn settle(&self, _: &QueueName, settlements: Vec<Settlement>) -> Result<Vec<Result<()>>> {
        let _under_way = self.begin();
        shuttle::future::yield_now().await;
        if self.fails() {
            return Err(match settlements.len() {
                1 => Error::unavailable("not now"),
                _ => Error::invalid("one of them"),
            });
        }
        let answers = settlements.iter().map(|settlement| self.end(settlement)).collect();
        shuttle::future::yield_now().await;
        if self.fails() {
            return Err(Error::new(ErrorKind::Ambiguous, "the answer was lost"));
        }
        Ok(answers)
    }

    async fn probe(&self) -> Result<Probe> {
        unused()
    }
    async fn declare(&self, _: &QueueName, _: Declaration) -> Result<Declared> {
        unused()
    }
    async fn delete_queue(&self, _: &QueueName, _: &Owner) -> Result<()> {
        unused()
    }
    async fn enqueue(&self, _: &QueueName, _: Vec<NewJob>) -> Result<Vec<Result<Enqueued>>> {
        unused()
    }
    async fn claim(&self, _: &QueueName, _: Claim) -> Result<Vec<Claimed>> {
        unused()
    }
    async fn stats(&self, _: &QueueName) -> Result<QueueStats> {
        unused()
    }
    async fn wake(&self) -> Result<WakeStream> {
        unused()
    }
    async fn completions(&self, _: &Address, _: ReadCompletions) -> Result<CompletionPage> {
        unused()
    }
    async fn acknowledge(&self, _: &Address, _: Vec<CompletionReceipt>) -> Result<()> {
        unused()
    }
    async fn unpin(&self, _: &QueueName, _: Vec<JobId>) -> Result<()> {
        unused()
    }
    async fn results(&self, _: &QueueName, _: Vec<JobId>) -> Result<Vec<Option<Payload>>> {
        unused()
    }
    async fn inspect(&self, _: &QueueName, _: &JobId) -> Result<Option<JobRecord>> {
        unused()
    }
    async fn list(&self, _: &QueueName, _: ListJobs) -> Result<JobPage> {
        unused()
    }
    async fn cancel(&self, _: &QueueName, _: Vec<JobId>) -> Result<Vec<Result<JobState>>> {
        unused()
    }
    async fn redrive(&self, _: &QueueName, _: Vec<JobId>) -> Result<Vec<Result<()>>> {
        unused()
    }
    async fn purge(&self, _: &QueueName, _: JobState, _: u32) -> Result<u64> {
        unused()
    }
    async fn close(&self) {}
}
