//! Ends claims, in batches.
//!
//! One task per queue: what arrives while a request is under way travels with the next one, so an idle sidecar settles at
//! once and a busy one settles in batches, and nothing ever waits for company.

use crate::{
    health::Health,
    in_flight::Settled,
    lease,
    metrics::Metrics,
    outcome,
    plan::{Lane, LaneKey},
    sync::{Mutex, lock, sleep, spawn, timeout},
};
use futures::FutureExt;
use longshore_drivers::{Error, ErrorKind, Receipt, Settle, Settlement};
use std::{collections::HashMap, panic::AssertUnwindSafe, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::task::TaskTracker;

/// Settles in one request.
const BATCH: usize = if cfg!(all(test, feature = "models")) { 2 } else { 500 };
/// Bytes of results in one request, as long as it holds more than one.
const BATCH_BYTES: usize = 2 * 1024 * 1024;
/// How long a request may take.
const REQUEST: Duration = Duration::from_secs(10);
/// The first pause after a failure; doubled up to the longest.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// A settle is tried for this long even when its lease is over: only the broker knows whether it still counts, so it is
/// asked. One that goes by the clock alone refuses it, and the job runs again.
const TRY_FOR: Duration = Duration::from_secs(300);

struct Item {
    settlement: Settlement,
    give_up: Instant,
    /// A request with it may have been carried out: then a stale receipt proves nothing.
    maybe_done: bool,
    /// It stands in the place of a success whose result was too large.
    buries: bool,
    done: oneshot::Sender<Settled>,
}

impl Item {
    fn bytes(&self) -> usize {
        match &self.settlement.settle {
            Settle::Succeed { result: Some(result) } => result.len(),
            Settle::Succeed { result: None }
            | Settle::Retry { .. }
            | Settle::Release { .. }
            | Settle::Bury { .. } => 0,
        }
    }

    fn finish(self, settled: Settled) {
        let _ = self.done.send(settled);
    }
}

/// Ends claims of all queues.
#[derive(Debug)]
pub(crate) struct Settler {
    queues: Mutex<HashMap<LaneKey, mpsc::UnboundedSender<Item>>>,
    tasks: TaskTracker,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
}

impl Settler {
    pub(crate) fn new(health: Arc<Health>, metrics: Arc<Metrics>) -> Self {
        Self { queues: Mutex::default(), tasks: TaskTracker::new(), health, metrics }
    }

    /// Ends one claim whose lease ends at `lease_until`; returns when that is certain or given up.
    pub(crate) async fn settle(
        &self,
        lane: &Arc<Lane>,
        receipt: Receipt,
        settle: Settle,
        lease_until: Instant,
    ) -> Settled {
        let (done, answer) = oneshot::channel();
        let mut item = Item {
            settlement: Settlement { receipt, settle },
            give_up: lease_until.max(Instant::now() + TRY_FOR),
            maybe_done: false,
            buries: false,
            done,
        };
        // The second round is for a task that ended between the look-up and the sending.
        for _ in 0..2 {
            match self.sender(lane).send(item) {
                Ok(()) => return answer.await.unwrap_or(Settled::Abandoned),
                Err(mpsc::error::SendError(back)) => item = back,
            }
            lock(&self.queues).remove(&lane.key);
        }
        Settled::Abandoned
    }

    /// The way to a queue's task, which is started when there is none. The number of settles on the way is bounded by
    /// the number of claims.
    fn sender(&self, lane: &Arc<Lane>) -> mpsc::UnboundedSender<Item> {
        let mut queues = lock(&self.queues);
        let sender = queues.entry(lane.key.clone()).or_insert_with(|| {
            let (sender, items) = mpsc::unbounded_channel();
            let worker = Worker {
                lane: lane.clone(),
                health: self.health.clone(),
                metrics: self.metrics.clone(),
                waiting: Vec::new(),
                pause: Duration::ZERO,
            };
            spawn(self.tasks.track_future(worker.run(items)));
            sender
        });
        sender.clone()
    }

    /// Takes up changed connections; what is on its way still goes over the old ones.
    pub(crate) fn refresh(&self) {
        lock(&self.queues).clear();
    }
}

struct Worker {
    lane: Arc<Lane>,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    waiting: Vec<Item>,
    pause: Duration,
}

impl Worker {
    async fn run(mut self, mut items: mpsc::UnboundedReceiver<Item>) {
        loop {
            if self.waiting.is_empty() {
                match items.recv().await {
                    Some(item) => self.waiting.push(item),
                    None => return,
                }
            } else {
                // Something failed before.
                sleep(self.pause).await;
            }
            while let Ok(item) = items.try_recv() {
                self.waiting.push(item);
            }
            // A broker that is back must be told before short leases end.
            let longest = LONGEST_PAUSE.min(lease::soon(self.lane.queue.lease)).max(SHORTEST_PAUSE);
            self.pause = if self.send_all().await {
                (self.pause * 2).clamp(SHORTEST_PAUSE, longest)
            } else {
                Duration::ZERO
            };
        }
    }

    /// Sends everything that waits; tells whether some of it has to be tried again.
    async fn send_all(&mut self) -> bool {
        let mut rest = std::mem::take(&mut self.waiting);
        while !rest.is_empty() {
            let later = rest.split_off(batch_length(&rest));
            let failed_before = self.waiting.len();
            self.send(rest).await;
            rest = later;
            if self.waiting.len() > failed_before {
                // The broker is in trouble: the others wait too, instead of taking a time-out each.
                self.waiting.append(&mut rest);
            }
        }
        !self.waiting.is_empty()
    }

    async fn send(&mut self, batch: Vec<Item>) {
        match self.request(&batch).await {
            Ok(answers) => {
                for (item, answer) in batch.into_iter().zip(answers) {
                    self.sort(item, answer);
                }
            }
            // One of them is to blame, and the others must not pay for it.
            Err(error) if batch.len() > 1 && !may_pass(error.kind) => {
                for item in batch {
                    let answer = self.request(std::slice::from_ref(&item)).await;
                    self.sort(item, answer.and_then(|mut answers| answers.pop().unwrap_or(Ok(()))));
                }
            }
            Err(error) => {
                for item in batch {
                    self.sort(item, Err(error.clone()));
                }
            }
        }
    }

    /// One request; as many answers as settles, or none.
    async fn request(&self, batch: &[Item]) -> longshore_drivers::Result<Vec<longshore_drivers::Result<()>>> {
        let settlements = batch.iter().map(|item| item.settlement.clone()).collect();
        let request = self.lane.driver.settle(&self.lane.queue.physical, settlements);
        let answer = match AssertUnwindSafe(timeout(REQUEST, request)).catch_unwind().await {
            Ok(Ok(Ok(answers))) if answers.len() != batch.len() => {
                Err(Error::new(ErrorKind::Fatal, "the broker answered too few settles"))
            }
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Error::new(ErrorKind::Ambiguous, "no answer to a settle")),
            Err(_) => Err(Error::new(ErrorKind::Fatal, "the driver panicked")),
        };
        self.health.broker_answered(&self.lane.queue.broker, &answer);
        if let Err(error) = &answer {
            self.metrics.broker_error("settle", error);
            tracing::debug!(queue = self.lane.queue.name, settles = batch.len(), kind = %error.kind, error = error.message, "settle failed");
        }
        answer
    }

    fn sort(&mut self, mut item: Item, answer: longshore_drivers::Result<()>) {
        let Err(error) = answer else {
            let settled = if item.buries { Settled::Buried } else { Settled::Done };
            return item.finish(settled);
        };
        match error.kind {
            ErrorKind::StaleReceipt | ErrorKind::NotFound if item.maybe_done => item.finish(Settled::Unknown),
            ErrorKind::StaleReceipt | ErrorKind::NotFound => item.finish(Settled::Lost),
            // Only a result can be too large, and doing the work again would give it again.
            ErrorKind::TooLarge if item.bytes() > 0 => {
                item.settlement.settle =
                    outcome::too_large(self.lane.driver.capabilities().limits.max_result);
                item.buries = true;
                self.waiting.push(item);
            }
            kind if may_pass(kind) && Instant::now() < item.give_up => {
                item.maybe_done |= matches!(error.kind, ErrorKind::Ambiguous | ErrorKind::Timeout);
                self.waiting.push(item);
            }
            _ => {
                tracing::error!(queue = self.lane.queue.name, kind = %error.kind, error = error.message, "settle given up; the lease will end");
                item.finish(Settled::Abandoned);
            }
        }
    }
}

/// Whether the same settle may succeed later.
fn may_pass(kind: ErrorKind) -> bool {
    kind.is_transient() || kind == ErrorKind::Unauthorized
}

/// How many of `items`, at least one, fit one request.
fn batch_length(items: &[Item]) -> usize {
    let mut bytes = 0;
    let fitting = items.iter().take(BATCH).take_while(|item| {
        bytes += item.bytes();
        bytes <= BATCH_BYTES
    });
    fitting.count().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fake_broker::Broker, fixture::queue};
    use longshore_drivers::{Claim, Driver, JobId, NewJob, Payload};

    fn parts() -> (Arc<Broker>, Arc<Lane>, Settler) {
        let broker = Arc::new(Broker::default());
        let lane = Arc::new(Lane::new(queue("emails"), "shop".to_owned(), broker.clone()));
        (broker, lane, Settler::new(Arc::default(), Arc::new(Metrics::new())))
    }

    async fn settle(settler: &Settler, lane: &Arc<Lane>) -> Settled {
        let receipt = Receipt("receipt-1".to_owned());
        let lease_until = Instant::now() + lane.queue.lease;
        settler.settle(lane, receipt, Settle::Succeed { result: None }, lease_until).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_settle_is_given_up_when_its_broker_stays_away() {
        let (broker, lane, settler) = parts();
        broker.away(true);
        let began = Instant::now();
        assert_eq!(settle(&settler, &lane).await, Settled::Abandoned);
        assert!(began.elapsed() >= TRY_FOR && began.elapsed() < TRY_FOR + LONGEST_PAUSE * 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_settle_that_was_only_refused_is_lost_and_one_that_may_have_counted_is_unknown() {
        let (broker, lane, settler) = parts();
        assert_eq!(settle(&settler, &lane).await, Settled::Lost);
        broker.fail_settle(ErrorKind::Unavailable, false);
        assert_eq!(settle(&settler, &lane).await, Settled::Lost);
        broker.fail_settle(ErrorKind::Ambiguous, false);
        assert_eq!(settle(&settler, &lane).await, Settled::Unknown);
        broker.fail_settle(ErrorKind::Unauthorized, false);
        broker.fail_settle(ErrorKind::Invalid, false);
        assert_eq!(settle(&settler, &lane).await, Settled::Abandoned);
    }

    #[tokio::test(start_paused = true)]
    async fn a_success_whose_result_is_too_large_for_the_broker_is_told_as_a_death() {
        let (broker, lane, settler) = parts();
        let new = NewJob::new("emails.send", Payload::json("{}"));
        broker.add("test.shop.emails", new.with_id(JobId::new("job-1").unwrap()));
        let claim = Claim { max: 1, wait: Duration::ZERO, lease: lane.queue.lease, worker: String::new() };
        let held = broker.claim(&lane.queue.physical, claim).await.unwrap().remove(0);
        broker.fail_settle(ErrorKind::TooLarge, false);
        let success = Settle::Succeed { result: Some(Payload::json("\"long\"")) };
        let settled = settler.settle(&lane, held.receipt, success, Instant::now()).await;
        assert_eq!(settled, Settled::Buried);
        assert_eq!(settled.word("succeeded"), "dead");
        assert!(matches!(broker.settles("job-1")[..], [Settle::Bury { .. }]));
    }
}
