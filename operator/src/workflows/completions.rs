//! Reads the completions of this installation from every broker.

use super::{
    inbox::{Arrived, Origin},
    jobs,
};
use crate::{
    connections::{BrokerKey, Connection},
    context::Context,
    reporting::event,
};
use kube::{Api, ResourceExt};
use longshore_crds::Workflow;
use longshore_drivers::{Completion, CompletionReceipt, Limits, ReadCompletions};
use longshore_workflow::Target;
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Completions in one read.
const PAGE: u32 = 500;
/// How long a read waits for a completion. A timer that nobody saw coming is this late, because completions that were
/// settled before it come first.
const WAIT: Duration = Duration::from_secs(5);
/// The same while a timer is near.
const SHORT_WAIT: Duration = Duration::from_millis(500);
/// How soon a failed read is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// A completion that nobody took for this long may belong to a workflow that is gone.
const ORPHAN_AFTER: Duration = Duration::from_secs(2);
/// A completion that can't be used and was handed out this often is acknowledged: the stream goes on without it. What it
/// says is kept with the job's record.
pub(super) const PARK_AFTER: u32 = 5;

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
            same && !task.is_finished()
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
    let Ok(address) = context.address(&broker.0) else { return };
    loop {
        if !context.leadership.is_leader() {
            tokio::time::sleep(RETRY).await;
            continue;
        }
        let began = Instant::now();
        let request =
            ReadCompletions { max: PAGE, wait: wait(&context, &broker), lease: ReadCompletions::MAX_LEASE };
        let page = match connection.driver.completions(&address, request).await {
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
            if context.inbox.set_read_to_end(&broker, began) {
                tracing::info!(namespace = broker.0, broker = broker.1, "completions were read to their end");
            }
        } else if !full {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

fn wait(context: &Context, broker: &BrokerKey) -> Duration {
    match context.inbox.read_to_end(broker) {
        // Until the first end was seen nothing may be performed, so don't sit waiting for more.
        None => Duration::ZERO,
        Some(_) if context.inbox.is_hurried(broker) => SHORT_WAIT,
        Some(_) => WAIT,
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
        match origin(broker, &completion) {
            Ok(origin) => arrivals.push(Arrived { broker: broker.clone(), origin, completion }),
            Err(problem) => {
                tracing::warn!(job = %completion.job, queue = %completion.queue, problem, "completion can't be used");
                if completion.delivery >= PARK_AFTER {
                    parked.push((completion, problem));
                }
            }
        }
    }
    context.inbox.put(arrivals);
    park(context, broker, connection, parked).await;
}

/// Whose completion it is. It has to come from a Broker of the workflow's own namespace and to be about the job that it
/// says it is about: whoever can write to another broker must not settle other people's workflows.
fn origin(broker: &BrokerKey, completion: &Completion) -> std::result::Result<Origin, String> {
    let origin: Origin = serde_json::from_str(&completion.context).map_err(|error| error.to_string())?;
    if origin.namespace != broker.0 {
        return Err(format!("it is about a workflow in namespace {:?}", origin.namespace));
    }
    if Target::decode(&origin.place).is_none() {
        return Err(format!("it names the place {:?}, and there is none such", origin.place));
    }
    match jobs::id_of(&origin.uid, &origin.place) {
        Ok(id) if id == completion.job => Ok(origin),
        _ => Err("it is about another job than it names".to_owned()),
    }
}

async fn park(
    context: &Context,
    broker: &BrokerKey,
    connection: &Connection,
    parked: Vec<(Completion, String)>,
) {
    let Some((first, problem)) = parked.first() else { return };
    let note = format!(
        "{} completions can't be used and are put aside; that of job {} in {}: {problem}",
        parked.len(),
        first.job,
        first.queue
    );
    if let Some(object) = context.lookup.broker(&broker.0, &broker.1) {
        event(context, object.as_ref(), true, "CompletionParked", "Read", note).await;
    }
    context.metrics.completions_parked(parked.len() as u64);
    let receipts = parked.into_iter().map(|(completion, _)| completion.receipt).collect();
    acknowledge(context, &broker.0, connection, receipts).await;
}

/// Acknowledges; one that fails is handed out again and acknowledged then.
pub(super) async fn acknowledge(
    context: &Context,
    namespace: &str,
    connection: &Connection,
    receipts: Vec<CompletionReceipt>,
) {
    let Ok(address) = context.address(namespace) else { return };
    for receipts in receipts.chunks(Limits::BATCH) {
        if let Err(error) = connection.driver.acknowledge(&address, receipts.to_vec()).await {
            tracing::debug!(%error, "completions could not be acknowledged");
        }
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
            acknowledge(context, &key.0, &connection, receipts).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use longshore_drivers::{JobId, Outcome, Timestamp};

    fn said(job: &str, context: &str) -> std::result::Result<Origin, String> {
        let completion = Completion {
            receipt: CompletionReceipt("1".to_owned()),
            queue: "q".parse().unwrap(),
            job: JobId::new(job).unwrap(),
            outcome: Outcome::Cancelled,
            settled_at: Timestamp::from_millis(0),
            context: context.to_owned(),
            delivery: 1,
        };
        origin(&("shop".to_owned(), "default".to_owned()), &completion)
    }

    #[test]
    fn a_completion_is_believed_only_about_its_own_job_and_namespace() {
        let of = |namespace: &str, place: &str| {
            format!(r#"{{"ns":"{namespace}","name":"w","uid":"u","place":"{place}"}}"#)
        };
        assert_eq!(said("u.0.s0.m1", &of("shop", "0.s0.m1")).unwrap().place, "0.s0.m1");
        for (job, context, problem) in [
            ("u.0.s0.m1", of("bank", "0.s0.m1"), "namespace \"bank\""),
            ("u.0.s0.m2", of("shop", "0.s0.m1"), "another job"),
            ("v.0.s0.m1", of("shop", "0.s0.m1"), "another job"),
            ("u.0.nowhere", of("shop", "0.nowhere"), "none such"),
            ("u.0.s0.m1", "what?".to_owned(), "expected"),
        ] {
            let found = said(job, &context).unwrap_err();
            assert!(found.contains(problem), "{found}");
        }
    }
}
