//! Before a workflow starts, after it has ended, and where it can't go on.

use super::{
    check,
    completions::acknowledge_all,
    expressions, jobs,
    perform::{self, Reach},
    reconcile::{Run, put_aside},
    report,
};
use crate::{
    apply::replace_status,
    error::{Error, Result},
    reporting::event,
};
use k8s_openapi::jiff::SignedDuration;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
    runtime::controller::Action,
};
use longshore_crds::{Workflow, WorkflowStatus, finalizer};
use longshore_drivers::{JobId, Limits};
use serde_json::json;
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// A workflow that can't be taken care of any more is let go this long after its deletion was asked for.
const LET_GO_AFTER: SignedDuration = SignedDuration::from_secs(30);
/// How often one is looked at that waits for an object.
const LOOK_FOR_OBJECTS: Duration = Duration::from_secs(5);

impl Run<'_> {
    /// Before the start: the queues have to be there, and the finalizer has to stand before the first job is out.
    pub(super) async fn not_ready_to_start(&mut self) -> Result<Option<Action>> {
        if self.state.is_started() {
            return Ok(None);
        }
        if self.object.metadata.deletion_timestamp.is_some() {
            self.set_finalizer(false).await?;
            self.context.memory.forget(&self.uid);
            return Ok(Some(Action::await_change()));
        }
        let cancel = self.object.spec.cancel;
        if self.object.spec.suspend && !cancel {
            let message = "it starts when suspend is set to false".to_owned();
            return self.wait("Suspended", message).await.map(Some);
        }
        if let Some(problem) = check::size_problem(&self.object.spec, &self.plan) {
            let status = report::invalid(&self.object, "TooLarge", &problem, self.context.now());
            return self.stop(status, "TooLarge", &problem).await.map(Some);
        }
        let spec = self.object.spec.clone();
        let problem = expressions::on_large_stack(move || check::problem(&spec)).await;
        if let Some(problem) = problem.map_err(Error::NoThread)? {
            let message = format!("{}: {}", problem.field, problem.message);
            let status = report::invalid(&self.object, "InvalidExpression", &message, self.context.now());
            return self.stop(status, "InvalidExpression", &message).await.map(Some);
        }
        // One that is cancelled before it began and calls nobody back needs no queue.
        let calls = self.plan.callbacks.catch || self.plan.callbacks.finally;
        if let Some(missing) = self.missing_queue().filter(|_| !cancel || calls) {
            return self.wait("WaitingForQueue", missing).await.map(Some);
        }
        self.set_finalizer(true).await?;
        Ok(None)
    }

    fn missing_queue(&self) -> Option<String> {
        jobs::queues(&self.object.spec).into_iter().find_map(|name| {
            let queue = self.context.lookup.queue(&self.namespace, name);
            match queue {
                None => Some(format!("there is no Queue {name:?} in this namespace")),
                Some(queue) if queue.status.as_ref().is_none_or(|status| status.backend_id.is_none()) => {
                    Some(format!("Queue {name:?} is not ready yet"))
                }
                Some(_) => None,
            }
        })
    }

    async fn wait(&mut self, reason: &str, message: String) -> Result<Action> {
        let status = report::waiting(&self.object, reason, &message, self.context.now());
        if self.object.status.as_ref() != Some(&status) {
            let mut object = self.object.as_ref().clone();
            object.status = Some(status);
            if let Some(stored) = replace_status(&self.context.client, &object).await? {
                self.context.memory.committed(&self.uid, Arc::new(stored));
            }
        }
        Ok(Action::requeue(LOOK_FOR_OBJECTS))
    }

    /// Reports that it won't start as it is.
    async fn stop(&self, status: WorkflowStatus, reason: &str, message: &str) -> Result<Action> {
        if self.object.status.as_ref() != Some(&status) {
            let mut object = self.object.as_ref().clone();
            object.status = Some(status);
            replace_status(&self.context.client, &object).await?;
            event(self.context, self.object.as_ref(), true, reason, "Stop", message).await;
        }
        Ok(Action::await_change())
    }

    /// It can't go on by itself: says why, and touches nothing of its state, which a newer operator may have written. Its
    /// completions hold up nobody else, and neither does its deletion.
    pub(super) async fn stand_still(&mut self, reason: &str, message: &str) -> Result<Action> {
        put_aside(self.context, self.context.inbox.take(&self.uid)).await;
        if let Some(asked) = self.object.metadata.deletion_timestamp.clone() {
            let left = LET_GO_AFTER - self.context.now().duration_since(asked.0);
            if left.is_positive() {
                return Ok(Action::requeue(Duration::try_from(left).unwrap_or_default()));
            }
            return self.abandon(reason).await;
        }
        let conditions = report::stalled(&self.object, reason, message, self.context.now()).conditions;
        if self.object.status.as_ref().map(|status| &status.conditions) != Some(&conditions) {
            let patch = json!({
                "metadata": { "resourceVersion": self.object.resource_version() },
                "status": { "conditions": conditions },
            });
            let api: Api<Workflow> = Api::namespaced(self.context.client.clone(), &self.namespace);
            match api.patch_status(&self.name, &PatchParams::default(), &Patch::Merge(&patch)).await {
                Ok(_) => {}
                // Somebody changed it, which is news.
                Err(kube::Error::Api(status)) if status.is_conflict() || status.is_not_found() => {
                    return Ok(Action::await_change());
                }
                Err(error) => return Err(Error::api("write the conditions of the workflow")(error)),
            }
            event(self.context, self.object.as_ref(), true, reason, "Stop", message).await;
        }
        Ok(Action::await_change())
    }

    /// A deletion that fails again and again ends all the same.
    pub(super) async fn let_go(&mut self, error: Error) -> Result<Action> {
        let asked = self.object.metadata.deletion_timestamp.as_ref().map(|asked| asked.0);
        let late = asked.is_some_and(|asked| self.context.now().duration_since(asked) > LET_GO_AFTER * 2);
        if !late || matches!(error, Error::LeadershipLost) {
            return Err(error);
        }
        self.abandon(&error.chain()).await
    }

    async fn abandon(&mut self, why: &str) -> Result<Action> {
        let note = format!("jobs of it may be left in their queues: {why}");
        event(self.context, self.object.as_ref(), true, "JobsLeft", "Delete", note).await;
        self.set_finalizer(false).await?;
        self.context.memory.forget(&self.uid);
        Ok(Action::await_change())
    }

    /// The end was committed just now.
    pub(super) async fn end(&mut self) -> Result<Action> {
        self.unpin();
        self.after_the_end(None).await
    }

    /// Tells the brokers that nobody needs what they keep of the workflow's jobs. Not waited for: should it get lost, they
    /// keep it for 30 days.
    fn unpin(&self) {
        let author = perform::author(self);
        let mut by_queue: BTreeMap<&str, Vec<JobId>> = BTreeMap::new();
        for target in self.state.places(&self.plan) {
            let queue = jobs::queue_of(&self.object.spec, &target);
            by_queue.entry(queue).or_default().extend(author.job_id(&target).ok());
        }
        for (name, ids) in by_queue {
            let Ok(Reach { connection, queue, .. }) = perform::reach(self, name) else { continue };
            self.context.background.spawn(async move {
                for chunk in ids.chunks(Limits::BATCH) {
                    let call = connection.driver.unpin(&queue, chunk.to_vec());
                    if !matches!(tokio::time::timeout(perform::CALL, call).await, Ok(Ok(()))) {
                        tracing::debug!(%queue, "records of a workflow that is over stay until their time is over");
                        return;
                    }
                }
            });
        }
    }

    /// Nothing is out any more: late completions are acknowledged, the finalizer goes, the object too when its time came.
    /// `seen` is what the watch has shown: until that is the end too, what is known of it must not be forgotten.
    pub(super) async fn after_the_end(&mut self, seen: Option<&Workflow>) -> Result<Action> {
        let late = self.context.inbox.take(&self.uid);
        acknowledge_all(self.context, &late).await;
        self.set_finalizer(false).await?;
        if seen.is_some_and(|seen| self.context.memory.is_seen(&self.uid, seen)) {
            self.context.memory.forget(&self.uid);
        }
        if self.object.metadata.deletion_timestamp.is_some() {
            return Ok(Action::await_change());
        }
        let Some(expiry) = report::expiry(&self.object) else {
            return Ok(Action::await_change());
        };
        let left = expiry.duration_since(self.context.now());
        if left.is_positive() {
            return Ok(Action::requeue(
                Duration::try_from(left).unwrap_or_default() + Duration::from_millis(10),
            ));
        }
        perform::check_leader(self)?;
        self.delete().await
    }

    async fn delete(&self) -> Result<Action> {
        let api: Api<Workflow> = Api::namespaced(self.context.client.clone(), &self.namespace);
        let preconditions = Preconditions { uid: Some(self.uid.clone()), resource_version: None };
        let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::background() };
        match api.delete(&self.name, &parameters).await {
            Ok(_) => Ok(Action::await_change()),
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {
                Ok(Action::await_change())
            }
            Err(error) => Err(Error::api("delete the finished workflow")(error)),
        }
    }

    /// The finalizer stands exactly while jobs may be out.
    pub(super) async fn set_finalizer(&mut self, wanted: bool) -> Result<()> {
        let mut finalizers = self.object.finalizers().to_vec();
        if finalizers.iter().any(|name| name == finalizer::WORKFLOW_JOBS) == wanted {
            return Ok(());
        }
        perform::check_leader(self)?;
        finalizers.retain(|name| name != finalizer::WORKFLOW_JOBS);
        if wanted {
            finalizers.push(finalizer::WORKFLOW_JOBS.to_owned());
        }
        let patch = json!({ "metadata": { "finalizers": finalizers, "resourceVersion": self.object.resource_version() } });
        let api: Api<Workflow> = Api::namespaced(self.context.client.clone(), &self.namespace);
        match api.patch(&self.name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(stored) => {
                self.object = Arc::new(stored);
                self.context.memory.committed(&self.uid, self.object.clone());
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            Err(error) => {
                self.context.memory.outdated(&self.uid, &self.object);
                Err(Error::api("write the finalizers of the workflow")(error))
            }
        }
    }
}
