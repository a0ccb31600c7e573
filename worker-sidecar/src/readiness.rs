//! Whether the app takes connections.

use crate::core::Core;
use std::{
    net::Ipv4Addr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    net::TcpStream,
    sync::watch,
    time::{sleep, timeout},
};

use crate::health::lock;

/// The first pause between probes; doubled up to the longest.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause while the app never took a connection: it starts, and jobs wait for it.
const LONGEST_AT_START: Duration = Duration::from_millis(100);
/// On localhost a connection that takes longer is none.
const CONNECT: Duration = Duration::from_secs(1);

/// What is known about the app.
#[derive(Debug, Default)]
pub(crate) struct App {
    /// Where it listens, once it took a connection there and as long as it refused none since.
    ready: watch::Sender<Option<u16>>,
    /// Survives a successful probe: an app that takes connections only to drop them must not be probed in a hot loop.
    pause: Mutex<Duration>,
    /// Whether it was ever ready.
    started: AtomicBool,
}

impl App {
    /// Whether it took a connection on `port`.
    pub(crate) fn is_ready(&self, port: u16) -> bool {
        *self.ready.borrow() == Some(port)
    }

    /// It refused a connection.
    pub(crate) fn refused(&self) {
        if self.ready.send_replace(None).is_some() {
            tracing::info!("the app takes no connections; claiming stops until it does");
        }
    }

    /// It answered a request.
    pub(crate) fn answered(&self) {
        *lock(&self.pause) = Duration::ZERO;
    }

    fn next_pause(&self) -> Duration {
        let mut pause = lock(&self.pause);
        let now = *pause;
        let started = self.started.load(Ordering::Relaxed);
        *pause = (now * 2).clamp(SHORTEST_PAUSE, if started { LONGEST_PAUSE } else { LONGEST_AT_START });
        now
    }

    fn took_connection(&self, port: u16) {
        self.started.store(true, Ordering::Relaxed);
        self.ready.send_replace(Some(port));
    }
}

/// Whether something listens on `port` of localhost.
pub(crate) async fn listens(port: u16) -> bool {
    let connecting = TcpStream::connect((Ipv4Addr::LOCALHOST, port));
    matches!(timeout(CONNECT, connecting).await, Ok(Ok(_)))
}

/// Probes the app whenever it is not known to be ready.
pub(crate) async fn probe(core: Arc<Core>) {
    let mut plan = core.plan.subscribe();
    let mut ready = core.app.ready.subscribe();
    loop {
        let port = plan.borrow_and_update().target.as_ref().map(|target| target.port);
        let known = *ready.borrow_and_update();
        match port {
            Some(port) if known != Some(port) => {
                sleep(core.app.next_pause()).await;
                if listens(port).await {
                    tracing::info!(port, "the app takes connections");
                    core.app.took_connection(port);
                    core.wake.notify_one();
                }
            }
            Some(_) | None => {
                // Neither sender goes away before the core does.
                tokio::select! {
                    _ = plan.changed() => {}
                    _ = ready.changed() => {}
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_app_that_starts_is_probed_often_and_one_that_fell_over_less_and_less() {
        let app = App::default();
        let pauses = |count: usize| -> Vec<_> { (0..count).map(|_| app.next_pause().as_millis()).collect() };
        assert_eq!(pauses(5), [0, 50, 100, 100, 100]);
        app.took_connection(8080);
        app.refused();
        assert_eq!(pauses(5), [100, 200, 400, 800, 1000]);
    }
}
