//! A server with a directory, a port and a password of its own.

use super::{
    bouncer::Bouncer,
    failed,
    programs::{PASSWORD, USER, base, done, hand_over, programs, template, unprivileged},
};
use crate::{
    Error, Result,
    conformance::servers::{
        clock::Skew,
        process::{Process, connections_to, free_port},
    },
};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use tokio::{sync::Mutex, time::Instant};

/// How long a server may take until it answers.
const STARTS: Duration = Duration::from_secs(60);

/// Has a query answered: a bouncer lets clients in whether its server is there or not.
async fn ask(url: &str) -> std::result::Result<(), tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await?;
    let carrier = tokio::spawn(connection);
    let answered = client.simple_query("SELECT 1").await;
    carrier.abort();
    answered.map(drop)
}

/// The processes that `parent` started.
fn children(parent: u32) -> Vec<Pid> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let of_parent = |entry: std::fs::DirEntry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let status = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        // The name, in brackets, may hold anything; state and parent follow it.
        let found: u32 = status.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
        (found == parent).then(|| Pid::from_raw(pid)).flatten()
    };
    processes.filter_map(of_parent).collect()
}

/// Whether a process still runs: one that has ended and that nobody has waited for is a zombie, and holds nothing.
fn lives(process: Pid) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{}/stat", process.as_raw_pid()));
    status.is_ok_and(|status| {
        let state = status.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().next());
        !matches!(state, None | Some("Z" | "X"))
    })
}

/// Hundredths of a second that a process has worked. The kernel keeps four numbers: its own time in programs and in the
/// kernel, and the same two of children that have ended; `count` is how many of them are added up.
fn ticks(pid: i32, count: usize) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = status.rsplit_once(')').map_or("", |(_, rest)| rest);
    fields.split_whitespace().skip(11).take(count).filter_map(|field| field.parse::<u64>().ok()).sum()
}

fn signal(processes: &[Pid], signal: Signal) {
    for process in processes {
        // One that has ended is as good.
        let _ = kill_process(*process, signal);
    }
}

/// A server of PostgreSQL.
#[derive(Debug)]
pub struct Server {
    directory: PathBuf,
    port: u16,
    skew: Skew,
    process: Mutex<Option<Process>>,
    /// What stands before it.
    bouncer: Option<Bouncer>,
}

impl Server {
    /// Starts one with an empty database. `settings` go to its command line, as `name=value`.
    ///
    /// # Errors
    /// `Unavailable` when it can't be started.
    pub async fn start(settings: &[&str]) -> Result<Self> {
        Self::start_at(settings, Skew::NONE).await
    }

    /// The same with another clock than this machine's.
    ///
    /// # Errors
    /// `Unavailable` when it can't be started.
    pub async fn start_at(settings: &[&str], skew: Skew) -> Result<Self> {
        static SERVERS: AtomicU64 = AtomicU64::new(0);
        let template = template()?;
        let directory = base()?.join(format!("server-{}", SERVERS.fetch_add(1, Ordering::Relaxed)));
        std::fs::create_dir_all(&directory).map_err(|error| failed("no directory", error))?;
        done("cp", Command::new("cp").arg("-a").arg(template).arg(&directory).output())?;
        hand_over(&directory)?;
        let server = Self { directory, port: free_port()?, skew, process: Mutex::new(None), bouncer: None };
        server.write_settings(settings)?;
        server.launch().await?;
        Ok(server)
    }

    /// The same behind PgBouncer, which everybody goes through from then on.
    pub(super) async fn start_behind_bouncer(skew: Skew) -> Result<Self> {
        let mut server = Self::start_at(&[], skew).await?;
        let bouncer = Bouncer::start(server.address(), &server.directory)?;
        server.bouncer = Some(bouncer);
        if let Err(error) = server.answers().await {
            let said = server.bouncer.as_ref().map(Bouncer::last_words).unwrap_or_default();
            return Err(failed("nobody gets through PgBouncer", format!("{error}; it said last: {said}")));
        }
        Ok(server)
    }

    pub(super) fn is_behind_bouncer(&self) -> bool {
        self.bouncer.is_some()
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    fn write_settings(&self, settings: &[&str]) -> Result<()> {
        let own = [
            "listen_addresses = '127.0.0.1'".to_owned(),
            format!("port = {}", self.port),
            format!("unix_socket_directories = '{}'", self.directory.display()),
            "fsync = on".to_owned(),
            "synchronous_commit = on".to_owned(),
            "max_connections = 200".to_owned(),
            "shared_buffers = 128MB".to_owned(),
            "max_wal_size = 1GB".to_owned(),
        ];
        let named = settings.iter().map(|setting| (*setting).to_owned());
        let text: String = own.into_iter().chain(named).map(|line| line + "\n").collect();
        let file = self.data().join("postgresql.auto.conf");
        std::fs::write(file, text).map_err(|error| failed("its settings can't be written", error))
    }

    /// Where its data is.
    pub fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// Where it is reached.
    pub fn address(&self) -> SocketAddr {
        let own = || (Ipv4Addr::LOCALHOST, self.port).into();
        self.bouncer.as_ref().map_or_else(own, Bouncer::address)
    }

    /// How to reach it there, or at another address that leads there.
    pub fn url(&self, address: SocketAddr) -> String {
        format!("postgres://{USER}:{PASSWORD}@{address}/postgres?sslmode=disable")
    }

    async fn launch(&self) -> Result<()> {
        let data = self.data().display().to_string();
        // Whoever changes its user loses the wish to die with its parent, so it is told again.
        let postgres = programs()?.join("postgres");
        let (program, rest) = self.skew.command(&postgres, &["-D", &data], &self.directory)?;
        let program = program.display().to_string();
        let rest = rest.iter().map(String::as_str);
        let arguments: Vec<&str> = ["--pdeathsig", "KILL", "--", &program].into_iter().chain(rest).collect();
        let (program, arguments) = unprivileged(Path::new("setpriv"), &arguments)?;
        let log = self.directory.join("log");
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        *self.process.lock().await = Some(Process::start("postgres", &program, &arguments, &log)?);
        self.answers().await
    }

    /// Waits until it answers.
    async fn answers(&self) -> Result<()> {
        let deadline = Instant::now() + STARTS;
        let url = self.url(self.address());
        loop {
            let Err(error) = ask(&url).await else { return Ok(()) };
            let ended = self.process.lock().await.as_mut().is_none_or(Process::has_ended);
            if ended || Instant::now() >= deadline {
                let log = std::fs::read_to_string(self.directory.join("log")).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(5).collect();
                return Err(failed("it doesn't answer", format!("{error}; its log ends with {tail:?}")));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// How many sessions it has beside the one that asks; those of a bouncer are counted before it.
    pub(super) async fn sessions(&self) -> Result<usize> {
        const COUNT: &str = "SELECT count(*) FROM pg_stat_activity \
                             WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
        if self.bouncer.is_some() {
            return connections_to(self.address());
        }
        let asked = tokio_postgres::connect(&self.url(self.address()), tokio_postgres::NoTls).await;
        let (client, connection) = asked.map_err(|error| failed("its sessions can't be counted", error))?;
        let count = async {
            let row = client.query_one(COUNT, &[]).await?;
            let count: i64 = row.get(0);
            // The connection ends with its client.
            drop(client);
            Ok::<_, tokio_postgres::Error>(usize::try_from(count).unwrap_or_default())
        };
        let (count, _) = tokio::join!(count, connection);
        count.map_err(|error| failed("its sessions can't be counted", error))
    }

    /// Stops it and starts it again with the same data.
    ///
    /// # Errors
    /// `Unavailable` when it doesn't come back.
    pub async fn restart(&self) -> Result<()> {
        self.shut_down().await;
        self.launch().await
    }

    /// Kills all of its processes without a chance to do anything. It stays down until it is restarted.
    ///
    /// # Errors
    /// `Unavailable` when it doesn't run.
    pub async fn kill(&self) -> Result<()> {
        if let Some(mut process) = self.process.lock().await.take() {
            // One that stands still makes no more children.
            process.freeze()?;
            let children = children(process.pid());
            signal(&children, Signal::KILL);
            process.kill();
            let deadline = Instant::now() + STARTS;
            // A new one must not meet an old one at its data.
            while children.iter().any(|child| lives(*child)) && Instant::now() < deadline {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        Ok(())
    }

    /// Stops all of its processes where they stand.
    ///
    /// # Errors
    /// `Unavailable` when it doesn't run.
    pub async fn freeze(&self) -> Result<()> {
        self.halt(Process::freeze, Signal::STOP).await
    }

    /// Lets them go on.
    ///
    /// # Errors
    /// `Unavailable` when it doesn't run.
    pub async fn thaw(&self) -> Result<()> {
        self.halt(Process::thaw, Signal::CONT).await
    }

    /// Each connection has a process, and each of those a group of its own.
    async fn halt(&self, first: impl Fn(&Process) -> Result<()>, others: Signal) -> Result<()> {
        let process = self.process.lock().await;
        let process = process.as_ref().ok_or_else(|| Error::unavailable("postgres does not run"))?;
        first(process)?;
        signal(&children(process.pid()), others);
        Ok(())
    }

    /// How long its processes have worked, those that have ended too.
    pub async fn processor_time(&self) -> Duration {
        let process = self.process.lock().await;
        let Some(pid) = process.as_ref().map(Process::pid) else { return Duration::ZERO };
        // Children first: one that ends meanwhile is counted twice rather than lost.
        let children: u64 = children(pid).into_iter().map(|child| ticks(child.as_raw_pid(), 2)).sum();
        let own = ticks(pid.cast_signed(), 4);
        // The kernel counts in hundredths of a second, on every machine that Linux runs on today.
        Duration::from_millis((own + children) * 10)
    }

    /// Ends it with a fast shutdown.
    pub async fn shut_down(&self) {
        if let Some(mut process) = self.process.lock().await.take() {
            process.end(Signal::INT);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Killed before its files go.
        drop(self.process.get_mut().take());
        if let Err(error) = std::fs::remove_dir_all(&self.directory) {
            tracing::debug!(%error, "a directory of PostgreSQL stays behind");
        }
    }
}
