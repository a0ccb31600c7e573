//! The backends that this crate brings along, as the suite starts them.

use super::servers::process::Directory;
use crate::{
    Driver, DynDriver, Error, ErrorKind, Result, Timestamp,
    embedded::{Clock, Config, Embedded},
    memory::Memory,
};
use async_trait::async_trait;
use std::{fmt::Debug, net::SocketAddr, path::Path, sync::Arc, time::Duration};
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

    /// The same, reaching the broker through a proxy at `address`. Scenarios break the way there, so its time-outs are
    /// short: a call ends within [`BOUND`](super::BOUND) beside what it asks the broker to wait.
    async fn handle_at(&self, address: SocketAddr) -> Result<DynDriver> {
        Err(Error::new(ErrorKind::Unsupported, format!("this broker can't be reached by way of {address}")))
    }

    /// The same with the time-outs of [`handle`](Self::handle), for scenarios whose connections stand or break at once: a
    /// machine that stands still for a moment loses no answer.
    async fn patient_handle_at(&self, address: SocketAddr) -> Result<DynDriver> {
        self.handle_at(address).await
    }

    /// Where it listens, the same for as long as it exists. `None` when there is no network before it.
    fn address(&self) -> Option<SocketAddr> {
        None
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
        Ok(Arc::new(MemoryBroker(Arc::new(Memory::new()))))
    }
}

#[derive(Debug)]
struct MemoryBroker(Arc<Memory>);

#[async_trait]
impl Broker for MemoryBroker {
    async fn handle(&self) -> Result<DynDriver> {
        Ok(self.0.clone())
    }

    async fn restart(&self) -> Result<()> {
        Err(Error::new(ErrorKind::Unsupported, "durability: memory doesn't outlive a restart"))
    }

    async fn stop(&self) {
        self.0.close().await;
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
        Ok(Arc::new(FileBroker::start()?))
    }
}

/// A clock that is an hour ahead of that of the callers: nothing may go by theirs.
#[derive(Debug)]
struct Ahead;

impl Clock for Ahead {
    fn now(&self) -> Timestamp {
        Timestamp::now().after(Duration::from_secs(3600))
    }
}

/// An embedded broker in a directory of its own.
#[derive(Debug)]
pub(super) struct FileBroker {
    directory: Directory,
    open: Mutex<Arc<Embedded>>,
}

impl FileBroker {
    pub(super) fn start() -> Result<Self> {
        let directory = Directory::new("conformance")?;
        let open = Mutex::new(Arc::new(Self::open(directory.path())?));
        Ok(Self { directory, open })
    }

    fn open(directory: &Path) -> Result<Embedded> {
        let clock = Arc::new(Ahead);
        Embedded::open(Config { clock, ..Config::new(directory.join("jobs.db")) })
    }
}

#[async_trait]
impl Broker for FileBroker {
    async fn handle(&self) -> Result<DynDriver> {
        Ok(self.open.lock().await.clone())
    }

    async fn restart(&self) -> Result<()> {
        let mut open = self.open.lock().await;
        open.close().await;
        *open = Arc::new(Self::open(self.directory.path())?);
        Ok(())
    }

    async fn stop(&self) {
        self.open.lock().await.close().await;
    }
}
