//! The HTTP client, over the server, over an embedded broker.

use super::{Backend, Broker, backends::FileBroker};
use crate::{
    Driver, DynDriver, Error, Result,
    http::{
        client::{HttpConfig, HttpDriver, TokenSource},
        server::{ApiLimits, ServeLimits, Tokens, broker_router, serve},
    },
};
use async_trait::async_trait;
use std::sync::Arc;
use tokio::{net::TcpListener, sync::Mutex, task::JoinHandle};
use tokio_util::sync::CancellationToken;

const TOKEN: &str = "conformance";

/// The backend: every broker has a server of its own on a free port of this machine.
#[derive(Debug)]
pub(super) struct OverHttp;

#[async_trait]
impl Backend for OverHttp {
    fn name(&self) -> &'static str {
        "http"
    }

    async fn start(&self) -> Result<Arc<dyn Broker>> {
        let broker = FileBroker::start()?;
        let server = Mutex::new(Server::start(broker.handle().await?).await?);
        Ok(Arc::new(ServedBroker { broker, server }))
    }
}

#[derive(Debug)]
struct ServedBroker {
    broker: FileBroker,
    server: Mutex<Server>,
}

#[async_trait]
impl Broker for ServedBroker {
    async fn handle(&self) -> Result<DynDriver> {
        let config = HttpConfig::new(&self.server.lock().await.url, TokenSource::fixed(TOKEN))?;
        let driver = HttpDriver::connect(config).await?;
        Ok(Arc::new(driver) as Arc<dyn Driver>)
    }

    async fn restart(&self) -> Result<()> {
        let mut server = self.server.lock().await;
        server.stop().await;
        self.broker.restart().await?;
        *server = Server::start(self.broker.handle().await?).await?;
        Ok(())
    }

    async fn stop(&self) {
        self.server.lock().await.stop().await;
        self.broker.stop().await;
    }
}

#[derive(Debug)]
struct Server {
    url: String,
    stop: CancellationToken,
    task: Option<JoinHandle<()>>,
}

impl Server {
    async fn start(driver: DynDriver) -> Result<Self> {
        let unavailable =
            |error: std::io::Error| Error::unavailable(format!("no port of this machine: {error}"));
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(unavailable)?;
        let address = listener.local_addr().map_err(unavailable)?;
        let stop = CancellationToken::new();
        let tokens = Arc::new(Tokens::fixed([TOKEN]));
        let app = broker_router(driver, tokens, ApiLimits::default(), stop.clone());
        let serving = serve(listener, app, ServeLimits::default(), stop.clone());
        Ok(Self { url: format!("http://{address}"), stop, task: Some(tokio::spawn(serving)) })
    }

    async fn stop(&mut self) {
        self.stop.cancel();
        if let Some(task) = self.task.take() {
            // A panic of the server shows in the scenario that it served.
            let _ = task.await;
        }
    }
}
