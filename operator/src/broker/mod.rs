//! Brokers: an `embedded` one becomes a StatefulSet, a Service and a Secret; an `http` one is somebody else's. Every one becomes
//! a connection.

mod build;
mod connect;
mod report;
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
use longshore_crds::{Broker, BrokerSpec, EmbeddedBroker, condition, is_true, label};
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

pub(crate) use build::{TokenSecret, tokens_of};
use report::Seen;

/// A connected broker is asked again this often.
const PROBE_EVERY: Duration = Duration::from_secs(30);
/// A broker that isn't there yet is asked again this often.
const PROBE_SOON: Duration = Duration::from_millis(500);
/// The same for one that others look after, and for a Secret that isn't there yet: nobody watches Secrets.
const PROBE_LATER: Duration = Duration::from_secs(5);

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
    let api: Api<Broker> = Api::namespaced(context.client.clone(), namespace);
    let broker = Broker::new(name, BrokerSpec::embedded());
    match api.create(&PostParams::default(), &broker).await {
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
    let (tokens, pods) = match (&broker.spec.embedded, &broker.spec.http) {
        (Some(embedded), _) => embed(context, broker, &namespace, embedded).await?,
        (None, Some(http)) => match token::read(context, &namespace, &http.token_from).await? {
            Ok(tokens) => (tokens, None),
            Err(missing) => {
                report_on(context, broker, &Seen::Missing(missing)).await?;
                return Ok(Action::requeue(PROBE_LATER));
            }
        },
        // The API server lets none in.
        (None, None) => return Ok(Action::await_change()),
    };
    let answer = connect::probe(context, broker, &namespace, &tokens).await;
    let again = match (&answer, pods) {
        (Ok(_), _) => PROBE_EVERY,
        (Err(_), Some(_)) => PROBE_SOON,
        (Err(_), None) => PROBE_LATER,
    };
    report_on(context, broker, &Seen::Asked { answer, pods }).await?;
    context.backoff.succeeded(&reporting::key(broker));
    Ok(Action::requeue(again))
}

/// Applies what an embedded broker consists of. Answers its tokens and how many pods are ready.
async fn embed(
    context: &Context,
    broker: &Broker,
    namespace: &str,
    embedded: &EmbeddedBroker,
) -> Result<(token::Tokens, Option<i32>)> {
    let tokens = token::ensure(context, broker, namespace, embedded.token_revision).await?;
    let set: StatefulSet =
        apply(&context.client, namespace, &build::stateful_set(broker, embedded, &context.settings)?).await?;
    apply::<Service>(&context.client, namespace, &build::service(broker)?).await?;
    Ok((tokens, Some(set.status.and_then(|status| status.ready_replicas).unwrap_or(0))))
}

async fn report_on(context: &Context, broker: &Broker, seen: &Seen) -> Result<()> {
    let was_ready =
        broker.status.as_ref().is_some_and(|status| is_true(&status.conditions, condition::READY));
    let next = report::status(broker, seen, context.now());
    if broker.status.as_ref() == Some(&next) {
        return Ok(());
    }
    let ready = next.conditions.iter().find(|item| item.type_ == condition::READY).cloned();
    let is_ready = is_true(&next.conditions, condition::READY);
    let mut object = broker.clone();
    object.status = Some(next);
    if replace_status(&context.client, &object).await?.is_some()
        && is_ready != was_ready
        && let Some(ready) = ready
    {
        event(context, broker, !is_ready, &ready.reason, "Probe", ready.message).await;
    }
    Ok(())
}
