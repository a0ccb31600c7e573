//! A driver whose credentials are files that somebody changes while it runs.

use super::Credentials;
use crate::{
    Address, Capabilities, Claim, Claimed, CompletionPage, CompletionReceipt, Declaration, Declared, Driver,
    DynDriver, Enqueued, Error, ErrorKind, Extension, JobId, JobPage, JobRecord, JobState, ListJobs, NewJob,
    Owner, Payload, Probe, QueueName, QueueStats, ReadCompletions, Receipt, Result, Settlement, WakeStream,
};
use async_trait::async_trait;
use std::{
    fmt, fs,
    io::Read,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// The files are looked at again after this long, and whenever the server refused what stood in them.
const REFRESH: Duration = Duration::from_mins(1);
/// How long the server may take to say whether it takes new credentials.
const TRY: Duration = Duration::from_secs(5);
/// Calls that are under way on a connection that was replaced get this long to end.
const RETIRE: Duration = Duration::from_secs(60);
/// No Secret is larger.
const MAX_FILE: u64 = 1 << 20;

/// Where the credentials are.
#[derive(Debug, Clone)]
pub(super) struct Files {
    url: PathBuf,
    ca: Option<PathBuf>,
}

impl Files {
    pub(super) fn new(url: &str, ca: Option<&str>) -> Self {
        Self { url: url.into(), ca: ca.map(Into::into) }
    }

    /// What stands in the files. They are small and in the node's memory: not worth a thread.
    fn read(&self) -> Result<Credentials> {
        let unusable = || Error::invalid(format!("the file {} holds no URL", self.url.display()));
        let url = String::from_utf8(read(&self.url)?).map_err(|_| unusable())?;
        let url = url.trim();
        if url.is_empty() {
            return Err(unusable());
        }
        Ok(Credentials { url: url.to_owned(), ca: self.ca.as_deref().map(read).transpose()? })
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes));
    read.map(|_| bytes).map_err(|error| {
        let message = format!("the file {} can't be read: {error}", path.display());
        Error::new(ErrorKind::Unauthorized, message)
    })
}

/// Makes a driver from credentials.
pub(super) type Opener = Box<dyn Fn(&Credentials) -> Result<DynDriver> + Send + Sync>;

/// A driver that is replaced when its credentials change. A call that the server refuses is repeated with the new ones, if
/// there are new ones; while it refuses nothing, new ones have to prove themselves before they replace what works. Receipts
/// hold across the change, as they belong to the jobs.
pub(super) struct Renewing {
    shared: Arc<Shared>,
    /// Those of the first driver; they don't depend on credentials.
    capabilities: Capabilities,
}

struct Shared {
    files: Files,
    opener: Opener,
    current: Mutex<Current>,
}

struct Current {
    driver: DynDriver,
    credentials: Credentials,
    looked_at: Instant,
    closed: bool,
}

impl fmt::Debug for Renewing {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Renewing").field("files", &self.shared.files).finish_non_exhaustive()
    }
}

impl Renewing {
    /// A driver made from what stands in `files` now.
    pub(super) fn open(files: Files, opener: Opener) -> Result<Self> {
        let credentials = files.read()?;
        let driver = opener(&credentials)?;
        let capabilities = driver.capabilities().clone();
        let current = Current { driver, credentials, looked_at: Instant::now(), closed: false };
        let shared = Shared { files, opener, current: Mutex::new(current) };
        Ok(Self { shared: Arc::new(shared), capabilities })
    }

    /// The driver to use now.
    fn driver(&self) -> DynDriver {
        let mut current = self.shared.lock();
        if current.looked_at.elapsed() >= REFRESH && !current.closed {
            current.looked_at = Instant::now();
            let shared = self.shared.clone();
            tokio::spawn(async move { shared.try_out().await });
        }
        current.driver.clone()
    }

    /// Makes a call, and makes it again if it was refused for credentials that changed.
    async fn call<T, F>(&self, call: impl Fn(DynDriver) -> F + Send + Sync) -> Result<T>
    where
        T: Send,
        F: Future<Output = Result<T>> + Send,
    {
        let driver = self.driver();
        match call(driver.clone()).await {
            Err(error) if error.kind == ErrorKind::Unauthorized => match self.shared.after(&driver) {
                Some(renewed) => call(renewed).await,
                None => Err(error),
            },
            answer => answer,
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another driver than `refused`, if there is one by now.
    fn after(&self, refused: &DynDriver) -> Option<DynDriver> {
        let mut current = self.lock();
        if Arc::ptr_eq(&current.driver, refused) {
            self.look(&mut current);
        }
        Some(current.driver.clone()).filter(|driver| !Arc::ptr_eq(driver, refused))
    }

    /// Replaces a driver that was refused if its credentials changed; what can't be read or used changes nothing.
    fn look(&self, current: &mut Current) {
        current.looked_at = Instant::now();
        if let Some((driver, credentials)) = self.renewed(current) {
            current.replace(&driver, credentials);
        }
    }

    /// Replaces a driver that works if its credentials changed and the server takes them. Somebody may have mistyped them.
    async fn try_out(&self) {
        let renewed = self.renewed(&self.lock());
        let Some((driver, credentials)) = renewed else { return };
        let problem = match tokio::time::timeout(TRY, driver.probe()).await {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_elapsed) => Some(format!("no answer within {TRY:?}")),
        };
        if let Some(problem) = problem {
            tracing::warn!(problem, "the broker does not take its new credentials: keeping the old ones");
        } else if self.lock().replace(&driver, credentials) {
            return;
        }
        driver.close().await;
    }

    /// What stands in the files, and a driver made from it, if it is something else than what is used.
    fn renewed(&self, current: &Current) -> Option<(DynDriver, Credentials)> {
        if current.closed {
            return None;
        }
        let renewed = self.files.read().and_then(|credentials| {
            let changed = credentials != current.credentials;
            let driver = changed.then(|| (self.opener)(&credentials)).transpose()?;
            Ok(driver.map(|driver| (driver, credentials)))
        });
        renewed.unwrap_or_else(|error| {
            tracing::warn!(%error, "the broker's credentials can't be renewed");
            None
        })
    }
}

impl Current {
    /// Whether it was; after the end it isn't.
    fn replace(&mut self, driver: &DynDriver, credentials: Credentials) -> bool {
        if self.closed {
            return false;
        }
        tracing::info!("the broker's credentials changed: connecting anew");
        retire(std::mem::replace(&mut self.driver, driver.clone()));
        self.credentials = credentials;
        true
    }
}

/// Closes a driver once the calls on it have ended.
fn retire(driver: DynDriver) {
    tokio::spawn(async move {
        tokio::time::sleep(RETIRE).await;
        driver.close().await;
    });
}

/// A call whose arguments are needed again if it is repeated.
macro_rules! pass_on {
    ($self:ident . $call:ident ( $($borrowed:ident),* ; $($owned:ident),* )) => {
        $self
            .call(|driver| {
                $(let $owned = $owned.clone();)*
                async move { driver.$call($($borrowed,)* $($owned),*).await }
            })
            .await
    };
}

#[async_trait]
impl Driver for Renewing {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn probe(&self) -> Result<Probe> {
        pass_on!(self.probe(;))
    }

    async fn declare(&self, queue: &QueueName, declaration: Declaration) -> Result<Declared> {
        pass_on!(self.declare(queue; declaration))
    }

    async fn delete_queue(&self, queue: &QueueName, owner: &Owner) -> Result<()> {
        pass_on!(self.delete_queue(queue, owner;))
    }

    async fn enqueue(&self, queue: &QueueName, jobs: Vec<NewJob>) -> Result<Vec<Result<Enqueued>>> {
        pass_on!(self.enqueue(queue; jobs))
    }

    async fn claim(&self, queue: &QueueName, claim: Claim) -> Result<Vec<Claimed>> {
        pass_on!(self.claim(queue; claim))
    }

    async fn extend(
        &self,
        queue: &QueueName,
        receipts: Vec<Receipt>,
        lease: Duration,
    ) -> Result<Vec<Result<Extension>>> {
        pass_on!(self.extend(queue; receipts, lease))
    }

    async fn settle(&self, queue: &QueueName, settlements: Vec<Settlement>) -> Result<Vec<Result<()>>> {
        pass_on!(self.settle(queue; settlements))
    }

    async fn stats(&self, queue: &QueueName) -> Result<QueueStats> {
        pass_on!(self.stats(queue;))
    }

    async fn wake(&self) -> Result<WakeStream> {
        pass_on!(self.wake(;))
    }

    async fn completions(&self, address: &Address, read: ReadCompletions) -> Result<CompletionPage> {
        pass_on!(self.completions(address; read))
    }

    async fn acknowledge(&self, address: &Address, receipts: Vec<CompletionReceipt>) -> Result<()> {
        pass_on!(self.acknowledge(address; receipts))
    }

    async fn unpin(&self, queue: &QueueName, ids: Vec<JobId>) -> Result<()> {
        pass_on!(self.unpin(queue; ids))
    }

    async fn results(&self, queue: &QueueName, ids: Vec<JobId>) -> Result<Vec<Option<Payload>>> {
        pass_on!(self.results(queue; ids))
    }

    async fn inspect(&self, queue: &QueueName, id: &JobId) -> Result<Option<JobRecord>> {
        pass_on!(self.inspect(queue, id;))
    }

    async fn list(&self, queue: &QueueName, list: ListJobs) -> Result<JobPage> {
        pass_on!(self.list(queue; list))
    }

    async fn cancel(&self, queue: &QueueName, ids: Vec<JobId>) -> Result<Vec<Result<JobState>>> {
        pass_on!(self.cancel(queue; ids))
    }

    async fn redrive(&self, queue: &QueueName, ids: Vec<JobId>) -> Result<Vec<Result<()>>> {
        pass_on!(self.redrive(queue; ids))
    }

    async fn purge(&self, queue: &QueueName, state: JobState, limit: u32) -> Result<u64> {
        pass_on!(self.purge(queue; state, limit))
    }

    async fn close(&self) {
        let driver = {
            let mut current = self.shared.lock();
            current.closed = true;
            current.driver.clone()
        };
        driver.close().await;
    }
}

#[cfg(test)]
#[cfg(all(feature = "memory", feature = "http-client", feature = "http-server"))]
#[path = "renewing_tests.rs"]
mod tests;
