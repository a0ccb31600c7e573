//! What the suite does not see: this server's settings, its keys when they are damaged, and who else writes them.

mod batches;
mod damage;
mod lines;
mod rights;
mod settings;
mod told;
mod wire;

use super::{Redis, RedisConfig};
use crate::{
    Claim, Claimed, Declaration, Driver, DriverExt, JobId, NewJob, Owner, Payload, QueueName, QueueSettings,
    Settle,
    conformance::{Broker, servers::redis::RedisBroker},
};
use redis::{FromRedisValue, aio::MultiplexedConnection};
use std::time::Duration;

const ALWAYS: &[&str] = &["--appendonly", "yes", "--appendfsync", "always"];

/// A server, a driver for it, and a queue.
struct Subject {
    server: RedisBroker,
    driver: Redis,
    queue: QueueName,
    raw: MultiplexedConnection,
}

impl Subject {
    async fn start(settings: &[&str]) -> Self {
        let server = RedisBroker::start(settings).await.unwrap();
        let driver = Redis::new(RedisConfig::new(&server.url()).unwrap()).unwrap();
        let client = redis::Client::open(server.url()).unwrap();
        let raw = client.get_multiplexed_async_connection().await.unwrap();
        let subject = Self { server, driver, queue: "test".parse().unwrap(), raw };
        subject.declare().await.unwrap();
        subject
    }

    async fn declare(&self) -> crate::Result<crate::Declared> {
        self.driver.declare(&self.queue, declaration()).await
    }

    /// Does something to the server past the driver.
    async fn raw<T: FromRedisValue>(&self, words: &[&str]) -> T {
        let mut cmd = redis::cmd(words[0]);
        cmd.arg(&words[1..]);
        cmd.query_async(&mut self.raw.clone()).await.unwrap()
    }

    async fn enqueue(&self, id: &str) -> crate::Result<crate::Enqueued> {
        self.driver.enqueue_one(&self.queue, job(id)).await
    }

    async fn claim(&self, max: u32) -> Vec<Claimed> {
        self.driver.claim(&self.queue, claim(max, Duration::ZERO)).await.unwrap()
    }

    async fn succeed(&self, job: &Claimed) -> crate::Result<()> {
        self.driver.settle_one(&self.queue, &job.receipt, Settle::Succeed { result: None }).await
    }

    async fn end(self) {
        self.driver.close().await;
        self.server.stop().await;
    }
}

fn declaration() -> Declaration {
    let owner = Owner { installation: "test".into(), uid: "one".into() };
    Declaration { owner, settings: QueueSettings::default(), adopt: false }
}

fn job(id: &str) -> NewJob {
    NewJob::new("mail", Payload::json("{}")).with_id(JobId::new(id).unwrap())
}

fn claim(max: u32, wait: Duration) -> Claim {
    Claim { max, wait, lease: Duration::from_secs(60), worker: "worker".into() }
}

#[tokio::test]
async fn scripts_that_the_server_forgot_are_sent_again() {
    let subject = Subject::start(ALWAYS).await;
    subject.enqueue("one").await.unwrap();
    let () = subject.raw(&["SCRIPT", "FLUSH"]).await;
    let claimed = subject.claim(10).await;
    assert_eq!(claimed.len(), 1);
    subject.succeed(&claimed[0]).await.unwrap();
    subject.end().await;
}

#[tokio::test]
async fn a_flushed_server_is_another_one() {
    let subject = Subject::start(ALWAYS).await;
    let before = subject.driver.probe().await.unwrap().backend_id;
    let () = subject.raw(&["FLUSHALL"]).await;
    assert_eq!(subject.enqueue("one").await.unwrap_err().kind, crate::ErrorKind::NotFound);
    let declared = subject.declare().await.unwrap();
    assert!(declared.created);
    assert_ne!(declared.backend_id, before);
    subject.end().await;
}

#[tokio::test]
async fn a_server_that_is_killed_under_load_loses_nothing_that_it_acknowledged() {
    let subject = Subject::start(ALWAYS).await;
    let mut acknowledged = Vec::new();
    for round in 0..3 {
        let produce = futures::future::join_all((0..200).map(|index| {
            let id = format!("job-{round}-{index}");
            let subject = &subject;
            async move { subject.enqueue(&id).await.is_ok().then_some(id) }
        }));
        let kill = async {
            tokio::time::sleep(Duration::from_millis(2 + 3 * round)).await;
            subject.server.kill().await.unwrap();
            subject.server.restart().await.unwrap();
        };
        acknowledged.extend(tokio::join!(produce, kill).0.into_iter().flatten());
        // The same handle goes on by itself.
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        while subject.enqueue(&format!("again-{round}")).await.is_err() {
            assert!(tokio::time::Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    for id in acknowledged {
        let found = subject.driver.inspect(&subject.queue, &JobId::new(id.as_str()).unwrap()).await.unwrap();
        assert!(found.is_some(), "{id}");
    }
    subject.end().await;
}

#[tokio::test]
async fn claims_that_wait_hardly_ask() {
    let subject = Subject::start(ALWAYS).await;
    let waiting = (0..5).map(|_| subject.driver.claim(&subject.queue, claim(1, Duration::from_secs(5))));
    let calls = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let before = evaluations(&subject).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        evaluations(&subject).await - before
    };
    let (claimed, calls) = tokio::join!(futures::future::join_all(waiting), calls);
    assert!(claimed.into_iter().all(|jobs| jobs.unwrap().is_empty()));
    assert!(calls <= 6, "{calls} scripts in 3 s");
    subject.end().await;
}

async fn evaluations(subject: &Subject) -> u64 {
    let info: String = subject.raw(&["INFO", "commandstats"]).await;
    let line = info.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls=")).unwrap_or("0");
    line.split(',').next().and_then(|count| count.parse().ok()).unwrap_or(0)
}

#[tokio::test]
async fn jobs_of_a_claim_that_was_dropped_go_back() {
    let subject = Subject::start(ALWAYS).await;
    for round in 0..50_u64 {
        let wait = tokio::time::timeout(
            Duration::from_micros(round * 40),
            subject.driver.claim(&subject.queue, claim(1, Duration::from_secs(5))),
        );
        let id = format!("job-{round}");
        let (got, sent) = tokio::join!(wait, subject.enqueue(&id));
        sent.unwrap();
        let claimed = match got {
            Ok(jobs) => jobs.unwrap(),
            // The lease is a minute: it comes back sooner because it was handed back.
            Err(_) => subject.driver.claim(&subject.queue, claim(1, Duration::from_secs(5))).await.unwrap(),
        };
        assert_eq!(claimed.len(), 1, "round {round}");
        assert_eq!((claimed[0].id.as_str(), claimed[0].delivery), (id.as_str(), 1));
        subject.succeed(&claimed[0]).await.unwrap();
    }
    subject.end().await;
}
