//! What expressions can name: results of steps that ended, and the workflow itself.

use super::{expressions::Variables, jobs};
use crate::{
    connections::Connection,
    error::{Error, Result},
};
use longshore_crds::WorkflowSpec;
use longshore_drivers::{JobId, Limits, Payload, QueueName};
use longshore_workflow::{Plan, ResultRef, State, Target};
use serde_json::{Map, Value, json};

/// Where the results of a job are.
pub(super) struct Place {
    pub(super) connection: Connection,
    pub(super) queue: QueueName,
    pub(super) id: JobId,
}

/// Gathers variables for the templates whose expressions are in `mentioned`.
pub(super) struct Gatherer<'a, F> {
    pub(super) spec: &'a WorkflowSpec,
    pub(super) plan: &'a Plan,
    pub(super) state: &'a State,
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
    /// Finds where a job's result is.
    pub(super) locate: F,
}

impl<F> Gatherer<'_, F>
where
    F: Fn(&Target) -> Result<Place>,
{
    /// The variables. Only results of steps that are mentioned are fetched.
    pub(super) async fn gather(&self, mentioned: &str) -> Result<Variables> {
        let mut steps = Map::new();
        for (index, step) in self.spec.steps.iter().enumerate() {
            if !mentioned.contains(step.name.as_str()) {
                continue;
            }
            let Ok(index) = u16::try_from(index) else { continue };
            if let Some(value) = self.step(index, step.batch.is_some()).await? {
                steps.insert(step.name.clone(), value);
            }
        }
        let outcome = self.state.outcome().map_or(Value::Null, |outcome| json!(outcome.to_string()));
        let workflow = json!({
            "name": self.name,
            "namespace": self.namespace,
            "outcome": outcome,
            "message": self.state.message().unwrap_or_default(),
        });
        Ok(Variables::from([("steps".to_owned(), Value::Object(steps)), ("workflow".to_owned(), workflow)]))
    }

    /// What expressions see of a step, if it has anything to show.
    async fn step(&self, index: u16, batch: bool) -> Result<Option<Value>> {
        let members = self.state.members(self.plan, index);
        let targets: Vec<_> =
            (0..members.unwrap_or(0)).map(|member| Target::Member { step: index, member }).collect();
        let mut results = self.results(&targets).await?;
        if !batch {
            return Ok(results.pop().flatten().map(|result| json!({ "result": result })));
        }
        let (succeeded, failed) = self.state.counts(index);
        let results: Vec<_> = results.into_iter().map(Option::unwrap_or_default).collect();
        Ok(Some(json!({ "results": results, "total": members, "succeeded": succeeded, "failed": failed })))
    }

    /// The results at `targets`; `None` for what has not succeeded.
    async fn results(&self, targets: &[Target]) -> Result<Vec<Option<Value>>> {
        let mut values = vec![None; targets.len()];
        let mut stored = Vec::new();
        for (at, target) in targets.iter().enumerate() {
            match self.state.result(target) {
                Some(ResultRef::None) => values[at] = Some(Value::Null),
                Some(ResultRef::Inline(text)) => values[at] = Some(decode(text.as_bytes())),
                Some(ResultRef::Stored { .. }) => stored.push((at, (self.locate)(target)?)),
                None => {}
            }
        }
        for chunk in stored.chunks(Limits::BATCH) {
            let Some((_, first)) = chunk.first() else { continue };
            let ids = chunk.iter().map(|(_, place)| place.id.clone()).collect();
            let found = first
                .connection
                .driver
                .results(&first.queue, ids)
                .await
                .map_err(Error::broker("fetch results"))?;
            for ((at, _), result) in chunk.iter().zip(found) {
                values[*at] = Some(result.map_or(Value::Null, |payload: Payload| decode(&payload.bytes)));
            }
        }
        Ok(values)
    }
}

/// A result as expressions see it: JSON, else text.
fn decode(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(bytes).into_owned()))
}

/// All texts with expressions in the templates at `targets`.
pub(super) fn mentioned(spec: &WorkflowSpec, targets: &[Target]) -> String {
    let mut text = String::new();
    let mut last = None;
    for target in targets {
        let Some((job, _)) = jobs::template(spec, target) else {
            continue;
        };
        // Members of one forEach share a template.
        if last == Some(std::ptr::from_ref(job)) {
            continue;
        }
        last = Some(std::ptr::from_ref(job));
        if let Some(payload) = &job.payload {
            jobs::expressions_in(payload, &mut text);
        }
    }
    text
}
