//! The embedded broker as a server of its own: jobs in a file, the HTTP API in front of it.

use anyhow::Context;
use clap::Parser;
use longshore_drivers::{
    DynDriver,
    embedded::{self, Embedded},
    http::server::{ApiLimits, ServeLimits, Tokens, broker_router, serve},
};
use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How long the backend gets to close its file once nobody is served any more.
const CLOSE: Duration = Duration::from_secs(10);

/// Keeps jobs in a directory and serves them over HTTP.
#[derive(Debug, Parser)]
#[command(name = "longshore-broker", version)]
struct Cli {
    /// The directory of the database, on a local file system.
    #[arg(long, env = "LONGSHORE_DATA_DIR", default_value = "/data")]
    data_dir: PathBuf,
    /// The address to listen on.
    #[arg(long, env = "LONGSHORE_LISTEN", default_value = "0.0.0.0:7400")]
    listen: SocketAddr,
    /// A file with a bearer token, or a directory of such files; may be given several times. Changes are noticed.
    #[arg(long = "token-file", env = "LONGSHORE_TOKEN_FILE", value_delimiter = ',', required = true)]
    token_files: Vec<PathBuf>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_env("LONGSHORE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().json().flatten_event(true).with_env_filter(filter).init();
    match start(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "the broker ends");
            ExitCode::FAILURE
        }
    }
}

fn start(cli: Cli) -> anyhow::Result<()> {
    // The database has a thread of its own; two more carry all connections.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("the runtime can't be started")?;
    let tokens = Tokens::load(cli.token_files)?;
    check_writable(&cli.data_dir)?;
    let config = embedded::Config::new(cli.data_dir.join("longshore.db"));
    let driver = Arc::new(Embedded::open(config).context("the database can't be opened")?);
    let ended = driver.ended();
    let driver: DynDriver = driver;
    let served = runtime.block_on(run(cli.listen, driver.clone(), ended, tokens));
    let closed = runtime.block_on(async { tokio::time::timeout(CLOSE, driver.close()).await });
    closed.context("the database did not close in time")?;
    served
}

/// Fails early and plainly where SQLite would say that a file can't be opened.
fn check_writable(directory: &Path) -> anyhow::Result<()> {
    let probe = directory.join(".writable");
    fs::write(&probe, b"")
        .and_then(|()| fs::remove_file(&probe))
        .with_context(|| format!("the data directory {} isn't writable", directory.display()))
}

async fn run(
    listen: SocketAddr,
    driver: DynDriver,
    ended: impl Future<Output = ()>,
    tokens: Tokens,
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let listener =
        TcpListener::bind(listen).await.with_context(|| format!("nothing can listen on {listen}"))?;
    tracing::info!(address = %listener.local_addr()?, "serving");
    let stop = CancellationToken::new();
    let app = broker_router(driver, Arc::new(tokens), ApiLimits::default(), stop.clone());
    let mut serving = std::pin::pin!(serve(listener, app, ServeLimits::default(), stop.clone()));
    tokio::select! {
        () = &mut serving => return Ok(()),
        // A server without its database would only look alive.
        () = ended => anyhow::bail!("the database's thread ended; a restart may mend it"),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    stop.cancel();
    serving.await;
    Ok(())
}
