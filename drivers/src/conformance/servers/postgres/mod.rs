//! PostgreSQL servers.
//!
//! The first one of a process makes a cluster (`initdb`), the others copy it. A server runs on loopback with a port, a
//! directory and a password of its own, and with the settings that a careful administrator would choose: `fsync` and
//! `synchronous_commit` on.

mod bouncer;
mod programs;
mod server;

pub use programs::{PROGRAMS, programs};
pub use server::Server;

use crate::{
    Driver, DynDriver, Error, ErrorKind, Result,
    conformance::{Backend, Broker, backends::credential, servers::clock::Skew},
    policy::Via,
    postgres::{Postgres, PostgresConfig},
};
use async_trait::async_trait;
use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::{Mutex, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

/// Names a server that runs, to be used instead of own ones.
pub const URL: &str = "LONGSHORE_TEST_POSTGRES_URL";

fn failed(what: &str, why: impl std::fmt::Display) -> Error {
    Error::unavailable(format!("PostgreSQL: {what}: {why}"))
}

/// PostgreSQL as the suite starts it.
#[derive(Debug)]
pub(in crate::conformance) struct OnPostgres {
    name: &'static str,
    listen: bool,
    bouncer: bool,
}

/// The backend that is told of new jobs.
pub(in crate::conformance) const LISTENING: OnPostgres =
    OnPostgres { name: "postgres", listen: true, bouncer: false };
/// The backend that polls.
pub(in crate::conformance) const POLLING: OnPostgres =
    OnPostgres { name: "postgres-poll", listen: false, bouncer: false };
/// The one that does so behind PgBouncer.
pub(in crate::conformance) const BOUNCED: OnPostgres =
    OnPostgres { name: "postgres-pgbouncer", listen: false, bouncer: true };

/// The servers that trials of this process share, with and without a bouncer, and who uses them.
type Shared = (Arc<Server>, Arc<RwLock<()>>);
static SHARED: [Mutex<Option<Shared>>; 2] = [Mutex::const_new(None), Mutex::const_new(None)];

impl OnPostgres {
    async fn server(&self, skew: Skew) -> Result<Server> {
        if self.bouncer {
            Server::start_behind_bouncer(skew).await
        } else {
            Server::start_at(&[], skew).await
        }
    }

    /// One on a server that nobody else uses.
    async fn alone(&self, skew: Skew) -> Result<PostgresBroker> {
        let server = Arc::new(self.server(skew).await?);
        let url = server.url(server.address());
        PostgresBroker::new(&url, self.listen, Some(server), Use::Alone)
    }

    async fn shared(&self) -> Result<Shared> {
        let mut shared = SHARED[usize::from(self.bouncer)].lock().await;
        if let Some(shared) = &*shared {
            return Ok(shared.clone());
        }
        let made = (Arc::new(self.server(Skew::NONE).await?), Arc::default());
        *shared = Some(made.clone());
        Ok(made)
    }
}

#[async_trait]
impl Backend for OnPostgres {
    fn name(&self) -> &'static str {
        self.name
    }

    async fn start(&self) -> Result<Arc<dyn Broker>> {
        if let Ok(url) = std::env::var(URL) {
            if self.bouncer {
                let message = format!("{} starts servers of its own: unset {URL}", self.name);
                return Err(Error::new(ErrorKind::Invalid, message));
            }
            return Ok(Arc::new(PostgresBroker::new(&url, self.listen, None, Use::Alone)?));
        }
        let (server, users) = self.shared().await?;
        let users = Use::Shared { _guard: users.clone().read_owned().await, lock: users };
        let url = server.url(server.address());
        Ok(Arc::new(PostgresBroker::new(&url, self.listen, Some(server), users)?))
    }

    async fn start_alone(&self) -> Result<Arc<dyn Broker>> {
        if std::env::var_os(URL).is_some() {
            let message = format!("a server of its own: the server is the one that {URL} names");
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        Ok(Arc::new(self.alone(Skew::NONE).await?))
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

    async fn with_clock(&self, skew: Skew) -> Result<Arc<dyn Broker>> {
        let server = self.server.as_ref().ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                format!("another clock: the server is the one that {URL} names"),
            )
        })?;
        let (name, bouncer) = ("postgres", server.is_behind_bouncer());
        Ok(Arc::new(OnPostgres { name, listen: self.config.listen, bouncer }.alone(skew).await?))
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
        self.server.as_ref().map(|server| server.directory().to_owned())
    }

    async fn patient_handle_at(&self, address: SocketAddr) -> Result<DynDriver> {
        self.keep(self.config_at(address)?).await
    }

    fn pooled(&self) -> bool {
        self.server.as_ref().is_some_and(|server| server.is_behind_bouncer())
    }

    fn address(&self) -> Option<SocketAddr> {
        self.server.as_ref().map(|server| server.address())
    }

    async fn connections(&self) -> Result<Option<usize>> {
        match &self.server {
            Some(server) => server.sessions().await.map(Some),
            None => Ok(None),
        }
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
