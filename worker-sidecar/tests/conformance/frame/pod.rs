//! A pod without Kubernetes: an app, and the real sidecar beside it.

use super::{
    app::App,
    eventually,
    http::ask,
    process::{Process, lines},
};
use bytes::Bytes;
use http::Method;
use longshore_drivers::{Timestamp, conformance::servers::clock::Skew, policy::WorkerPolicy};
use serde_json::Value;
use std::{net::SocketAddr, path::PathBuf, process::Command, sync::Mutex, time::Duration};

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_longshore-worker-sidecar");

/// A pod.
pub(crate) struct Pod {
    pub(crate) number: usize,
    pub(crate) app: App,
    directory: PathBuf,
    environment: Vec<String>,
    policy: Mutex<WorkerPolicy>,
    sidecar: Mutex<Option<std::sync::Arc<Sidecar>>>,
    starts: Mutex<u32>,
    skew: Skew,
}

/// A sidecar's process.
pub(crate) struct Sidecar {
    pub(crate) process: Process,
    /// By its own clock.
    pub(crate) started_at: Timestamp,
    api: SocketAddr,
    admin: SocketAddr,
}

impl Pod {
    /// A pod whose sidecar does not run yet.
    pub(crate) fn new(number: usize, app: App, directory: PathBuf, policy: WorkerPolicy) -> Self {
        std::fs::create_dir_all(&directory).unwrap();
        let pod = Self {
            number,
            app,
            directory,
            environment: vec![format!("POD_NAME=pod-{number}")],
            policy: Mutex::new(policy),
            sidecar: Mutex::default(),
            starts: Mutex::default(),
            skew: Skew::NONE,
        };
        pod.write();
        pod
    }

    /// The same whose sidecars see another clock than this machine's.
    pub(crate) fn with_clock(self, skew: Skew) -> Self {
        Self { skew, ..self }
    }

    /// The same one, with events in its log, and the settles that failed.
    pub(crate) fn with_events(mut self) -> Self {
        let filter = "info,longshore_worker_sidecar::settle=debug,longshore::events=info";
        self.environment.push(format!("LONGSHORE_LOG={filter}"));
        self
    }

    /// The events of all of its sidecars so far, in the order in which they were written.
    pub(crate) fn events(&self) -> Vec<Value> {
        let starts = *self.starts.lock().unwrap();
        let lines = (1..=starts).flat_map(|start| lines(&self.log(start)));
        lines.filter(|line| line["target"] == "longshore::events").collect()
    }

    fn log(&self, start: u32) -> PathBuf {
        self.directory.join(format!("log-{start}"))
    }

    /// Starts the sidecar, or another one in the place of the one before; returns when it works by its policy.
    pub(crate) async fn start(&self) {
        let sidecar = self.another().await;
        *self.sidecar.lock().unwrap() = Some(std::sync::Arc::new(sidecar));
    }

    /// One more process for the same pod, with the same files.
    pub(crate) async fn another(&self) -> Sidecar {
        let start = {
            let mut starts = self.starts.lock().unwrap();
            *starts += 1;
            *starts
        };
        let arguments = self.arguments("127.0.0.1:0");
        let mut environment = self.skew.environment(&self.directory).unwrap();
        environment.extend(self.environment.iter().cloned());
        let process = Process::start(BINARY, &arguments, &environment, &self.log(start));
        let line = process.says("sidecar started").await.expect("the sidecar starts");
        let address = |name: &str| line[name].as_str().unwrap().parse().unwrap();
        let started_at: jiff::Timestamp = line["timestamp"].as_str().unwrap().parse().unwrap();
        let started_at = Timestamp::from_millis(started_at.as_millisecond());
        let sidecar = Sidecar { api: address("api"), admin: address("admin"), process, started_at };
        eventually("the sidecar is ready", || async { sidecar.get("/readyz").await.0 == 200 }).await;
        sidecar
    }

    fn arguments(&self, api: &str) -> Vec<String> {
        let file = |name: &str| self.directory.join(name).display().to_string();
        let (policy, token) = (file("policy.json"), file("token"));
        let arguments =
            ["--api", api, "--admin", "127.0.0.1:0", "--policy", &policy, "--pod-token-file", &token];
        arguments.map(str::to_owned).to_vec()
    }

    /// Rewrites the policy file.
    pub(crate) fn change(&self, change: impl FnOnce(&mut WorkerPolicy)) {
        change(&mut self.policy.lock().unwrap());
        self.write();
    }

    fn write(&self) {
        let policy = serde_json::to_vec(&*self.policy.lock().unwrap()).unwrap();
        let fresh = self.directory.join("policy.new");
        std::fs::write(&fresh, policy).unwrap();
        std::fs::rename(fresh, self.directory.join("policy.json")).unwrap();
    }

    pub(crate) fn sidecar(&self) -> std::sync::Arc<Sidecar> {
        self.sidecar.lock().unwrap().clone().expect("the sidecar was started")
    }

    /// SIGKILL.
    pub(crate) fn kill(&self) {
        self.sidecar().process.kill();
    }

    /// The preStop hook of the sidecar.
    pub(crate) fn drain(&self) {
        let mut command = Command::new(BINARY);
        command.env_clear().args(self.arguments(&self.sidecar().api.to_string())).arg("drain");
        assert!(command.status().unwrap().success(), "the drain hook failed");
    }

    /// SIGTERM, and waits until the sidecar ended well.
    pub(crate) async fn terminate(&self) {
        let sidecar = self.sidecar();
        sidecar.process.terminate();
        let status = sidecar.process.exit(Duration::from_secs(30)).await;
        assert!(status.success(), "the sidecar ended with {status}");
    }

    /// Asks the local API as the app would.
    pub(crate) async fn post(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> (u16, Bytes) {
        let token = std::fs::read_to_string(self.directory.join("token")).unwrap();
        let token = format!("Bearer {}", token.trim());
        let mut all = vec![("authorization", token.as_str())];
        all.extend_from_slice(headers);
        ask(self.sidecar().api, Method::POST, path, &all, body).await
    }

    /// What the sidecar says about itself.
    pub(crate) async fn status(&self) -> Value {
        let (_, body) = self.sidecar().get("/status").await;
        serde_json::from_slice(&body).unwrap_or_default()
    }

    /// How many claims ended with `outcome`.
    pub(crate) async fn counted(&self, outcome: &str) -> u64 {
        let (_, metrics) = self.sidecar().get("/metrics").await;
        let label = format!("outcome=\"{outcome}\"");
        let metrics = String::from_utf8_lossy(&metrics).into_owned();
        let line = metrics.lines().find(|line| line.contains("_jobs_total{") && line.contains(&label));
        line.and_then(|line| line.rsplit(' ').next()).map_or(0, |count| count.parse().unwrap_or(0))
    }
}

impl Sidecar {
    async fn get(&self, path: &str) -> (u16, Bytes) {
        ask(self.admin, Method::GET, path, &[], Bytes::new()).await
    }
}
