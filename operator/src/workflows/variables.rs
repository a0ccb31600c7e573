//! What expressions can name: results of steps that ended, and the workflow itself.

use super::{expressions::Variables, jobs};
use crate::{
    connections::{BrokerKey, Connection},
    error::{Error, Result},
};
use longshore_crds::WorkflowSpec;
use longshore_drivers::{JobId, Limits, Outcome, Payload, QueueName};
use longshore_workflow::{Plan, ResultRef, State, Target};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Bytes of results that the expressions of one look may see together; they are held in memory several times over.
const MAX_BYTES: u64 = 8 * 1024 * 1024;

/// Where the results of a job are.
pub(super) struct Place {
    pub(super) broker: BrokerKey,
    pub(super) connection: Connection,
    pub(super) queue: QueueName,
    pub(super) id: JobId,
}

/// Why variables can't be had, however often one tries.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Problem {
    /// Results that don't fit.
    #[error("the results of step {step} take {bytes} bytes, expressions may see {MAX_BYTES} at once")]
    TooMuch {
        /// The step.
        step: String,
        /// Bytes of its results.
        bytes: u64,
    },
    /// A result that was there.
    #[error("the broker no longer has the result of step {step}")]
    Lost {
        /// The step.
        step: String,
    },
}

impl Problem {
    /// A CamelCase word for it.
    pub(super) const fn reason(&self) -> &'static str {
        match self {
            Self::TooMuch { .. } => "ResultsTooLarge",
            Self::Lost { .. } => "ResultLost",
        }
    }
}

/// Variables, or why there can't be any.
pub(super) type Gathered = std::result::Result<Variables, Problem>;

/// Gathers variables for templates. Results that were fetched once are kept.
pub(super) struct Gatherer<'a, F> {
    pub(super) spec: &'a WorkflowSpec,
    pub(super) plan: &'a Plan,
    pub(super) state: &'a State,
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
    /// Finds where a job's result is.
    pub(super) locate: F,
    /// Steps that were looked up already.
    pub(super) known: BTreeMap<u16, Option<Value>>,
    /// Bytes that were fetched for them.
    pub(super) bytes: u64,
}

impl<F> Gatherer<'_, F>
where
    F: Fn(&Target) -> Result<Place>,
{
    /// The variables of a template that mentions `steps`.
    pub(super) async fn gather(&mut self, steps: &BTreeSet<u16>) -> Result<Gathered> {
        let mut shown = Map::new();
        for index in steps {
            let Some(step) = self.spec.steps.get(usize::from(*index)) else { continue };
            let (name, batch) = (step.name.clone(), step.batch.is_some());
            if !self.known.contains_key(index) {
                match self.step(*index, &name, batch).await? {
                    Ok(value) => drop(self.known.insert(*index, value)),
                    Err(problem) => return Ok(Err(problem)),
                }
            }
            if let Some(Some(value)) = self.known.get(index) {
                shown.insert(name, value.clone());
            }
        }
        let outcome = self.state.outcome().map_or(Value::Null, |outcome| json!(outcome.to_string()));
        let workflow = json!({
            "name": self.name,
            "namespace": self.namespace,
            "outcome": outcome,
            "message": self.state.message().unwrap_or_default(),
        });
        Ok(Ok(Variables::from([
            ("steps".to_owned(), Value::Object(shown)),
            ("workflow".to_owned(), workflow),
        ])))
    }

    /// What expressions see of a step, if it has anything to show.
    async fn step(
        &mut self,
        index: u16,
        name: &str,
        batch: bool,
    ) -> Result<std::result::Result<Option<Value>, Problem>> {
        self.bytes = self.bytes.saturating_add(self.state.stored_bytes(index));
        if self.bytes > MAX_BYTES {
            return Ok(Err(Problem::TooMuch {
                step: name.to_owned(),
                bytes: self.state.stored_bytes(index),
            }));
        }
        let members = self.state.members(self.plan, index);
        let targets: Vec<_> =
            (0..members.unwrap_or(0)).map(|member| Target::Member { step: index, member }).collect();
        let Some(mut results) = self.results(&targets).await? else {
            return Ok(Err(Problem::Lost { step: name.to_owned() }));
        };
        if !batch {
            return Ok(Ok(results.pop().flatten().map(|result| json!({ "result": result }))));
        }
        let (succeeded, failed) = self.state.counts(index);
        let results: Vec<_> = results.into_iter().map(Option::unwrap_or_default).collect();
        Ok(Ok(Some(
            json!({ "results": results, "total": members, "succeeded": succeeded, "failed": failed }),
        )))
    }

    /// The results at `targets`; `None` in the list for what has not succeeded, and in its place when one is lost.
    async fn results(&self, targets: &[Target]) -> Result<Option<Vec<Option<Value>>>> {
        let mut values = vec![None; targets.len()];
        let mut stored: BTreeMap<(BrokerKey, QueueName), Vec<(usize, Place)>> = BTreeMap::new();
        for (at, target) in targets.iter().enumerate() {
            match self.state.result(target) {
                Some(ResultRef::None) => values[at] = Some(Value::Null),
                Some(ResultRef::Inline(text)) => values[at] = Some(decode(text.as_bytes())),
                Some(ResultRef::Stored { .. }) => {
                    let place = (self.locate)(target)?;
                    stored.entry((place.broker.clone(), place.queue.clone())).or_default().push((at, place));
                }
                None => {}
            }
        }
        for ((_, queue), places) in stored {
            for chunk in places.chunks(Limits::BATCH) {
                let Some((_, first)) = chunk.first() else { continue };
                let ids = chunk.iter().map(|(_, place)| place.id.clone()).collect();
                let results = first.connection.driver.results(&queue, ids);
                let found = tokio::time::timeout(super::perform::CALL, results).await;
                let found = found
                    .map_err(|_elapsed| Error::NotNow("the broker does not give results".to_owned()))?
                    .map_err(Error::broker("fetch results"))?;
                let mut silent = false;
                for ((at, place), result) in chunk.iter().zip(found) {
                    let result: Option<Payload> = result;
                    // Of large batches the state may not know which members answered nothing; their record tells.
                    if result.is_none() && !silent {
                        silent = is_silent(place).await?;
                        if !silent {
                            return Ok(None);
                        }
                    }
                    values[*at] = Some(result.map_or(Value::Null, |payload| decode(&payload.bytes)));
                }
            }
        }
        Ok(Some(values))
    }
}

/// Whether the job at `place` ended well without an answer.
async fn is_silent(place: &Place) -> Result<bool> {
    let inspected = place.connection.driver.inspect(&place.queue, &place.id);
    let record = tokio::time::timeout(super::perform::CALL, inspected).await;
    let record = record
        .map_err(|_elapsed| Error::NotNow("the broker does not tell of a job".to_owned()))?
        .map_err(Error::broker("look at a job without a result"))?;
    Ok(record.is_some_and(|record| matches!(record.outcome, Some(Outcome::Succeeded { result: None }))))
}

/// A result as expressions see it: JSON, else text.
fn decode(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(bytes).into_owned()))
}

/// The steps whose names stand in the expressions of the template at `target`: a function of the template alone, so that a
/// job is made of the same values whichever jobs it is made with.
pub(super) fn mentioned_at(spec: &WorkflowSpec, target: &Target) -> BTreeSet<u16> {
    let mut text = String::new();
    if let Some(payload) = jobs::template(spec, target).and_then(|(job, _)| job.payload.as_ref()) {
        jobs::expressions_in(payload, &mut text);
    }
    mentioned(spec, &text)
}

/// The steps whose names stand in `text`.
pub(super) fn mentioned(spec: &WorkflowSpec, text: &str) -> BTreeSet<u16> {
    if text.is_empty() {
        return BTreeSet::new();
    }
    let numbered = (0..=u16::MAX).zip(&spec.steps);
    numbered.filter(|(_, step)| text.contains(step.name.as_str())).map(|(index, _)| index).collect()
}
