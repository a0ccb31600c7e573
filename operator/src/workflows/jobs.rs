//! From a place in a workflow to the job that is enqueued for it. Pure.

use super::{
    expressions::{self, Evaluator, Own},
    inbox::Origin,
};
use crate::context::address;
use longshore_crds::{Batch, JobTemplate, Workflow, WorkflowSpec};
use longshore_drivers::{JobId, NewJob, Notify, Overrides, Payload};
use longshore_workflow::{Callback, Target};
use serde_json::{Value, json};
use std::sync::Arc;

/// Why a job can't be made. The place it was for fails with this.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Error {
    /// An expression in it fails.
    #[error(transparent)]
    Expression(#[from] expressions::Error),
    /// The workflow has no such place.
    #[error("the workflow has nothing at {0}")]
    NoTemplate(String),
    /// The list that a forEach was resolved to has become shorter.
    #[error("forEach no longer gives an element for {0}")]
    NoElement(String),
    /// The id can't be written.
    #[error("{0}")]
    Id(String),
}

/// The template of the job at `target`, and the batch it is a member of.
pub(super) fn template<'a>(
    spec: &'a WorkflowSpec,
    target: &Target,
) -> Option<(&'a JobTemplate, Option<&'a Batch>)> {
    match target {
        Target::Member { step, member } => {
            let step = spec.steps.get(usize::from(*step))?;
            match (&step.job, &step.batch) {
                (Some(job), _) => Some((job, None)),
                (None, Some(batch)) => {
                    let job = match &batch.jobs {
                        Some(jobs) => jobs.get(usize::try_from(*member).ok()?),
                        None => batch.job.as_ref(),
                    };
                    job.map(|job| (job, Some(batch)))
                }
                (None, None) => None,
            }
        }
        Target::StepCallback { step, callback } => {
            let batch = spec.steps.get(usize::from(*step))?.batch.as_ref()?;
            let job = match callback {
                Callback::Then => &batch.then,
                Callback::Catch => &batch.catch,
                Callback::Finally => &batch.finally,
            };
            job.as_ref().map(|callback| (&callback.job, None))
        }
        Target::Callback(callback) => {
            let job = match callback {
                Callback::Then => &spec.then,
                Callback::Catch => &spec.catch,
                Callback::Finally => &spec.finally,
            };
            job.as_ref().map(|callback| (&callback.job, None))
        }
    }
}

/// The name of the Queue that the job at `target` goes to.
pub(super) fn queue_of<'a>(spec: &'a WorkflowSpec, target: &Target) -> &'a str {
    let own = template(spec, target).and_then(|(job, _)| job.queue_ref.as_ref());
    own.map_or(&spec.queue_ref.name, |queue| &queue.name)
}

/// All Queues that the workflow's jobs go to.
pub(super) fn queues(spec: &WorkflowSpec) -> Vec<&str> {
    let mut names = vec![spec.queue_ref.name.as_str()];
    let callbacks = [&spec.then, &spec.catch, &spec.finally];
    let of_steps = spec.steps.iter().flat_map(|step| {
        let batch = step.batch.iter();
        let members = batch.clone().flat_map(|batch| batch.jobs.iter().flatten().chain(batch.job.iter()));
        let callbacks = batch.flat_map(|batch| [&batch.then, &batch.catch, &batch.finally]);
        step.job.iter().chain(members).chain(callbacks.flatten().map(|callback| &callback.job))
    });
    let jobs = of_steps.chain(callbacks.into_iter().flatten().map(|callback| &callback.job));
    names.extend(jobs.filter_map(|job| job.queue_ref.as_ref()).map(|queue| queue.name.as_str()));
    names.sort_unstable();
    names.dedup();
    names
}

/// Who a job is made for.
#[derive(Debug, Clone)]
pub(super) struct Author {
    pub(super) workflow: Arc<Workflow>,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) round: u32,
    /// Completions go to it, and to this namespace in it.
    pub(super) installation: String,
}

/// The id of the job at `place` of the workflow `uid`: a function of these alone.
pub(super) fn id_of(uid: &str, place: &str) -> Result<JobId, Error> {
    JobId::new(format!("{uid}.{place}")).map_err(|error| Error::Id(error.message))
}

impl Author {
    /// The id of the job at `target`.
    pub(super) fn job_id(&self, target: &Target) -> Result<JobId, Error> {
        id_of(&self.uid, &self.place(target))
    }

    fn place(&self, target: &Target) -> String {
        target.encode(self.round)
    }

    /// The job at `target`. `evaluator` holds everything that is the same for all jobs of a step; `items` the elements
    /// that the members of a `forEach` are made of. To be called on a large stack.
    pub(super) fn job(
        &self,
        target: &Target,
        evaluator: &Evaluator<'_>,
        items: Option<&[Value]>,
    ) -> Result<NewJob, Error> {
        let (template, batch) =
            template(&self.workflow.spec, target).ok_or_else(|| Error::NoTemplate(self.place(target)))?;
        let payload = match (batch, target) {
            (Some(_), Target::Member { member, .. }) => {
                let element = |items: &[Value]| items.get(usize::try_from(*member).ok()?).cloned();
                // Only a forEach has elements, and then it has one for each of its members.
                let item = match items {
                    Some(items) => element(items).ok_or_else(|| Error::NoElement(self.place(target)))?,
                    None => Value::Null,
                };
                Self::payload(template, evaluator, &[("index", &json!(member)), ("item", &item)])?
            }
            _ => Self::payload(template, evaluator, &[])?,
        };
        let origin = Origin {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            uid: self.uid.clone(),
            place: self.place(target),
        };
        let context = serde_json::to_string(&origin).map_err(|error| Error::Id(error.to_string()))?;
        let address =
            address(&self.installation, &self.namespace).map_err(|error| Error::Id(error.message))?;
        let mut job = NewJob::new(template.job_type.clone(), payload)
            .with_id(self.job_id(target)?)
            .with_delay(template.delay.as_ref().map(longshore_crds::Duration::get).unwrap_or_default())
            .with_notify(Notify { address, context });
        job.overrides = Overrides {
            max_attempts: template.max_attempts,
            timeout: template.timeout.as_ref().map(longshore_crds::Duration::get),
        };
        job.headers.insert("Job-Workflow".to_owned(), format!("{}/{}", self.namespace, self.name));
        Ok(job)
    }

    fn payload(template: &JobTemplate, evaluator: &Evaluator<'_>, own: &Own<'_>) -> Result<Payload, Error> {
        let Some(payload) = &template.payload else {
            return Ok(Payload::json(bytes::Bytes::new()));
        };
        if has_expressions(payload) {
            return Ok(Payload::json(evaluator.render(payload, own)?.to_string()));
        }
        Ok(Payload::json(payload.to_string()))
    }
}

fn has_expressions(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains("$("),
        Value::Array(items) => items.iter().any(has_expressions),
        Value::Object(fields) => fields.values().any(has_expressions),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

/// All texts with expressions in a job's template, one after the other: what it may mention.
pub(super) fn expressions_in(value: &Value, out: &mut String) {
    match value {
        Value::String(text) if text.contains("$(") => out.push_str(text),
        Value::Array(items) => items.iter().for_each(|item| expressions_in(item, out)),
        Value::Object(fields) => fields.values().for_each(|field| expressions_in(field, out)),
        Value::String(_) | Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
