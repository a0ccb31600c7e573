//! Finds what is wrong with a Workflow's expressions before anything is started. Pure.

use super::expressions;
use cel::common::ast::{CallExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators};
use longshore_crds::{Batch, Callback, Json, WorkflowSpec};
use longshore_workflow::{Plan, State};
use serde_json::Value;
use std::collections::BTreeSet;

/// An expression that can never work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    /// Where it stands, as `spec.steps[1].job.payload.url`.
    pub(super) field: String,
    /// What is wrong.
    pub(super) message: String,
}

/// Bytes that a status may take at most, whatever happens.
const MAX_STATUS: usize = 256 * 1024;
/// Bytes that spec and status may take together; etcd takes a little more.
const MAX_OBJECT: usize = 1024 * 1024;
/// Bytes of a step and of everything that stands once, beside the machine's own state: names, messages, conditions.
const OF_STEP: usize = 1200;
const OF_REST: usize = 8 * 1024;

/// What is wrong with the size of a workflow, if it could ever outgrow its object.
pub(super) fn size_problem(spec: &WorkflowSpec, plan: &Plan) -> Option<String> {
    let status = State::worst_case_bytes(plan) + spec.steps.len() * OF_STEP + OF_REST;
    let written = serde_json::to_vec(spec).map_or(0, |text| text.len());
    if status > MAX_STATUS {
        return Some(format!(
            "its status could take {status} bytes, the limit is {MAX_STATUS}; use fewer steps or members"
        ));
    }
    (status + written > MAX_OBJECT)
        .then(|| format!("spec and status could take {} bytes, the limit is {MAX_OBJECT}", status + written))
}

/// The first problem in `spec`, from top to bottom. To be called on a large stack.
pub(super) fn problem(spec: &WorkflowSpec) -> Option<Problem> {
    let mut check = Check { known: BTreeSet::new(), correct: BTreeSet::new() };
    check.spec(spec).err()
}

/// What expressions can name at one place, besides results of steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Names {
    item: bool,
    index: bool,
}

const OUTSIDE: Names = Names { item: false, index: false };

/// Walks from top to bottom.
struct Check<'a> {
    /// Steps whose results can be named so far.
    known: BTreeSet<&'a str>,
    /// Texts that were found correct with as many steps known, so that five hundred alike members cost one look.
    correct: BTreeSet<(usize, Names, &'a str)>,
}

impl<'a> Check<'a> {
    fn spec(&mut self, spec: &'a WorkflowSpec) -> Result<(), Problem> {
        for (index, step) in spec.steps.iter().enumerate() {
            let field = format!("spec.steps[{index}]");
            if let Some(job) = &step.job {
                self.payload(job.payload.as_ref(), OUTSIDE, &format!("{field}.job"))?;
            }
            if let Some(batch) = &step.batch {
                self.batch(batch, &step.name, &format!("{field}.batch"))?;
            }
            self.known.insert(&step.name);
        }
        self.callbacks([&spec.then, &spec.catch, &spec.finally], "spec")
    }

    fn batch(&mut self, batch: &'a Batch, name: &'a str, field: &str) -> Result<(), Problem> {
        if let Some(text) = &batch.for_each {
            self.text(text, OUTSIDE, &format!("{field}.forEach"))?;
        }
        for (index, job) in batch.jobs.iter().flatten().enumerate() {
            let names = Names { item: false, index: true };
            self.payload(job.payload.as_ref(), names, &format!("{field}.jobs[{index}]"))?;
        }
        if let Some(job) = &batch.job {
            self.payload(job.payload.as_ref(), Names { item: true, index: true }, &format!("{field}.job"))?;
        }
        self.known.insert(name);
        self.callbacks([&batch.then, &batch.catch, &batch.finally], field)
    }

    fn callbacks(&mut self, callbacks: [&'a Option<Callback>; 3], field: &str) -> Result<(), Problem> {
        for (callback, name) in callbacks.into_iter().zip(["then", "catch", "finally"]) {
            let payload = callback.as_ref().and_then(|callback| callback.job.payload.as_ref());
            self.payload(payload, OUTSIDE, &format!("{field}.{name}.job"))?;
        }
        Ok(())
    }

    fn payload(&mut self, payload: Option<&'a Json>, names: Names, field: &str) -> Result<(), Problem> {
        let field = format!("{field}.payload");
        match payload {
            None => Ok(()),
            Some(payload) if payload.is_too_deep() => Err(Problem {
                field,
                message: format!("it is nested deeper than {} levels", Json::MAX_DEPTH),
            }),
            Some(payload) => self.value(payload, names, &field),
        }
    }

    fn value(&mut self, value: &'a Value, names: Names, field: &str) -> Result<(), Problem> {
        match value {
            Value::String(text) => self.text(text, names, field),
            Value::Array(items) => {
                let mut items = items.iter().enumerate();
                items.try_for_each(|(at, item)| self.value(item, names, &format!("{field}[{at}]")))
            }
            Value::Object(fields) => fields
                .iter()
                .try_for_each(|(name, value)| self.value(value, names, &format!("{field}.{name}"))),
            Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
        }
    }

    fn text(&mut self, text: &'a str, names: Names, field: &str) -> Result<(), Problem> {
        let key = (self.known.len(), names, text);
        if !text.contains("$(") || self.correct.contains(&key) {
            return Ok(());
        }
        let fail = |message: String| Problem { field: field.to_owned(), message };
        let trees = expressions::trees(text).map_err(|error| fail(error.to_string()))?;
        for (expression, tree) in &trees {
            let scope = Scope { known: &self.known, names, bound: Vec::new() };
            scope.check(tree).map_err(|problem| fail(format!("expression $({expression}) {problem}")))?;
        }
        self.correct.insert(key);
        Ok(())
    }
}

/// What can be named at one place in an expression.
struct Scope<'a> {
    known: &'a BTreeSet<&'a str>,
    names: Names,
    /// Variables of the loops around.
    bound: Vec<&'a str>,
}

impl Scope<'_> {
    fn check(&self, tree: &IdedExpr) -> Result<(), String> {
        match &tree.expr {
            Expr::Ident(name) => self.name(name),
            Expr::Select(select) if is_steps(&select.operand) => self.step(&select.field),
            Expr::Select(select) => self.check(&select.operand),
            Expr::Call(call) => self.call(call),
            Expr::List(list) => list.elements.iter().try_for_each(|item| self.check(item)),
            Expr::Map(map) => map.entries.iter().try_for_each(|entry| self.entry(&entry.expr)),
            Expr::Struct(fields) => fields.entries.iter().try_for_each(|entry| self.entry(&entry.expr)),
            Expr::Comprehension(it) => {
                self.check(&it.iter_range)?;
                let mut bound = self.bound.clone();
                bound.extend([it.iter_var.as_str(), it.accu_var.as_str()]);
                bound.extend(it.iter_var2.as_deref());
                let inner = Scope { bound, ..*self };
                let parts = [&it.accu_init, &it.loop_cond, &it.loop_step, &it.result];
                parts.into_iter().try_for_each(|part| inner.check(part))
            }
            Expr::Unspecified | Expr::Literal(_) => Ok(()),
        }
    }

    fn call(&self, call: &CallExpr) -> Result<(), String> {
        if call.func_name == operators::INDEX
            && let [operand, index] = call.args.as_slice()
            && is_steps(operand)
            && let Expr::Literal(LiteralValue::String(name)) = &index.expr
        {
            return self.step(name.inner());
        }
        call.target.iter().try_for_each(|target| self.check(target))?;
        call.args.iter().try_for_each(|argument| self.check(argument))
    }

    fn entry(&self, entry: &EntryExpr) -> Result<(), String> {
        match entry {
            EntryExpr::StructField(field) => self.check(&field.value),
            EntryExpr::MapEntry(entry) => {
                self.check(&entry.key)?;
                self.check(&entry.value)
            }
        }
    }

    fn step(&self, name: &str) -> Result<(), String> {
        if self.known.contains(name) {
            return Ok(());
        }
        let dashed =
            self.known.iter().find(|known| known.starts_with(name) && known[name.len()..].starts_with('-'));
        Err(match dashed {
            Some(dashed) => format!("names the step {name:?}; write steps[{dashed:?}] if you mean that one"),
            None => format!("names the step {name:?}, and there is none of that name before this place"),
        })
    }

    fn name(&self, name: &str) -> Result<(), String> {
        let name = name.trim_start_matches('.');
        if name == "steps" && !self.bound.contains(&name) {
            // Which of them there are depends on the moment.
            return Err("names all steps at once; name one: steps.NAME or steps[\"NAME\"]".to_owned());
        }
        let known = name == "workflow"
            || (name == "item" && self.names.item)
            || (name == "index" && self.names.index)
            || self.bound.contains(&name);
        if known {
            return Ok(());
        }
        let item = if self.names.item { ", item" } else { "" };
        let index = if self.names.index { ", index" } else { "" };
        Err(format!("names {name:?}; here it can name steps.NAME, workflow{item}{index}"))
    }
}

fn is_steps(tree: &IdedExpr) -> bool {
    matches!(&tree.expr, Expr::Ident(name) if name.trim_start_matches('.') == "steps")
}

#[cfg(test)]
mod tests {
    use super::problem;
    use longshore_crds::WorkflowSpec;
    use serde_json::{Value, json};

    fn found(steps: &Value, more: &Value) -> Option<String> {
        let mut spec = json!({ "queueRef": { "name": "q" }, "steps": steps });
        for (name, value) in more.as_object().unwrap() {
            spec[name] = value.clone();
        }
        let spec: WorkflowSpec = serde_json::from_value(spec).unwrap();
        let found = crate::workflows::expressions::large(|| problem(&spec));
        found.map(|problem| format!("{}: {}", problem.field, problem.message))
    }

    /// What is said of `expression` in the second of two steps.
    fn of(expression: &str) -> Option<String> {
        let first = json!({ "name": "one-by-one", "job": { "type": "t" } });
        let second = json!({ "name": "two", "job": { "type": "t", "payload": { "a": [expression] } } });
        found(&json!([first, second]), &json!({}))
    }

    #[test]
    fn a_workflow_that_could_outgrow_its_object_is_found_before_its_start() {
        let of = |steps: usize, payload: usize| {
            let step = |number: usize| json!({ "name": format!("s{number}"), "job": { "type": "t", "payload": "x".repeat(payload) } });
            let steps: Vec<_> = (0..steps).map(step).collect();
            let spec: WorkflowSpec =
                serde_json::from_value(json!({ "queueRef": { "name": "q" }, "steps": steps })).unwrap();
            super::size_problem(&spec, &crate::workflows::plan::plan(&spec))
        };
        assert_eq!(of(100, 100), None);
        assert!(of(100, 10_000).unwrap().contains("the limit is 1048576"));
    }

    #[test]
    fn correct_expressions_pass() {
        let correct = [
            "no expression, $$(steps.nobody) either",
            "$(steps[\"one-by-one\"].result)",
            "$(steps['one-by-one'].result.map(x, x + 1).filter(y, y > 1))",
            "$(workflow.name) and $(size(workflow.namespace))",
            "$({'a': [1, 2].exists(x, x == 1)})",
            "$(has(workflow.outcome) ? 1 : 2)",
        ];
        for text in correct {
            assert_eq!(of(text), None, "{text}");
        }
    }

    #[test]
    fn wrong_expressions_are_found_with_their_field() {
        let wrong = [
            ("$(steps.two.result)", "names the step \"two\""),
            ("$(steps[\"three\"].result)", "names the step \"three\""),
            ("$(has(steps.three) ? 1 : 2)", "names the step \"three\""),
            ("$(steps.one-by-one.result)", "write steps[\"one-by-one\"]"),
            ("$(item)", "names \"item\"; here it can name steps.NAME, workflow"),
            ("$(size(steps))", "names all steps at once"),
            ("$(steps['one-' + 'by-one'])", "names all steps at once"),
            ("$([1].map(x, y))", "names \"y\""),
            ("$([1].map(x, x) + x)", "names \"x\""),
            ("$(workflow.name +)", "is no CEL"),
            ("$(workflow.name", "has no closing parenthesis"),
        ];
        for (text, expected) in wrong {
            let said = of(text).unwrap_or_default();
            assert!(said.starts_with("spec.steps[1].job.payload.a[0]: "), "{text}: {said}");
            assert!(said.contains(expected), "{text}: {said}");
        }
    }

    #[test]
    fn a_payload_that_is_too_deep_is_named() {
        let deep = (0..200).fold(json!(1), |inner, _| json!([inner]));
        let job = json!({ "type": "t", "payload": { "a": deep } });
        let said = found(&json!([{ "name": "one", "job": job }]), &json!({})).unwrap();
        assert_eq!(said, "spec.steps[0].job.payload: it is nested deeper than 64 levels");
    }

    #[test]
    fn members_and_callbacks_see_what_is_theirs() {
        let with = |text: &str| json!({ "type": "t", "payload": text });
        let batch = |member: &str, then: &str| {
            let batch = json!({ "forEach": "$([1, 2])", "job": with(member), "then": { "job": with(then) } });
            found(&json!([{ "name": "many", "batch": batch }]), &json!({}))
        };
        assert_eq!(batch("$(item + index)", "$(steps.many.results)"), None);
        assert!(
            batch("$(steps.many.results)", "-").unwrap().starts_with("spec.steps[0].batch.job.payload: ")
        );
        assert!(batch("-", "$(item)").unwrap().starts_with("spec.steps[0].batch.then.job.payload: "));
        let catch = json!({ "catch": { "job": with("$(steps.one.result + nothing)") } });
        let said = found(&json!([{ "name": "one", "job": { "type": "t" } }]), &catch).unwrap();
        assert!(said.starts_with("spec.catch.job.payload: "), "{said}");
        let fixed = json!({ "jobs": [with("$(index)"), with("$(item)")] });
        let said = found(&json!([{ "name": "many", "batch": fixed }]), &json!({})).unwrap();
        assert!(said.starts_with("spec.steps[0].batch.jobs[1].payload: "), "{said}");
    }
}
