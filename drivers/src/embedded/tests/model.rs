//! Lines move as in the reference model, whatever is done to them.

use super::{
    Broker,
    ordering::{ids, named, settings},
};
use crate::{
    Claim, DeadReason, Declaration, Driver, DriverExt, Failure, JobId, JobState, Owner, QueueName, Receipt,
    Settle, memory::Memory,
};
use std::time::Duration;

/// Numbers that look random and are the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).unwrap()
    }

    /// At once, or not in this test.
    fn delay(&mut self) -> Duration {
        Duration::from_secs(if self.below(4) == 0 { 3600 } else { 0 })
    }

    fn settle(&mut self) -> Settle {
        let failure = Failure::default();
        match self.below(6) {
            0 | 1 => Settle::Succeed { result: None },
            2 => Settle::Release { delay: self.delay() },
            3 => Settle::Bury { reason: DeadReason::Rejected, failure },
            _ => Settle::Retry { delay: self.delay(), failure },
        }
    }
}

/// The same history on two brokers.
struct Twins<'a> {
    drivers: [&'a dyn Driver; 2],
    queue: &'a QueueName,
    dice: Dice,
    known: Vec<JobId>,
    /// Claims of one job, one at each broker.
    held: Vec<[Receipt; 2]>,
}

impl Twins<'_> {
    fn one(&mut self) -> Option<JobId> {
        let count = self.known.len();
        (count > 0).then(|| self.known[self.dice.below(count)].clone())
    }

    /// One call to both, which must answer alike.
    async fn step(&mut self) {
        match self.dice.below(10) {
            0..3 => self.enqueue().await,
            3 => self.cancel().await,
            4 => self.redrive().await,
            5 if self.dice.below(5) == 0 => self.purge().await,
            6..9 => self.settle().await,
            _ => self.claim().await,
        }
    }

    async fn enqueue(&mut self) {
        let id = format!("job-{}", self.known.len());
        let word = match ["a", "b", "c", ""][self.dice.below(4)] {
            "" => id,
            key => format!("{id}/{key}"),
        };
        let job = named(&word).with_delay(self.dice.delay());
        self.known.extend(job.id.clone());
        for driver in self.drivers {
            driver.enqueue_one(self.queue, job.clone()).await.unwrap();
        }
    }

    async fn cancel(&mut self) {
        let Some(id) = self.one() else { return };
        let [left, right] = self.drivers.map(|driver| driver.cancel(self.queue, vec![id.clone()]));
        let (left, right) = (left.await.unwrap().remove(0), right.await.unwrap().remove(0));
        assert_eq!(left.ok(), right.ok(), "cancel {id}");
    }

    async fn redrive(&mut self) {
        let Some(id) = self.one() else { return };
        let [left, right] = self.drivers.map(|driver| driver.redrive(self.queue, vec![id.clone()]));
        let (left, right) = (left.await.unwrap().remove(0), right.await.unwrap().remove(0));
        assert_eq!(left.is_ok(), right.is_ok(), "redrive {id}");
    }

    async fn purge(&mut self) {
        let states = [JobState::Ready, JobState::Scheduled, JobState::Retrying, JobState::Blocked];
        let state = states[self.dice.below(4)];
        let [left, right] = self.drivers.map(|driver| driver.purge(self.queue, state, 1000));
        assert_eq!(left.await.unwrap(), right.await.unwrap(), "purge {state:?}");
    }

    async fn settle(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let receipts = self.held.swap_remove(self.dice.below(self.held.len()));
        let settle = self.dice.settle();
        for (driver, receipt) in self.drivers.iter().zip(&receipts) {
            driver.settle_one(self.queue, receipt, settle.clone()).await.unwrap();
        }
    }

    /// Claims all that is ready: which key comes first is a matter of milliseconds.
    async fn claim(&mut self) {
        let claim =
            Claim { max: 1000, wait: Duration::ZERO, lease: Duration::from_secs(600), worker: String::new() };
        let [left, right] = self.drivers.map(|driver| driver.claim(self.queue, claim.clone()));
        let (mut left, mut right) = (left.await.unwrap(), right.await.unwrap());
        left.sort_by(|one, other| one.id.cmp(&other.id));
        right.sort_by(|one, other| one.id.cmp(&other.id));
        assert_eq!(ids(&left), ids(&right), "claimed");
        for (left, right) in left.into_iter().zip(right) {
            assert_eq!((left.attempt, left.ordering_key), (right.attempt, right.ordering_key), "{}", left.id);
            self.held.push([left.receipt, right.receipt]);
        }
    }

    /// Compares all that can be seen.
    async fn compare(&self, when: &str) {
        let mut seen = Vec::new();
        for driver in self.drivers {
            let stats = driver.stats(self.queue).await.unwrap();
            let depths =
                [stats.ready, stats.scheduled, stats.active, stats.retrying, stats.blocked, stats.dead];
            let mut states = Vec::new();
            for id in &self.known {
                states.push(driver.inspect(self.queue, id).await.unwrap().map(|job| job.state));
            }
            seen.push((depths, states));
        }
        assert_eq!(seen[0], seen[1], "{when}");
    }
}

#[tokio::test]
async fn lines_move_as_in_the_reference_model() {
    let mut blocked = 0;
    for seed in 1..=6_u64 {
        let broker = Broker::fifo().await;
        let model = Memory::new();
        let owner = Owner { installation: "i".into(), uid: "u".into() };
        let declaration = Declaration { owner, settings: settings(), adopt: false };
        model.declare(&broker.queue, declaration).await.unwrap();
        let mut twins = Twins {
            drivers: [&*broker.driver, &model],
            queue: &broker.queue,
            dice: Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15)),
            known: Vec::new(),
            held: Vec::new(),
        };
        for count in 0..300 {
            twins.step().await;
            if count % 10 == 9 {
                twins.compare(&format!("seed {seed}, step {count}")).await;
            }
        }
        blocked += model.stats(&broker.queue).await.unwrap().blocked.unwrap();
    }
    assert!(blocked > 0, "no history had a line");
}
