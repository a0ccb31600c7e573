//! Brokers: an `embedded` one becomes a StatefulSet, a Service and a Secret; the others are somebody else's. Every one becomes
//! a connection.

mod build;
mod connect;
mod gone;
mod report;
mod secret;
mod server;
mod token;

use crate::{
    apply::{apply, replace_status},
    backoff::Backoff,
    context::{Context, Scope},
    error::{Error, Result},
    reporting::{self, event, guarded},
    seat::{self, Claim},
    trouble::trouble,
};
use futures::StreamExt;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::StatefulSet,
        core::v1::{Pod, Service},
    },
};
use kube::{
    Api, Resource, ResourceExt,
    api::{ListParams, PostParams},
    runtime::{
        Controller,
        controller::{Action, Config},
        watcher,
    },
};
use longshore_crds::{Broker, BrokerSpec, EmbeddedBroker, Reason, condition, is_true, label};
use serde::de::DeserializeOwned;
use std::{fmt::Debug, sync::Arc, time::Duration};
use tokio::time::timeout as within;
use tokio_util::sync::CancellationToken;

pub(crate) use build::{SecretKeys, authority_of, credentials_of};
pub(crate) use gone::run as close_connections;

use connect::Access;
use report::Seen;

/// A connected broker is asked again this often.
const PROBE_EVERY: Duration = Duration::from_secs(30);
/// A broker that isn't there yet is asked again this often.
const PROBE_SOON: Duration = Duration::from_millis(500);
/// The same for one that others look after, and for a Secret that isn't there yet: nobody watches Secrets.
const PROBE_LATER: Duration = Duration::from_secs(5);

/// How long creating the default Broker may take.
const CREATE_TIMEOUT: Duration = Duration::from_secs(10);

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

/// Creates the Broker that the chart asks for, if nobody has made one of that name. Tries until it is there.
pub(crate) async fn create_default(context: Arc<Context>, stop: CancellationToken) {
    let Some((namespace, name)) = context.settings.default_broker.split_once('/') else {
        return;
    };
    let api: Api<Broker> = Api::namespaced(context.client.clone(), namespace);
    let broker = Broker::new(name, BrokerSpec::embedded());
    let backoff = Backoff::default();
    loop {
        let parameters = PostParams::default();
        let error = match within(CREATE_TIMEOUT, api.create(&parameters, &broker)).await {
            Ok(Ok(_)) => return tracing::info!(namespace, name, "created the default Broker"),
            Ok(Err(kube::Error::Api(status))) if status.is_already_exists() => return,
            Ok(Err(error)) => error.to_string(),
            Err(_elapsed) => "the API server does not answer".to_owned(),
        };
        let wait = backoff.failed(name);
        tracing::warn!(namespace, name, error, retry_in = ?wait, "the default Broker was not created");
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

async fn reconcile(broker: Arc<Broker>, context: Arc<Context>) -> Result<Action> {
    guarded(&context, "Broker", Box::pin(reconcile_inner(&broker, &context))).await
}

async fn reconcile_inner(broker: &Broker, context: &Context) -> Result<Action> {
    let namespace = broker.namespace().ok_or(Error::Incomplete("namespace"))?;
    if broker.metadata.deletion_timestamp.is_some() {
        // Queues that go with it still need the connection.
        return Ok(Action::await_change());
    }
    if !context.leadership.is_leader() {
        return Err(Error::LeadershipLost);
    }
    // What was connected under this name before is not what this one means.
    let uid = broker.uid();
    gone::close(context, &(namespace.clone(), broker.name_any()), |it| Some(&it.broker_uid) != uid.as_ref());
    let Some(ours) = ours(context, broker, &namespace).await? else {
        return Ok(Action::await_change());
    };
    let Ours { access, pods, fault } = match ours {
        Ok(ours) => ours,
        Err(missing) => {
            report_on(context, broker, &Seen::Missing(missing)).await?;
            return Ok(Action::requeue(PROBE_LATER));
        }
    };
    let (answer, by_current) = connect::probe(context, broker, &namespace, &access).await;
    let again = match (&answer, pods, access.owed()) {
        (Ok(_), _, Some((tokens, owed))) => {
            // One at a time: the broker has to know the token of the rotation before.
            let due = match &owed.next {
                None => by_current,
                Some(next) => connect::accepts(&access, next).await,
            };
            if due {
                token::rotate(context, broker, &namespace, &tokens.current, owed).await?;
            }
            PROBE_LATER
        }
        (Ok(_), _, None) => PROBE_EVERY,
        (Err(_), Some(_), _) => PROBE_SOON,
        (Err(_), None, _) => PROBE_LATER,
    };
    let trouble = match (&answer, pods) {
        (Err(_), Some(0)) => trouble_of(context, broker, &namespace).await,
        _ => None,
    };
    report_on(context, broker, &Seen::Asked { answer, pods, trouble, fault }).await?;
    context.backoff.succeeded(&reporting::key(broker));
    Ok(Action::requeue(again))
}

/// What a broker is reached with.
struct Ours {
    access: Access,
    /// Pods that are ready, where they are ours.
    pods: Option<i32>,
    /// The API server doesn't take what the broker is to consist of.
    fault: Option<Reason>,
}

/// What the broker is reached with, or what stands in the way; nothing for a spec that the API server lets in nowhere.
async fn ours(
    context: &Context,
    broker: &Broker,
    namespace: &str,
) -> Result<Option<std::result::Result<Ours, Reason>>> {
    let elsewhere = |access| Ours { access, pods: None, fault: None };
    if let Some(embedded) = &broker.spec.embedded {
        return embed(context, broker, namespace, embedded).await.map(Some);
    }
    if let Some(http) = &broker.spec.http {
        let tokens = token::read(context, namespace, &http.token_from).await?;
        let url = http.url.clone();
        return Ok(Some(tokens.map(|tokens| elsewhere(Access::Http { url, tokens }))));
    }
    let Some(named) = server::Named::of(&broker.spec) else { return Ok(None) };
    let credentials = named.credentials(context, namespace).await?;
    let server = named.server;
    Ok(Some(credentials.map(|credentials| elsewhere(Access::Server { server, credentials }))))
}

/// Applies what an embedded broker consists of. What stands in the way comes back as the reason for not being ready.
async fn embed(
    context: &Context,
    broker: &Broker,
    namespace: &str,
    embedded: &EmbeddedBroker,
) -> Result<std::result::Result<Ours, Reason>> {
    let name = build::name(broker);
    let set = there::<StatefulSet>(context, namespace, &name).await?;
    let service = there::<Service>(context, namespace, &name).await?;
    let claims = [
        seat::claim(broker, label::BROKER, set.as_ref()),
        seat::claim(broker, label::BROKER, service.as_ref()),
    ];
    if let Some(reason) = claims.into_iter().find_map(Claim::into_reason) {
        return Ok(Err(reason));
    }
    let tokens = match token::ensure(context, broker, namespace, embedded.token_revision).await? {
        Ok(tokens) => tokens,
        Err(reason) => return Ok(Err(reason)),
    };
    let access = Access::Http { url: build::url(broker).unwrap_or_default(), tokens };
    let ready = |set: &StatefulSet| set.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0);
    let pods = set.as_ref().map_or(0, ready);
    Ok(Ok(match put(context, broker, namespace, embedded).await {
        Ok(set) => Ours { access, pods: Some(ready(&set)), fault: None },
        Err(error) => {
            let refused = error.refusal().ok_or(error)?;
            Ours { access, pods: Some(pods), fault: Some(Reason::no("ObjectRefused", refused)) }
        }
    }))
}

async fn put(
    context: &Context,
    broker: &Broker,
    namespace: &str,
    embedded: &EmbeddedBroker,
) -> Result<StatefulSet> {
    let set = build::stateful_set(broker, embedded, &context.settings)?;
    let set = apply(&context.client, namespace, &set).await?;
    apply::<Service>(&context.client, namespace, &build::service(broker)?).await?;
    Ok(set)
}

async fn there<K>(context: &Context, namespace: &str, name: &str) -> Result<Option<K>>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(context.client.clone(), namespace);
    api.get_opt(name).await.map_err(Error::api(format!("get {} {name:?}", K::kind(&()))))
}

/// Why the broker's pod isn't ready, as far as the pod tells.
async fn trouble_of(context: &Context, broker: &Broker, namespace: &str) -> Option<String> {
    let api: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
    let selector = format!("{}={}", label::BROKER, broker.name_any());
    // What the API server has in memory will do.
    let pods = api.list(&ListParams::default().labels(&selector).match_any()).await.ok()?;
    pods.items.iter().find_map(|pod| trouble(pod, ""))
}

async fn report_on(context: &Context, broker: &Broker, seen: &Seen) -> Result<()> {
    let was_ready =
        broker.status.as_ref().is_some_and(|status| is_true(&status.conditions, condition::READY));
    let next = report::status(broker, seen, context.now());
    if broker.status.as_ref() == Some(&next) {
        return Ok(());
    }
    let changed = report::changed_backend(broker, &next);
    let ready = next.conditions.iter().find(|item| item.type_ == condition::READY).cloned();
    let is_ready = is_true(&next.conditions, condition::READY);
    let mut object = broker.clone();
    object.status = Some(next);
    if replace_status(&context.client, &object).await?.is_none() {
        return Ok(());
    }
    if let Some(note) = changed {
        event(context, broker, true, "BackendChanged", "Probe", note).await;
    }
    if let Some(ready) = ready.filter(|_| is_ready != was_ready) {
        event(context, broker, !is_ready, &ready.reason, "Probe", ready.message).await;
    }
    Ok(())
}
