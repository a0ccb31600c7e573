//! A Redis server of our own, or one that somebody names with `LONGSHORE_TEST_REDIS_URL`.

use super::{
    clock::Skew,
    process::{Directory, Process, free_port},
};
use crate::{
    DynDriver, Error, ErrorKind, Result,
    conformance::{Backend, Broker, backends::credential},
    policy::Via,
    redis::{Redis, RedisConfig},
};
use async_trait::async_trait;
use rustix::process::Signal;
use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::{Duration, Instant},
};
use tokio::sync::Mutex;

/// Names a server to use instead of one of our own.
const URL: &str = "LONGSHORE_TEST_REDIS_URL";
/// Names the program, where it is not found by itself.
const PROGRAM: &str = "LONGSHORE_REDIS_SERVER";
/// How long a server may take to start.
const STARTS: Duration = Duration::from_secs(20);
/// What was acknowledged survives these. With `everysec` a server acknowledges up to two seconds of writes that it holds in
/// its own memory while it waits for the disk.
const DURABLE: &[&str] = &["--appendonly", "yes", "--appendfsync", "always"];

/// The backend `redis`.
#[derive(Debug)]
pub struct OnRedis;

#[async_trait]
impl Backend for OnRedis {
    fn name(&self) -> &'static str {
        "redis"
    }

    /// All who use it at the same time share one server.
    async fn start(&self) -> Result<Arc<dyn Broker>> {
        static SHARED: Mutex<Weak<Shared>> = Mutex::const_new(Weak::new());
        if let Ok(url) = std::env::var(URL) {
            return Ok(Arc::new(Named(url)));
        }
        let mut shared = SHARED.lock().await;
        let broker = match shared.upgrade() {
            Some(broker) => broker,
            None => Arc::new(Shared(RedisBroker::start(DURABLE).await?)),
        };
        *shared = Arc::downgrade(&broker);
        Ok(Arc::new(Share(broker)))
    }

    async fn start_alone(&self) -> Result<Arc<dyn Broker>> {
        if let Ok(url) = std::env::var(URL) {
            return Ok(Arc::new(Named(url)));
        }
        Ok(Arc::new(RedisBroker::start(DURABLE).await?))
    }
}

fn unsupported(what: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("{what}: the server is the one that {URL} names"))
}

/// A server that somebody named. It is left as it is.
#[derive(Debug)]
struct Named(String);

#[async_trait]
impl Broker for Named {
    async fn handle(&self) -> Result<DynDriver> {
        connect(RedisConfig::new(&self.0)?)
    }

    fn via(&self, proxy: Option<SocketAddr>, directory: &Path) -> Result<Via> {
        if proxy.is_some() {
            return Err(unsupported("a way there that can be broken"));
        }
        via(&self.0, directory)
    }

    async fn restart(&self) -> Result<()> {
        Err(unsupported("a restart"))
    }

    async fn stop(&self) {}
}

#[derive(Debug)]
struct Shared(RedisBroker);

/// A part in a shared server, which ends with the last one.
#[derive(Debug)]
struct Share(Arc<Shared>);

#[async_trait]
impl Broker for Share {
    async fn handle(&self) -> Result<DynDriver> {
        self.0.0.handle().await
    }

    async fn with_clock(&self, skew: Skew) -> Result<Arc<dyn Broker>> {
        self.0.0.with_clock(skew).await
    }

    fn via(&self, proxy: Option<SocketAddr>, directory: &Path) -> Result<Via> {
        self.0.0.via(proxy, directory)
    }

    async fn restart(&self) -> Result<()> {
        Err(Error::new(ErrorKind::Unsupported, "a restart: others use the same server"))
    }

    async fn stop(&self) {}
}

/// What a process is told, and the file that it reads.
fn via(url: &str, directory: &Path) -> Result<Via> {
    let prefix = RedisConfig::new(url)?.prefix;
    Ok(Via::Redis { url_file: credential(directory, "broker-url", url)?, ca_file: None, prefix })
}

fn connect(config: RedisConfig) -> Result<DynDriver> {
    Ok(Arc::new(Redis::new(config)?))
}

/// A server with a directory and a port of its own.
#[derive(Debug)]
pub struct RedisBroker {
    directory: Directory,
    port: u16,
    settings: Vec<String>,
    skew: Skew,
    process: Mutex<Option<Process>>,
}

impl RedisBroker {
    /// Starts a server with these arguments, and waits until it answers.
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
        let directory = Directory::new("redis")?;
        let settings = settings.iter().map(|&setting| setting.to_owned()).collect();
        let broker = Self { directory, port: free_port()?, settings, skew, process: Mutex::default() };
        broker.run(&mut *broker.process.lock().await).await?;
        Ok(broker)
    }

    async fn run(&self, process: &mut Option<Process>) -> Result<()> {
        let (port, directory) = (self.port.to_string(), self.directory.path().display().to_string());
        let mut arguments = vec!["--port", &port, "--bind", "127.0.0.1", "--dir", &directory, "--save", ""];
        arguments.extend(["--daemonize", "no", "--enable-debug-command", "local"]);
        arguments.extend(self.settings.iter().map(String::as_str));
        let (log, program) = (self.directory.path().join("log"), program()?);
        let command = self.skew.command(&program, &arguments, self.directory.path())?;
        let arguments: Vec<&str> = command.1.iter().map(String::as_str).collect();
        let mut started = Process::start("redis-server", &command.0, &arguments, &log)?;
        let deadline = Instant::now() + STARTS;
        while !self.answers().await {
            if started.has_ended() || Instant::now() > deadline {
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                let last = said.lines().last().unwrap_or_default();
                return Err(Error::unavailable(format!("redis-server doesn't start: {last}")));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        *process = Some(started);
        Ok(())
    }

    /// Whether the server answers and has its data.
    async fn answers(&self) -> bool {
        let Ok(client) = redis::Client::open(self.url()) else { return false };
        let ask = async {
            let mut connection = client.get_multiplexed_async_connection().await?;
            redis::cmd("PING").query_async::<String>(&mut connection).await
        };
        let answer = tokio::time::timeout(Duration::from_secs(1), ask).await;
        matches!(answer, Ok(Ok(pong)) if pong == "PONG")
    }

    /// Where it is, as drivers are told.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// The directory of its data.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// How many clients it has beside the one that asks.
    async fn clients(&self) -> redis::RedisResult<usize> {
        let mut connection = redis::Client::open(self.url())?.get_multiplexed_async_connection().await?;
        let list: String = redis::cmd("CLIENT").arg("LIST").query_async(&mut connection).await?;
        Ok(list.lines().count().saturating_sub(1))
    }

    /// Does something to the process that runs.
    async fn with(&self, what: impl FnOnce(&Process) -> Result<()>) -> Result<()> {
        let process = self.process.lock().await;
        process.as_ref().map_or_else(|| Err(Error::unavailable("redis-server does not run")), what)
    }

    /// Ends the process if it runs.
    async fn end(&self, how: fn(&mut Process)) {
        if let Some(mut running) = self.process.lock().await.take() {
            // It is gone afterwards, also when the thread that waits for it is not heard of.
            let _ = tokio::task::spawn_blocking(move || how(&mut running)).await;
        }
    }
}

#[async_trait]
impl Broker for RedisBroker {
    async fn handle(&self) -> Result<DynDriver> {
        connect(RedisConfig::new(&self.url())?)
    }

    async fn with_clock(&self, skew: Skew) -> Result<Arc<dyn Broker>> {
        let settings: Vec<&str> = self.settings.iter().map(String::as_str).collect();
        Ok(Arc::new(Self::start_at(&settings, skew).await?))
    }

    async fn handle_at(&self, address: SocketAddr) -> Result<DynDriver> {
        let patience = Duration::from_secs(2);
        let mut config = RedisConfig::new(&format!("redis://{address}"))?;
        (config.connects, config.answers) = (patience, patience);
        connect(config)
    }

    fn via(&self, proxy: Option<SocketAddr>, directory: &Path) -> Result<Via> {
        match proxy {
            Some(proxy) => via(&format!("redis://{proxy}"), directory),
            None => via(&self.url(), directory),
        }
    }

    fn files(&self) -> Option<PathBuf> {
        Some(self.directory.path().to_owned())
    }

    async fn patient_handle_at(&self, address: SocketAddr) -> Result<DynDriver> {
        connect(RedisConfig::new(&format!("redis://{address}"))?)
    }

    fn address(&self) -> Option<SocketAddr> {
        Some(SocketAddr::from((Ipv4Addr::LOCALHOST, self.port)))
    }

    async fn connections(&self) -> Result<Option<usize>> {
        let clients = self.clients().await;
        clients
            .map(Some)
            .map_err(|error| Error::unavailable(format!("its clients can't be counted: {error}")))
    }

    async fn restart(&self) -> Result<()> {
        self.end(|process| {
            // One that stands can't end.
            let _ = process.thaw();
            process.end(Signal::TERM);
        })
        .await;
        self.run(&mut *self.process.lock().await).await
    }

    async fn kill(&self) -> Result<()> {
        self.end(Process::kill).await;
        Ok(())
    }

    async fn freeze(&self) -> Result<()> {
        self.with(Process::freeze).await
    }

    async fn thaw(&self) -> Result<()> {
        self.with(Process::thaw).await
    }

    async fn stop(&self) {
        self.end(Process::kill).await;
    }
}

/// The folder of the server's program, which has `redis-cli` too.
///
/// # Errors
/// `Unavailable` when there is none.
pub fn programs() -> Result<PathBuf> {
    Ok(program()?.parent().map(Path::to_owned).unwrap_or_default())
}

/// Where the server's program is: named, in the cache that `e2e/lib/servers/redis` fills, or on the path.
fn program() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os(PROGRAM) {
        return Ok(named.into());
    }
    let cache = std::env::var_os("LONGSHORE_CACHE")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache/longshore")));
    let cached = cache.map(|cache| cache.join("servers/redis/bin/redis-server"));
    let on_path = std::env::var_os("PATH").into_iter().flat_map(|path| {
        std::env::split_paths(&path).map(|folder| folder.join("redis-server")).collect::<Vec<_>>()
    });
    cached.into_iter().chain(on_path).find(|program| program.exists()).ok_or_else(|| {
        Error::unavailable(format!(
            "there is no redis-server: run e2e/lib/servers/redis, or name one with {PROGRAM}"
        ))
    })
}
