//! The sidecar of a worker's pod.

use clap::Parser;
use longshore_worker_sidecar::{
    cli::{Cli, Command, Run},
    events, hooks,
    run::Sidecar,
};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

// One thread: the work is waiting for others, and every pod pays for what the sidecar takes.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let Cli { command, run } = Cli::parse();
    match command.unwrap_or(Command::Run) {
        Command::Run => serve(run).await,
        Command::Drain => Ok(hooks::fire(run.api, &run.pod_token_file).await?),
    }
}

async fn serve(run: Run) -> anyhow::Result<()> {
    let asked = std::env::var("LONGSHORE_LOG").ok();
    let filter = EnvFilter::try_new(events::filter(asked.as_deref()))
        .unwrap_or_else(|_| EnvFilter::new(events::filter(None)));
    tracing_subscriber::fmt().json().flatten_event(true).with_env_filter(filter).init();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let sidecar = Sidecar::start(run.into(), longshore_worker_sidecar::broker::connect()).await?;
    let terminator = sidecar.terminator();
    let mut finished = std::pin::pin!(sidecar.finished());
    loop {
        tokio::select! {
            result = &mut finished => return Ok(result?),
            _ = terminate.recv() => terminator.terminate().await,
            _ = interrupt.recv() => terminator.terminate().await,
        }
    }
}
