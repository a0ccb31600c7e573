//! What a scenario gets: a broker of its own, a queue, and pods as many as it wants.

use super::{
    DEADLINE,
    app::{Answer, App, Order},
    broker::BROKER,
    eventually,
    ledger::{Ledger, Run},
    pod::Pod,
    within,
};
use longshore_drivers::{
    Declaration, DynDriver, Enqueued, JobId, JobRecord, JobState, NewJob, Owner, Payload, QueueName,
    QueueSettings, QueueStats, Timestamp,
    conformance::{Broker, proxy::Proxy},
    policy::{BrokerAccess, Handler, QueuePolicy, RetryPolicy, WorkerPolicy},
};
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

/// The name of the queue, as pods call it.
pub(crate) const QUEUE: &str = "jobs";
/// A lease that ends soon enough to wait for, and late enough for a sidecar on a busy machine to keep it.
pub(crate) const LEASE: Duration = Duration::from_secs(3);

/// A broker and what belongs to one scenario on it.
pub(crate) struct Site {
    broker: Arc<dyn Broker>,
    pub(crate) driver: DynDriver,
    pub(crate) queue: QueueName,
    pub(crate) ledger: Arc<Ledger>,
    directory: PathBuf,
    pods: AtomicUsize,
    measured: Arc<Mutex<Option<String>>>,
}

impl Site {
    pub(crate) async fn start(
        broker: Arc<dyn Broker>,
        directory: &Path,
        measured: Arc<Mutex<Option<String>>>,
    ) -> Result<Self, String> {
        let driver = broker.handle().await.map_err(|error| error.to_string())?;
        let site = Self {
            broker,
            driver,
            queue: fresh_queue(),
            ledger: Arc::default(),
            directory: directory.to_owned(),
            pods: AtomicUsize::new(0),
            measured,
        };
        site.declare(|_| {}).await;
        Ok(site)
    }

    /// Keeps a figure for the report.
    pub(crate) fn measure(&self, figure: impl Into<String>) {
        *self.measured.lock().unwrap() = Some(figure.into());
    }

    /// Makes the queue, or changes its settings.
    pub(crate) async fn declare(&self, change: impl FnOnce(&mut QueueSettings)) {
        let mut settings = QueueSettings::default();
        change(&mut settings);
        let owner = Owner { installation: "conformance".to_owned(), uid: "jobs".to_owned() };
        let declaration = Declaration { owner, settings, adopt: false };
        self.driver.declare(&self.queue, declaration).await.unwrap();
    }

    /// A pod that works on the queue.
    pub(crate) async fn pod(&self, change: impl FnOnce(&mut WorkerPolicy)) -> Pod {
        let pod = self.idle_pod(change).await;
        pod.start().await;
        pod
    }

    /// A pod that reaches the broker by way of `proxy`.
    pub(crate) async fn pod_over(&self, proxy: &Proxy, change: impl FnOnce(&mut WorkerPolicy)) -> Pod {
        let pod = self.idle_pod_over(proxy, change).await;
        pod.start().await;
        pod
    }

    /// The same one before its sidecar runs.
    pub(crate) async fn idle_pod_over(&self, proxy: &Proxy, change: impl FnOnce(&mut WorkerPolicy)) -> Pod {
        let access = self.access(Some(proxy));
        let change_all = |policy: &mut WorkerPolicy| {
            policy.brokers = vec![access];
            change(policy);
        };
        self.idle_pod(change_all).await
    }

    /// A pod whose sidecar does not run yet.
    pub(crate) async fn idle_pod(&self, change: impl FnOnce(&mut WorkerPolicy)) -> Pod {
        let number = self.pods.fetch_add(1, Ordering::SeqCst);
        let app = App::start(number, self.ledger.clone()).await;
        let mut policy = WorkerPolicy {
            version: WorkerPolicy::VERSION,
            namespace: "workers".to_owned(),
            worker: "worker".to_owned(),
            concurrency: 4,
            drain_timeout: Duration::from_secs(60),
            handler: Handler::Http { port: app.port(), path: "/jobs".to_owned() },
            brokers: vec![self.access(None)],
            queues: vec![self.queue_policy()],
            draining: Vec::new(),
        };
        change(&mut policy);
        Pod::new(number, app, self.directory.join(format!("pod-{number}")), policy)
    }

    /// What a policy says of the broker.
    fn access(&self, proxy: Option<&Proxy>) -> BrokerAccess {
        let address = proxy.map(Proxy::address);
        let way = address.map_or_else(|| "straight".to_owned(), |address| address.port().to_string());
        let directory = self.directory.join(format!("broker-{way}"));
        std::fs::create_dir_all(&directory).unwrap();
        BrokerAccess { name: BROKER.to_owned(), via: self.broker.via(address, &directory).unwrap() }
    }

    /// A way to the broker that can be broken.
    pub(crate) async fn proxy(&self) -> Proxy {
        Proxy::start(self.broker.address().expect("the scenario needs a network")).await.unwrap()
    }

    /// SIGKILL to the broker; returns when it is gone.
    pub(crate) async fn kill_broker(&self) {
        self.broker.kill().await.unwrap();
    }

    /// Starts the broker again with the same data; returns when it answers over the connections from before, too.
    pub(crate) async fn start_broker(&self) {
        self.broker.restart().await.unwrap();
        eventually("the broker answers", || async { self.driver.probe().await.is_ok() }).await;
    }

    /// SIGSTOP to the broker.
    pub(crate) async fn freeze_broker(&self) {
        self.broker.freeze().await.unwrap();
    }

    /// SIGCONT to the broker.
    pub(crate) async fn thaw_broker(&self) {
        self.broker.thaw().await.unwrap();
    }

    fn queue_policy(&self) -> QueuePolicy {
        QueuePolicy {
            name: QUEUE.to_owned(),
            physical: self.queue.clone(),
            broker: BROKER.to_owned(),
            weight: 1,
            suspended: false,
            lease: LEASE,
            timeout: Duration::from_secs(60),
            retry: RetryPolicy {
                max_attempts: 3,
                initial: Duration::from_millis(100),
                multiplier: 2,
                max: Duration::from_secs(60),
                jitter_percent: 0,
            },
        }
    }

    /// Enqueues jobs; each has to be new.
    pub(crate) async fn enqueue(&self, jobs: Vec<NewJob>) {
        for answer in self.driver.enqueue(&self.queue, jobs).await.unwrap() {
            assert!(matches!(answer.unwrap(), Enqueued::Created { .. }), "a job is known already");
        }
    }

    /// One job, as the broker sees it.
    pub(crate) async fn inspect(&self, id: &str) -> JobRecord {
        let record = self.driver.inspect(&self.queue, &JobId::new(id).unwrap()).await.unwrap();
        record.unwrap_or_else(|| panic!("job {id} is lost"))
    }

    /// Waits until `id` stands in `state`.
    pub(crate) async fn reaches(&self, id: &str, state: JobState) -> JobRecord {
        let seen = Mutex::new(None);
        let reached = || async {
            let record = self.inspect(id).await;
            let there = record.state == state;
            assert!(there || !record.state.is_terminal(), "{id} is {:?}: {:?}", record.state, record.outcome);
            *seen.lock().unwrap() = Some(record);
            there
        };
        eventually(&format!("{id} is {state:?}"), reached).await;
        seen.into_inner().unwrap().unwrap()
    }

    /// Waits until all of `ids` succeeded.
    pub(crate) async fn succeed<'a>(&self, ids: impl IntoIterator<Item = &'a str>) {
        for id in ids {
            self.reaches(id, JobState::Succeeded).await;
        }
    }

    /// Waits until `id` has had `count` runs.
    pub(crate) async fn ran(&self, id: &str, count: usize) -> Vec<Run> {
        let what = format!("{id} ran {count} times");
        eventually(&what, || async { self.ledger.runs_of(id).len() >= count }).await;
        self.ledger.runs_of(id)
    }

    pub(crate) async fn stats(&self) -> QueueStats {
        self.driver.stats(&self.queue).await.unwrap()
    }

    /// Waits until the queue holds nothing that has yet to end.
    pub(crate) async fn drained(&self) {
        self.drained_within(DEADLINE).await;
    }

    /// The same, for at most `patience`.
    pub(crate) async fn drained_within(&self, patience: Duration) {
        within(patience, "the queue is empty", || async { open(&self.stats().await) == Some(0) }).await;
    }

    /// The run whose settle the broker took, by the result that it keeps.
    pub(crate) async fn accepted(&self, id: &str) -> u64 {
        let ids = vec![JobId::new(id).unwrap()];
        let result = self.driver.results(&self.queue, ids).await.unwrap().remove(0);
        let result = result.unwrap_or_else(|| panic!("{id} has no result"));
        serde_json::from_slice::<Answer>(&result.bytes).unwrap().run
    }
}

/// The name of a queue that no other scenario uses, nor any run before on a server that outlives this one.
fn fresh_queue() -> QueueName {
    static QUEUES: AtomicUsize = AtomicUsize::new(0);
    let (now, number) = (Timestamp::now().as_millis(), QUEUES.fetch_add(1, Ordering::SeqCst));
    format!("workers-{now:x}-{}-{number}.jobs", std::process::id()).parse().unwrap()
}

/// Waits until nothing is under way on a wire: what was asked has been answered.
pub(crate) async fn quiet(proxy: &Proxy) {
    const QUIET: Duration = Duration::from_millis(250);
    eventually("nothing is under way", || async {
        let before = proxy.seen();
        tokio::time::sleep(QUIET).await;
        proxy.seen() == before
    })
    .await;
}

/// How many jobs have yet to end, if the broker can tell.
pub(crate) fn open(stats: &QueueStats) -> Option<u64> {
    Some(stats.ready? + stats.scheduled? + stats.active? + stats.retrying?)
}

/// A job that orders `order`.
pub(crate) fn job(id: &str, order: &Order) -> NewJob {
    let payload = Payload::json(serde_json::to_vec(order).unwrap());
    NewJob::new("work", payload).with_id(JobId::new(id).unwrap())
}

/// `count` jobs that order `order`, and their ids.
pub(crate) fn jobs(prefix: &str, count: usize, order: &Order) -> (Vec<String>, Vec<NewJob>) {
    let ids: Vec<_> = (0..count).map(|number| format!("{prefix}-{number}")).collect();
    let jobs = ids.iter().map(|id| job(id, order)).collect();
    (ids, jobs)
}

/// Ids as texts.
pub(crate) fn texts(ids: &[String]) -> impl Iterator<Item = &str> {
    ids.iter().map(String::as_str)
}
