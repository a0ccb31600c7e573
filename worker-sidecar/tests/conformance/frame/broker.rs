//! The door through which brokers come into the suite: how one is started, how a sidecar's policy names it, how the suite
//! itself speaks to it, and what can be done to its process.
//!
//! Another broker is another [`Door`] in [`by_name`]; nothing else in the suite knows which one it runs on.

use super::{eventually, port, process::Process};
use async_trait::async_trait;
use longshore_drivers::{
    DynDriver,
    http::client::{HttpConfig, HttpDriver, TokenSource},
    policy::BrokerAccess,
};
use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
};

/// Brokers that live inside a process: no sidecar could reach them.
pub(crate) const IN_PROCESS: [&str; 2] = ["memory", "embedded"];

/// The name that policies give the broker.
pub(crate) const BROKER: &str = "default";

/// A kind of broker.
#[async_trait]
pub(crate) trait Door: Send + Sync {
    /// Its name, as reports use it.
    fn name(&self) -> &'static str;

    /// Starts one as a process, with its data in `directory`.
    async fn start(&self, directory: &Path) -> Result<Arc<dyn Broker>, String>;
}

/// A broker's process.
#[async_trait]
pub(crate) trait Broker: Send + Sync {
    /// Where it listens; the same after a restart.
    fn address(&self) -> SocketAddr;

    /// What a policy says of it, where it is reached at `address`: its own, or that of a wire to it.
    fn access(&self, address: SocketAddr) -> BrokerAccess;

    /// A driver that stays of use over restarts.
    async fn driver(&self) -> Result<DynDriver, String>;

    /// SIGKILL, and waits until it is gone.
    fn kill(&self);

    /// Starts it again with the same data.
    async fn start_again(&self) -> Result<(), String>;

    /// SIGSTOP.
    fn freeze(&self);

    /// SIGCONT.
    fn thaw(&self);
}

/// The kind called `name`, if the suite knows it.
pub(crate) fn by_name(name: &str) -> Option<Arc<dyn Door>> {
    match name {
        "http" => Some(Arc::new(Http)),
        _ => None,
    }
}

/// `longshore-broker`, the embedded broker behind its own server.
struct Http;

#[async_trait]
impl Door for Http {
    fn name(&self) -> &'static str {
        "http"
    }

    async fn start(&self, directory: &Path) -> Result<Arc<dyn Broker>, String> {
        let binary = binary()?;
        let data = directory.join("data");
        std::fs::create_dir_all(&data)
            .map_err(|error| format!("{} can't be made: {error}", data.display()))?;
        let token_file = directory.join("broker-token");
        let said = std::fs::write(&token_file, TOKEN);
        said.map_err(|error| format!("{} can't be written: {error}", token_file.display()))?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port::free()));
        let log = directory.join("broker.log");
        let broker = HttpBroker { binary, address, data, token_file, log, process: Mutex::default() };
        broker.start_again().await?;
        Ok(Arc::new(broker))
    }
}

const TOKEN: &str = "conformance";

/// The broker's binary beside that of the sidecar: a test's own package builds the one and not the other.
fn binary() -> Result<PathBuf, String> {
    let binary = Path::new(super::pod::BINARY).with_file_name("longshore-broker");
    if binary.is_file() {
        return Ok(binary);
    }
    Err(format!(
        "{} is not there; run `cargo build -p longshore-drivers --bin longshore-broker` with the same target \
         directory and profile, or `make conformance`",
        binary.display()
    ))
}

struct HttpBroker {
    binary: PathBuf,
    address: SocketAddr,
    data: PathBuf,
    token_file: PathBuf,
    log: PathBuf,
    process: Mutex<Option<Arc<Process>>>,
}

impl HttpBroker {
    fn process(&self) -> Arc<Process> {
        self.process.lock().unwrap().clone().expect("the broker was started")
    }
}

#[async_trait]
impl Broker for HttpBroker {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn access(&self, address: SocketAddr) -> BrokerAccess {
        BrokerAccess {
            name: BROKER.to_owned(),
            url: format!("http://{address}"),
            token_files: vec![self.token_file.to_str().expect("the path is text").to_owned()],
        }
    }

    async fn driver(&self) -> Result<DynDriver, String> {
        let config = HttpConfig::new(&format!("http://{}", self.address), TokenSource::fixed(TOKEN));
        let connecting = HttpDriver::connect(config.map_err(|error| error.to_string())?).await;
        connecting.map(|driver| Arc::new(driver) as DynDriver).map_err(|error| error.to_string())
    }

    fn kill(&self) {
        self.process().kill();
    }

    async fn start_again(&self) -> Result<(), String> {
        let mut command = Command::new(&self.binary);
        command.env_clear().arg("--listen").arg(self.address.to_string());
        command.arg("--data-dir").arg(&self.data).arg("--token-file").arg(&self.token_file);
        let process = Arc::new(Process::start(command, &self.log));
        let serving = process.says("serving").await;
        if serving.is_none() {
            return Err(format!("longshore-broker ended at its start: {:?}", process.lines().last()));
        }
        *self.process.lock().unwrap() = Some(process);
        eventually("the broker answers", || async {
            tokio::net::TcpStream::connect(self.address).await.is_ok()
        })
        .await;
        Ok(())
    }

    fn freeze(&self) {
        self.process().signal("STOP");
    }

    fn thaw(&self) {
        self.process().signal("CONT");
    }
}
