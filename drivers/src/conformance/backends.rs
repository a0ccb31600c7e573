//! The backends that this crate brings along, as the suite starts them.

use super::servers::{
    clock::Skew,
    process::{Directory, connections_to},
};
use crate::{
    Driver, DynDriver, Error, ErrorKind, Result, Timestamp,
    embedded::{Clock, Config, Embedded},
    memory::Memory,
    policy::Via,
};
use async_trait::async_trait;
use std::{
    fmt::Debug,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::sync::Mutex;

/// A kind of broker that can be started.
#[async_trait]
pub trait Backend: Debug + Send + Sync {
    /// Its name, as reports use it.
    fn name(&self) -> &'static str;

    /// Starts a broker, or connects to one that runs. Scenarios may share it: their names keep them apart.
    async fn start(&self) -> Result<Arc<dyn Broker>>;

    /// Starts one that no other scenario uses, for those that stop, kill or freeze it.
    async fn start_alone(&self) -> Result<Arc<dyn Broker>> {
        self.start().await
    }
}

/// A broker that runs.
#[async_trait]
pub trait Broker: Debug + Send + Sync {
    /// A handle that shares as little as possible with other handles.
    async fn handle(&self) -> Result<DynDriver>;

    /// Starts another broker of this kind, without data and with nobody else to serve, by whose clock it is `skew` later
    /// than by this machine's.
    ///
    /// # Errors
    /// `Unsupported` when its clock is not ours to choose; `Unavailable` when it can't be started.
    async fn with_clock(&self, skew: Skew) -> Result<Arc<dyn Broker>> {
        Err(Error::new(ErrorKind::Unsupported, format!("this broker can't be had with a clock of {skew:?}")))
    }

    /// The same, reaching the broker through a proxy at `address`. Scenarios break the way there, so its time-outs are
    /// short: a call ends within [`BOUND`](super::BOUND) beside what it asks the broker to wait.
    async fn handle_at(&self, address: SocketAddr) -> Result<DynDriver> {
        let message = format!("network: this broker has none, it can't be reached by way of {address}");
        Err(Error::new(ErrorKind::Unsupported, message))
    }

    /// How another process is told to reach it: as it is, or by way of a proxy at `proxy`. Credentials become files in
    /// `directory`, the same ones at each call.
    ///
    /// # Errors
    /// `Unsupported` when it lives inside this process, or has one address only and `proxy` is another one; `Unavailable`
    /// when a file can't be written.
    fn via(&self, proxy: Option<SocketAddr>, directory: &Path) -> Result<Via> {
        let _ = (proxy, directory);
        Err(Error::new(
            ErrorKind::Unsupported,
            "this broker lives inside a process, nobody else can reach it",
        ))
    }

    /// Where its data and its log are, if it has files of its own.
    fn files(&self) -> Option<PathBuf> {
        None
    }

    /// The same with the time-outs of [`handle`](Self::handle), for scenarios whose connections stand or break at once: a
    /// machine that stands still for a moment loses no answer.
    async fn patient_handle_at(&self, address: SocketAddr) -> Result<DynDriver> {
        self.handle_at(address).await
    }

    /// Whether a pooler stands before it, which keeps connections of its clients when the broker dies.
    fn pooled(&self) -> bool {
        false
    }

    /// Where it listens, the same for as long as it exists. `None` when there is no network before it.
    fn address(&self) -> Option<SocketAddr> {
        None
    }

    /// How many connections its server has beside that of this question, by the server's own word where it gives one; none
    /// where there is no network before it.
    ///
    /// # Errors
    /// `Unavailable` when it can't be found out.
    async fn connections(&self) -> Result<Option<usize>> {
        self.address().map(connections_to).transpose()
    }

    /// Stops it in good order if it runs, and starts it again with the same data.
    async fn restart(&self) -> Result<()>;

    /// Ends it without a chance to do anything (SIGKILL). It stays down until [`Broker::restart`].
    async fn kill(&self) -> Result<()> {
        Err(no_process())
    }

    /// Stops it where it stands (SIGSTOP).
    async fn freeze(&self) -> Result<()> {
        Err(no_process())
    }

    /// Lets it go on (SIGCONT).
    async fn thaw(&self) -> Result<()> {
        Err(no_process())
    }

    /// Stops it and removes its data.
    async fn stop(&self);
}

/// Writes a credential where a process reads it; gives the file's path.
///
/// # Errors
/// `Unavailable` when it can't be written.
pub(super) fn credential(directory: &Path, name: &str, secret: &str) -> Result<String> {
    let path = directory.join(name);
    // Whoever reads it meanwhile finds the one before.
    let fresh = directory.join(format!("{name}.new"));
    std::fs::write(&fresh, secret)
        .and_then(|()| std::fs::rename(&fresh, &path))
        .map_err(|error| Error::unavailable(format!("{} can't be written: {error}", path.display())))?;
    Ok(path.display().to_string())
}

fn no_process() -> Error {
    Error::new(ErrorKind::Unsupported, "process: this broker has none of its own that could fail by itself")
}

/// The backend called `name`, if this crate brings it along.
pub fn by_name(name: &str) -> Option<Arc<dyn Backend>> {
    match name {
        "memory" => Some(Arc::new(InMemory)),
        "embedded" => Some(Arc::new(InFile)),
        "http" => Some(Arc::new(super::http_backend::OverHttp)),
        "redis" => Some(Arc::new(super::servers::redis::OnRedis)),
        "postgres" => Some(Arc::new(super::servers::postgres::LISTENING)),
        "postgres-poll" => Some(Arc::new(super::servers::postgres::POLLING)),
        "postgres-pgbouncer" => Some(Arc::new(super::servers::postgres::BOUNCED)),
        _ => None,
    }
}

#[derive(Debug)]
struct InMemory;

#[async_trait]
impl Backend for InMemory {
    fn name(&self) -> &'static str {
        "memory"
    }

    async fn start(&self) -> Result<Arc<dyn Broker>> {
        Ok(Arc::new(MemoryBroker::new(Skew::NONE)))
    }
}

#[derive(Debug)]
struct MemoryBroker {
    skew: Skew,
    open: Mutex<Arc<Memory>>,
}

impl MemoryBroker {
    fn new(skew: Skew) -> Self {
        Self { skew, open: Mutex::new(Arc::new(Memory::ahead(skew.as_millis()))) }
    }
}

#[async_trait]
impl Broker for MemoryBroker {
    async fn handle(&self) -> Result<DynDriver> {
        Ok(self.open.lock().await.clone())
    }

    async fn with_clock(&self, skew: Skew) -> Result<Arc<dyn Broker>> {
        Ok(Arc::new(Self::new(skew)))
    }

    /// As a process does that kept everything in memory: what comes back is empty.
    async fn restart(&self) -> Result<()> {
        let mut open = self.open.lock().await;
        open.close().await;
        *open = Arc::new(Memory::ahead(self.skew.as_millis()));
        Ok(())
    }

    async fn stop(&self) {
        self.open.lock().await.close().await;
    }
}

#[derive(Debug)]
struct InFile;

#[async_trait]
impl Backend for InFile {
    fn name(&self) -> &'static str {
        "embedded"
    }

    async fn start(&self) -> Result<Arc<dyn Broker>> {
        Ok(Arc::new(FileBroker::start(AHEAD)?))
    }
}

/// The clock of an embedded broker is an hour ahead of that of its callers in all scenarios: nothing may go by theirs.
pub(super) const AHEAD: Skew = Skew::ahead(3600);

/// A clock that is not this machine's.
#[derive(Debug)]
struct Skewed(Skew);

impl Clock for Skewed {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(Timestamp::now().as_millis().saturating_add(self.0.as_millis()))
    }
}

/// An embedded broker in a directory of its own.
#[derive(Debug)]
pub(super) struct FileBroker {
    directory: Directory,
    skew: Skew,
    open: Mutex<Arc<Embedded>>,
}

impl FileBroker {
    pub(super) fn start(skew: Skew) -> Result<Self> {
        let directory = Directory::new("conformance")?;
        let open = Mutex::new(Arc::new(Self::open(directory.path(), skew)?));
        Ok(Self { directory, skew, open })
    }

    fn open(directory: &Path, skew: Skew) -> Result<Embedded> {
        let clock = Arc::new(Skewed(skew));
        Embedded::open(Config { clock, ..Config::new(directory.join("jobs.db")) })
    }
}

#[async_trait]
impl Broker for FileBroker {
    async fn handle(&self) -> Result<DynDriver> {
        Ok(self.open.lock().await.clone())
    }

    async fn with_clock(&self, skew: Skew) -> Result<Arc<dyn Broker>> {
        Ok(Arc::new(Self::start(skew)?))
    }

    async fn restart(&self) -> Result<()> {
        let mut open = self.open.lock().await;
        open.close().await;
        *open = Arc::new(Self::open(self.directory.path(), self.skew)?);
        Ok(())
    }

    async fn stop(&self) {
        self.open.lock().await.close().await;
    }
}
