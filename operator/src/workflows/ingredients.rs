//! What the jobs of one dispatch are made of, and making them.

use super::{
    expressions::{Evaluator, Variables},
    jobs::{self, Author},
    perform,
    reconcile::Run,
    variables::{Gatherer, Problem, mentioned, mentioned_at},
};
use crate::error::{Error, Result};
use longshore_crds::WorkflowSpec;
use longshore_drivers::NewJob;
use longshore_workflow::Target;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Jobs in one enqueue.
const CHUNK: usize = 250;
/// Bytes of payloads in one enqueue; far below what a broker takes in one call.
const CHUNK_BYTES: usize = 4 * 1024 * 1024;

/// A place, and the job for it or why it can't be made.
pub(super) type Made = (Target, std::result::Result<NewJob, Refusal>);

/// Why a job can never be made: a word and a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl From<&Problem> for Refusal {
    fn from(problem: &Problem) -> Self {
        Self { reason: problem.reason(), message: problem.to_string() }
    }
}

/// Everything that the jobs at some places are made of.
pub(super) struct Ingredients {
    author: Author,
    /// By the steps that a template mentions.
    variables: BTreeMap<BTreeSet<u16>, std::result::Result<Variables, Problem>>,
    /// What the members of a `forEach` are made of, by step.
    elements: BTreeMap<u16, std::result::Result<Vec<Value>, Refusal>>,
}

impl Ingredients {
    /// Gathers what the jobs at `targets` are made of.
    pub(super) async fn gather(run: &Run<'_>, targets: &[Target]) -> Result<Self> {
        let author = perform::author(run);
        let (sets, loops) = wanted(&run.object.spec, targets);
        let mut gatherer = gatherer(run);
        let mut variables = BTreeMap::new();
        for set in sets {
            let gathered = gatherer.gather(&set).await?;
            variables.insert(set, gathered);
        }
        let mut elements = BTreeMap::new();
        for step in loops {
            if let Some(found) = elements_of(run, step).await? {
                elements.insert(step, found);
            }
        }
        Ok(Self { author, variables, elements })
    }

    /// Makes the first jobs of `targets`, as many as fit one enqueue. To be called on a large stack.
    pub(super) fn make(&self, targets: &[Target]) -> Vec<Made> {
        let evaluators: BTreeMap<_, _> = self
            .variables
            .iter()
            .filter_map(|(set, variables)| Some((set, Evaluator::new(variables.as_ref().ok()?))))
            .collect();
        let (mut made, mut bytes) = (Vec::new(), 0);
        for target in targets.iter().take(CHUNK) {
            let job = self.job(target, &evaluators);
            bytes += job.as_ref().map_or(0, |job| job.payload.len());
            made.push((*target, job));
            if bytes > CHUNK_BYTES {
                break;
            }
        }
        made
    }

    fn job(
        &self,
        target: &Target,
        evaluators: &BTreeMap<&BTreeSet<u16>, Evaluator<'_>>,
    ) -> std::result::Result<NewJob, Refusal> {
        let set = mentioned_at(&self.author.workflow.spec, target);
        if let Some(Err(problem)) = self.variables.get(&set) {
            return Err(problem.into());
        }
        let items = match target {
            Target::Member { step, .. } => self.elements.get(step).map(Result::as_ref).transpose(),
            Target::StepCallback { .. } | Target::Callback(_) => Ok(None),
        };
        let items = items.map_err(Refusal::clone)?;
        let evaluator =
            evaluators.get(&set).ok_or_else(|| expression("its variables were not gathered".to_owned()))?;
        let job = self.author.job(target, evaluator, items.map(Vec::as_slice));
        job.map_err(|error| expression(error.to_string()))
    }
}

/// The sets of steps that the templates at `targets` mention, and the steps whose elements they are made of.
fn wanted(spec: &WorkflowSpec, targets: &[Target]) -> (BTreeSet<BTreeSet<u16>>, BTreeSet<u16>) {
    let (mut sets, mut loops, mut last) = (BTreeSet::new(), BTreeSet::new(), None);
    for target in targets {
        if let Target::Member { step, .. } = target {
            loops.insert(*step);
        }
        let template = jobs::template(spec, target).map(|(job, _)| std::ptr::from_ref(job));
        // Members of one forEach share a template.
        if template.is_none() || template != last {
            sets.insert(mentioned_at(spec, target));
            last = template;
        }
    }
    (sets, loops)
}

fn expression(message: String) -> Refusal {
    Refusal { reason: "Expression", message }
}

fn gatherer<'a>(run: &'a Run<'_>) -> Gatherer<'a, impl Fn(&Target) -> Result<super::variables::Place>> {
    Gatherer {
        spec: &run.object.spec,
        plan: &run.plan,
        state: &run.state,
        namespace: &run.namespace,
        name: &run.name,
        locate: |target: &Target| perform::locate(run, target),
        known: BTreeMap::new(),
        bytes: 0,
    }
}

/// The elements of a step's `forEach`; nothing where it has none.
pub(super) async fn elements_of(
    run: &Run<'_>,
    step: u16,
) -> Result<Option<std::result::Result<Vec<Value>, Refusal>>> {
    let batch = run.object.spec.steps.get(usize::from(step)).and_then(|step| step.batch.as_ref());
    let Some(text) = batch.and_then(|batch| batch.for_each.clone()) else {
        return Ok(None);
    };
    let variables = match gatherer(run).gather(&mentioned(&run.object.spec, &text)).await? {
        Ok(variables) => variables,
        Err(problem) => return Ok(Some(Err((&problem).into()))),
    };
    let evaluated = super::expressions::on_large_stack({
        let text = text.clone();
        move || Evaluator::new(&variables).evaluate_text(&text)
    });
    Ok(Some(match evaluated.await.map_err(Error::NoThread)? {
        Ok(Value::Array(items)) => Ok(items),
        Ok(_) => Err(expression(format!("forEach {text} gives no list"))),
        Err(error) => Err(expression(error.to_string())),
    }))
}
