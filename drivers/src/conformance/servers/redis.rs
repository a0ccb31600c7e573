//! A Redis server of our own, or one that somebody names with `LONGSHORE_TEST_REDIS_URL`.

use super::process::{Directory, Process, free_port};
use crate::{
    DynDriver, Error, ErrorKind, Result,
    conformance::{Backend, Broker},
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
/// What the suite's servers keep: what was acknowledged survives them.
const DURABLE: &[&str] = &["--appendonly", "yes", "--appendfsync", "everysec"];

/// The backend `redis`.
#[derive(Debug)]
pub struct OnRedis;

impl OnRedis {
    /// A server that nobody else uses.
    ///
    /// # Errors
    /// `Unavailable` when it can't be started; `Unsupported` where a server was named.
    pub async fn start_alone(&self) -> Result<Arc<dyn Broker>> {
        if std::env::var_os(URL).is_some() {
            return Err(unsupported("a server of its own"));
        }
        Ok(Arc::new(RedisBroker::start(DURABLE).await?))
    }
}

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

    async fn restart(&self) -> Result<()> {
        Err(unsupported("a restart"))
    }

    async fn stop(&self) {}
}

#[derive(Debug)]
struct Shared(RedisBroker);

/// A part in a shared server, which ends with the last one. A restart is everybody's: drivers reconnect by themselves.
#[derive(Debug)]
struct Share(Arc<Shared>);

#[async_trait]
impl Broker for Share {
    async fn handle(&self) -> Result<DynDriver> {
        self.0.0.handle().await
    }

    async fn restart(&self) -> Result<()> {
        self.0.0.restart().await
    }

    async fn stop(&self) {}
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
    process: Mutex<Option<Process>>,
}

impl RedisBroker {
    /// Starts a server with these arguments, and waits until it answers.
    ///
    /// # Errors
    /// `Unavailable` when it can't be started.
    pub async fn start(settings: &[&str]) -> Result<Self> {
        let directory = Directory::new("redis")?;
        let settings = settings.iter().map(|&setting| setting.to_owned()).collect();
        let broker = Self { directory, port: free_port()?, settings, process: Mutex::default() };
        broker.run(&mut *broker.process.lock().await).await?;
        Ok(broker)
    }

    async fn run(&self, process: &mut Option<Process>) -> Result<()> {
        let (port, directory) = (self.port.to_string(), self.directory.path().display().to_string());
        let mut arguments = vec!["--port", &port, "--bind", "127.0.0.1", "--dir", &directory, "--save", ""];
        arguments.extend(["--daemonize", "no", "--enable-debug-command", "local"]);
        arguments.extend(self.settings.iter().map(String::as_str));
        let log = self.directory.path().join("log");
        let mut started = Process::start("redis-server", &program()?, &arguments, &log)?;
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

    /// A handle that reaches the server at `address`, where somebody passes on what is sent.
    ///
    /// # Errors
    /// None, as things are.
    #[expect(clippy::unused_async, reason = "the signature that all brokers share")]
    pub async fn handle_at(&self, address: SocketAddr) -> Result<DynDriver> {
        connect(RedisConfig::new(&format!("redis://{address}"))?)
    }

    /// Where it listens.
    pub fn address(&self) -> Option<SocketAddr> {
        Some(SocketAddr::from((Ipv4Addr::LOCALHOST, self.port)))
    }

    /// Kills it where it stands (SIGKILL) and starts it again with what is on its disk.
    ///
    /// # Errors
    /// `Unavailable` when it doesn't start again.
    pub async fn kill(&self) -> Result<()> {
        let mut process = self.process.lock().await;
        if let Some(mut running) = process.take() {
            running.kill();
        }
        self.run(&mut process).await
    }

    /// Stops it where it stands (SIGSTOP): connections stay, nothing is answered.
    ///
    /// # Errors
    /// `Unavailable` when it doesn't run.
    pub async fn freeze(&self) -> Result<()> {
        let process = self.process.lock().await;
        process.as_ref().ok_or_else(|| Error::unavailable("redis-server does not run"))?.freeze()
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// `Unavailable` when it doesn't run.
    pub async fn thaw(&self) -> Result<()> {
        let process = self.process.lock().await;
        process.as_ref().ok_or_else(|| Error::unavailable("redis-server does not run"))?.thaw()
    }
}

#[async_trait]
impl Broker for RedisBroker {
    async fn handle(&self) -> Result<DynDriver> {
        connect(RedisConfig::new(&self.url())?)
    }

    async fn restart(&self) -> Result<()> {
        let mut process = self.process.lock().await;
        if let Some(mut running) = process.take() {
            tokio::task::spawn_blocking(move || running.end(Signal::TERM))
                .await
                .map_err(|_| Error::unavailable("redis-server could not be stopped"))?;
        }
        self.run(&mut process).await
    }

    async fn stop(&self) {
        if let Some(mut running) = self.process.lock().await.take() {
            running.kill();
        }
    }
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
