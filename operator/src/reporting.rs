//! Outcomes of reconciliations: metrics, Events, logs and the next try.

use crate::{
    context::{Context, RECONCILE_DEADLINE},
    error::{Error, Result},
};
use futures::FutureExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{
    Resource, ResourceExt,
    runtime::{
        controller::Action,
        events::{Event, EventType},
    },
};
use std::{future::Future, panic::AssertUnwindSafe, sync::Arc, time::Duration};

/// Runs one reconciliation under its deadline; a panic in it fails this object, nothing else.
pub(crate) async fn guarded<F>(context: &Context, kind: &'static str, reconcile: F) -> Result<Action>
where
    F: Future<Output = Result<Action>> + Send,
{
    let started = std::time::Instant::now();
    let outcome = tokio::time::timeout(RECONCILE_DEADLINE, AssertUnwindSafe(reconcile).catch_unwind()).await;
    context.metrics.reconciled(kind, started.elapsed());
    match outcome {
        Ok(Ok(result)) => result,
        Ok(Err(_panic)) => Err(Error::Incomplete("sense: reconciling it panicked, see the log")),
        Err(_elapsed) => Err(Error::Deadline(RECONCILE_DEADLINE)),
    }
}

/// What a failed reconciliation leads to.
#[expect(clippy::needless_pass_by_value, reason = "the signature that Controller::run asks for")]
pub(crate) fn failed<K>(object: Arc<K>, error: &Error, context: Arc<Context>) -> Action
where
    K: Resource<DynamicType = ()>,
{
    let kind = K::kind(&());
    context.metrics.reconcile_failed(&kind, error.category());
    if matches!(error, Error::LeadershipLost) {
        return Action::await_change();
    }
    let key = key(object.as_ref());
    if error.category() == "NamespaceTerminating" {
        // The object goes too, in a moment; what it lacks meanwhile doesn't matter.
        return Action::requeue(Duration::from_secs(30));
    }
    let wait = if error.is_conflict() { Duration::from_millis(50) } else { context.backoff.failed(&key) };
    tracing::warn!(object = %key, category = error.category(), error = %error.chain(), retry_in = ?wait, "reconciliation failed");
    Action::requeue(wait)
}

/// Numbers alone are written this often at most.
pub(crate) const WRITE_EVERY: Duration = Duration::from_secs(10);

/// What to do about a status that is not the one that is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writing {
    Nothing,
    Now,
    /// Numbers alone wait their turn.
    In(Duration),
}

/// Whether a status that has changed, in more than numbers or not, is written now. `since` tells how long ago the last
/// write was.
pub(crate) fn writing(changed: bool, essentially: bool, since: Option<Duration>) -> Writing {
    match since {
        _ if !changed => Writing::Nothing,
        Some(since) if !essentially && since < WRITE_EVERY => Writing::In(WRITE_EVERY.saturating_sub(since)),
        _ => Writing::Now,
    }
}

/// A condition without its words.
pub(crate) fn quiet(condition: &Condition) -> Condition {
    Condition { message: String::new(), ..condition.clone() }
}

/// Kind, namespace and name of an object.
pub(crate) fn key<K: Resource<DynamicType = ()>>(object: &K) -> String {
    format!("{}/{}/{}", K::kind(&()), object.namespace().unwrap_or_default(), object.name_any())
}

/// Publishes an Event about `object`. That it can't be published is logged and nothing more.
pub(crate) async fn event<K>(
    context: &Context,
    object: &K,
    warning: bool,
    reason: &str,
    action: &str,
    note: impl Into<String>,
) where
    K: Resource<DynamicType = ()>,
{
    let mut note: String = note.into();
    if note.len() > 1000 {
        let end = (0..=1000).rev().find(|&at| note.is_char_boundary(at)).unwrap_or(0);
        note.truncate(end);
    }
    let event = Event {
        type_: if warning { EventType::Warning } else { EventType::Normal },
        reason: reason.to_owned(),
        note: Some(note),
        action: action.to_owned(),
        secondary: None,
    };
    if let Err(error) = context.recorder.publish(&event, &object.object_ref(&())).await {
        tracing::debug!(object = %key(object), %error, "event was not published");
    }
}
