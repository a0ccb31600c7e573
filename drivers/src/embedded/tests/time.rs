//! A wall clock that jumps.

use super::{Broker, job, to};
use crate::{Claim, Driver, DriverExt, ErrorKind, Limits, Settle, Timestamp, embedded::Clock};
use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

/// A wall clock that a test sets.
#[derive(Debug)]
pub(super) struct Hands(AtomicI64);

impl Hands {
    pub(super) const fn at(millis: i64) -> Self {
        Self(AtomicI64::new(millis))
    }

    pub(super) fn add(&self, millis: i64) {
        self.0.fetch_add(millis, Ordering::Relaxed);
    }
}

impl Clock for Hands {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.0.load(Ordering::Relaxed))
    }
}

#[tokio::test]
async fn time_does_not_go_backwards() {
    let hands = Arc::new(Hands(AtomicI64::new(1_000_000)));
    let broker = Broker::start_with(|config| config.clock = hands.clone()).await;
    broker.driver.enqueue_one(&broker.queue, job()).await.unwrap();
    hands.0.store(500_000, Ordering::Relaxed);
    let id = broker.driver.enqueue_one(&broker.queue, job()).await.unwrap();
    let record = broker.driver.inspect(&broker.queue, id.id()).await.unwrap().unwrap();
    assert!(record.enqueued_at.as_millis() >= 1_000_000);
}

/// A job that waits for a moment comes, however the wall clock stands.
async fn a_moment_passes(broker: &Broker) {
    let later = job().with_delay(Duration::from_millis(20));
    let id = broker.driver.enqueue_one(&broker.queue, later).await.unwrap();
    comes(broker, id.id()).await;
}

#[tokio::test]
async fn a_clock_that_jumps_ahead_and_back_does_not_stop_time() {
    let hands = Arc::new(Hands(AtomicI64::new(1_000_000)));
    let mut broker = Broker::start_with(|config| config.clock = hands.clone()).await;
    hands.0.store(9_000_000_000, Ordering::Relaxed);
    a_moment_passes(&broker).await;
    hands.0.store(1_000_000, Ordering::Relaxed);
    a_moment_passes(&broker).await;
    // What was written while it was ahead is not late by as much after a restart.
    let later = job().with_delay(Duration::from_millis(20));
    let id = broker.driver.enqueue_one(&broker.queue, later).await.unwrap();
    broker.restart().await;
    let known = broker.driver.inspect(&broker.queue, id.id()).await.unwrap().unwrap();
    assert!(known.due_at.as_millis() > 9_000_000_000);
    comes(&broker, id.id()).await;
}

/// Nobody can extend a lease while the broker is away: whoever holds one gets a moment to say that the work goes on.
#[tokio::test]
async fn a_lease_outlives_the_absence_of_its_broker() {
    let hands = Arc::new(Hands(AtomicI64::new(1_000_000)));
    let mut broker = Broker::start_with(|config| {
        config.clock = hands.clone();
        config.lease_grace = Duration::from_secs(4);
    })
    .await;
    let forgotten = broker.driver.enqueue_one(&broker.queue, job()).await.unwrap();
    let held = broker.driver.enqueue_one(&broker.queue, job()).await.unwrap();
    let claimed = broker.claim(2).await;
    broker.driver.close().await;
    hands.0.fetch_add(600_000, Ordering::Relaxed);
    broker.restart().await;
    let holder = claimed.iter().find(|job| &job.id == held.id()).unwrap();
    broker.succeed(holder).await;
    comes(&broker, forgotten.id()).await;
}

async fn comes(broker: &Broker, id: &crate::JobId) {
    let claim = Claim {
        max: 1,
        wait: Duration::from_secs(20),
        lease: Duration::from_secs(60),
        worker: String::new(),
    };
    let claimed = broker.driver.claim(&broker.queue, claim).await.unwrap();
    assert_eq!(claimed.first().map(|job| &job.id), Some(id), "time stands still");
}

#[tokio::test]
async fn a_lease_that_ended_by_the_clock_is_over_before_anybody_else_has_the_job() {
    let hands = Arc::new(Hands(AtomicI64::new(1_000_000)));
    let broker = Broker::start_with(|config| config.clock = hands.clone()).await;
    broker.driver.enqueue_one(&broker.queue, job()).await.unwrap();
    let claimed = broker.claim(1).await;
    hands.0.store(claimed[0].lease_until.as_millis(), Ordering::Relaxed);
    let succeed = Settle::Succeed { result: None };
    let settled = broker.driver.settle_one(&broker.queue, &claimed[0].receipt, succeed).await;
    assert_eq!(settled.unwrap_err().kind, ErrorKind::StaleReceipt);
}

#[tokio::test]
async fn nobody_pins_a_job_for_ever() {
    let hands = Arc::new(Hands(AtomicI64::new(1_000_000)));
    let broker = Broker::start_with(|config| config.clock = hands.clone()).await;
    let id = broker.driver.enqueue_one(&broker.queue, to("gone")).await.unwrap();
    let claimed = broker.claim(1).await;
    let succeed = Settle::Succeed { result: None };
    broker.driver.settle_one(&broker.queue, &claimed[0].receipt, succeed).await.unwrap();
    let pin = i64::try_from(Limits::PIN.as_millis()).unwrap();
    hands.0.fetch_add(pin - 60_000, Ordering::Relaxed);
    let known = || async { broker.driver.inspect(&broker.queue, id.id()).await.unwrap().is_some() };
    broker.depths().await;
    assert!(known().await);
    // Retention, an hour, counts from the end of the pin.
    hands.0.fetch_add(120_000, Ordering::Relaxed);
    broker.depths().await;
    assert!(known().await);
    hands.0.fetch_add(2 * 3_600_000, Ordering::Relaxed);
    let since = std::time::Instant::now();
    while known().await {
        assert!(since.elapsed() < Duration::from_secs(10), "the job is still there");
    }
}
