//! A server as a process of this one: started on loopback with a directory of its own, and ended with it.

use crate::{Error, Result};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use std::{
    fs::{File, create_dir_all, remove_dir_all},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

/// How long a server may take to end when it is asked to.
const ENDS: Duration = Duration::from_secs(20);
/// How long it may take one to stand still when it is made to.
const STOPS: Duration = Duration::from_secs(5);

/// A directory that is removed with its owner.
#[derive(Debug)]
pub struct Directory(PathBuf);

impl Directory {
    /// A new one under the system's directory for temporary files. Its name begins with `longshore-<what>`.
    ///
    /// # Errors
    /// `Unavailable` when it can't be made.
    pub fn new(what: &str) -> Result<Self> {
        static DIRECTORIES: AtomicU64 = AtomicU64::new(0);
        let number = DIRECTORIES.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("longshore-{what}-{}-{number}", std::process::id()));
        create_dir_all(&path)
            .map_err(|error| Error::unavailable(format!("{} can't be made: {error}", path.display())))?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = remove_dir_all(&self.0) {
            tracing::debug!(directory = %self.0.display(), %error, "a directory stays behind");
        }
    }
}

/// Ports that servers are given: below those that the kernel gives to outgoing connections, one of which could otherwise
/// take the port of a server that is about to come back.
const PORTS: std::ops::Range<u16> = 11_000..20_000;

/// A port of the loopback interface that was free a moment ago and that no other server of this process was given, so that
/// it stays free while its server is down.
///
/// # Errors
/// `Unavailable` when there is none.
pub fn free_port() -> Result<u16> {
    static GIVEN: AtomicU64 = AtomicU64::new(0);
    let count = u64::from(PORTS.end - PORTS.start);
    for _ in 0..count {
        // Others run the same tests at the same time: they begin elsewhere.
        let number = u64::from(std::process::id()) * 97 + GIVEN.fetch_add(1, Ordering::Relaxed);
        let port = PORTS.start + u16::try_from(number % count).unwrap_or_default();
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    Err(Error::unavailable(format!(
        "no port of this machine from {} to {} is free",
        PORTS.start,
        PORTS.end - 1
    )))
}

/// How many connections the server at `address` has on this machine, as the kernel tells: those of its own side that are not
/// over.
///
/// # Errors
/// `Unavailable` when the kernel doesn't tell.
pub fn connections_to(address: SocketAddr) -> Result<usize> {
    let table = std::fs::read_to_string("/proc/net/tcp")
        .map_err(|error| Error::unavailable(format!("the kernel's connections can't be read: {error}")))?;
    Ok(table.lines().filter(|line| is_connection_of(line, address.port())).count())
}

/// Whether a line of the kernel's table is the local end of a connection at `port`: number, local and remote address in
/// hexadecimal, state, and more.
fn is_connection_of(line: &str, port: u16) -> bool {
    const TIME_WAIT: &str = "06";
    const LISTENS: &str = "0A";
    let mut words = line.split_whitespace().skip(1);
    let (Some(local), Some(_), Some(state)) = (words.next(), words.next(), words.next()) else {
        return false;
    };
    local.ends_with(&format!(":{port:04X}")) && ![TIME_WAIT, LISTENS].contains(&state)
}

/// A server that runs, in a process group of its own. Dropping it kills the group.
#[derive(Debug)]
pub struct Process {
    name: &'static str,
    child: Child,
}

impl Process {
    /// Starts `program` with `arguments`; what it prints goes to `log`. It is killed when this process dies, however
    /// that happens.
    ///
    /// # Errors
    /// `Unavailable` when it can't be started.
    pub fn start(name: &'static str, program: &Path, arguments: &[&str], log: &Path) -> Result<Self> {
        use std::os::unix::process::CommandExt;
        let failed = |error: std::io::Error| {
            Error::unavailable(format!("{name} ({}) can't be started: {error}", program.display()))
        };
        let out = File::options().create(true).append(true).open(log).map_err(failed)?;
        let errors = out.try_clone().map_err(failed)?;
        // The parent's death is told by a signal that only the child can ask for; setpriv does, without unsafe code here.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program).args(arguments);
        command.stdin(Stdio::null()).stdout(out).stderr(errors).process_group(0);
        Ok(Self { name, child: spawn(command).map_err(failed)? })
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn group(&self) -> Option<Pid> {
        i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let gone = || Error::unavailable(format!("{} does not run", self.name));
        kill_process_group(self.group().ok_or_else(gone)?, signal).map_err(|_| gone())
    }

    /// Asks it to end (SIGTERM), and doesn't wait.
    ///
    /// # Errors
    /// `Unavailable` when it doesn't run.
    pub fn terminate(&self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    /// Stops all of it where it stands (SIGSTOP), and waits until all of its threads do: until then they go on. Blocks for
    /// as long.
    ///
    /// # Errors
    /// `Unavailable` when it doesn't run, or goes on for 5 s.
    #[expect(
        clippy::disallowed_methods,
        reason = "it is a wait on a condition with a deadline, for a moment on a machine that goes on"
    )]
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::STOP)?;
        let deadline = Instant::now() + STOPS;
        while !self.stands() {
            if Instant::now() > deadline {
                return Err(Error::unavailable(format!("{} goes on after SIGSTOP", self.name)));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Whether no thread of it runs.
    fn stands(&self) -> bool {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.pid())).into_iter().flatten().flatten();
        let runs = |thread: std::fs::DirEntry| {
            let status = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            // The name, in brackets, may hold anything.
            let state = status.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next());
            // A thread that is gone has no state any more.
            state.is_some_and(|state| !"TtZX".contains(state))
        };
        !threads.into_iter().any(runs)
    }

    /// Lets it go on (SIGCONT).
    ///
    /// # Errors
    /// `Unavailable` when it doesn't run.
    pub fn thaw(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// Ends it without a chance to do anything (SIGKILL to the group), and waits until it is gone.
    pub fn kill(&mut self) {
        // Gone already is as good.
        let _ = self.signal(Signal::KILL);
        let _ = self.child.wait();
    }

    /// Asks it to end with `signal`, and kills it when it doesn't within 20 s. Blocks for as long.
    #[expect(
        clippy::disallowed_methods,
        reason = "it is a wait on a condition with a deadline, outside of async code"
    )]
    pub fn end(&mut self, signal: Signal) {
        if let Some(pid) = self.group() {
            let _ = kill_process(pid, signal);
        }
        let deadline = Instant::now() + ENDS;
        while Instant::now() < deadline {
            if matches!(self.child.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.kill();
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)) | Err(_))
    }

    /// How it ended, if it did.
    pub fn status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }
}

/// Starts a process on a thread that lasts as long as this process: a child that wishes to die with its parent dies with
/// the thread that made it, and tests come and go.
fn spawn(command: Command) -> std::io::Result<Child> {
    type Work = (Command, mpsc::Sender<std::io::Result<Child>>);
    static STARTER: OnceLock<mpsc::Sender<Work>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (starter, list) = mpsc::channel::<Work>();
        std::thread::spawn(move || {
            for (mut command, done) in list {
                // Whoever asked waits for it.
                drop(done.send(command.spawn()));
            }
        });
        starter
    });
    let (done, started) = mpsc::channel();
    starter.send((command, done)).map_err(std::io::Error::other)?;
    started.recv().map_err(std::io::Error::other)?
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper(directory: &Directory) -> Process {
        let log = directory.path().join("log");
        Process::start("sleep", Path::new("sleep"), &["60"], &log).unwrap()
    }

    #[test]
    fn a_killed_process_is_gone() {
        let directory = Directory::new("process-test").unwrap();
        let mut process = sleeper(&directory);
        assert!(!process.has_ended());
        process.kill();
        assert!(process.has_ended());
        assert!(process.freeze().is_err());
    }

    #[test]
    fn a_frozen_process_stands_and_a_thawed_one_does_not() {
        let directory = Directory::new("process-test").unwrap();
        let process = sleeper(&directory);
        assert!(!process.stands());
        process.freeze().unwrap();
        assert!(process.stands());
        process.thaw().unwrap();
        while process.stands() {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_process_that_is_asked_ends() {
        let directory = Directory::new("process-test").unwrap();
        let mut process = sleeper(&directory);
        process.freeze().unwrap();
        process.thaw().unwrap();
        process.end(Signal::TERM);
        assert!(process.has_ended());
    }

    #[test]
    fn a_process_that_is_told_to_end_says_how() {
        let directory = Directory::new("process-test").unwrap();
        let mut process = sleeper(&directory);
        process.terminate().unwrap();
        while !process.has_ended() {
            std::thread::yield_now();
        }
        assert!(process.status().is_some_and(|status| !status.success()));
    }

    #[test]
    fn a_server_outlives_the_thread_that_asked_for_it() {
        let directory = Directory::new("process-test").unwrap();
        let mut process = std::thread::scope(|scope| scope.spawn(|| sleeper(&directory)).join().unwrap());
        // The death of its parent would be told at once.
        for _ in 0..100 {
            std::thread::yield_now();
            assert!(!process.has_ended());
        }
    }

    #[test]
    fn ports_are_given_once_and_not_by_the_kernel() {
        let ports: Vec<_> = (0..20).map(|_| free_port().unwrap()).collect();
        let distinct: std::collections::BTreeSet<_> = ports.iter().collect();
        assert_eq!(distinct.len(), ports.len(), "{ports:?}");
        assert!(ports.iter().all(|port| PORTS.contains(port)), "{ports:?}");
    }

    #[test]
    fn connections_are_counted_at_the_servers_end() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(connections_to(address).unwrap(), 0);
        let clients: Vec<_> = (0..3).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
        let accepted: Vec<_> = (0..3).map(|_| listener.accept().unwrap()).collect();
        assert_eq!(connections_to(address).unwrap(), 3);
        // One that the client has left is the server's until it closes it.
        drop(clients);
        assert_eq!(connections_to(address).unwrap(), 3);
        drop(accepted);
        assert_eq!(connections_to(address).unwrap(), 0);
    }

    #[test]
    fn a_directory_goes_with_its_owner() {
        let directory = Directory::new("process-test").unwrap();
        let path = directory.path().to_owned();
        assert!(path.exists());
        drop(directory);
        assert!(!path.exists());
    }
}
