//! The backends that this crate brings along, as the suite starts them.

use crate::{
    Driver, DynDriver, Error, ErrorKind, Result,
    embedded::{Config, Embedded},
    memory::Memory,
};
use async_trait::async_trait;
use std::{
    fmt::Debug,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::Mutex;

/// A kind of broker that can be started.
#[async_trait]
pub trait Backend: Debug + Send + Sync {
    /// Its name, as reports use it.
    fn name(&self) -> &'static str;

    /// Starts a broker, or connects to one that runs.
    async fn start(&self) -> Result<Arc<dyn Broker>>;
}

/// A broker that runs.
#[async_trait]
pub trait Broker: Debug + Send + Sync {
    /// A handle that shares as little as possible with other handles.
    async fn handle(&self) -> Result<DynDriver>;

    /// Stops it and starts it again with the same data.
    async fn restart(&self) -> Result<()>;

    /// Stops it and removes its data.
    async fn stop(&self);
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

/// An embedded broker in a directory of its own.
#[derive(Debug)]
pub(super) struct FileBroker {
    directory: PathBuf,
    open: Mutex<Arc<Embedded>>,
}

impl FileBroker {
    pub(super) fn start() -> Result<Self> {
        static BROKERS: AtomicU64 = AtomicU64::new(0);
        let number = BROKERS.fetch_add(1, Ordering::Relaxed);
        let name = format!("longshore-conformance-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory)
            .map_err(|error| Error::unavailable(format!("{} can't be made: {error}", directory.display())))?;
        let open = Mutex::new(Arc::new(Self::open(&directory)?));
        Ok(Self { directory, open })
    }

    fn open(directory: &std::path::Path) -> Result<Embedded> {
        Embedded::open(Config::new(directory.join("jobs.db")))
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
        *open = Arc::new(Self::open(&self.directory)?);
        Ok(())
    }

    async fn stop(&self) {
        self.open.lock().await.close().await;
        if let Err(error) = std::fs::remove_dir_all(&self.directory) {
            tracing::debug!(%error, "a directory of the conformance suite stays behind");
        }
    }
}
