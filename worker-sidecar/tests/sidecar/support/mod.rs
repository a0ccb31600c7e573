//! A broker and an app that do as they are told.

pub(crate) mod app;
pub(crate) mod broker;

use app::App;
use broker::Broker;
use futures::FutureExt;
use longshore_drivers::{
    DynDriver, JobId, NewJob, Payload,
    http::server::{self, ApiLimits, ServeLimits, Tokens, broker_router},
    open,
    policy::{BrokerAccess, Handler, QueuePolicy, RetryPolicy, Via, WorkerPolicy},
};
use longshore_worker_sidecar::{
    policy::{Connect, Own},
    run::{Settings, Sidecar},
};
use std::{future::Future, path::PathBuf, sync::Arc, time::Duration};
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

/// Nothing here takes longer unless it is broken.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// Waits until `condition` holds.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let deadline = Instant::now() + DEADLINE;
    while !condition().await {
        assert!(Instant::now() < deadline, "not in time: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// `broker` as a server, with a token in `directory`; gives what a policy says of it.
pub(crate) async fn serve(broker: DynDriver, directory: &TempDir) -> BrokerAccess {
    let token_file = directory.path().join("broker-token");
    std::fs::write(&token_file, "let-me-in").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let stop = CancellationToken::new();
    let tokens = Arc::new(Tokens::fixed(["let-me-in"]));
    let router = broker_router(broker, tokens, ApiLimits::default(), stop.clone());
    tokio::spawn(server::serve(listener, router, ServeLimits::default(), stop));
    BrokerAccess {
        name: "default".to_owned(),
        via: Via::Http { url, token_files: vec![token_file.to_str().unwrap().to_owned()] },
    }
}

pub(crate) fn queue(name: &str) -> QueuePolicy {
    QueuePolicy {
        name: name.to_owned(),
        physical: format!("test.shop.{name}").parse().unwrap(),
        broker: "default".to_owned(),
        weight: 1,
        suspended: false,
        lease: Duration::from_secs(30),
        timeout: Duration::from_secs(30),
        retry: RetryPolicy {
            max_attempts: 3,
            initial: Duration::from_millis(700),
            multiplier: 2,
            max: Duration::from_secs(300),
            jitter_percent: 0,
        },
    }
}

pub(crate) fn policy(port: u16, names: &[&str]) -> WorkerPolicy {
    WorkerPolicy {
        version: WorkerPolicy::VERSION,
        namespace: "shop".to_owned(),
        worker: "mailer".to_owned(),
        concurrency: 4,
        drain_timeout: Duration::from_secs(60),
        handler: Handler::Http { port, path: "/jobs".to_owned() },
        brokers: vec![BrokerAccess {
            name: "default".to_owned(),
            via: Via::Http { url: "http://broker.test".to_owned(), token_files: vec!["/nowhere".to_owned()] },
        }],
        queues: names.iter().map(|name| queue(name)).collect(),
        draining: Vec::new(),
    }
}

pub(crate) fn job(id: &str, job_type: &str) -> NewJob {
    NewJob::new(job_type, Payload::json("{\"n\":1}")).with_id(JobId::new(id).unwrap())
}

/// A sidecar between a broker and an app.
pub(crate) struct Pod {
    pub(crate) broker: Arc<Broker>,
    pub(crate) app: App,
    pub(crate) sidecar: Option<Sidecar>,
    pub(crate) directory: TempDir,
    pub(crate) policy: WorkerPolicy,
    api: std::net::SocketAddr,
    admin: std::net::SocketAddr,
}

impl Pod {
    pub(crate) async fn start(change: impl FnOnce(&mut WorkerPolicy)) -> Self {
        Self::with(App::start().await, change).await
    }

    pub(crate) async fn with(app: App, change: impl FnOnce(&mut WorkerPolicy)) -> Self {
        let broker = Arc::new(Broker::default());
        Self::over(broker.clone(), broker, app, change).await
    }

    /// A pod whose sidecar works on `driver` instead of the broker that does as it is told.
    pub(crate) async fn over(
        driver: DynDriver,
        broker: Arc<Broker>,
        app: App,
        change: impl FnOnce(&mut WorkerPolicy),
    ) -> Self {
        let mut policy = policy(app.port(), &["emails"]);
        change(&mut policy);
        let directory = tempfile::tempdir().unwrap();
        write(&directory, &policy);
        let settings = Settings {
            policy: directory.path().join("policy.json"),
            api: "127.0.0.1:0".parse().unwrap(),
            admin: "127.0.0.1:0".parse().unwrap(),
            pod_name: "pod-1".to_owned(),
            token_file: directory.path().join("token"),
            own: Own::default(),
        };
        let connect: Connect = Arc::new(move |access| {
            let answer = match access.via {
                Via::Http { .. } => Ok(driver.clone()),
                via @ (Via::Redis { .. } | Via::Postgres { .. }) => open::open(&via),
            };
            futures::future::ready(answer).boxed()
        });
        let sidecar = Sidecar::start(settings, connect).await.unwrap();
        let pod = Self {
            broker,
            app,
            api: sidecar.api(),
            admin: sidecar.admin(),
            sidecar: Some(sidecar),
            directory,
            policy,
        };
        eventually("ready", || async { pod.admin("/readyz").await.0 == 200 }).await;
        pod
    }

    /// Rewrites the policy file.
    pub(crate) fn change(&mut self, change: impl FnOnce(&mut WorkerPolicy)) {
        change(&mut self.policy);
        write(&self.directory, &self.policy);
    }

    pub(crate) fn policy_file(&self) -> PathBuf {
        self.directory.path().join("policy.json")
    }

    pub(crate) fn token_file(&self) -> PathBuf {
        self.directory.path().join("token")
    }

    pub(crate) fn token(&self) -> String {
        std::fs::read_to_string(self.token_file()).unwrap()
    }

    pub(crate) fn api(&self) -> std::net::SocketAddr {
        self.api
    }

    pub(crate) fn admin_address(&self) -> std::net::SocketAddr {
        self.admin
    }

    pub(crate) fn sidecar(&self) -> &Sidecar {
        self.sidecar.as_ref().unwrap()
    }

    /// Asks the admin port.
    pub(crate) async fn admin(&self, path: &str) -> (u16, String) {
        app::request(self.admin, "GET", path, &[], b"").await
    }

    pub(crate) async fn status(&self) -> serde_json::Value {
        serde_json::from_str(&self.admin("/status").await.1).unwrap()
    }

    /// How many claims ended with `outcome`.
    pub(crate) async fn counted(&self, outcome: &str) -> u64 {
        let metrics = self.admin("/metrics").await.1;
        let label = format!("outcome=\"{outcome}\"");
        let line = metrics.lines().find(|line| line.contains("_jobs_total{") && line.contains(&label));
        line.and_then(|line| line.rsplit(' ').next()).map_or(0, |count| count.parse().unwrap())
    }

    /// Asks the local API as the app would.
    pub(crate) async fn post(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> (u16, String) {
        let token = format!("Bearer {}", self.token());
        let mut all = vec![("authorization", token.as_str())];
        all.extend_from_slice(headers);
        app::request(self.api, "POST", path, &all, body).await
    }

    /// Reads the local API as the app would.
    pub(crate) async fn get(&self, path: &str) -> serde_json::Value {
        let token = format!("Bearer {}", self.token());
        let (status, body) =
            app::request(self.api, "GET", path, &[("authorization", token.as_str())], b"").await;
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap()
    }

    pub(crate) fn enqueue(&self, id: &str, job_type: &str) {
        self.broker.add("test.shop.emails", job(id, job_type));
    }

    /// Waits until the broker was told `id`'s end and gives it.
    pub(crate) async fn settled(&self, id: &str) -> longshore_drivers::Settle {
        eventually(&format!("{id} settled"), || async { !self.broker.settles(id).is_empty() }).await;
        self.broker.settles(id).remove(0)
    }
}

pub(crate) fn write(directory: &TempDir, policy: &WorkerPolicy) {
    let fresh = directory.path().join("policy.new");
    std::fs::write(&fresh, serde_json::to_vec(policy).unwrap()).unwrap();
    std::fs::rename(fresh, directory.path().join("policy.json")).unwrap();
}
