//! The HTTP form of the contract: server and client against each other, and each against peers that misbehave.
#![cfg(all(feature = "http-client", feature = "http-server", feature = "memory"))]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that can't go on fails")]

#[path = "http_api/broken_peers.rs"]
mod broken_peers;
#[path = "http_api/client.rs"]
mod client;
#[path = "http_api/connections.rs"]
mod connections;
#[path = "http_api/described.rs"]
mod described;
#[path = "http_api/description.rs"]
mod description;
#[path = "http_api/newer_peer.rs"]
mod newer_peer;
#[path = "http_api/raw.rs"]
mod raw;
#[path = "http_api/requests.rs"]
mod requests;
#[path = "http_api/schema.rs"]
mod schema;
#[path = "http_api/stub.rs"]
mod stub;
#[path = "http_api/wake.rs"]
mod wake;

use longshore_drivers::{
    DynDriver, Owner, QueueName,
    http::{
        client::{HttpConfig, HttpDriver, TokenSource},
        server::{ApiLimits, ServeLimits, Tokens, broker_router, serve},
    },
};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use stub::Stub;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

const TOKEN: &str = "a-token";
const DEADLINE: Duration = Duration::from_secs(20);

/// A running server over a stub.
struct Server {
    stub: Arc<Stub>,
    address: SocketAddr,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

#[derive(Default)]
struct Setup {
    stub: Stub,
    api: ApiLimits,
    connections: ServeLimits,
    tokens: Option<Tokens>,
    address: Option<SocketAddr>,
}

impl Setup {
    async fn start(self) -> Server {
        let address = self.address.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)));
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let stub = Arc::new(self.stub);
        let tokens = self.tokens.unwrap_or_else(|| Tokens::fixed([TOKEN]));
        let stop = CancellationToken::new();
        let driver: DynDriver = stub.clone();
        let app = broker_router(driver, Arc::new(tokens), self.api, stop.clone());
        let serving = tokio::spawn(serve(listener, app, self.connections, stop.clone()));
        Server { stub, address, stop, serving }
    }
}

impl Server {
    async fn start() -> Self {
        Setup::default().start().await
    }

    fn client(&self) -> HttpDriver {
        HttpDriver::new(config(self.address))
    }

    async fn stop(self) -> Arc<Stub> {
        self.stop.cancel();
        self.serving.await.unwrap();
        self.stub
    }
}

fn config(address: SocketAddr) -> HttpConfig {
    HttpConfig::new(&format!("http://{address}"), TokenSource::fixed(TOKEN)).unwrap()
}

/// Whose queues the stub's are.
fn owner() -> Owner {
    Owner { installation: "test".to_owned(), uid: "u".to_owned() }
}

fn queue() -> QueueName {
    "test.shop.emails".parse().unwrap()
}

/// Waits until `condition` holds.
async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(DEADLINE, waiting).await.unwrap_or_else(|_| panic!("still waiting: {what}"));
}

/// Fails a test that hangs.
async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, work).await.expect("it hangs")
}
