//! The HTTP client, over the server, over an embedded broker: in this process, or as the one that is shipped.

use super::{
    Backend, Broker,
    backends::{AHEAD, FileBroker, credential},
    servers::{
        clock::Skew,
        process::{Directory, Process, free_port},
    },
};
use crate::{
    Driver, DynDriver, Error, Result,
    http::{
        client::{HttpConfig, HttpDriver, TokenSource},
        server::{ApiLimits, ServeLimits, Tokens, broker_router, serve},
    },
    policy::Via,
};
use async_trait::async_trait;
use rustix::process::Signal;
use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};
use tokio::{net::TcpListener, sync::Mutex, task::JoinHandle};
use tokio_util::sync::CancellationToken;

const TOKEN: &str = "conformance";

/// How long the server may take to answer after its start.
const STARTS: Duration = Duration::from_secs(20);

static BINARY: OnceLock<PathBuf> = OnceLock::new();

/// Where `longshore-broker` is. From then on a broker of `http` that is alone is a process; without it there is none,
/// and the scenarios that need one are reported as unsupported.
pub fn use_broker_binary(path: impl Into<PathBuf>) {
    // The first one stays.
    let _ = BINARY.set(path.into());
}

/// The backend: every broker has a server of its own on a free port of this machine.
#[derive(Debug)]
pub(super) struct OverHttp;

#[async_trait]
impl Backend for OverHttp {
    fn name(&self) -> &'static str {
        "http"
    }

    async fn start(&self) -> Result<Arc<dyn Broker>> {
        Ok(Arc::new(ServedBroker::start(AHEAD).await?))
    }

    async fn start_alone(&self) -> Result<Arc<dyn Broker>> {
        match BINARY.get() {
            Some(binary) => Ok(Arc::new(ProcessBroker::start(binary, Skew::NONE).await?)),
            None => self.start().await,
        }
    }
}

#[derive(Debug)]
struct ServedBroker {
    broker: FileBroker,
    server: Mutex<Server>,
}

impl ServedBroker {
    async fn start(skew: Skew) -> Result<Self> {
        let broker = FileBroker::start(skew)?;
        let server = Mutex::new(Server::start(broker.handle().await?).await?);
        Ok(Self { broker, server })
    }
}

#[async_trait]
impl Broker for ServedBroker {
    async fn handle(&self) -> Result<DynDriver> {
        let config = HttpConfig::new(&self.server.lock().await.url, TokenSource::fixed(TOKEN))?;
        let driver = HttpDriver::connect(config).await?;
        Ok(Arc::new(driver) as Arc<dyn Driver>)
    }

    /// The broker that is shipped, where it is at hand.
    async fn with_clock(&self, skew: Skew) -> Result<Arc<dyn Broker>> {
        match BINARY.get() {
            Some(binary) => Ok(Arc::new(ProcessBroker::start(binary, skew).await?)),
            None => Ok(Arc::new(Self::start(skew).await?)),
        }
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

/// `longshore-broker` as a process.
#[derive(Debug)]
struct ProcessBroker {
    binary: PathBuf,
    directory: Directory,
    address: SocketAddr,
    skew: Skew,
    process: Mutex<Option<Process>>,
}

impl ProcessBroker {
    async fn start(binary: &Path, skew: Skew) -> Result<Self> {
        let directory = Directory::new("broker")?;
        std::fs::write(directory.path().join("token"), TOKEN)
            .map_err(|error| Error::unavailable(format!("the token can't be written: {error}")))?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let (binary, process) = (binary.to_owned(), Mutex::new(None));
        let broker = Self { binary, directory, address, skew, process };
        broker.launch().await?;
        Ok(broker)
    }

    /// Starts the process and waits until it answers.
    async fn launch(&self) -> Result<()> {
        let path = self.directory.path();
        let (data, token) = (path.display().to_string(), path.join("token").display().to_string());
        let listen = self.address.to_string();
        let arguments = ["--listen", &listen, "--data-dir", &data, "--token-file", &token];
        let (program, arguments) = self.skew.command(&self.binary, &arguments, path)?;
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut process = Process::start("longshore-broker", &program, &arguments, &path.join("log"))?;
        let driver = HttpDriver::new(config(self.address)?);
        let deadline = Instant::now() + STARTS;
        while let Err(error) = driver.probe().await {
            if process.has_ended() || Instant::now() > deadline {
                let log = std::fs::read_to_string(path.join("log")).unwrap_or_default();
                return Err(Error::unavailable(format!("longshore-broker does not start: {error}; {log}")));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        *self.process.lock().await = Some(process);
        Ok(())
    }

    async fn signal(&self, send: impl FnOnce(&Process) -> Result<()>) -> Result<()> {
        let process = self.process.lock().await;
        send(process.as_ref().ok_or_else(|| Error::unavailable("longshore-broker does not run"))?)
    }

    /// Ends the process with `end`, away from the threads that have others to serve.
    async fn end(&self, end: impl FnOnce(&mut Process) + Send + 'static) {
        if let Some(mut process) = self.process.lock().await.take() {
            // It is gone either way.
            let _ = tokio::task::spawn_blocking(move || end(&mut process)).await;
        }
    }
}

/// A client's configuration whose calls end soon.
fn config(address: SocketAddr) -> Result<HttpConfig> {
    let mut config = HttpConfig::new(&format!("http://{address}"), TokenSource::fixed(TOKEN))?;
    config.connect_timeout = Duration::from_secs(1);
    config.call_timeout = Duration::from_secs(2);
    config.wait_margin = Duration::from_millis(1500);
    Ok(config)
}

#[async_trait]
impl Broker for ProcessBroker {
    async fn handle(&self) -> Result<DynDriver> {
        let config = HttpConfig::new(&format!("http://{}", self.address), TokenSource::fixed(TOKEN))?;
        Ok(Arc::new(HttpDriver::connect(config).await?))
    }

    async fn with_clock(&self, skew: Skew) -> Result<Arc<dyn Broker>> {
        Ok(Arc::new(Self::start(&self.binary, skew).await?))
    }

    async fn handle_at(&self, address: SocketAddr) -> Result<DynDriver> {
        Ok(Arc::new(HttpDriver::connect(config(address)?).await?))
    }

    fn via(&self, proxy: Option<SocketAddr>, directory: &Path) -> Result<Via> {
        let token_files = vec![credential(directory, "broker-token", TOKEN)?];
        Ok(Via::Http { url: format!("http://{}", proxy.unwrap_or(self.address)), token_files })
    }

    fn files(&self) -> Option<PathBuf> {
        Some(self.directory.path().to_owned())
    }

    async fn patient_handle_at(&self, address: SocketAddr) -> Result<DynDriver> {
        let config = HttpConfig::new(&format!("http://{address}"), TokenSource::fixed(TOKEN))?;
        Ok(Arc::new(HttpDriver::connect(config).await?))
    }

    fn address(&self) -> Option<SocketAddr> {
        Some(self.address)
    }

    async fn restart(&self) -> Result<()> {
        self.end(|process| {
            // One that stands can't end.
            let _ = process.thaw();
            process.end(Signal::TERM);
        })
        .await;
        self.launch().await
    }

    async fn kill(&self) -> Result<()> {
        self.end(Process::kill).await;
        Ok(())
    }

    async fn freeze(&self) -> Result<()> {
        self.signal(Process::freeze).await
    }

    async fn thaw(&self) -> Result<()> {
        self.signal(Process::thaw).await
    }

    async fn stop(&self) {
        self.end(Process::kill).await;
    }
}
