//! Wiring: from the command line to running controllers.

use crate::{
    apply::FIELD_MANAGER,
    backoff::Backoff,
    broker,
    cli::Settings,
    connections::Connections,
    context::{Context, Scope},
    http::{self, Readiness},
    leader::{Election, Leadership},
    lookup::Lookup,
    metrics::Metrics,
    queue, wake, worker, workflows,
};
use anyhow::Context as _;
use futures::{StreamExt, future::join_all};
use kube::{
    Api, Client,
    runtime::{
        WatchStreamExt,
        events::{Recorder, Reporter},
        reflector,
        reflector::Store,
        watcher,
    },
};
use longshore_drivers::Address;
use std::{process::ExitCode, sync::Arc, time::Duration};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::broadcast,
    task::JoinSet,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How long controllers get to end what they are at.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(15);
/// How long acknowledgements and Events on their way get.
const BACKGROUND_DEADLINE: Duration = Duration::from_secs(2);
/// How long giving the lease back may take.
const RELEASE_DEADLINE: Duration = Duration::from_secs(6);

/// Runs until a signal comes or leadership is lost. Losing it exits the process: nothing of a deposed leader goes on.
pub(crate) async fn run(settings: Settings) -> anyhow::Result<ExitCode> {
    let address = Address::new(settings.installation.clone()).context("LONGSHORE_INSTALLATION")?;
    let client = Client::try_default().await.context("failed to find the API server")?;
    let metrics = Arc::new(Metrics::default());
    let readiness = Readiness::default();
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(signalled(stop.clone()));
    tasks.spawn({
        let (metrics, readiness, stop) = (metrics.clone(), readiness.clone(), stop.clone());
        async move {
            if let Err(error) = http::serve(settings.http, metrics, readiness, stop.clone()).await {
                tracing::error!(error = format!("{error:#}"), "the HTTP server ended");
                stop.cancel();
            }
        }
    });
    wait_for_definitions(&client, &settings, &readiness, &stop).await;

    let lease = crate::apply::child_name(&settings.installation, "-operator", 63);
    let mut election = Election::new(client.clone(), &settings.pod_namespace, &lease, &settings.pod_name);
    tracing::info!(identity = %settings.pod_name, lease, "waiting to become the leader");
    let leadership = election.acquire(&stop).await?;
    if stop.is_cancelled() {
        return Ok(ExitCode::SUCCESS);
    }
    tracing::info!("leading");
    metrics.leader(true);
    // The lease outlives the controllers: it is given back only after they have ended.
    let released = CancellationToken::new();
    let mut holding = tokio::spawn({
        let released = released.clone();
        async move { election.hold(&released).await }
    });
    let work = lead(client, settings, address, leadership, metrics.clone(), stop.clone());
    let outcome = tokio::select! {
        outcome = work => outcome,
        // However it ends, a lost lease or a panic: nobody renews it any more.
        _ = &mut holding => {
            tracing::error!("leadership was lost; exiting");
            return Ok(ExitCode::FAILURE);
        }
    };
    metrics.leader(false);
    released.cancel();
    if tokio::time::timeout(RELEASE_DEADLINE, holding).await.is_err() {
        tracing::warn!("the lease was not given back in time; it ends by itself");
    }
    tracing::info!("stopped");
    outcome.map(|()| ExitCode::SUCCESS)
}

async fn lead(
    client: Client,
    settings: Settings,
    address: Address,
    leadership: Leadership,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let scopes = Scope::of(&settings.scope.watch_namespaces);
    let mut tasks = JoinSet::new();
    let mut lookup = Lookup::default();
    for scope in &scopes {
        lookup.brokers.push(mirror(scope.api(&client), &mut tasks));
        lookup.queues.push(mirror(scope.api(&client), &mut tasks));
    }
    for store in &lookup.brokers {
        store.wait_until_ready().await.context("the watch of Brokers ended")?;
    }
    for store in &lookup.queues {
        store.wait_until_ready().await.context("the watch of Queues ended")?;
    }
    let reporter =
        Reporter { controller: FIELD_MANAGER.to_owned(), instance: Some(settings.pod_name.clone()) };
    let context = Arc::new(Context {
        recorder: Recorder::new(client.clone(), reporter),
        address,
        leadership,
        connections: Connections::default(),
        lookup,
        metrics,
        backoff: Backoff::default(),
        background: TaskTracker::new(),
        woken: broadcast::channel(1024).0,
        inbox: workflows::Inbox::default(),
        memory: workflows::Memory::default(),
        bucket: workflows::Bucket::default(),
        client,
        settings,
    });
    let mut controllers = Vec::new();
    for scope in scopes {
        let (context, stop) = (context.clone(), stop.clone());
        controllers.push(tokio::spawn(broker::run(scope.clone(), context.clone(), stop.clone())));
        controllers.push(tokio::spawn(queue::run(scope.clone(), context.clone(), stop.clone())));
        controllers.push(tokio::spawn(worker::run(scope.clone(), context.clone(), stop.clone())));
        controllers.push(tokio::spawn(workflows::run(scope, context, stop)));
    }
    controllers.push(tokio::spawn(broker::create_default(context.clone(), stop.clone())));
    controllers.push(tokio::spawn(wake::run(context.clone(), stop.clone())));
    controllers.push(tokio::spawn(workflows::read_completions(context.clone(), stop.clone())));
    stop.cancelled().await;
    if tokio::time::timeout(SHUTDOWN_DEADLINE, join_all(controllers)).await.is_err() {
        tracing::warn!("controllers did not end in time");
    }
    context.background.close();
    if tokio::time::timeout(BACKGROUND_DEADLINE, context.background.wait()).await.is_err() {
        tracing::debug!("acknowledgements or Events were cut off");
    }
    Ok(())
}

/// Keeps a store of all `K` up to date.
fn mirror<K>(api: Api<K>, tasks: &mut JoinSet<()>) -> Store<K>
where
    K: kube::Resource<DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    let (store, writer) = reflector::store();
    let stream = watcher(api, watcher::Config::default()).default_backoff().reflect(writer);
    tasks.spawn(async move {
        let mut stream = std::pin::pin!(stream);
        while let Some(event) = stream.next().await {
            if let Err(error) = event {
                tracing::warn!(kind = %K::kind(&()), %error, "watch failed");
            }
        }
    });
    store
}

/// Waits until the API server knows our kinds; says so while it doesn't.
async fn wait_for_definitions(
    client: &Client,
    settings: &Settings,
    readiness: &Readiness,
    stop: &CancellationToken,
) {
    use longshore_crds::{Broker, Queue, Worker, Workflow};
    let scope = Scope::of(&settings.scope.watch_namespaces).remove(0);
    loop {
        let limit = kube::api::ListParams::default().limit(1);
        let outcome = async {
            scope.api::<Broker>(client).list(&limit).await?;
            scope.api::<Queue>(client).list(&limit).await?;
            scope.api::<Worker>(client).list(&limit).await?;
            scope.api::<Workflow>(client).list(&limit).await?;
            Ok::<_, kube::Error>(())
        };
        match tokio::time::timeout(Duration::from_secs(10), outcome).await {
            Ok(Ok(())) => return readiness.set("definitions", true, "established"),
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => {
                readiness.set("definitions", false, "the CustomResourceDefinitions are not installed");
            }
            Ok(Err(error)) => readiness.set("definitions", false, error.to_string()),
            Err(_elapsed) => readiness.set("definitions", false, "the API server does not answer"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
}

async fn signalled(stop: CancellationToken) {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("signals can't be caught");
        return stop.cancel();
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("asked to stop");
    stop.cancel();
}
