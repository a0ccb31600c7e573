//! What an embedded broker is told when it is opened.

use crate::Timestamp;
use std::{fmt::Debug, path::PathBuf, sync::Arc, time::Duration};

/// Where time comes from. It may jump; the broker's own time follows it forwards only, and goes on while it is behind.
pub trait Clock: Debug + Send + Sync + 'static {
    /// The present instant.
    fn now(&self) -> Timestamp;
}

/// The wall clock of this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}

/// The configuration of an embedded broker.
#[derive(Debug, Clone)]
pub struct Config {
    /// The database file. Its directory must exist, on a local file system.
    pub path: PathBuf,
    /// Where time comes from.
    pub clock: Arc<dyn Clock>,
    /// Memory for database pages.
    pub cache: usize,
    /// How long to wait for another process that still has the file open.
    pub lock_wait: Duration,
    /// How long leases hold at least after the start. Nobody could extend one while the broker was away, and the work
    /// under it went on.
    pub lease_grace: Duration,
}

impl Config {
    /// The usual configuration for the database in `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            clock: Arc::new(SystemClock),
            cache: 64 * 1024 * 1024,
            lock_wait: Duration::from_secs(2),
            lease_grace: Duration::from_secs(10),
        }
    }
}
