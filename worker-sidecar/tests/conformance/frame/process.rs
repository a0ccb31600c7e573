//! A child process with a log of its own, and what can be done to it.

use super::{eventually, within};
use serde_json::Value;
use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Mutex,
    time::Duration,
};

/// A process; killed with its handle.
pub(crate) struct Process {
    child: Mutex<Child>,
    id: u32,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with its output in `log`.
    pub(crate) fn start(mut command: Command, log: &Path) -> Self {
        let file = File::create(log).unwrap();
        let errors = file.try_clone().unwrap();
        let child = command.stdin(Stdio::null()).stdout(file).stderr(errors).spawn();
        let child = child
            .unwrap_or_else(|error| panic!("{} can't be started: {error}", command.get_program().display()));
        Self { id: child.id(), child: Mutex::new(child), log: log.to_owned() }
    }

    /// Waits for a line of the log whose message is `message`; none when the process ended before.
    pub(crate) async fn says(&self, message: &str) -> Option<Value> {
        let line = || self.lines().into_iter().find(|line| line["message"] == message);
        eventually(message, || async { line().is_some() || self.ended().is_some() }).await;
        line()
    }

    /// The log so far.
    pub(crate) fn lines(&self) -> Vec<Value> {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Sends a signal by its name, such as `TERM`.
    pub(crate) fn signal(&self, name: &str) {
        // It was not waited for yet, so the id is still its own.
        assert!(self.ended().is_none(), "the process ended before SIG{name}");
        let sent = Command::new("kill").args([format!("-{name}"), self.id.to_string()]).status();
        assert!(sent.unwrap().success(), "SIG{name} can't be sent");
    }

    /// SIGKILL, and waits until it is gone.
    pub(crate) fn kill(&self) {
        let mut child = self.child.lock().unwrap();
        // It may have ended already.
        let _ = child.kill();
        let _ = child.wait();
    }

    pub(crate) fn ended(&self) -> Option<ExitStatus> {
        self.child.lock().unwrap().try_wait().unwrap()
    }

    /// Waits for its end.
    pub(crate) async fn exit(&self, patience: Duration) -> ExitStatus {
        within(patience, "the end of a process", || async { self.ended().is_some() }).await;
        self.ended().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Ok(child) = self.child.get_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
