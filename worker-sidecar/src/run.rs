//! Puts the parts together.

use crate::{
    admin, api,
    claim::Claimer,
    core::Core,
    drain::{Event, Stage},
    hooks, lease,
    policy::{self, Connect, Own},
    readiness, stop, token,
};
use futures::future::join_all;
use longshore_drivers::http::server::{ServeLimits, serve};
use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};
use tokio::{net::TcpListener, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

/// How long closing connections may take.
const CLOSE: Duration = Duration::from_secs(2);

/// Both servers are for one pod, its probes and its scrapers.
const SERVE: ServeLimits = ServeLimits {
    connections: 256,
    overflow: 16,
    head: Duration::from_secs(30),
    head_bytes: 64 * 1024,
    headers: 64,
    drain: Duration::from_secs(1),
};

/// Where a sidecar finds what it needs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The policy file.
    pub policy: PathBuf,
    /// Where the local API listens.
    pub api: SocketAddr,
    /// Where the admin port listens.
    pub admin: SocketAddr,
    /// The name of this pod.
    pub pod_name: String,
    /// Where the pod's token is.
    pub token_file: PathBuf,
    /// What belongs to this pod, whatever the policy says.
    pub own: Own,
}

/// Why a sidecar could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The local API has to stay on this machine.
    #[error("the local API must listen on a loopback address, not on {0}")]
    ExposedApi(SocketAddr),
    /// The token can't be made.
    #[error("failed to make the pod token {path:?}")]
    MakeToken {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// An address is taken.
    #[error("failed to listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A task that has to live ended.
    #[error("task {0:?} ended before its time")]
    TaskEnded(&'static str),
}

/// A running sidecar.
pub struct Sidecar {
    core: Arc<Core>,
    tasks: JoinSet<&'static str>,
    closing: CancellationToken,
    api: SocketAddr,
    admin: SocketAddr,
}

impl std::fmt::Debug for Sidecar {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Sidecar")
            .field("api", &self.api)
            .field("admin", &self.admin)
            .finish_non_exhaustive()
    }
}

const DRIVE: &str = "drain";

impl Sidecar {
    /// Starts all tasks.
    pub async fn start(settings: Settings, connect: Connect) -> Result<Self, Error> {
        let Settings { policy, api, admin, pod_name, token_file, own } = settings;
        if !api.ip().is_loopback() {
            return Err(Error::ExposedApi(api));
        }
        let door = hooks::door(&token_file);
        let token =
            token::ensure(&token_file).map_err(|source| Error::MakeToken { path: token_file, source })?;
        let core = Arc::new(Core::new(pod_name));
        let (api_listener, api) = listen(api).await?;
        let (admin_listener, admin) = listen(admin).await?;
        let mut sidecar =
            Self { core: core.clone(), tasks: JoinSet::new(), closing: CancellationToken::new(), api, admin };
        let router = api::router(core.clone(), &token, sidecar.closing.clone());
        sidecar.spawn("api", serve(api_listener, router, SERVE, sidecar.closing.clone()));
        let router = admin::router(core.clone());
        sidecar.spawn("admin", serve(admin_listener, router, SERVE, sidecar.closing.clone()));
        match door {
            Ok(door) => sidecar.spawn("door", hooks::attend(core.clone(), door)),
            // The drain hook comes through the local API then.
            Err(error) => tracing::warn!(%error, "the drain hook has no door of its own"),
        }
        sidecar.spawn("policy", policy::follow(core.clone(), policy, own, connect));
        sidecar.spawn("readiness", readiness::probe(core.clone()));
        sidecar.spawn("leases", lease::keep(core.clone()));
        sidecar.spawn("claims", Claimer::new(core.clone()).run());
        sidecar.spawn(DRIVE, stop::drive(core));
        tracing::info!(%api, %admin, "sidecar started");
        Ok(sidecar)
    }

    fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(async move {
            task.await;
            name
        });
    }

    /// Where the local API listens.
    pub fn api(&self) -> SocketAddr {
        self.api
    }

    /// Where the admin port listens.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// How far a stop has come.
    pub fn stage(&self) -> Stage {
        self.core.stop.stage()
    }

    /// A handle that passes SIGTERM on.
    pub fn terminator(&self) -> Terminator {
        Terminator { core: self.core.clone() }
    }

    /// Waits until a stop is complete.
    pub async fn finished(mut self) -> Result<(), Error> {
        let ended = match self.tasks.join_next().await {
            Some(Ok(name)) => name,
            Some(Err(error)) => {
                tracing::error!(%error, "a task died");
                "unknown"
            }
            None => "none",
        };
        self.tasks.abort_all();
        let drivers = self.core.drivers();
        // The broker forgets connections by itself.
        let _ = timeout(CLOSE, join_all(drivers.iter().map(|driver| driver.close()))).await;
        if ended == DRIVE { Ok(()) } else { Err(Error::TaskEnded(ended)) }
    }
}

/// Passes SIGTERM on.
#[derive(Clone)]
pub struct Terminator {
    core: Arc<Core>,
}

impl std::fmt::Debug for Terminator {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Terminator").finish_non_exhaustive()
    }
}

impl Terminator {
    /// SIGTERM arrived. The kubelet sends it when the app is gone, others send it while the app lives: looking tells.
    pub async fn terminate(&self) {
        let hook_fired = self.core.stop.stage() != Stage::Running;
        tracing::info!(hook_fired, "sigterm");
        stop::apply(&self.core, Event::Terminated);
        let plan = self.core.plan();
        let gone = match &plan.target {
            Some(target) => !readiness::listens(target.port).await,
            // An app that pulls listens nowhere. Behind the hook it is the kubelet who sends the signal.
            None => hook_fired,
        };
        if gone {
            stop::apply(&self.core, Event::AppGone);
        }
    }
}

async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), Error> {
    let bind = async {
        let listener = TcpListener::bind(address).await?;
        let local = listener.local_addr()?;
        Ok((listener, local))
    };
    bind.await.map_err(|source| Error::Listen { address, source })
}
