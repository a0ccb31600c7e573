//! One look at a workflow: fold, commit, acknowledge, perform, again until nothing is left to do now.

use super::{
    LOOK_AGAIN, budget,
    completions::{PARK_AFTER, acknowledge_all},
    inbox::Arrived,
    jobs, perform, plan, report,
};
use crate::{
    apply::replace_status,
    connections::BrokerKey,
    context::Context,
    error::{Error, Result},
    reporting::{event, key},
};
use k8s_openapi::jiff::Timestamp;
use kube::{Api, ResourceExt, runtime::controller::Action};
use longshore_crds::{Workflow, WorkflowPhase, WorkflowStatus};
use longshore_drivers::{Completion, Outcome as JobOutcome, Payload, StoredResult};
use longshore_workflow::{Event, Failure, Outcome, Plan, ResultRef, State, Target};
use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

/// More rounds of commit and perform than this in one look mean that something spins.
const MAX_ROUNDS: usize = 8;
/// How soon a workflow that is held up is looked at again, once people were told.
const LOOK_LATER: Duration = Duration::from_secs(3);
/// Before a timer, completions are read in short turns for this long.
const HURRY: Duration = Duration::from_secs(6);

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

/// What became of events.
enum Folded {
    /// They are in the committed status, or change nothing in it.
    Held,
    /// Somebody else changed the object: everything begins anew.
    Outdated,
    /// The status may not be written yet.
    Later(Duration),
}

/// Looks at a workflow.
pub(super) async fn reconcile(seen: Arc<Workflow>, context: &Arc<Context>) -> Result<Action> {
    let uid = seen.uid().ok_or(Error::Incomplete("uid"))?;
    let namespace = seen.namespace().ok_or(Error::Incomplete("namespace"))?;
    let Some(object) = newest(context, &uid, &namespace, seen.clone()).await? else {
        return Ok(Action::await_change());
    };
    let status = object.status.clone().unwrap_or_default();
    let plan = plan::plan(&object.spec);
    let decoded = report::decode(&status);
    let state = decoded.clone().unwrap_or_default();
    let mut run = Run { context, namespace, name: object.name_any(), uid, plan, object, state };
    if let Err(problem) = decoded {
        return run.stand_still("UnsupportedStatus", &problem).await;
    }
    if run.state.is_terminal() {
        return run.after_the_end(Some(&seen)).await;
    }
    let deleting = run.object.metadata.deletion_timestamp.is_some();
    if run.spec_changed() && !deleting {
        let message = "the spec is not what the workflow was started with; put it back or make another one";
        return run.stand_still("SpecChanged", message).await;
    }
    if let Some(action) = run.not_ready_to_start().await? {
        return Ok(action);
    }
    match run.advance().await {
        Ok(action) => {
            context.backoff.succeeded(&key(run.object.as_ref()));
            Ok(action)
        }
        Err(error) if deleting => run.let_go(error).await,
        Err(error) => Err(error),
    }
}

/// The newest object there is. One that is known to be old is asked for anew; `None` when it is gone.
async fn newest(
    context: &Context,
    uid: &str,
    namespace: &str,
    seen: Arc<Workflow>,
) -> Result<Option<Arc<Workflow>>> {
    let name = seen.name_any();
    if let Some(newest) = context.memory.newest(uid, seen) {
        return Ok(Some(newest));
    }
    let api: Api<Workflow> = Api::namespaced(context.client.clone(), namespace);
    let found = api.get_opt(&name).await.map_err(Error::api(format!("get Workflow {name:?}")))?;
    let Some(found) = found.filter(|found| found.uid().as_deref() == Some(uid)) else {
        context.memory.forget(uid);
        return Ok(None);
    };
    let found = Arc::new(found);
    context.memory.committed(uid, found.clone());
    Ok(Some(found))
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
            let mut events: Vec<_> = arrived.iter().filter_map(settled).map(|(_, event)| event).collect();
            events.append(&mut fresh);
            let unread = self.unread(now);
            if unread.is_none() {
                events.push(Event::TimerFired);
            }
            match self.fold_and_commit(events, arrived, now).await? {
                Folded::Held => {}
                Folded::Outdated => return Ok(Action::requeue(Duration::from_millis(20))),
                Folded::Later(wait) => return Ok(Action::requeue(wait)),
            }
            if self.state.is_terminal() {
                return self.end().await;
            }
            let performed = perform::perform(self, now).await?;
            let late = || {
                unread.map(|name| format!("a timer waits until the completions of Broker {name:?} were read"))
            };
            let why = performed.blocked.or_else(late);
            let blocked = why.is_some();
            self.context.memory.hold_up(&self.uid, why.as_deref(), Instant::now());
            fresh = performed.events;
            if fresh.is_empty() && !performed.unfinished {
                return Ok(self.next_look(blocked, now));
            }
            if perform::only_bookkeeping(&fresh) {
                // Not worth a write of its own: it rides on the next one, and repeating it does no harm.
                self.remember(std::mem::take(&mut fresh), now);
                if blocked || self.state.effects_owed(&self.plan, millis(now)).is_empty() {
                    return Ok(self.next_look(blocked, now));
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

    /// The brokers that the workflow's jobs are on.
    fn brokers(&self) -> BTreeSet<BrokerKey> {
        let queues = jobs::queues(&self.object.spec);
        let known = queues.iter().filter_map(|name| self.context.lookup.queue(&self.namespace, name));
        known.map(|queue| (self.namespace.clone(), queue.spec.broker_ref.name.clone())).collect()
    }

    /// A broker whose completions were not read to their end since this process leads.
    pub(super) fn behind(&self) -> Option<String> {
        let mut brokers = self.brokers().into_iter();
        brokers.find(|broker| self.context.inbox.read_to_end(broker).is_none()).map(|(_, name)| name)
    }

    /// The broker that a timer waits for: whatever was settled before it was due has to be heard first, or an outage turns
    /// work that was done in time into a missed deadline. Deletion waits for no broker.
    fn unread(&self, now: Timestamp) -> Option<String> {
        let due = self.state.next_timer(&self.plan).filter(|due| *due <= millis(now));
        let due = due.filter(|_| self.object.metadata.deletion_timestamp.is_none())?;
        let due = Instant::now().checked_sub(Duration::from_millis(millis(now) - due));
        let is_unread = |broker: &BrokerKey| {
            let read = self.context.inbox.read_to_end(broker);
            read.is_none_or(|read| due.is_some_and(|due| read < due))
        };
        self.brokers().into_iter().find(is_unread).map(|(_, name)| name)
    }

    /// When the commit did not hold, everything is as before and what was taken is put back.
    async fn fold_and_commit(
        &mut self,
        events: Vec<Event>,
        arrived: Vec<Arrived>,
        now: Timestamp,
    ) -> Result<Folded> {
        // What was done but not written yet is known anyway; it deserves no write of its own.
        let known = self.fold(self.state.clone(), self.context.memory.unwritten(&self.uid));
        let done: Vec<_> = events
            .iter()
            .filter(|event| perform::only_bookkeeping(std::slice::from_ref(event)))
            .cloned()
            .collect();
        let next = self.fold(known.clone(), events.into_iter().map(|event| (millis(now), event)).collect());
        let status = report::status(&self.object, &self.plan, &next, self.held_up(), now);
        if next != known || report::tells_more(self.object.status.as_ref(), &status) {
            let written = self.write(status).await;
            if !matches!(written, Ok(Folded::Held)) {
                self.context.inbox.put_back(arrived);
                // It was performed, whatever became of the write.
                self.keep(done, now);
                return written;
            }
            self.context.memory.set_unwritten(&self.uid, Vec::new());
        }
        self.state = next;
        self.acknowledge(arrived);
        Ok(Folded::Held)
    }

    fn held_up(&self) -> Option<String> {
        self.context.memory.held_up(&self.uid, Instant::now()).map(|(_, why)| why)
    }

    fn fold(&self, state: State, events: Vec<(u64, Event)>) -> State {
        let (next, errors) = state.fold(&self.plan, events);
        for error in errors {
            tracing::warn!(workflow = %key(self.object.as_ref()), %error, "event was not understood");
        }
        next
    }

    /// Writes the status with the version that was seen, if it is time to.
    async fn write(&mut self, status: WorkflowStatus) -> Result<Folded> {
        let before = self.object.status.clone().unwrap_or_default();
        let transition = report::is_transition(&before, &status);
        let at = Instant::now();
        let wait = budget::wait(self.context.memory.written(&self.uid), transition, at)
            .or_else(|| self.context.bucket.take(transition, at));
        if let Some(wait) = wait {
            return Ok(Folded::Later(wait));
        }
        let bytes = serde_json::to_vec(&status).map_or(0, |text| text.len());
        let mut object = self.object.as_ref().clone();
        object.status = Some(status);
        let Some(stored) = replace_status(&self.context.client, &object).await? else {
            self.context.memory.outdated(&self.uid, &self.object);
            return Ok(Folded::Outdated);
        };
        self.object = Arc::new(stored);
        self.context.memory.committed(&self.uid, self.object.clone());
        self.context.memory.set_written(&self.uid, at, bytes);
        self.announce(&before);
        Ok(Folded::Held)
    }

    /// After the commit that contains them; the next step needn't wait for it. What the state doesn't contain stays with
    /// the broker, and is put aside when it comes again and again.
    fn acknowledge(&self, arrived: Vec<Arrived>) {
        if arrived.is_empty() {
            return;
        }
        let heard = |arrived: &Arrived| {
            settled(arrived).is_none_or(|((round, target), _)| self.state.has_heard(&target, round))
        };
        let (heard, unheard): (Vec<_>, Vec<_>) = arrived.into_iter().partition(heard);
        self.context.metrics.completion_applied(heard.len() as u64);
        let context = self.context.clone();
        self.context.background.spawn(async move {
            acknowledge_all(&context, &heard).await;
            put_aside(&context, unheard).await;
        });
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

    /// Folds events that are kept for the next write.
    fn remember(&mut self, events: Vec<Event>, now: Timestamp) {
        let dated = events.iter().map(|event| (millis(now), event.clone())).collect();
        self.state = self.fold(self.state.clone(), dated);
        self.keep(events, now);
    }

    /// Keeps events for the next write, with the time at which they happened: a silence is over then, not later.
    fn keep(&self, events: Vec<Event>, now: Timestamp) {
        let mut all = self.context.memory.unwritten(&self.uid);
        all.extend(events.into_iter().map(|event| (millis(now), event)));
        self.context.memory.set_unwritten(&self.uid, all);
    }

    fn next_look(&self, blocked: bool, now: Timestamp) -> Action {
        if blocked {
            self.hurry(HURRY);
            return Action::requeue(if self.held_up().is_some() { LOOK_LATER } else { LOOK_AGAIN });
        }
        if self.object.status.as_ref().is_some_and(report::tells_of_a_hold_up) {
            // It goes on: people were told that it doesn't.
            return Action::requeue(Duration::from_millis(10));
        }
        let Some(timer) = self.state.next_timer(&self.plan) else {
            return Action::await_change();
        };
        let left = Duration::from_millis(timer.saturating_sub(millis(now)));
        if let Some(wait) = left.checked_sub(HURRY).filter(|wait| !wait.is_zero()) {
            return Action::requeue(wait.min(Duration::from_secs(3600)));
        }
        self.hurry(left + HURRY);
        Action::requeue(left.max(Duration::from_millis(10)))
    }

    /// Has completions read in short turns for a while: a timer wants to know that it comes after them.
    fn hurry(&self, span: Duration) {
        let until = Instant::now() + span;
        self.brokers().iter().for_each(|broker| self.context.inbox.hurry(broker, until));
    }

    fn spec_changed(&self) -> bool {
        let recorded = self.object.status.as_ref().and_then(|status| status.spec_hash.as_ref());
        recorded.is_some_and(|recorded| *recorded != plan::spec_hash(&self.object.spec))
    }
}

/// Leaves completions that no state contains with their broker; those that came again and again are acknowledged, so that
/// the stream goes on. What they say is kept with the job's record, which the workflow asks for after a silence.
pub(super) async fn put_aside(context: &Context, unheard: Vec<Arrived>) {
    let often: Vec<_> =
        unheard.into_iter().filter(|arrived| arrived.completion.delivery >= PARK_AFTER).collect();
    if let Some(first) = often.first() {
        let (count, workflow, job) = (often.len(), &first.origin.name, &first.completion.job);
        tracing::warn!(count, workflow, %job, "completions that the workflow can't take are put aside");
        context.metrics.completions_parked(often.len() as u64);
        acknowledge_all(context, &often).await;
    }
}

/// What the machine hears of a completion, and its round and place. One whose place can't be read is for nobody.
fn settled(arrived: &Arrived) -> Option<((u32, Target), Event)> {
    let (round, target) = Target::decode(&arrived.origin.place)?;
    let Completion { outcome, settled_at, .. } = &arrived.completion;
    let settled_at = u64::try_from(settled_at.as_millis()).unwrap_or(0);
    let event = Event::Settled { target, round, outcome: machine_outcome(outcome), settled_at };
    Some(((round, target), event))
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
