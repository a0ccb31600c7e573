//! Lines of Fifo queues: what holds after restarts and rollbacks, and what damage costs.

use super::{Broker, Hands, failures::commits, read};
use crate::{
    Claimed, Driver, DriverExt, Failure, JobId, JobState, Limits, NewJob, Notify, Ordering, Outcome, Owner,
    Payload, QueueSettings, Settle,
};
use std::{sync::Arc, time::Duration};

pub(super) fn settings() -> QueueSettings {
    QueueSettings { ordering: Ordering::Fifo, ..QueueSettings::default() }
}

impl Broker {
    pub(super) async fn fifo() -> Self {
        let broker = Self::start().await;
        broker.beside_with("lines", settings()).await
    }

    /// Adds jobs called `id/key`; without a key where there is none.
    async fn add(&self, jobs: &[&str]) {
        let jobs = jobs.iter().map(|word| named(word)).collect();
        for answer in self.driver.enqueue(&self.queue, jobs).await.unwrap() {
            answer.unwrap();
        }
    }

    async fn state(&self, id: &str) -> JobState {
        let id = JobId::new(id).unwrap();
        self.driver.inspect(&self.queue, &id).await.unwrap().unwrap().state
    }

    async fn blocked(&self) -> u64 {
        self.driver.stats(&self.queue).await.unwrap().blocked.unwrap()
    }

    /// Claims what there is; the ids in their order.
    async fn take(&self) -> (Vec<String>, Vec<Claimed>) {
        let claimed = self.claim(1000).await;
        (ids(&claimed), claimed)
    }

    /// Does all there is, one after the other; the ids in their order.
    async fn work_off(&self) -> Vec<String> {
        let mut done = Vec::new();
        loop {
            let claimed = self.claim(1).await;
            let Some(job) = claimed.first() else { return done };
            done.push(job.id.to_string());
            self.succeed(job).await;
        }
    }

    async fn eventually_takes(&self, expected: &str) {
        let since = std::time::Instant::now();
        loop {
            let (taken, _) = self.take().await;
            if taken == [expected] {
                return;
            }
            assert!(taken.is_empty(), "{taken:?} instead of {expected}");
            assert!(since.elapsed() < Duration::from_secs(10), "nobody calls {expected}");
        }
    }
}

pub(super) fn named(word: &str) -> NewJob {
    let (id, key) = word.split_once('/').map_or((word, None), |(id, key)| (id, Some(key.to_owned())));
    let job = NewJob::new("mail", Payload::json("{}")).with_id(JobId::new(id).unwrap());
    NewJob { ordering_key: key, ..job }
}

pub(super) fn ids(claimed: &[Claimed]) -> Vec<String> {
    claimed.iter().map(|job| job.id.to_string()).collect()
}

#[tokio::test]
async fn lines_are_the_same_after_a_restart() {
    let mut broker = Broker::fifo().await;
    broker.add(&["a1/a", "a2/a", "b1/b", "n1", "b2/b", "n2", "a3/a"]).await;
    let (taken, claimed) = broker.take().await;
    assert_eq!(taken, ["a1", "b1", "n1"]);
    let retry = Settle::Retry { delay: Duration::from_secs(60), failure: Failure::default() };
    broker.driver.settle_one(&broker.queue, &claimed[1].receipt, retry).await.unwrap();
    let before = (broker.depths().await, broker.blocked().await);
    assert_eq!(before, ([0, 0, 2, 1, 0], 4));
    broker.restart().await;
    assert_eq!((broker.depths().await, broker.blocked().await), before);
    assert!(broker.take().await.0.is_empty(), "somebody passed");
    broker.succeed(&claimed[0]).await;
    assert_eq!(broker.take().await.0, ["a2"]);
    broker.succeed(&claimed[2]).await;
    assert_eq!(broker.take().await.0, ["n2"]);
    broker.restart().await;
    assert_eq!(broker.state("b2").await, JobState::Blocked);
    assert_eq!(broker.state("a3").await, JobState::Blocked);
}

#[tokio::test]
async fn a_key_reaches_the_claimer_and_none_stays_none() {
    let broker = Broker::fifo().await;
    broker.add(&["a/key:1", "n"]).await;
    let keys: Vec<_> = broker.claim(10).await.into_iter().map(|job| job.ordering_key).collect();
    assert_eq!(keys, [Some("key:1".to_owned()), None]);
}

#[tokio::test]
async fn an_id_that_is_known_moves_nothing_in_its_line() {
    let broker = Broker::fifo().await;
    broker.add(&["a1/a", "a2/a"]).await;
    broker.add(&["a1/a", "a2/a", "a1/other"]).await;
    assert_eq!((broker.depths().await[0], broker.blocked().await), (1, 1));
    assert_eq!(broker.work_off().await, ["a1", "a2"]);
}

#[tokio::test]
async fn a_command_that_is_undone_leaves_its_lines_as_they_were() {
    let mut broker = Broker::fifo().await;
    broker.add(&["a1/a", "a2/a", "a3/a"]).await;
    let (_, claimed) = broker.take().await;
    broker
        .run("CREATE TRIGGER spoil BEFORE UPDATE ON jobs WHEN OLD.state = 7 BEGIN SELECT RAISE(ABORT, 'no'); END")
        .await;
    let succeed = || Settle::Succeed { result: None };
    broker.driver.settle_one(&broker.queue, &claimed[0].receipt, succeed()).await.unwrap_err();
    assert_eq!((broker.depths().await, broker.blocked().await), ([0, 0, 1, 0, 0], 2));
    broker.run("DROP TRIGGER spoil").await;
    broker.restart().await;
    assert_eq!((broker.depths().await, broker.blocked().await), ([0, 0, 1, 0, 0], 2));
    broker.succeed(&claimed[0]).await;
    assert_eq!(broker.work_off().await, ["a2", "a3"]);
}

#[tokio::test]
async fn a_quarantined_first_frees_its_line() {
    let hands = Arc::new(Hands::at(1_000_000));
    let broker = Broker::start_with(|config| config.clock = hands.clone()).await;
    let broker = broker.beside_with("lines", QueueSettings { max_deliveries: 2, ..settings() }).await;
    broker.add(&["a1/a", "a2/a"]).await;
    for _ in 0..2 {
        broker.eventually_takes("a1").await;
        hands.add(61_000);
    }
    broker.eventually_takes("a2").await;
    assert_eq!(broker.state("a1").await, JobState::Dead);
}

#[tokio::test]
async fn retention_takes_what_is_over_and_leaves_the_line() {
    let hands = Arc::new(Hands::at(1_000_000));
    let broker = Broker::start_with(|config| config.clock = hands.clone()).await;
    let broker = broker.beside_with("lines", settings()).await;
    broker.add(&["a1/a", "a2/a", "a3/a"]).await;
    let (_, claimed) = broker.take().await;
    broker.succeed(&claimed[0]).await;
    broker.eventually_takes("a2").await;
    hands.add(2 * 3_600_000);
    let since = std::time::Instant::now();
    let gone = JobId::new("a1").unwrap();
    while broker.driver.inspect(&broker.queue, &gone).await.unwrap().is_some() {
        assert!(since.elapsed() < Duration::from_secs(10), "the job is still there");
    }
    broker.eventually_takes("a2").await;
    assert_eq!(broker.state("a3").await, JobState::Blocked);
}

#[tokio::test]
async fn blocked_jobs_count_for_producers_and_go_with_their_queue() {
    let mut broker =
        Broker::start().await.beside_with("lines", QueueSettings { max_depth: 3, ..settings() }).await;
    let notify = Notify { address: crate::Address::new("told").unwrap(), context: "c".into() };
    for id in ["a1", "a2", "a3"] {
        let job = NewJob { ordering_key: Some("a".into()), ..named(id).with_notify(notify.clone()) };
        broker.driver.enqueue_one(&broker.queue, job).await.unwrap();
    }
    let full = broker.driver.enqueue_one(&broker.queue, named("a4/a")).await;
    assert_eq!(full.unwrap_err().kind, crate::ErrorKind::Full);
    let owner = Owner { installation: "i".into(), uid: "u".into() };
    broker.driver.delete_queue(&broker.queue, &owner).await.unwrap();
    let page = read(&broker, "told").await;
    assert_eq!(page.completions.len(), 3);
    assert!(page.completions.iter().all(|completion| completion.outcome == Outcome::Purged));
    broker.restart().await;
    broker.declare(settings()).await;
    broker.add(&["b1/a"]).await;
    assert_eq!(broker.take().await.0, ["b1"]);
}

#[tokio::test]
async fn a_long_line_goes_with_its_queue_in_bounded_steps() {
    let broker = Broker::fifo().await;
    for first in (0..5000).step_by(1000) {
        let jobs: Vec<_> = (first..first + 1000).map(|index| named(&format!("{index}/a"))).collect();
        broker.driver.enqueue(&broker.queue, jobs).await.unwrap();
    }
    let before = commits(&broker).await;
    let owner = Owner { installation: "i".into(), uid: "u".into() };
    broker.driver.delete_queue(&broker.queue, &owner).await.unwrap();
    let made = commits(&broker).await - before;
    assert!(made >= 5, "5000 jobs went in {made} transactions");
}

#[tokio::test]
async fn firsts_that_cannot_be_read_are_dead_and_the_next_one_follows() {
    let broker = Broker::fifo().await;
    let line: Vec<_> = (0..50).map(|index| format!("a{index}/a")).collect();
    broker.add(&line.iter().map(String::as_str).collect::<Vec<_>>()).await;
    broker.run("DELETE FROM bodies WHERE seq <= 20").await;
    // A single claim gets past them all.
    assert_eq!(broker.take().await.0, ["a20"]);
    assert_eq!((broker.state("a19").await, broker.parked().await), (JobState::Dead, 20));
}

#[tokio::test]
async fn more_unreadable_firsts_than_one_pass_buries_stop_nobody() {
    let broker = Broker::fifo().await;
    for first in (0..5000).step_by(1000) {
        let jobs: Vec<_> = (first..first + 1000).map(|index| named(&format!("a{index}/a"))).collect();
        broker.driver.enqueue(&broker.queue, jobs).await.unwrap();
    }
    broker.run("DELETE FROM bodies WHERE seq < 5000").await;
    broker.eventually_takes("a4999").await;
    assert_eq!(broker.parked().await, 4999);
}

/// What damage can do to the first of a line, so that its end calls nobody.
const DAMAGED: [&str; 4] = [
    "UPDATE jobs SET state = 99 WHERE id = 'a1'",
    "UPDATE jobs SET ordering_key = NULL WHERE id = 'a1'",
    "UPDATE jobs SET ordering_key = CAST(x'ff' AS TEXT) WHERE id = 'a1'",
    "DELETE FROM jobs WHERE id = 'a1'",
];

#[tokio::test]
async fn a_line_whose_first_is_damaged_goes_on_after_a_restart() {
    for damage in DAMAGED {
        let mut broker = Broker::fifo().await;
        broker.add(&["a1/a", "a2/a", "a3/a", "b1/b"]).await;
        broker.run(damage).await;
        broker.restart().await;
        let mut done = broker.work_off().await;
        // Which key comes first is a matter of milliseconds.
        done.sort_by_key(|id| id.starts_with('a'));
        assert_eq!(done, ["b1", "a2", "a3"], "{damage}");
    }
}

#[tokio::test]
async fn a_line_whose_first_is_damaged_goes_on_with_the_next_producer() {
    for damage in DAMAGED {
        let broker = Broker::fifo().await;
        broker.add(&["a1/a", "a2/a", "b1/b"]).await;
        broker.run(damage).await;
        broker.add(&["a3/a"]).await;
        let mut done = broker.work_off().await;
        // Which key comes first is a matter of milliseconds.
        done.sort_by_key(|id| id.starts_with('a'));
        assert_eq!(done, ["b1", "a2", "a3"], "{damage}");
    }
}

#[tokio::test]
async fn a_line_whose_first_is_damaged_goes_on_by_itself_some_time_later() {
    let hands = Arc::new(Hands::at(1_000_000));
    let broker = Broker::start_with(|config| config.clock = hands.clone()).await;
    let broker = broker.beside_with("lines", settings()).await;
    // More lines than one pass walks along, and the damage at the end.
    for first in (0..2500).step_by(500) {
        let keys = first..first + 500;
        let jobs = keys.flat_map(|key| [named(&format!("{key}-1/{key}")), named(&format!("{key}-2/{key}"))]);
        broker.driver.enqueue(&broker.queue, jobs.collect()).await.unwrap();
    }
    broker.add(&["z1/z", "z2/z", "n1", "n2"]).await;
    while !broker.take().await.0.is_empty() {}
    broker.run("UPDATE jobs SET state = 99 WHERE id IN ('z1', 'n1')").await;
    assert!(broker.take().await.0.is_empty());
    // Leases are extended meanwhile.
    broker.run("UPDATE jobs SET at = at + 10000000 WHERE state = 3").await;
    hands.add(super::super::ordering::WALK_EVERY);
    let (since, mut taken) = (std::time::Instant::now(), Vec::new());
    while taken.len() < 2 {
        taken.extend(broker.take().await.0);
        assert!(since.elapsed() < Duration::from_secs(10), "only {taken:?} were called");
    }
    taken.sort();
    assert_eq!(taken, ["n2", "z2"]);
}

#[tokio::test]
async fn a_blocked_job_without_a_key_is_dead_instead_of_waiting_for_ever() {
    let mut broker = Broker::fifo().await;
    broker.add(&["a1/a", "a2/a", "a3/a"]).await;
    broker.run("UPDATE jobs SET ordering_key = NULL WHERE id = 'a2'").await;
    broker.restart().await;
    assert_eq!(broker.work_off().await, ["a1", "a3"]);
    assert_eq!((broker.state("a2").await, broker.parked().await), (JobState::Dead, 1));
}

#[tokio::test]
async fn an_ordering_that_cannot_be_read_is_strict() {
    let mut broker = Broker::fifo().await;
    broker.add(&["a1/a", "a2/a"]).await;
    broker.run("UPDATE queues SET ordering = 'x' WHERE name = 'lines'").await;
    broker.restart().await;
    assert_eq!(broker.take().await.0, ["a1"]);
    broker.declare(settings()).await;
}

#[tokio::test]
async fn keys_have_their_limits() {
    let broker = Broker::fifo().await;
    for (key, is_fine) in [(Limits::ORDERING_KEY, true), (Limits::ORDERING_KEY + 1, false)] {
        let job = NewJob { ordering_key: Some("k".repeat(key)), ..named(&format!("of-{key}")) };
        assert_eq!(broker.driver.enqueue_one(&broker.queue, job).await.is_ok(), is_fine, "{key}");
    }
}
