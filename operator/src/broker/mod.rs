//! Brokers: an `embedded` one becomes a StatefulSet, a Service and a Secret; every one becomes a connection.

mod build;
mod connect;
mod token;

use crate::{
    apply::{apply, replace_status},
    context::{Context, Scope},
    error::{Error, Result},
    reporting::{self, event, guarded},
};
use futures::StreamExt;
use k8s_openapi::api::{apps::v1::StatefulSet, core::v1::Service};
use kube::{
    Api, ResourceExt,
    api::PostParams,
    runtime::{
        Controller,
        controller::{Action, Config},
        watcher,
    },
};
use longshore_crds::{
    Broker, BrokerSpec, BrokerStatus, EmbeddedBroker, Reason, condition, is_true, label, set_condition,
};
use longshore_drivers::Probe;
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

pub(crate) use build::{service_url, token_secret_name};

/// A connected broker is asked again this often.
const PROBE_EVERY: Duration = Duration::from_secs(30);
/// A broker that isn't there yet is asked again this often.
const PROBE_SOON: Duration = Duration::from_millis(500);

/// Runs the controller of Brokers until it is stopped.
pub(crate) async fn run(scope: Scope, context: Arc<Context>, stop: CancellationToken) {
    let owned =
        watcher::Config::default().labels(&format!("{}={}", label::MANAGED_BY, label::MANAGED_BY_VALUE));
    Controller::new(scope.api::<Broker>(&context.client), watcher::Config::default())
        .with_config(Config::default().concurrency(8))
        .owns(scope.api::<StatefulSet>(&context.client), owned.clone())
        .owns(scope.api::<Service>(&context.client), owned)
        .graceful_shutdown_on(stop.cancelled_owned())
        .run(reconcile, reporting::failed, context)
        .for_each(|_| std::future::ready(()))
        .await;
}

/// Creates the Broker that the chart asks for, if nobody has made one of that name.
pub(crate) async fn create_default(context: &Context) {
    let Some((namespace, name)) = context.settings.default_broker.split_once('/') else {
        return;
    };
    let spec =
        BrokerSpec { embedded: Some(EmbeddedBroker { token_revision: 1, ..EmbeddedBroker::default() }) };
    let api: Api<Broker> = Api::namespaced(context.client.clone(), namespace);
    match api.create(&PostParams::default(), &Broker::new(name, spec)).await {
        Ok(_) => tracing::info!(namespace, name, "created the default Broker"),
        Err(kube::Error::Api(status)) if status.is_already_exists() => {}
        Err(error) => tracing::warn!(namespace, name, %error, "the default Broker was not created"),
    }
}

async fn reconcile(broker: Arc<Broker>, context: Arc<Context>) -> Result<Action> {
    guarded(&context, "Broker", reconcile_inner(&broker, &context)).await
}

async fn reconcile_inner(broker: &Broker, context: &Context) -> Result<Action> {
    let namespace = broker.namespace().ok_or(Error::Incomplete("namespace"))?;
    if broker.metadata.deletion_timestamp.is_some() {
        context.connections.remove(&(namespace, broker.name_any()));
        return Ok(Action::await_change());
    }
    if !context.leadership.is_leader() {
        return Err(Error::LeadershipLost);
    }
    let Some(embedded) = &broker.spec.embedded else {
        return Ok(Action::await_change());
    };
    let token = token::ensure(context, broker, &namespace, embedded.token_revision).await?;
    let set: StatefulSet =
        apply(&context.client, &namespace, &build::stateful_set(broker, embedded, &context.settings)?)
            .await?;
    apply::<Service>(&context.client, &namespace, &build::service(broker)?).await?;
    let seen = connect::probe(context, broker, &namespace, &token).await;
    report(context, broker, &set, &seen).await?;
    context.backoff.succeeded(&reporting::key(broker));
    Ok(Action::requeue(if seen.is_ok() { PROBE_EVERY } else { PROBE_SOON }))
}

type Seen = std::result::Result<Probe, longshore_drivers::Error>;

async fn report(context: &Context, broker: &Broker, set: &StatefulSet, seen: &Seen) -> Result<()> {
    let was_ready =
        broker.status.as_ref().is_some_and(|status| is_true(&status.conditions, condition::READY));
    let next = status(broker, set, seen, context.now());
    if broker.status.as_ref() == Some(&next) {
        return Ok(());
    }
    let ready = is_true(&next.conditions, condition::READY);
    let mut object = broker.clone();
    object.status = Some(next);
    if replace_status(&context.client, &object).await?.is_some() && ready != was_ready {
        let (reason, note) = match seen {
            Ok(probe) => ("Connected", format!("{} {} answers", probe.backend, probe.version)),
            Err(error) => ("Unreachable", error.to_string()),
        };
        event(context, broker, !ready, reason, "Probe", note).await;
    }
    Ok(())
}

/// The status that what was seen amounts to.
fn status(
    broker: &Broker,
    set: &StatefulSet,
    seen: &Seen,
    now: k8s_openapi::jiff::Timestamp,
) -> BrokerStatus {
    let generation = broker.metadata.generation;
    let mut status = broker.status.clone().unwrap_or_default();
    status.observed_generation = generation;
    status.url = Some(service_url(broker));
    let pods = set.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0);
    let ready = match seen {
        Ok(probe) => match &status.backend_id {
            Some(known) if known != &probe.backend_id => Reason::no(
                "BackendChanged",
                format!(
                    "the data is not what it was ({} instead of {known}): queues stand still until they adopt it",
                    probe.backend_id
                ),
            ),
            _ => Reason::yes("Connected", format!("{} {} answers", probe.backend, probe.version)),
        },
        Err(_) if pods == 0 => Reason::unknown("WaitingForPod", "the broker's pod is not ready yet"),
        Err(error) => Reason::no("Unreachable", error.to_string()),
    };
    if let Ok(probe) = seen {
        status.backend = Some(probe.backend.clone());
        status.version = Some(probe.version.clone());
        status.backend_id.get_or_insert_with(|| probe.backend_id.clone());
        status.capabilities = serde_json::to_value(&probe.capabilities).ok();
    }
    let ephemeral = broker.spec.embedded.as_ref().is_some_and(|embedded| embedded.ephemeral);
    let durable = if ephemeral {
        Reason::no("Ephemeral", "jobs are kept in an emptyDir and are gone with the pod")
    } else {
        Reason::yes("Volume", "jobs are kept on a claimed volume, every acknowledgement after fsync")
    };
    set_condition(&mut status.conditions, condition::READY, ready, generation, now);
    set_condition(&mut status.conditions, condition::DURABLE, durable, generation, now);
    status
}
