//! Expressions in templates: `$(CEL)`, escaped as `$$(`.
//!
//! The same expression over the same values gives the same bytes in every process: maps are walked in the order of their
//! keys, and nothing here reads a clock or rolls dice. Bounds: length, nesting, and the elements that loops may touch.

use cel::{
    Context, ExecutionError, Program, Value as Cel,
    common::ast::{CallExpr, EntryExpr, Expr, IdedExpr},
    objects::{Key, Map},
};
use serde_json::{Number, Value};
use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Values that expressions can name.
pub(crate) type Variables = BTreeMap<String, Value>;

/// Bytes of one expression.
const MAX_LENGTH: usize = 1024;
/// Brackets inside brackets.
const MAX_NESTING: usize = 24;
/// Elements, and sixteenths of the bytes of texts in them, that all loops of one expression may touch together.
const MAX_WORK: u64 = 1_000_000;
/// Parsing and evaluating recurse; this is enough for the deepest expression that the bounds let through.
const STACK_BYTES: usize = 16 * 1024 * 1024;

/// An expression that can't be evaluated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expression $({expression}) {problem}")]
pub(crate) struct Error {
    /// The expression, cut.
    pub(crate) expression: String,
    /// What is wrong with it.
    pub(crate) problem: String,
}

impl Error {
    fn new(expression: &str, problem: impl Into<String>) -> Self {
        Self { expression: expression.chars().take(120).collect(), problem: problem.into() }
    }
}

/// The expressions in `text`, each with what it was parsed to. To be called on a large stack.
pub(super) fn trees(text: &str) -> Result<Vec<(String, IdedExpr)>, Error> {
    let parts = parse(text)?.into_iter().filter_map(|part| match part {
        Part::Expression(expression) => Some(expression),
        Part::Literal(_) => None,
    });
    parts.map(|expression| compile(&expression).map(|tree| (expression, tree))).collect()
}

/// No thread can be had now, or the work on it panicked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoThread {
    /// The system gives none.
    #[error("no thread to evaluate expressions on: {0}")]
    Refused(String),
    /// Its end is a mistake in this program.
    #[error("the evaluation of expressions panicked")]
    Panicked,
}

/// Runs `work` on a thread of its own with a large stack, because a parser can overflow a small one; and away from the
/// threads that renew the lease. Not more of them at once than there are [`PLACES`].
///
/// Dropping the future lets the work go on, which is bounded.
pub(crate) async fn on_large_stack<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, NoThread> {
    let place = PLACES.acquire().await.map_err(|closed| NoThread::Refused(closed.to_string()))?;
    let (tell, told) = tokio::sync::oneshot::channel();
    let thread = std::thread::Builder::new().name("expressions".to_owned()).stack_size(STACK_BYTES);
    let spawned = thread.spawn(move || {
        let _place = place;
        drop(tell.send(work()));
    });
    spawned.map_err(|error| NoThread::Refused(error.to_string()))?;
    told.await.map_err(|_panicked| NoThread::Panicked)
}

static PLACES: tokio::sync::Semaphore = tokio::sync::Semaphore::const_new(2);

#[derive(Debug, PartialEq, Eq)]
enum Part {
    Literal(String),
    Expression(String),
}

/// Splits a text into literals and expressions.
fn parse(text: &str) -> Result<Vec<Part>, Error> {
    let mut parts = Vec::new();
    let mut literal = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        literal.push_str(&rest[..at]);
        let after = &rest[at..];
        if let Some(escaped) = after.strip_prefix("$$(") {
            literal.push_str("$(");
            rest = escaped;
        } else if let Some(body) = after.strip_prefix("$(") {
            let end = closing(body).ok_or_else(|| Error::new(body, "has no closing parenthesis"))?;
            if !literal.is_empty() {
                parts.push(Part::Literal(std::mem::take(&mut literal)));
            }
            parts.push(Part::Expression(body[..end].to_owned()));
            rest = &body[end + 1..];
        } else {
            literal.push('$');
            rest = &after[1..];
        }
    }
    literal.push_str(rest);
    if !literal.is_empty() || parts.is_empty() {
        parts.push(Part::Literal(literal));
    }
    Ok(parts)
}

/// Where the parenthesis that ends the expression stands; those in quoted texts don't count.
fn closing(body: &str) -> Option<usize> {
    let (mut depth, mut quote, mut escaped) = (0_usize, None, false);
    for (at, byte) in body.bytes().enumerate() {
        match (quote, byte) {
            (Some(_), _) if escaped => escaped = false,
            (Some(_), b'\\') => escaped = true,
            (Some(open), _) if byte == open => quote = None,
            (None, b'"' | b'\'') => quote = Some(byte),
            (None, b'(') => depth += 1,
            (None, b')') if depth == 0 => return Some(at),
            (None, b')') => depth -= 1,
            (Some(_) | None, _) => {}
        }
    }
    None
}

/// Variables that are converted once, and expressions that are compiled once, for any number of templates. To be used on a
/// large stack.
pub(crate) struct Evaluator<'a> {
    shared: &'a Variables,
    converted: RefCell<BTreeMap<&'a str, Cel>>,
    compiled: RefCell<HashMap<String, Rc<IdedExpr>>>,
}

/// Variables of one template alone.
pub(crate) type Own<'a> = [(&'static str, &'a Value)];

impl<'a> Evaluator<'a> {
    pub(crate) fn new(shared: &'a Variables) -> Self {
        Self { shared, converted: RefCell::default(), compiled: RefCell::default() }
    }

    /// Replaces every expression in every text of `template`. A text that is one expression keeps the type of its value.
    pub(crate) fn render(&self, template: &Value, own: &Own<'_>) -> Result<Value, Error> {
        match template {
            Value::String(text) => self.render_text(text, own),
            Value::Array(items) => items.iter().map(|item| self.render(item, own)).collect(),
            Value::Object(fields) => {
                let pairs = fields.iter().map(|(name, value)| Ok((name.clone(), self.render(value, own)?)));
                pairs.collect::<Result<serde_json::Map<_, _>, _>>().map(Value::Object)
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => Ok(template.clone()),
        }
    }

    /// Evaluates `text`, which must be exactly one expression.
    pub(crate) fn evaluate_text(&self, text: &str) -> Result<Value, Error> {
        match parse(text)?.as_slice() {
            [Part::Expression(expression)] => self.evaluate(expression, &[]),
            _ => Err(Error::new(text, "must be one expression and nothing else")),
        }
    }

    fn render_text(&self, text: &str, own: &Own<'_>) -> Result<Value, Error> {
        let parts = parse(text)?;
        if let [Part::Expression(expression)] = parts.as_slice() {
            return self.evaluate(expression, own);
        }
        let mut out = String::with_capacity(text.len());
        for part in &parts {
            match part {
                Part::Literal(literal) => out.push_str(literal),
                Part::Expression(expression) => match self.evaluate(expression, own)? {
                    Value::String(value) => out.push_str(&value),
                    other => out.push_str(&other.to_string()),
                },
            }
        }
        Ok(Value::String(out))
    }

    fn evaluate(&self, expression: &str, own: &Own<'_>) -> Result<Value, Error> {
        let fail = |problem: String| Error::new(expression, problem);
        let program = self.compiled(expression)?;
        let work = Arc::new(AtomicU64::new(0));
        let mut context = Context::default();
        let charge = move |list: Cel| ordered(list, &work);
        context.add_function(ORDERED, charge).map_err(|error| fail(error.to_string()))?;
        for (name, value) in self.shared {
            if mentions(&program, name) {
                let mut converted = self.converted.borrow_mut();
                let value = converted.entry(name.as_str()).or_insert_with(|| to_cel(value)).clone();
                context.add_variable_from_value(name.as_str(), value);
            }
        }
        for (name, value) in own.iter().filter(|(name, _)| mentions(&program, name)) {
            context.add_variable_from_value(*name, to_cel(value));
        }
        let value = Cel::resolve(&program, &context).map_err(|error| fail(explain(&error)))?;
        to_json(&value).map_err(fail)
    }

    fn compiled(&self, expression: &str) -> Result<Rc<IdedExpr>, Error> {
        if let Some(known) = self.compiled.borrow().get(expression) {
            return Ok(known.clone());
        }
        let tree = Rc::new(compile(expression)?);
        self.compiled.borrow_mut().insert(expression.to_owned(), tree.clone());
        Ok(tree)
    }
}

fn compile(expression: &str) -> Result<IdedExpr, Error> {
    let fail = |problem: String| Err(Error::new(expression, problem));
    if expression.len() > MAX_LENGTH {
        return fail(format!("takes {} bytes, the limit is {MAX_LENGTH}", expression.len()));
    }
    if nesting(expression) > MAX_NESTING {
        return fail(format!("nests deeper than {MAX_NESTING} levels"));
    }
    match Program::compile(expression) {
        Ok(program) => {
            let mut tree = program.expression().clone();
            order_loops(&mut tree);
            Ok(tree)
        }
        Err(errors) => fail(format!("is no CEL: {}", first_line(&errors.to_string()))),
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(200).collect()
}

/// How deep brackets nest, and how many operators that nest without brackets stand in a row.
fn nesting(expression: &str) -> usize {
    let (mut depth, mut deepest, mut run, mut longest) = (0_usize, 0, 0_usize, 0);
    for byte in expression.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        run = if matches!(byte, b'!' | b'-') { run + 1 } else { 0 };
        deepest = deepest.max(depth);
        longest = longest.max(run);
    }
    deepest.max(longest)
}

/// A name that no expression can write.
const ORDERED: &str = "@ordered";

/// Puts a call of [`ORDERED`] around what every loop walks over.
fn order_loops(tree: &mut IdedExpr) {
    match &mut tree.expr {
        Expr::Call(call) => {
            call.target.iter_mut().for_each(|target| order_loops(target));
            call.args.iter_mut().for_each(order_loops);
        }
        Expr::Comprehension(comprehension) => {
            let parts = [
                &mut comprehension.iter_range,
                &mut comprehension.accu_init,
                &mut comprehension.loop_cond,
                &mut comprehension.loop_step,
                &mut comprehension.result,
            ];
            parts.into_iter().for_each(order_loops);
            let range = std::mem::take(&mut comprehension.iter_range);
            let id = range.id;
            let call = CallExpr { func_name: ORDERED.to_owned(), target: None, args: vec![range] };
            comprehension.iter_range = IdedExpr { id, expr: Expr::Call(call) };
        }
        Expr::List(list) => list.elements.iter_mut().for_each(order_loops),
        Expr::Select(select) => order_loops(&mut select.operand),
        Expr::Map(map) => map.entries.iter_mut().for_each(|entry| order_entry(&mut entry.expr)),
        Expr::Struct(fields) => fields.entries.iter_mut().for_each(|entry| order_entry(&mut entry.expr)),
        Expr::Unspecified | Expr::Ident(_) | Expr::Literal(_) => {}
    }
}

fn order_entry(entry: &mut EntryExpr) {
    match entry {
        EntryExpr::StructField(field) => order_loops(&mut field.value),
        EntryExpr::MapEntry(entry) => {
            order_loops(&mut entry.key);
            order_loops(&mut entry.value);
        }
    }
}

/// What a loop walks over: a list as it is, a map as its keys in order. Charges for the elements.
fn ordered(range: Cel, work: &AtomicU64) -> Result<Cel, ExecutionError> {
    let range = match range {
        Cel::Map(map) => {
            let mut keys: Vec<_> = map.map.keys().cloned().collect();
            keys.sort();
            Cel::List(Arc::new(keys.into_iter().map(key_value).collect()))
        }
        other => other,
    };
    let spent = work.fetch_add(weight(&range), Ordering::Relaxed);
    if spent > MAX_WORK {
        return Err(ExecutionError::FunctionError {
            function: "loop".to_owned(),
            message: "the expression does too much work".to_owned(),
        });
    }
    Ok(range)
}

fn key_value(key: Key) -> Cel {
    match key {
        Key::Int(number) => Cel::Int(number),
        Key::Uint(number) => Cel::UInt(number),
        Key::Bool(truth) => Cel::Bool(truth),
        Key::String(text) => Cel::String(text),
    }
}

fn weight(value: &Cel) -> u64 {
    match value {
        Cel::List(items) => items.iter().map(weight).sum::<u64>() + 1,
        Cel::Map(map) => map.map.values().map(weight).sum::<u64>() + 1,
        Cel::String(text) => text.len() as u64 / 16 + 1,
        _ => 1,
    }
}

/// Whether the variable `name` may be used: an identifier of that name stands somewhere.
fn mentions(tree: &IdedExpr, name: &str) -> bool {
    match &tree.expr {
        Expr::Ident(ident) => ident.trim_start_matches('.') == name,
        Expr::Call(call) => {
            call.target.as_ref().is_some_and(|target| mentions(target, name))
                || call.args.iter().any(|arg| mentions(arg, name))
        }
        Expr::Comprehension(it) => [&it.iter_range, &it.accu_init, &it.loop_cond, &it.loop_step, &it.result]
            .iter()
            .any(|part| mentions(part, name)),
        Expr::List(list) => list.elements.iter().any(|item| mentions(item, name)),
        Expr::Select(select) => mentions(&select.operand, name),
        Expr::Map(map) => map.entries.iter().any(|entry| mentions_entry(&entry.expr, name)),
        Expr::Struct(fields) => fields.entries.iter().any(|entry| mentions_entry(&entry.expr, name)),
        Expr::Unspecified | Expr::Literal(_) => false,
    }
}

fn mentions_entry(entry: &EntryExpr, name: &str) -> bool {
    match entry {
        EntryExpr::StructField(field) => mentions(&field.value, name),
        EntryExpr::MapEntry(entry) => mentions(&entry.key, name) || mentions(&entry.value, name),
    }
}

/// The library shows whole values in some messages; results may be secret, so only the kind of problem is told.
fn explain(error: &ExecutionError) -> String {
    match error {
        ExecutionError::NoSuchKey(key) => format!("asks for {key:?}, which is not there"),
        ExecutionError::UndeclaredReference(name) => format!("names {name:?}, which is not known here"),
        ExecutionError::NoSuchOverload(overload) => format!("fails: {overload}"),
        ExecutionError::FunctionError { function, message } => {
            format!("fails in {function}: {}", first_line(message))
        }
        ExecutionError::IndexOutOfBounds(_) => "asks for an element beyond the end of a list".to_owned(),
        ExecutionError::DivisionByZero(_) | ExecutionError::RemainderByZero(_) => {
            "divides by zero".to_owned()
        }
        ExecutionError::Overflow(..) => "overflows".to_owned(),
        ExecutionError::UnexpectedType { got, want } => format!("has a {got} where a {want} is needed"),
        _ => "can't be evaluated on these values".to_owned(),
    }
}

fn to_cel(value: &Value) -> Cel {
    match value {
        Value::Null => Cel::Null,
        Value::Bool(truth) => Cel::Bool(*truth),
        Value::Number(number) => number_to_cel(number),
        Value::String(text) => Cel::String(Arc::new(text.clone())),
        Value::Array(items) => Cel::List(Arc::new(items.iter().map(to_cel).collect())),
        Value::Object(fields) => {
            let pairs =
                fields.iter().map(|(name, value)| (Key::String(Arc::new(name.clone())), to_cel(value)));
            Cel::Map(Map { map: Arc::new(pairs.collect::<HashMap<_, _>>()) })
        }
    }
}

/// Whole numbers are `int`, as people expect who write `item + 1`.
fn number_to_cel(number: &Number) -> Cel {
    match (number.as_i64(), number.as_u64()) {
        (Some(whole), _) => Cel::Int(whole),
        (None, Some(whole)) => Cel::UInt(whole),
        (None, None) => Cel::Float(number.as_f64().unwrap_or(f64::NAN)),
    }
}

fn to_json(value: &Cel) -> Result<Value, String> {
    Ok(match value {
        Cel::Null => Value::Null,
        Cel::Bool(truth) => Value::Bool(*truth),
        Cel::Int(number) => Value::from(*number),
        Cel::UInt(number) => Value::from(*number),
        Cel::Float(number) => {
            Number::from_f64(*number).map(Value::Number).ok_or("gives a number that JSON can't hold")?
        }
        Cel::String(text) => Value::String(text.as_ref().clone()),
        Cel::List(items) => items.iter().map(to_json).collect::<Result<_, _>>()?,
        Cel::Map(map) => {
            let mut fields = serde_json::Map::new();
            for (key, value) in map.map.iter() {
                let Key::String(name) = key else {
                    return Err("gives a map whose keys are no texts".to_owned());
                };
                fields.insert(name.as_ref().clone(), to_json(value)?);
            }
            Value::Object(fields)
        }
        _ => return Err("gives a value that JSON can't hold".to_owned()),
    })
}

/// A large stack for tests.
#[cfg(test)]
pub(super) fn large<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
        thread.spawn_scoped(scope, work).unwrap().join().unwrap()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn render(template: &Value, variables: &Variables) -> Result<Value, Error> {
        large(|| Evaluator::new(variables).render(template, &[]))
    }

    fn evaluate(text: &str, variables: &Variables) -> Result<Value, Error> {
        large(|| Evaluator::new(variables).evaluate_text(text))
    }

    fn variables() -> Variables {
        let steps = json!({ "fetch": { "result": { "images": ["a", "b"], "n": 3, "big": 18_446_744_073_709_551_615_u64 } } });
        BTreeMap::from([
            ("steps".to_owned(), steps),
            ("item".to_owned(), json!("x)y")),
            ("index".to_owned(), json!(7)),
            ("map".to_owned(), json!({ "z": 1, "y": 2, "x": 3, "w": 4, "v": 5, "u": 6, "t": 7, "s": 8 })),
        ])
    }

    #[test]
    fn texts_become_values() {
        for (template, expected) in [
            (json!("plain"), json!("plain")),
            (json!("$(steps.fetch.result.images)"), json!(["a", "b"])),
            (json!("$(steps.fetch.result.n + 1)"), json!(4)),
            (json!("n=$(steps.fetch.result.n), i=$(index)"), json!("n=3, i=7")),
            (json!("$(item)"), json!("x)y")),
            (json!("$(')' + \"(\")"), json!(")(")),
            (json!("$$(not)"), json!("$(not)")),
            (json!("cost: $5 $$"), json!("cost: $5 $$")),
            (
                json!({ "a": ["$(index)", { "b": "$(size(steps.fetch.result.images))" }] }),
                json!({ "a": [7, { "b": 2 }] }),
            ),
            (
                json!("$(steps.fetch.result.images.map(i, {'src': i}))"),
                json!([{ "src": "a" }, { "src": "b" }]),
            ),
            (json!("$(steps[\"fetch\"].result.n)"), json!(3)),
            (json!("$(has(steps.fetch.result.none) ? 1 : 2)"), json!(2)),
            (json!("$(steps.fetch.result.big)"), json!(18_446_744_073_709_551_615_u64)),
        ] {
            assert_eq!(render(&template, &variables()), Ok(expected), "{template}");
        }
    }

    #[test]
    fn maps_are_walked_in_the_order_of_their_keys() {
        let expected = json!(["s", "t", "u", "v", "w", "x", "y", "z"]);
        for _ in 0..20 {
            assert_eq!(evaluate("$(map.map(k, k))", &variables()), Ok(expected.clone()));
            let literal = "$({'s':1,'t':1,'u':1,'v':1,'w':1,'x':1,'y':1,'z':1}.map(k, k))";
            assert_eq!(evaluate(literal, &variables()), Ok(expected.clone()));
        }
    }

    #[test]
    fn what_can_not_be_evaluated_says_why() {
        for (text, problem) in [
            ("$(steps.none.result)", "\"none\""),
            ("$(nobody)", "\"nobody\""),
            ("$(1 +)", "is no CEL"),
            ("$(1 / 0)", "divides by zero"),
            ("$(1", "no closing parenthesis"),
            ("$(steps.fetch.result.images[9])", "beyond the end"),
            ("x$(1)", "one expression and nothing else"),
        ] {
            let error = evaluate(text, &variables()).unwrap_err().to_string();
            assert!(error.contains(problem), "{text}: {error}");
        }
    }

    #[test]
    fn bounds_hold() {
        let long = format!("$('{}')", "x".repeat(1100));
        assert!(evaluate(&long, &variables()).unwrap_err().problem.contains("limit is 1024"));
        for deep in
            [format!("$({}1{})", "[".repeat(200), "]".repeat(200)), format!("$({}true)", "!".repeat(900))]
        {
            assert!(evaluate(&deep, &variables()).unwrap_err().problem.contains("nests deeper"), "{deep}");
        }
        let list = "[1,1,1,1,1,1,1,1,1,1]";
        let loops = format!(
            "$({list}.map(a,{list}.map(b,{list}.map(c,{list}.map(d,{list}.map(e,{list}.map(f,{list}.map(g,1))))))))"
        );
        assert!(evaluate(&loops, &variables()).unwrap_err().problem.contains("too much work"));
        let doubling = format!("$(['x']{})", ".map(a,a+a)".repeat(60));
        assert!(evaluate(&doubling, &variables()).unwrap_err().problem.contains("too much work"));
    }

    /// What depends on the order of maps in memory, if anything does.
    fn rendered() -> String {
        let template = json!([
            "$(map)",
            "$(map.map(k, k))",
            "$(map.filter(k, map[k] > 2))",
            "$({'z': 1, 'a': map, 'm': [map, steps]})",
            "$({'z': 1, 'a': 2, 'm': 3}.map(k, k + '!'))",
            "n=$(map), s=$(steps.fetch)",
        ]);
        render(&template, &variables()).unwrap().to_string()
    }

    /// Maps have another order in memory in each process.
    #[test]
    fn an_expression_gives_the_same_bytes_in_two_processes() {
        const ASKED: &str = "LONGSHORE_TEST_RENDER";
        if std::env::var_os(ASKED).is_some() {
            eprintln!("<<{}>>", rendered());
            return;
        }
        let own = rendered();
        for _ in 0..3 {
            let name = "workflows::expressions::tests::an_expression_gives_the_same_bytes_in_two_processes";
            let mut other = std::process::Command::new(std::env::current_exe().unwrap());
            let output = other.args([name, "--exact", "--nocapture"]).env(ASKED, "1").output().unwrap();
            let said = String::from_utf8(output.stderr).unwrap();
            let bytes = said.split_once("<<").and_then(|(_, rest)| rest.split_once(">>")).map(|(it, _)| it);
            assert_eq!(bytes, Some(own.as_str()));
        }
    }
}
