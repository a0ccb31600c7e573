//! The binary `longshore-broker`: how it starts, refuses to start, and ends.
#![cfg(feature = "broker")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that can't go on fails")]

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const DEADLINE: Duration = Duration::from_secs(20);

fn broker(data: &Path, token: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_longshore-broker"));
    command.env_clear().stdout(Stdio::piped()).stderr(Stdio::piped());
    command.args(["--listen", "127.0.0.1:0"]);
    command.arg("--data-dir").arg(data).arg("--token-file").arg(token);
    command
}

/// A broker that runs; ended with the test however that ends.
struct Running {
    child: Child,
    address: String,
}

impl Running {
    fn start(data: &Path, token: &Path) -> Self {
        let mut child = broker(data, token).spawn().unwrap();
        let mut log = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        log.read_line(&mut line).unwrap();
        let entry: serde_json::Value =
            serde_json::from_str(&line).unwrap_or_else(|_| panic!("no JSON: {line:?}"));
        let address = entry["address"].as_str().unwrap().to_owned();
        // Somebody has to read the rest, or the broker would find the pipe closed.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Self { child, address }
    }

    fn send(&self, method: &str, path: &str, body: &str) -> TcpStream {
        let length = body.len();
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer secret"
        );
        write!(stream, "{head}\r\ncontent-length: {length}\r\n\r\n{body}").unwrap();
        stream
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> String {
        let mut answer = String::new();
        self.send(method, path, body).read_to_string(&mut answer).unwrap();
        answer
    }

    fn terminate(&mut self) -> Option<i32> {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let asked = Instant::now();
        while asked.elapsed() < DEADLINE {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            std::thread::yield_now();
        }
        panic!("it does not end");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

const DECLARATION: &str = r#"{"owner":{"installation":"a","uid":"u"},"settings":
    {"maxDepth":10,"maxDeliveries":3,"retainCompletedMs":60000,"retainDeadMs":60000}}"#;

#[test]
fn jobs_outlive_the_process_and_a_stop_is_orderly() {
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    fs::write(&token, "secret\n").unwrap();
    let mut first = Running::start(directory.path(), &token);
    assert!(first.ask("GET", "/readyz", "").starts_with("HTTP/1.1 200"));
    assert!(first.ask("PUT", "/v1/queues/a.b.c", DECLARATION).starts_with("HTTP/1.1 200"));
    assert!(
        first
            .ask("POST", "/v1/queues/a.b.c/jobs", r#"{"jobs":[{"id":"kept","type":"t"}]}"#)
            .contains("created")
    );
    let mut poll = first.send("POST", "/v1/queues/a.b.c/claim", r#"{"max":1,"waitMs":60000,"leaseMs":100}"#);
    let mut answer = String::new();
    poll.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("\"kept\""), "{answer}");
    assert_eq!(first.terminate(), Some(0));

    let mut second = Running::start(directory.path(), &token);
    assert!(second.ask("GET", "/v1/queues/a.b.c/jobs/kept", "").contains("\"kept\""));
    assert_eq!(second.terminate(), Some(0));
}

#[test]
fn what_is_missing_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let [good, empty, missing] = ["good", "empty", "missing"].map(|name| directory.path().join(name));
    fs::write(&good, "secret").unwrap();
    fs::write(&empty, "").unwrap();
    for (data, token, named) in [
        (directory.path(), &missing, "missing"),
        (directory.path(), &empty, "empty"),
        (missing.as_path(), &good, "isn't writable"),
        (good.as_path(), &good, "isn't writable"),
    ] {
        let ended = broker(data, token).output().unwrap();
        let said = String::from_utf8(ended.stdout).unwrap();
        assert!(said.contains(named), "{said}");
        assert_eq!(ended.status.code(), Some(1));
        assert!(!said.contains("secret"));
    }
}
