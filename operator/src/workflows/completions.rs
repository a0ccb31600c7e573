//! Reads the completions of this installation from every broker.

use super::inbox::{Arrived, Origin};
use crate::{
    connections::{BrokerKey, Connection},
    context::Context,
};
use kube::{Api, ResourceExt};
use longshore_crds::Workflow;
use longshore_drivers::{Completion, CompletionReceipt, ReadCompletions};
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Completions in one read.
const PAGE: u32 = 500;
/// Reading rests while this many wait for their workflows.
const MAX_WAITING: usize = 10_000;
/// How soon a failed read is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// A completion that nobody took for this long may belong to a workflow that is gone.
const ORPHAN_AFTER: Duration = Duration::from_secs(2);
/// A completion that can't be decoded and was handed out this often is acknowledged, so that it is gone.
const PARK_AFTER: u32 = 5;

/// Reads until it is stopped.
pub(crate) async fn run(context: Arc<Context>, stop: CancellationToken) {
    let mut changes = context.connections.changes();
    let mut readers: BTreeMap<BrokerKey, (String, JoinHandle<()>)> = BTreeMap::new();
    let mut rounds = tokio::time::interval(ORPHAN_AFTER);
    loop {
        let open = context.connections.all();
        readers.retain(|key, (fingerprint, task)| {
            let same = open.get(key).is_some_and(|connection| &connection.fingerprint == fingerprint);
            if !same {
                task.abort();
            }
            same
        });
        for (key, connection) in open {
            readers.entry(key.clone()).or_insert_with(|| {
                let fingerprint = connection.fingerprint.clone();
                (fingerprint, tokio::spawn(read(context.clone(), key, connection)))
            });
        }
        tokio::select! {
            () = stop.cancelled() => break,
            changed = changes.changed() => if changed.is_err() { break },
            _ = rounds.tick() => drop_orphans(&context).await,
        }
    }
    readers.into_values().for_each(|(_, task)| task.abort());
}

async fn read(context: Arc<Context>, broker: BrokerKey, connection: Connection) {
    let started = Instant::now();
    loop {
        if context.inbox.len() > MAX_WAITING || !context.leadership.is_leader() {
            tokio::time::sleep(RETRY).await;
            continue;
        }
        // Until the first end was seen nothing may be performed, so don't sit waiting for more.
        let wait = if context.inbox.is_caught_up(&broker) { Duration::from_secs(20) } else { Duration::ZERO };
        let request = ReadCompletions { max: PAGE, wait, lease: ReadCompletions::MAX_LEASE };
        let page = match connection.driver.completions(&context.address, request).await {
            Ok(page) => page,
            Err(error) => {
                tracing::debug!(broker = broker.1, %error, "completions could not be read");
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        let full = page.completions.len() >= PAGE as usize;
        receive(&context, &broker, &connection, page.completions).await;
        // What a reader before us held is handed out again when its lease ends.
        let leases_over = started.elapsed() > ReadCompletions::MAX_LEASE;
        if !full && (page.caught_up || leases_over) {
            if context.inbox.set_caught_up(&broker) {
                tracing::info!(namespace = broker.0, broker = broker.1, "completions were read to their end");
            }
        } else if !full {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn receive(
    context: &Context,
    broker: &BrokerKey,
    connection: &Connection,
    completions: Vec<Completion>,
) {
    let mut arrivals = Vec::with_capacity(completions.len());
    let mut parked = Vec::new();
    for completion in completions {
        match serde_json::from_str::<Origin>(&completion.context) {
            Ok(origin) => arrivals.push(Arrived { broker: broker.clone(), origin, completion }),
            Err(error) => {
                tracing::warn!(job = %completion.job, queue = %completion.queue, %error, "completion can't be decoded");
                if completion.delivery >= PARK_AFTER {
                    context.metrics.completion_parked();
                    parked.push(completion.receipt);
                }
            }
        }
    }
    context.inbox.put(arrivals);
    if !parked.is_empty() {
        acknowledge(context, connection, parked).await;
    }
}

/// Acknowledges; one that fails is handed out again and acknowledged then.
pub(super) async fn acknowledge(
    context: &Context,
    connection: &Connection,
    receipts: Vec<CompletionReceipt>,
) {
    if receipts.is_empty() {
        return;
    }
    if let Err(error) = connection.driver.acknowledge(&context.address, receipts).await {
        tracing::debug!(%error, "completions could not be acknowledged");
    }
}

/// Drops completions of workflows that are gone, after asking the API server itself.
async fn drop_orphans(context: &Context) {
    let Some(since) = Instant::now().checked_sub(ORPHAN_AFTER) else {
        return;
    };
    for origin in context.inbox.untaken(since) {
        let api: Api<Workflow> = Api::namespaced(context.client.clone(), &origin.namespace);
        match api.get_opt(&origin.name).await {
            Ok(Some(workflow)) if workflow.uid().as_deref() == Some(&origin.uid) => {
                context.inbox.wake((origin.namespace, origin.name));
            }
            Ok(_) => forget(context, &origin).await,
            Err(error) => tracing::debug!(%error, "could not ask whether a workflow is gone"),
        }
    }
}

async fn forget(context: &Context, origin: &Origin) {
    let orphans = context.inbox.take(&origin.uid);
    tracing::info!(
        namespace = origin.namespace,
        workflow = origin.name,
        count = orphans.len(),
        "dropped completions of a workflow that is gone"
    );
    context.metrics.completion_orphaned(orphans.len() as u64);
    acknowledge_all(context, &orphans).await;
}

/// Acknowledges completions of any brokers.
pub(super) async fn acknowledge_all(context: &Context, arrivals: &[Arrived]) {
    let mut by_broker: BTreeMap<&BrokerKey, Vec<CompletionReceipt>> = BTreeMap::new();
    for arrived in arrivals {
        by_broker.entry(&arrived.broker).or_default().push(arrived.completion.receipt.clone());
    }
    for (key, receipts) in by_broker {
        if let Some(connection) = context.connections.get(&key.0, &key.1) {
            acknowledge(context, &connection, receipts).await;
        }
    }
}
