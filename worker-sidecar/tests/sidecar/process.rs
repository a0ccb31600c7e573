//! The binary itself, over HTTP to its broker, from start to exit.

use crate::support::{self, app::App, broker::Broker, eventually, job};
use longshore_drivers::{Declaration, DynDriver, Owner, QueueSettings, Settle, memory::Memory};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs::File,
    net::SocketAddr,
    path::Path,
    process::{Child, Command},
    sync::Arc,
};
use tempfile::TempDir;

const BINARY: &str = env!("CARGO_BIN_EXE_longshore-worker-sidecar");

struct Process {
    child: Child,
    directory: TempDir,
    api: SocketAddr,
    admin: SocketAddr,
}

impl Process {
    /// Starts the binary with the policy in `directory`. Its ports are free ones; it tells them in its log.
    async fn start(directory: TempDir) -> Self {
        let log = File::create(directory.path().join("log")).unwrap();
        let child = sidecar(directory.path(), "127.0.0.1:0").stdout(log).spawn().unwrap();
        let started =
            || lines(directory.path()).into_iter().find(|line| line["message"] == "sidecar started");
        eventually("started", || async { started().is_some() }).await;
        let line = started().unwrap();
        let address = |name: &str| line[name].as_str().unwrap().parse().unwrap();
        Self { child, api: address("api"), admin: address("admin"), directory }
    }

    fn drain(&self) {
        let drain = sidecar(self.directory.path(), &self.api.to_string()).arg("drain").status().unwrap();
        assert!(drain.success());
    }

    fn signal(&self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    }

    async fn exit(&mut self) {
        let child = std::sync::Mutex::new(&mut self.child);
        eventually("exit", || async { child.lock().unwrap().try_wait().unwrap().is_some() }).await;
        assert!(self.child.wait().unwrap().success());
    }

    fn stages(&self) -> Vec<String> {
        let stages =
            lines(self.directory.path()).into_iter().filter(|line| line["target"] == "longshore::drain");
        stages.map(|line| line["stage"].as_str().unwrap().to_owned()).collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn sidecar(directory: &Path, api: &str) -> Command {
    let mut command = Command::new(BINARY);
    let file = |name: &str| directory.join(name).into_os_string();
    command.env("POD_NAME", "pod-1").args(["--api", api, "--admin", "127.0.0.1:0"]);
    command.arg("--policy").arg(file("policy.json"));
    command.arg("--pod-token-file").arg(file("token"));
    command
}

fn lines(directory: &Path) -> Vec<Value> {
    let log = std::fs::read_to_string(directory.join("log")).unwrap_or_default();
    log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[tokio::test]
async fn a_process_works_drains_and_exits_with_its_stages_in_the_log() {
    let (app, broker) = (App::start().await, Arc::new(Broker::default()));
    let directory = tempfile::tempdir().unwrap();
    let mut policy = support::policy(app.port(), &["emails"]);
    policy.brokers = vec![support::serve(broker.clone(), &directory).await];
    support::write(&directory, &policy);
    let mut process = Process::start(directory).await;

    broker.add("test.shop.emails", job("job-1", "json"));
    eventually("the first job is settled", || async { !broker.settles("job-1").is_empty() }).await;
    assert!(matches!(broker.settles("job-1")[0], Settle::Succeed { result: Some(_) }));
    broker.add("test.shop.emails", job("job-2", "wait"));
    eventually("the second runs", || async { app.running() == 1 }).await;

    process.drain();
    let hook = support::app::request(process.admin, "GET", "/hooks/app-stop", &[], b"");
    let ((status, _), ()) = futures::join!(hook, async { app.let_go(1) });
    assert_eq!(status, 200);
    app.down();
    process.signal();
    process.exit().await;
    assert_eq!(broker.settles("job-2"), [Settle::Succeed { result: None }]);
    let expected = [
        "drain started",
        "stopped claiming",
        "in flight 0",
        "app may stop",
        "app gone / sigterm",
        "released",
        "exit",
    ];
    assert_eq!(process.stages(), expected);
}

/// The same parts with the reference model as broker.
#[tokio::test]
async fn every_job_of_two_queues_runs_once_over_a_real_driver() {
    let app = App::start().await;
    let directory = tempfile::tempdir().unwrap();
    let mut policy = support::policy(app.port(), &["emails", "images"]);
    let memory: DynDriver = Arc::new(Memory::default());
    for queue in &policy.queues {
        let owner = Owner { installation: "test".into(), uid: queue.name.clone() };
        let declaration = Declaration { owner, settings: QueueSettings::default(), adopt: false };
        memory.declare(&queue.physical, declaration).await.unwrap();
        let jobs = (0..150).map(|number| job(&format!("{}-{number}", queue.name), "json"));
        for answer in memory.enqueue(&queue.physical, jobs.collect()).await.unwrap() {
            answer.unwrap();
        }
    }
    policy.brokers = vec![support::serve(memory.clone(), &directory).await];
    support::write(&directory, &policy);
    let mut process = Process::start(directory).await;
    eventually("all ran", || async { app.seen().len() >= 300 }).await;
    process.drain();
    app.down();
    process.signal();
    process.exit().await;
    let ids: BTreeSet<_> = app.seen().iter().map(|seen| seen.header("job-id").to_owned()).collect();
    assert_eq!((ids.len(), app.seen().len()), (300, 300));
    for queue in &policy.queues {
        let stats = memory.stats(&queue.physical).await.unwrap();
        assert_eq!(
            (stats.ready, stats.active, stats.retrying, stats.dead),
            (Some(0), Some(0), Some(0), Some(0))
        );
    }
}
