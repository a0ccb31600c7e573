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
use futures::{StreamExt, future::select_ok};
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
use longshore_crds::{Broker, Queue, Worker, Workflow};
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
    installation(&settings.installation).context("LONGSHORE_INSTALLATION")?;
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
    tokio::select! {
        () = wait_for_definitions(&client, &settings, &readiness, &stop) => {}
        () = stop.cancelled() => return Ok(ExitCode::SUCCESS),
    }

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
    let work = lead(client, settings, leadership, metrics.clone(), readiness, stop.clone());
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

/// It stands in names on brokers and in labels.
fn installation(name: &str) -> anyhow::Result<()> {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    anyhow::ensure!(
        !name.is_empty() && name.len() <= 63 && name.bytes().all(legal),
        "the name of an installation must be 1 to 63 lowercase letters, digits and dashes"
    );
    Ok(())
}

async fn lead(
    client: Client,
    settings: Settings,
    leadership: Leadership,
    metrics: Arc<Metrics>,
    readiness: Readiness,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let scopes = Scope::of(&settings.scope.watch_namespaces);
    let mut tasks = JoinSet::new();
    let mut lookup = Lookup::default();
    let mut mirrors = Vec::new();
    for scope in scopes {
        let brokers = mirror(scope.api::<Broker>(&client), &mut tasks, &stop);
        let queues = mirror(scope.api::<Queue>(&client), &mut tasks, &stop);
        lookup.brokers.push(brokers.clone());
        lookup.queues.push(queues.clone());
        mirrors.push((scope, brokers, queues));
    }
    let reporter =
        Reporter { controller: FIELD_MANAGER.to_owned(), instance: Some(settings.pod_name.clone()) };
    let context = Arc::new(Context {
        recorder: Recorder::new(client.clone(), reporter),
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
    for (scope, brokers, queues) in mirrors {
        let seen = seen(readiness.clone(), scope.clone(), brokers, queues);
        tasks.spawn(look_after(scope, context.clone(), seen, stop.clone()));
    }
    // Being done with it is no end of a task that has to live.
    context.background.spawn(broker::create_default(context.clone(), stop.clone()));
    tasks.spawn(named("wake-ups", wake::run(context.clone(), stop.clone())));
    tasks.spawn(named("connections", broker::close_connections(context.clone(), stop.clone())));
    tasks.spawn(named("completions", workflows::read_completions(context.clone(), stop.clone())));
    let outcome = supervise(tasks, &stop, SHUTDOWN_DEADLINE).await;
    context.background.close();
    if tokio::time::timeout(BACKGROUND_DEADLINE, context.background.wait()).await.is_err() {
        tracing::debug!("acknowledgements or Events were cut off");
    }
    outcome
}

/// Runs the controllers of one scope once its Brokers and Queues are known. Another scope's are not waited for: one
/// namespace that can't be read holds up nothing but itself.
async fn look_after(
    scope: Scope,
    context: Arc<Context>,
    seen: impl Future<Output = bool> + Send + 'static,
    stop: CancellationToken,
) -> &'static str {
    tokio::select! {
        () = stop.cancelled() => return "controllers",
        seen = seen => if !seen { return "watches" },
    }
    let mut controllers = JoinSet::new();
    let (shared, token) = (|| context.clone(), || stop.clone());
    controllers.spawn(named("Broker controller", broker::run(scope.clone(), shared(), token())));
    controllers.spawn(named("Queue controller", queue::run(scope.clone(), shared(), token())));
    controllers.spawn(named("Worker controller", worker::run(scope.clone(), shared(), token())));
    controllers.spawn(named("Workflow controller", workflows::run(scope, shared(), token())));
    let first = controllers.join_next().await;
    if stop.is_cancelled() {
        // All of them end what they are at.
        while controllers.join_next().await.is_some() {}
    }
    first.and_then(Result::ok).unwrap_or("a controller that panicked")
}

/// Waits until the Brokers and Queues of `scope` are known, and says so meanwhile. Tells whether they are.
async fn seen(readiness: Readiness, scope: Scope, brokers: Store<Broker>, queues: Store<Queue>) -> bool {
    let name = match &scope {
        Scope::Cluster => "caches".to_owned(),
        Scope::Namespace(namespace) => format!("caches of namespace {namespace}"),
    };
    readiness.set(&*name, false, "reading Brokers and Queues");
    let seen = brokers.wait_until_ready().await.is_ok() && queues.wait_until_ready().await.is_ok();
    readiness.set(&*name, seen, if seen { "synced" } else { "a watch ended" });
    seen
}

async fn named(name: &'static str, task: impl Future<Output = ()> + Send) -> &'static str {
    task.await;
    name
}

/// Waits for the stop, and then for the tasks. One that ends before it ends the process: nobody would do its work, and
/// another replica can.
async fn supervise(
    mut tasks: JoinSet<&'static str>,
    stop: &CancellationToken,
    limit: Duration,
) -> anyhow::Result<()> {
    let ended = tokio::select! {
        () = stop.cancelled() => None,
        Some(ended) = tasks.join_next() => Some(ended),
    };
    let early = ended.filter(|_| !stop.is_cancelled());
    stop.cancel();
    let all = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(limit, all).await.is_err() {
        tracing::warn!("controllers did not end in time");
    }
    match early {
        None => Ok(()),
        Some(Ok(name)) => anyhow::bail!("task {name:?} ended while it had work to do"),
        Some(Err(error)) => Err(error).context("a task panicked"),
    }
}

/// Keeps a store of all `K` up to date.
fn mirror<K>(api: Api<K>, tasks: &mut JoinSet<&'static str>, stop: &CancellationToken) -> Store<K>
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
    let follow = async move {
        let mut stream = std::pin::pin!(stream);
        while let Some(event) = stream.next().await {
            if let Err(error) = event {
                tracing::warn!(kind = %K::kind(&()), %error, "watch failed");
            }
        }
    };
    let stop = stop.clone();
    tasks.spawn(named("watch", async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = follow => {}
        }
    }));
    store
}

/// Waits until the API server knows our kinds; says so while it doesn't. One scope that can be read tells enough.
async fn wait_for_definitions(
    client: &Client,
    settings: &Settings,
    readiness: &Readiness,
    stop: &CancellationToken,
) {
    let scopes = Scope::of(&settings.scope.watch_namespaces);
    loop {
        let asked = scopes.iter().map(|scope| Box::pin(definitions_in(client, scope)));
        match select_ok(asked).await {
            Ok(_) => return readiness.set("definitions", true, "established"),
            Err(why) => readiness.set("definitions", false, why),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
}

/// Whether our kinds can be listed in `scope`; if not, why.
async fn definitions_in(client: &Client, scope: &Scope) -> Result<(), String> {
    let limit = kube::api::ListParams::default().limit(1);
    let outcome = async {
        scope.api::<Broker>(client).list(&limit).await?;
        scope.api::<Queue>(client).list(&limit).await?;
        scope.api::<Worker>(client).list(&limit).await?;
        scope.api::<Workflow>(client).list(&limit).await?;
        Ok::<_, kube::Error>(())
    };
    match tokio::time::timeout(Duration::from_secs(10), outcome).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => {
            Err("the CustomResourceDefinitions are not installed".to_owned())
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_elapsed) => Err("the API server does not answer".to_owned()),
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

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    async fn until(stop: CancellationToken) {
        stop.cancelled().await;
    }

    #[tokio::test]
    async fn a_task_that_ends_early_ends_the_process() {
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(named("steady", until(stop.clone())));
        tasks.spawn(named("brittle", std::future::ready(())));
        let error = supervise(tasks, &stop, LIMIT).await.unwrap_err();
        assert!(error.to_string().contains("brittle"), "{error}");
        assert!(stop.is_cancelled(), "the others are stopped");
    }

    #[tokio::test]
    async fn a_task_that_panics_ends_the_process() {
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(named("steady", until(stop.clone())));
        tasks.spawn(async { panic!("on purpose") });
        assert!(supervise(tasks, &stop, LIMIT).await.is_err());
    }

    #[tokio::test]
    async fn after_a_stop_all_tasks_may_end() {
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(named("one", until(stop.clone())));
        tasks.spawn(named("other", until(stop.clone())));
        stop.cancel();
        assert!(supervise(tasks, &stop, LIMIT).await.is_ok());
    }

    #[tokio::test]
    async fn readiness_says_which_scope_is_waited_for() {
        let (brokers, mut broker_writer) = reflector::store();
        let (queues, mut queue_writer) = reflector::store();
        let readiness = Readiness::default();
        let scope = Scope::Namespace("shop".to_owned());
        let mut waiting = std::pin::pin!(seen(readiness.clone(), scope, brokers, queues));
        assert!(futures::poll!(&mut waiting).is_pending());
        let (ready, text) = readiness.report();
        assert!(!ready && text.contains("caches of namespace shop: waiting"), "{text}");
        broker_writer.apply_watcher_event(&watcher::Event::<Broker>::InitDone);
        queue_writer.apply_watcher_event(&watcher::Event::<Queue>::InitDone);
        assert!(waiting.await);
        assert!(readiness.report().0);
    }
}
