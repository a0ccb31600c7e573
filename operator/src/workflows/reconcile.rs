//! One look at a workflow: fold, commit, acknowledge, perform, again until nothing is left to do now.

use super::{LOOK_AGAIN, check, completions::acknowledge_all, inbox::Arrived, jobs, perform, plan, report};
use crate::{
    apply::replace_status,
    context::Context,
    error::{Error, Result},
    reporting::{event, key},
};
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
    runtime::controller::Action,
};
use longshore_crds::{Workflow, WorkflowPhase, WorkflowStatus, finalizer};
use longshore_drivers::{Completion, Outcome as JobOutcome, Payload, StoredResult};
use longshore_workflow::{Event, Failure, Outcome, Plan, ResultRef, State, Target};
use serde_json::json;
use std::{sync::Arc, time::Duration};

/// More rounds of commit and perform than this in one look mean that something spins.
const MAX_ROUNDS: usize = 8;

/// Whether a workflow waits for something that isn't there.
pub(super) fn is_waiting(workflow: &Workflow) -> bool {
    let phase = workflow.status.as_ref().map(|status| status.phase).unwrap_or_default();
    matches!(phase, WorkflowPhase::Pending | WorkflowPhase::Running | WorkflowPhase::Finishing)
}

/// What is folded and committed together.
pub(super) struct Run<'a> {
    pub(super) context: &'a Arc<Context>,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) plan: Plan,
    pub(super) object: Arc<Workflow>,
    pub(super) state: State,
}

/// Looks at a workflow.
pub(super) async fn reconcile(seen: Arc<Workflow>, context: &Arc<Context>) -> Result<Action> {
    let uid = seen.uid().ok_or(Error::Incomplete("uid"))?;
    let namespace = seen.namespace().ok_or(Error::Incomplete("namespace"))?;
    let object = context.memory.newest(&uid, seen);
    let status = object.status.clone().unwrap_or_default();
    let state = match report::decode(&status) {
        Ok(state) => state,
        Err(problem) => return report::unsupported(context, &object, problem).await,
    };
    let plan = plan::plan(&object.spec);
    let mut run = Run { context, namespace, name: object.name_any(), uid, plan, object, state };
    if run.state.is_terminal() {
        return run.after_the_end().await;
    }
    if run.spec_changed() {
        return run
            .stall(
                "SpecChanged",
                "the spec is not what the workflow was started with; put it back or make another one",
            )
            .await;
    }
    if let Some(action) = run.not_ready_to_start().await? {
        return Ok(action);
    }
    let outcome = run.advance().await;
    if outcome.is_ok() {
        context.backoff.succeeded(&key(run.object.as_ref()));
    }
    outcome
}

impl Run<'_> {
    /// Folds what is new, commits, performs what is owed; again while that gave new events.
    async fn advance(&mut self) -> Result<Action> {
        // Whoever uninstalled Longshore took the finalizer away; here it is needed again.
        if self.object.metadata.deletion_timestamp.is_none() {
            self.set_finalizer(true).await?;
        }
        let mut fresh = self.requests();
        for _ in 0..MAX_ROUNDS {
            let arrived = self.context.inbox.take(&self.uid);
            let now = self.context.now();
            let mut events: Vec<_> = arrived.iter().filter_map(settled).collect();
            events.append(&mut fresh);
            events.push(Event::TimerFired);
            if !self.fold_and_commit(events, &arrived, now).await? {
                return Ok(Action::requeue(Duration::from_millis(20)));
            }
            self.acknowledge(arrived);
            if self.state.is_terminal() {
                return self.after_the_end().await;
            }
            let performed = perform::perform(self, now).await?;
            let nothing_new = performed.events.is_empty();
            fresh = performed.events;
            if nothing_new {
                return Ok(self.next_look(performed.blocked, now));
            }
            if perform::only_bookkeeping(&fresh) {
                // Not worth a write of its own: it rides on the next one, and repeating it does no harm.
                self.remember(std::mem::take(&mut fresh), now);
                if performed.blocked || self.state.effects_owed(&self.plan, millis(now)).is_empty() {
                    return Ok(self.next_look(performed.blocked, now));
                }
            }
        }
        Ok(Action::requeue(LOOK_AGAIN))
    }

    /// What the user asked for since the last look.
    fn requests(&self) -> Vec<Event> {
        let mut events = Vec::new();
        if !self.state.is_started() {
            events.push(Event::Started);
        }
        if self.object.metadata.deletion_timestamp.is_some() {
            events.push(Event::DeletionRequested);
        }
        if self.object.spec.cancel {
            events.push(Event::CancelRequested);
        }
        if self.object.spec.suspend != self.state.is_suspended() {
            events.push(if self.object.spec.suspend {
                Event::SuspendRequested
            } else {
                Event::ResumeRequested
            });
        }
        events
    }

    /// Whether the commit held. When it didn't, everything is as before and what was taken is put back.
    async fn fold_and_commit(
        &mut self,
        events: Vec<Event>,
        arrived: &[Arrived],
        now: Timestamp,
    ) -> Result<bool> {
        // What was done but not written yet is known anyway; it deserves no write of its own.
        let known = self.fold(self.state.clone(), self.context.memory.unwritten(&self.uid), now);
        let next = self.fold(known.clone(), events, now);
        if next != known || self.object.status.as_ref().is_none_or(|status| status.checkpoint.is_none()) {
            let committed = self.commit(&next, now).await;
            if !matches!(committed, Ok(true)) {
                self.context.inbox.put_back(arrived);
                return committed;
            }
            self.context.memory.set_unwritten(&self.uid, Vec::new());
        }
        self.state = next;
        self.context.metrics.completion_applied(arrived.len() as u64);
        Ok(true)
    }

    fn fold(&self, state: State, events: Vec<Event>, now: Timestamp) -> State {
        events.into_iter().fold(state, |state, event| {
            match state.clone().apply(&self.plan, event, millis(now)) {
                Ok((next, _)) => next,
                Err(error) => {
                    tracing::warn!(workflow = %key(self.object.as_ref()), %error, "event was not understood");
                    state
                }
            }
        })
    }

    /// Writes the status with the version that was seen. `false` when somebody else wrote meanwhile.
    async fn commit(&mut self, next: &State, now: Timestamp) -> Result<bool> {
        let status = report::status(&self.object, &self.plan, next, now);
        let before = self.object.status.clone().unwrap_or_default();
        let mut object = self.object.as_ref().clone();
        object.status = Some(status);
        match replace_status(&self.context.client, &object).await {
            Ok(Some(stored)) => {
                self.object = Arc::new(stored);
                self.context.memory.committed(&self.uid, self.object.clone());
                self.announce(&before);
                Ok(true)
            }
            Ok(None) => {
                self.context.memory.outdated(&self.uid);
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// After the commit that contains them; the next step needn't wait for it.
    fn acknowledge(&self, arrived: Vec<Arrived>) {
        if !arrived.is_empty() {
            let context = self.context.clone();
            self.context.background.spawn(async move { acknowledge_all(&context, &arrived).await });
        }
    }

    /// Tells people what changed; the next step needn't wait for it.
    fn announce(&self, before: &WorkflowStatus) {
        let Some(after) = &self.object.status else { return };
        let news = report::news(before, after);
        if news.is_empty() {
            return;
        }
        let (context, object) = (self.context.clone(), self.object.clone());
        self.context.background.spawn(async move {
            for (warning, reason, note) in news {
                event(&context, object.as_ref(), warning, &reason, "Advance", note).await;
            }
        });
    }

    /// Keeps events for the next write.
    fn remember(&mut self, events: Vec<Event>, now: Timestamp) {
        self.state = self.fold(self.state.clone(), events.clone(), now);
        let mut all = self.context.memory.unwritten(&self.uid);
        all.extend(events);
        self.context.memory.set_unwritten(&self.uid, all);
    }

    fn next_look(&self, blocked: bool, now: Timestamp) -> Action {
        if blocked {
            return Action::requeue(LOOK_AGAIN);
        }
        let timer = self.state.next_timer(&self.plan).map(|at| at.saturating_sub(millis(now)));
        timer.map_or_else(Action::await_change, |wait| {
            Action::requeue(Duration::from_millis(wait.clamp(10, 3_600_000)))
        })
    }

    fn spec_changed(&self) -> bool {
        let recorded = self.object.status.as_ref().and_then(|status| status.spec_hash.as_ref());
        recorded.is_some_and(|recorded| *recorded != plan::spec_hash(&self.object.spec))
    }

    async fn stall(&self, reason: &str, message: &str) -> Result<Action> {
        let status = report::stalled(&self.object, reason, message, self.context.now());
        self.stop(status, reason, message).await
    }

    /// Reports that it stands still until somebody changes it.
    async fn stop(&self, status: WorkflowStatus, reason: &str, message: &str) -> Result<Action> {
        if self.object.status.as_ref() != Some(&status) {
            let mut object = self.object.as_ref().clone();
            object.status = Some(status);
            replace_status(&self.context.client, &object).await?;
            event(self.context, self.object.as_ref(), true, reason, "Stop", message).await;
        }
        Ok(Action::await_change())
    }

    /// Before the start: the queues have to be there, and the finalizer has to stand before the first job is out.
    async fn not_ready_to_start(&mut self) -> Result<Option<Action>> {
        if self.state.is_started() {
            return Ok(None);
        }
        if self.object.metadata.deletion_timestamp.is_some() {
            self.set_finalizer(false).await?;
            return Ok(Some(Action::await_change()));
        }
        if self.object.spec.suspend {
            return self
                .wait("Suspended", "it starts when suspend is set to false".to_owned())
                .await
                .map(Some);
        }
        if let Some(problem) = check::problem(&self.object.spec) {
            let message = format!("{}: {}", problem.field, problem.message);
            let status = report::invalid(&self.object, "InvalidExpression", &message, self.context.now());
            return self.stop(status, "InvalidExpression", &message).await.map(Some);
        }
        if let Some(missing) = self.missing_queue() {
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
        Ok(Action::requeue(Duration::from_secs(5)))
    }

    /// Nothing is out any more: late completions are acknowledged, the finalizer goes, the object too when its time came.
    async fn after_the_end(&mut self) -> Result<Action> {
        let late = self.context.inbox.take(&self.uid);
        acknowledge_all(self.context, &late).await;
        self.set_finalizer(false).await?;
        if self.object.metadata.deletion_timestamp.is_some() {
            self.context.memory.forget(&self.uid);
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
    async fn set_finalizer(&mut self, wanted: bool) -> Result<()> {
        let mut finalizers = self.object.finalizers().to_vec();
        if finalizers.iter().any(|name| name == finalizer::WORKFLOW_JOBS) == wanted {
            return Ok(());
        }
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
                self.context.memory.outdated(&self.uid);
                Err(Error::api("write the finalizers of the workflow")(error))
            }
        }
    }
}

/// What the machine hears of a completion. One whose place can't be read is for nobody.
fn settled(arrived: &Arrived) -> Option<Event> {
    let (round, target) = Target::decode(&arrived.origin.place)?;
    let Completion { outcome, settled_at, .. } = &arrived.completion;
    let settled_at = u64::try_from(settled_at.as_millis()).unwrap_or(0);
    Some(Event::Settled { target, round, outcome: machine_outcome(outcome), settled_at })
}

/// A job's end in the words of the machine.
pub(super) fn machine_outcome(outcome: &JobOutcome) -> Outcome {
    match outcome {
        JobOutcome::Succeeded { result } => Outcome::Succeeded { result: result_ref(result.as_ref()) },
        JobOutcome::Dead { reason, failure } => {
            let reason = format!("{reason:?}");
            let message = if failure.message.is_empty() {
                failure.reason.clone()
            } else {
                format!("{}: {}", failure.reason, failure.message)
            };
            Outcome::Failed(Failure { reason, message })
        }
        JobOutcome::Cancelled => Outcome::Cancelled,
        JobOutcome::Purged => Outcome::Failed(Failure {
            reason: "Purged".to_owned(),
            message: "the job was purged from its queue".to_owned(),
        }),
    }
}

fn result_ref(result: Option<&StoredResult>) -> ResultRef {
    match result {
        None => ResultRef::None,
        Some(StoredResult::Stored { bytes }) => ResultRef::Stored { bytes: *bytes },
        Some(StoredResult::Inline { payload }) => inline(payload),
    }
}

/// Only text can stand in a status.
fn inline(payload: &Payload) -> ResultRef {
    std::str::from_utf8(&payload.bytes)
        .map_or(ResultRef::Stored { bytes: payload.len() as u64 }, |text| ResultRef::Inline(text.to_owned()))
}

/// Milliseconds since the epoch.
pub(super) fn millis(at: Timestamp) -> u64 {
    u64::try_from(at.as_millisecond()).unwrap_or(0)
}
