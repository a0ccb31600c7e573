//! A child process whose log is lines of JSON.

use super::{eventually, within};
use longshore_drivers::conformance::servers::process;
use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    process::ExitStatus,
    sync::Mutex,
    time::Duration,
};

/// A process; killed with its handle.
pub(crate) struct Process {
    process: Mutex<process::Process>,
    log: PathBuf,
}

impl Process {
    /// Starts `program` with nothing but these `NAME=value` in its environment, and its output in `log`.
    pub(crate) fn start(program: &str, arguments: &[String], environment: &[String], log: &Path) -> Self {
        let line = ["-i"].into_iter().chain(environment.iter().map(String::as_str));
        let line = line.chain([program]).chain(arguments.iter().map(String::as_str)).collect::<Vec<_>>();
        let process = process::Process::start("a process", Path::new("env"), &line, log).unwrap();
        Self { process: Mutex::new(process), log: log.to_owned() }
    }

    /// Waits for a line of the log whose message is `message`; none when the process ended before.
    pub(crate) async fn says(&self, message: &str) -> Option<Value> {
        let line = || lines(&self.log).into_iter().find(|line| line["message"] == message);
        eventually(message, || async { line().is_some() || self.ended().is_some() }).await;
        line()
    }

    /// SIGTERM.
    pub(crate) fn terminate(&self) {
        self.process.lock().unwrap().terminate().unwrap();
    }

    /// SIGSTOP.
    pub(crate) fn freeze(&self) {
        self.process.lock().unwrap().freeze().unwrap();
    }

    /// SIGCONT.
    pub(crate) fn thaw(&self) {
        self.process.lock().unwrap().thaw().unwrap();
    }

    /// SIGKILL, and waits until it is gone.
    pub(crate) fn kill(&self) {
        self.process.lock().unwrap().kill();
    }

    fn ended(&self) -> Option<ExitStatus> {
        self.process.lock().unwrap().status()
    }

    /// Waits for its end.
    pub(crate) async fn exit(&self, patience: Duration) -> ExitStatus {
        within(patience, "the end of a process", || async { self.ended().is_some() }).await;
        self.ended().unwrap()
    }
}

/// A log so far.
pub(crate) fn lines(log: &Path) -> Vec<Value> {
    let log = std::fs::read_to_string(log).unwrap_or_default();
    log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}
