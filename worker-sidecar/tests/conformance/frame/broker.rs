//! How brokers come into the suite: those of the drivers' own conformance suite, as far as another process can reach them.
//!
//! A further broker is a further backend there; nothing here knows which one it runs on.

use longshore_drivers::conformance::{Backend, Broker, Offer, by_name, use_broker_binary};
use std::{path::Path, sync::Arc};

/// The name that policies give the broker.
pub(crate) const BROKER: &str = "default";

/// A kind of broker, and what it has for scenarios to work with.
#[derive(Clone)]
pub(crate) struct Ground {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) offer: Arc<Offer>,
}

impl Ground {
    /// The kind called `name`, once one of it has run; none if it lives inside a process, where no sidecar reaches it.
    pub(crate) async fn find(name: &str) -> Result<Option<Self>, String> {
        let backend = by_name(name).ok_or("no such broker")?;
        if name == "http" {
            use_broker_binary(binary()?);
        }
        let offer = Offer::of(&*backend).await.map_err(|error| error.to_string())?;
        Ok(offer.reachable.then(|| Self { backend, offer: Arc::new(offer) }))
    }

    /// Starts one for one scenario alone, unless the server is somebody's who has others to serve.
    pub(crate) async fn start(&self) -> Result<Arc<dyn Broker>, String> {
        let started =
            if self.offer.alone { self.backend.start_alone().await } else { self.backend.start().await };
        started.map_err(|error| format!("the broker can't be started: {error}"))
    }
}

/// `longshore-broker` beside the sidecar's binary: a test's own package builds the one and not the other.
fn binary() -> Result<std::path::PathBuf, String> {
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

/// Puts the data and the log of a broker beside the files of its scenario.
pub(crate) fn keep_files(broker: &dyn Broker, directory: &Path) {
    let Some(files) = broker.files() else { return };
    let copied = std::process::Command::new("cp").arg("-a").arg(files).arg(directory.join("broker")).status();
    if !copied.is_ok_and(|status| status.success()) {
        eprintln!("the broker's files can't be kept");
    }
}
