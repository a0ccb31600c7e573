//! PostgreSQL servers.
//!
//! The first one of a process makes a cluster (`initdb`), the others copy it. A server runs on loopback with a port, a
//! directory and a password of its own, and with the settings that a careful administrator would choose: `fsync` and
//! `synchronous_commit` on. PostgreSQL refuses to run as root, so root runs it as `nobody`.

use super::process::{Process, free_port};
use crate::{
    Driver, DynDriver, Error, ErrorKind, Result,
    conformance::{Backend, Broker, backends::credential},
    policy::Via,
    postgres::{Postgres, PostgresConfig},
};
use async_trait::async_trait;
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Mutex, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock},
    time::Instant,
};

/// Names a server that runs, to be used instead of own ones.
pub const URL: &str = "LONGSHORE_TEST_POSTGRES_URL";
/// Where the programs of PostgreSQL are, if not where Debian puts them.
pub const PROGRAMS: &str = "LONGSHORE_TEST_POSTGRES_BIN";
/// Own servers' user and database.
const USER: &str = "postgres";
const PASSWORD: &str = "conformance";
/// How long a server may take until it answers.
const STARTS: Duration = Duration::from_secs(60);

fn failed(what: &str, why: impl std::fmt::Display) -> Error {
    Error::unavailable(format!("PostgreSQL: {what}: {why}"))
}

/// Where the programs of the newest installed PostgreSQL are.
///
/// # Errors
/// `Unavailable` when there is none.
pub fn programs() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os(PROGRAMS) {
        return Ok(PathBuf::from(named));
    }
    let installed = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let versions = installed.filter_map(|entry| {
        let major: u32 = entry.file_name().to_str()?.parse().ok()?;
        let programs = entry.path().join("bin");
        programs.join("initdb").exists().then_some((major, programs))
    });
    versions.max_by_key(|(major, _)| *major).map(|(_, programs)| programs).ok_or_else(|| {
        failed("no server is installed", format!("run e2e/lib/servers/postgres, or set {PROGRAMS} or {URL}"))
    })
}

/// The user to run as, where this one is root.
fn nobody() -> Result<Option<[String; 3]>> {
    let id = |flag: &str, user: &str| -> Result<String> {
        let out = Command::new("id").args([flag, user]).output().map_err(|error| failed("id", error))?;
        Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
    };
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let (user, group) = (id("-u", "nobody")?, id("-g", "nobody")?);
    Ok(Some([format!("--reuid={user}"), format!("--regid={group}"), "--clear-groups".to_owned()]))
}

/// A program and its arguments, as the user that may run it.
fn unprivileged(program: &Path, arguments: &[&str]) -> Result<(PathBuf, Vec<String>)> {
    let arguments = arguments.iter().map(|argument| (*argument).to_owned());
    let Some(user) = nobody()? else { return Ok((program.to_owned(), arguments.collect())) };
    let program = [program.display().to_string()];
    Ok((
        "setpriv".into(),
        user.into_iter().chain(["--".to_owned()]).chain(program).chain(arguments).collect(),
    ))
}

fn done(what: &str, out: std::io::Result<Output>) -> Result<Output> {
    let out = out.map_err(|error| failed(what, error))?;
    if out.status.success() {
        return Ok(out);
    }
    Err(failed(what, String::from_utf8_lossy(&out.stderr)))
}

fn run(program: &Path, arguments: &[&str]) -> Result<Output> {
    let (program, arguments) = unprivileged(program, arguments)?;
    done(&program.display().to_string(), Command::new(&program).args(arguments).current_dir("/").output())
}

/// Gives a directory to the user that runs the server.
fn hand_over(directory: &Path) -> Result<()> {
    if nobody()?.is_some() {
        let path = directory.display().to_string();
        done("chown", Command::new("chown").args(["-R", "nobody:", &path]).output())?;
    }
    Ok(())
}

/// Everything that servers of this process write. It is removed when the process ends, however that happens: a shell
/// waits for the end of a pipe that nobody writes to.
fn base() -> Result<&'static Path> {
    static BASE: OnceLock<Result<(PathBuf, Child)>> = OnceLock::new();
    let made = BASE.get_or_init(|| {
        let path = std::env::temp_dir().join(format!("longshore-postgres-{}", std::process::id()));
        std::fs::create_dir_all(&path).map_err(|error| failed("no directory", error))?;
        let shell = Command::new("sh")
            .args(["-c", "cat > /dev/null; sleep 1; rm -rf \"$0\""])
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|error| failed("no shell", error))?;
        Ok((path, shell))
    });
    made.as_ref().map(|(path, _)| path.as_path()).map_err(Clone::clone)
}

/// A cluster to be copied, made once.
fn template() -> Result<&'static Path> {
    static TEMPLATE: OnceLock<Result<PathBuf>> = OnceLock::new();
    let made = TEMPLATE.get_or_init(|| {
        let directory = base()?.join("template");
        std::fs::create_dir_all(&directory).map_err(|error| failed("no directory", error))?;
        let password = directory.join("password");
        std::fs::write(&password, PASSWORD)
            .map_err(|error| failed("its password can't be written", error))?;
        hand_over(&directory)?;
        let data = directory.join("data");
        let arguments = [
            "--pgdata",
            &data.display().to_string(),
            "--username",
            USER,
            "--pwfile",
            &password.display().to_string(),
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
        ];
        run(&programs()?.join("initdb"), &arguments)?;
        Ok(data)
    });
    made.as_ref().map(PathBuf::as_path).map_err(Clone::clone)
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
    process: Mutex<Option<Process>>,
}

impl Server {
    /// Starts one with an empty database. `settings` go to its command line, as `name=value`.
    ///
    /// # Errors
    /// `Unavailable` when it can't be started.
    pub async fn start(settings: &[&str]) -> Result<Self> {
        static SERVERS: AtomicU64 = AtomicU64::new(0);
        let template = template()?;
        let directory = base()?.join(format!("server-{}", SERVERS.fetch_add(1, Ordering::Relaxed)));
        std::fs::create_dir_all(&directory).map_err(|error| failed("no directory", error))?;
        done("cp", Command::new("cp").arg("-a").arg(template).arg(&directory).output())?;
        hand_over(&directory)?;
        let server = Self { directory, port: free_port()?, process: Mutex::new(None) };
        server.write_settings(settings)?;
        server.launch().await?;
        Ok(server)
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

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// How to reach it there, or at another address that leads there.
    pub fn url(&self, address: SocketAddr) -> String {
        format!("postgres://{USER}:{PASSWORD}@{address}/postgres?sslmode=disable")
    }

    async fn launch(&self) -> Result<()> {
        let data = self.data().display().to_string();
        // Whoever changes its user loses the wish to die with its parent, so it is told again.
        let postgres = programs()?.join("postgres").display().to_string();
        let arguments = ["--pdeathsig", "KILL", "--", &postgres, "-D", &data];
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
            let asked = tokio_postgres::connect(&url, tokio_postgres::NoTls).await;
            let Err(error) = asked else { return Ok(()) };
            let ended = self.process.lock().await.as_mut().is_none_or(Process::has_ended);
            if ended || Instant::now() >= deadline {
                let log = std::fs::read_to_string(self.directory.join("log")).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(5).collect();
                return Err(failed("it doesn't answer", format!("{error}; its log ends with {tail:?}")));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
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

/// PostgreSQL as the suite starts it.
#[derive(Debug)]
pub(in crate::conformance) struct OnPostgres {
    name: &'static str,
    listen: bool,
}

/// The backend that is told of new jobs.
pub(in crate::conformance) const LISTENING: OnPostgres = OnPostgres { name: "postgres", listen: true };
/// The backend that polls, as behind PgBouncer.
pub(in crate::conformance) const POLLING: OnPostgres = OnPostgres { name: "postgres-poll", listen: false };

/// The server that trials of this process share, and who uses it.
async fn shared() -> Result<(Arc<Server>, Arc<RwLock<()>>)> {
    type Shared = (Arc<Server>, Arc<RwLock<()>>);
    static SHARED: Mutex<Option<Shared>> = Mutex::const_new(None);
    let mut shared = SHARED.lock().await;
    if let Some(shared) = &*shared {
        return Ok(shared.clone());
    }
    let made = (Arc::new(Server::start(&[]).await?), Arc::default());
    *shared = Some(made.clone());
    Ok(made)
}

#[async_trait]
impl Backend for OnPostgres {
    fn name(&self) -> &'static str {
        self.name
    }

    async fn start(&self) -> Result<Arc<dyn Broker>> {
        if let Ok(url) = std::env::var(URL) {
            return Ok(Arc::new(PostgresBroker::new(&url, self.listen, None, Use::Alone)?));
        }
        let (server, users) = shared().await?;
        let users = Use::Shared { _guard: users.clone().read_owned().await, lock: users };
        let url = server.url(server.address());
        Ok(Arc::new(PostgresBroker::new(&url, self.listen, Some(server), users)?))
    }

    async fn start_alone(&self) -> Result<Arc<dyn Broker>> {
        if std::env::var_os(URL).is_some() {
            let message = format!("a server of its own: the server is the one that {URL} names");
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        let server = Arc::new(Server::start(&[]).await?);
        let url = server.url(server.address());
        Ok(Arc::new(PostgresBroker::new(&url, self.listen, Some(server), Use::Alone)?))
    }
}

/// Who else uses a server. Faults are for those who have it for themselves: they wait for the others to end.
#[derive(Debug)]
enum Use {
    Shared { lock: Arc<RwLock<()>>, _guard: OwnedRwLockReadGuard<()> },
    Exclusive { _guard: OwnedRwLockWriteGuard<()> },
    Alone,
}

fn one_address() -> Error {
    Error::new(ErrorKind::Unsupported, format!("the server that {URL} names has one address"))
}

/// A schema on a server.
struct PostgresBroker {
    /// `None` for a server of somebody else.
    server: Option<Arc<Server>>,
    url: String,
    config: PostgresConfig,
    users: Mutex<Use>,
    handles: Mutex<Vec<Arc<Postgres>>>,
}

impl fmt::Debug for PostgresBroker {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("PostgresBroker").field("config", &self.config).finish_non_exhaustive()
    }
}

impl PostgresBroker {
    fn new(url: &str, listen: bool, server: Option<Arc<Server>>, users: Use) -> Result<Self> {
        static SCHEMAS: AtomicU64 = AtomicU64::new(0);
        let mut config = PostgresConfig::new(url)?;
        config.listen = listen;
        config.schema =
            format!("conformance_{}_{}", std::process::id(), SCHEMAS.fetch_add(1, Ordering::Relaxed));
        let url = url.to_owned();
        Ok(Self { server, url, config, users: Mutex::new(users), handles: Mutex::default() })
    }

    /// The server, once nobody else uses it.
    async fn alone(&self) -> Result<&Server> {
        let server = self.server.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, format!("the server that {URL} names is not to be disturbed"))
        })?;
        let mut users = self.users.lock().await;
        if let Use::Shared { lock, .. } = &*users {
            let lock = lock.clone();
            // Two who want it alone must not wait for each other.
            *users = Use::Alone;
            *users = Use::Exclusive { _guard: lock.write_owned().await };
        }
        Ok(server)
    }

    /// What leads to it by way of another address.
    fn config_at(&self, address: SocketAddr) -> Result<PostgresConfig> {
        let server = self.server.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, format!("the server that {URL} names has one address"))
        })?;
        let mut config = PostgresConfig::new(&server.url(address))?;
        config.listen = self.config.listen;
        config.schema.clone_from(&self.config.schema);
        Ok(config)
    }

    async fn keep(&self, config: PostgresConfig) -> Result<DynDriver> {
        let driver = Arc::new(Postgres::new(config)?);
        self.handles.lock().await.push(driver.clone());
        Ok(driver)
    }

    async fn remove_schema(&self) -> Result<()> {
        let driver = Postgres::new(self.config.clone())?;
        driver.remove_schema().await
    }
}

#[async_trait]
impl Broker for PostgresBroker {
    async fn handle(&self) -> Result<DynDriver> {
        let driver = self.keep(self.config.clone()).await?;
        // Scenarios begin on a broker whose operator was there.
        driver.probe().await?;
        Ok(driver)
    }

    async fn handle_at(&self, address: SocketAddr) -> Result<DynDriver> {
        let mut config = self.config_at(address)?;
        // Scenarios break the way there; a call takes two attempts to connect and two answers at most.
        (config.connects, config.answers) = (Duration::from_secs(1), Duration::from_millis(1500));
        self.keep(config).await
    }

    fn via(&self, proxy: Option<SocketAddr>, directory: &Path) -> Result<Via> {
        let url = match (&self.server, proxy) {
            (_, None) => self.url.clone(),
            (Some(server), Some(proxy)) => server.url(proxy),
            (None, Some(_)) => return Err(one_address()),
        };
        let url_file = credential(directory, "broker-url", &url)?;
        let (schema, listen) = (self.config.schema.clone(), self.config.listen);
        Ok(Via::Postgres { url_file, ca_file: None, schema, listen })
    }

    fn files(&self) -> Option<PathBuf> {
        self.server.as_ref().map(|server| server.directory.clone())
    }

    async fn patient_handle_at(&self, address: SocketAddr) -> Result<DynDriver> {
        self.keep(self.config_at(address)?).await
    }

    fn address(&self) -> Option<SocketAddr> {
        self.server.as_ref().map(|server| server.address())
    }

    async fn kill(&self) -> Result<()> {
        self.alone().await?.kill().await
    }

    async fn freeze(&self) -> Result<()> {
        self.alone().await?.freeze().await
    }

    async fn thaw(&self) -> Result<()> {
        self.alone().await?.thaw().await
    }

    async fn restart(&self) -> Result<()> {
        self.alone().await?.restart().await
    }

    async fn stop(&self) {
        for driver in std::mem::take(&mut *self.handles.lock().await) {
            driver.close().await;
        }
        if let Err(error) = self.remove_schema().await {
            tracing::debug!(%error, "a schema of the conformance suite stays behind");
        }
    }
}
