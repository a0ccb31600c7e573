//! Any driver on the network.
//!
//! The routes are data ([`ROUTES`]) in four groups, so that the broker mounts all of them and a sidecar only those of
//! its local API, with its own names for queues: see [`Directory`].
//!
//! What comes from the network is bounded before it is looked at: connections, heads, bodies, the bytes of all bodies
//! together, and the time a request may take. So is what goes out: the bytes of a response and of all of them together.

mod answer;
mod auth;
mod body;
mod claim;
mod extract;
mod handlers;
mod health;
mod routes;
mod serve;
mod wake;

pub use auth::{Tokens, protect};
pub use health::health_routes;
pub use routes::{Group, ROUTES, Route, Verb};
pub use serve::{ServeLimits, serve};

use crate::{DynDriver, Error, ErrorKind, QueueName, Result};
use axum::Router;
use std::{fmt::Debug, sync::Arc, time::Duration};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// Leads from the name in a path to a queue.
pub trait Directory: Debug + Send + Sync + 'static {
    /// The driver and the physical name of the queue that this API calls `name`.
    ///
    /// # Errors
    /// `NotFound` for a name that it doesn't know, `Invalid` for one that can't exist.
    fn find(&self, name: &str) -> Result<(DynDriver, QueueName)>;

    /// The broker behind the routes that are about no queue.
    ///
    /// # Errors
    /// `Unsupported` unless there is exactly one.
    fn broker(&self) -> Result<DynDriver> {
        Err(Error::new(ErrorKind::Unsupported, "this API speaks of queues only"))
    }
}

/// The directory of a broker: paths carry physical names.
#[derive(Debug, Clone)]
pub struct OneBroker(pub DynDriver);

impl Directory for OneBroker {
    fn find(&self, name: &str) -> Result<(DynDriver, QueueName)> {
        let name = name.parse().map_err(|error: crate::QueueNameError| Error::invalid(error.to_string()))?;
        Ok((self.0.clone(), name))
    }

    fn broker(&self) -> Result<DynDriver> {
        Ok(self.0.clone())
    }
}

/// What an API lets in and how long it takes.
#[derive(Debug, Clone)]
pub struct ApiLimits {
    /// Bytes of one body.
    pub body: usize,
    /// Bytes of all bodies that are being read or worked on; beyond it requests are refused with `Unavailable`.
    pub bodies: usize,
    /// Bytes of bodies beside these that producers can't use up: settles and extends come through a crowd of them.
    pub reserved: usize,
    /// Payload bytes of all responses that are being built, as far as sizes are known before. Whoever finds no room
    /// waits for a quarter of `call`, and is refused with `Unavailable` then.
    pub responses: usize,
    /// How long a request may take, beside what it asked to wait.
    pub call: Duration,
    /// The longest wait of a claim or of a read of completions.
    pub wait: Duration,
    /// Payload bytes in one response. A claim answers fewer jobs then, a request for results is refused. Jobs that are
    /// suddenly larger than those before them can pass it once, up to what the driver hands out in one claim.
    pub claimed: usize,
    /// The silence after which a wake stream says that it is alive.
    pub heartbeat: Duration,
}

impl Default for ApiLimits {
    fn default() -> Self {
        Self {
            body: 32 * 1024 * 1024,
            bodies: 64 * 1024 * 1024,
            reserved: 16 * 1024 * 1024,
            responses: 64 * 1024 * 1024,
            call: Duration::from_secs(30),
            wait: Duration::from_mins(1),
            claimed: 16 * 1024 * 1024,
            heartbeat: Duration::from_secs(5),
        }
    }
}

/// The handlers and what they share. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Api {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    directory: Arc<dyn Directory>,
    limits: ApiLimits,
    bodies: body::Budgets,
    /// A permit per byte.
    responses: Arc<Semaphore>,
    sizes: claim::Sizes,
    stop: CancellationToken,
}

impl Api {
    /// An API over `directory`. When `stop` is cancelled, long polls are answered and streams end.
    pub fn new(directory: Arc<dyn Directory>, limits: ApiLimits, stop: CancellationToken) -> Self {
        let bodies = body::Budgets::new(&limits);
        let responses = Arc::new(Semaphore::new(limits.responses));
        let sizes = claim::Sizes::default();
        Self { shared: Arc::new(Shared { directory, limits, bodies, responses, sizes, stop }) }
    }

    /// Room for `bytes` of a response, to be held while it is built. One larger than all of the room takes all of it.
    async fn share_of_responses(&self, bytes: usize) -> Result<OwnedSemaphorePermit> {
        let Shared { limits, responses, .. } = &*self.shared;
        let bytes = u32::try_from(bytes.min(limits.responses)).unwrap_or(u32::MAX);
        let share = responses.clone().acquire_many_owned(bytes);
        match tokio::time::timeout(limits.call / 4, share).await {
            Ok(Ok(share)) => Ok(share),
            _ => Err(Error::unavailable("too many bytes are on their way out; try again")),
        }
    }

    /// The routes of `groups`. Anything else is answered with a problem too.
    pub fn router(&self, groups: &[Group]) -> Router {
        routes::router(self, groups)
    }
}

/// All that a broker serves: the whole API for who holds one of `tokens`, and its health for anybody.
pub fn broker_router(
    driver: DynDriver,
    tokens: Arc<Tokens>,
    limits: ApiLimits,
    stop: CancellationToken,
) -> Router {
    let api = Api::new(Arc::new(OneBroker(driver.clone())), limits, stop.clone());
    protect(api.router(&Group::ALL), tokens).merge(health_routes(driver, stop))
}
