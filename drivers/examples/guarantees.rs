//! Writes `docs/guarantees.md` from what the conformance suite recorded, or checks that it says just that.
//!
//! `guarantees [--check] RECORDS FILE`. A cell says yes only if its scenario ran and passed. A broker that claims a
//! capability which no scenario proved, or that has one which it doesn't claim, is an error; so is a weakness that no
//! scenario shows.
#![expect(clippy::print_stdout, reason = "it talks to a person")]

use serde_json::Value;
use std::{collections::BTreeMap, fmt::Write, fs, path::Path, process::ExitCode};

type Failure = Box<dyn std::error::Error>;

/// The brokers in the order of the tables. `http` is the embedded broker behind its own server.
const BROKERS: &[&str] = &["embedded", "http", "redis", "postgres", "postgres-poll", "memory"];

/// What is weaker than one would wish, where, and the scenario that shows it.
const WEAKER: &[Weakness] = &[
    Weakness {
        brokers: BROKERS,
        what: "Delivery is at least once: a handler runs again after its pod, its sidecar or its lease was lost. Use the \
               `Idempotency-Key`. At most one run of a job is under a lease at a time; after a timeout the handler may \
               still run.",
        shown_by: "lease_expiry_returns_job_and_counts_a_delivery",
    },
    Weakness {
        brokers: BROKERS,
        what: "Unless a queue is `Fifo`, order is best effort: a job that is held or retried lets others pass.",
        shown_by: "ordering_multi_worker_best_effort",
    },
    Weakness {
        brokers: &["http", "redis", "postgres", "postgres-poll"],
        what: "When the broker dies or the network breaks, whether a call was done may be unknown (`Ambiguous`): the same \
               id again tells.",
        shown_by: "ambiguous_publish",
    },
    Weakness {
        brokers: &["redis"],
        what: "What is durable depends on the server; the suite runs with `appendfsync always`. With `everysec`, which is \
               Redis' own default, up to two seconds of acknowledged work are lost with the process or the machine, and \
               the Broker's status says so (`docs/brokers/redis.md`).",
        shown_by: "worker_restart_recovery",
    },
    Weakness {
        brokers: &["postgres", "postgres-poll"],
        what: "`maxDepth` is exact within 10,000 jobs of the limit; further away producers that come at the same moment \
               may pass it (`docs/brokers/postgres.md`).",
        shown_by: "full_queue_refuses_producers_only",
    },
];

struct Weakness {
    brokers: &'static [&'static str],
    what: &'static str,
    shown_by: &'static str,
}

/// What one run of the suite on one broker recorded.
struct Record {
    capabilities: BTreeMap<String, Value>,
    scenarios: Vec<Value>,
}

type Records = BTreeMap<&'static str, Record>;

fn main() -> Result<ExitCode, Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (check, records, file) = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--check", records, file] => (true, records.to_owned(), file.to_owned()),
        [records, file] => (false, records.to_owned(), file.to_owned()),
        _ => return Err("usage: guarantees [--check] RECORDS FILE".into()),
    };
    let records = read(Path::new(&records))?;
    prove(&records)?;
    let text = render(&records)?;
    if !check {
        fs::write(&file, &text)?;
        return Ok(ExitCode::SUCCESS);
    }
    if fs::read_to_string(&file).unwrap_or_default() == text {
        return Ok(ExitCode::SUCCESS);
    }
    println!("{file} does not say what was proven: run `make guarantees`");
    Ok(ExitCode::FAILURE)
}

fn read(folder: &Path) -> Result<Records, Failure> {
    let mut records = Records::new();
    for broker in BROKERS {
        let path = folder.join(format!("{broker}.json"));
        let text = fs::read_to_string(&path)
            .map_err(|error| format!("{}: {error}; run `make conformance`", path.display()))?;
        let mut record: Value = serde_json::from_str(&text)?;
        let scenarios = record["scenarios"].as_array().cloned().ok_or("a record without scenarios")?;
        let capabilities = serde_json::from_value(record["capabilities"].take())?;
        records.insert(broker, Record { capabilities, scenarios });
    }
    Ok(records)
}

impl Record {
    fn status(&self, scenario: &str) -> Option<&str> {
        self.scenarios.iter().find(|record| record["name"] == scenario)?["status"].as_str()
    }

    /// The scenarios that need `capability`: their names, and whether they passed.
    fn about<'a>(&'a self, capability: &'a str) -> impl Iterator<Item = (&'a str, bool)> {
        let needs = move |record: &&Value| {
            record["needs"].as_array().is_some_and(|needs| needs.iter().any(|need| need == capability))
        };
        let outcome = |record: &'a Value| Some((record["name"].as_str()?, record["status"] == "passed"));
        self.scenarios.iter().filter(needs).filter_map(outcome)
    }
}

/// Capabilities that are sizes or words about how much; they are shown, their scenarios stand in the other table.
fn is_yes_or_no(value: &Value) -> bool {
    value.is_boolean()
}

/// Every claim has a proof, and every proof a claim.
fn prove(records: &Records) -> Result<(), Failure> {
    for (broker, record) in records {
        if let Some(failed) = record.scenarios.iter().find(|scenario| scenario["status"] == "failed") {
            return Err(format!("{broker}: scenario {} failed", failed["name"]).into());
        }
        for (capability, value) in record.capabilities.iter().filter(|(_, value)| is_yes_or_no(value)) {
            let claimed = value == &Value::Bool(true);
            let mut proofs = record.about(capability).peekable();
            if claimed && proofs.peek().is_none() && !PROVEN_BY.iter().any(|(name, _)| name == capability) {
                return Err(format!("{broker} claims {capability}, and no scenario needs it").into());
            }
            if !claimed && let Some((name, _)) = proofs.find(|(_, passed)| *passed) {
                return Err(format!("{broker} passed {name}, but doesn't claim {capability}").into());
            }
        }
        for (capability, scenario) in PROVEN_BY {
            let claimed = record.capabilities.get(*capability) == Some(&Value::Bool(true));
            if claimed && record.status(scenario) != Some("passed") {
                return Err(format!("{broker} claims {capability}, but {scenario} did not pass").into());
            }
        }
    }
    for weakness in WEAKER {
        for broker in weakness.brokers {
            let shown = records.get(broker).and_then(|record| record.status(weakness.shown_by));
            if shown.is_none_or(|status| status != "passed") {
                return Err(format!(
                    "no scenario {} shows on {broker}: {}",
                    weakness.shown_by, weakness.what
                )
                .into());
            }
        }
    }
    Ok(())
}

/// Capabilities that a scenario proves without being skipped where they are missing.
const PROVEN_BY: &[(&str, &str)] = &[("atomicSettle", "completion_is_written_with_the_settle")];

fn render(records: &Records) -> Result<String, Failure> {
    let mut out = String::from(
        "# Guarantees\n\n\
         Generated by `make guarantees` from the records of the conformance suite: a cell says yes only if its scenario ran and\n\
         passed there, and what a broker claims without a scenario fails the build. `http` is the embedded broker behind its own\n\
         server, as Kubernetes runs it; `embedded` is the same in the suite's process, so that it has no network or process\n\
         that could fail (–); `postgres-poll` is PostgreSQL without LISTEN; `memory` is for tests. What\n\
         each scenario does: `docs/scenarios.md`.\n\n\
         ## What a broker can do\n\n",
    );
    heading(&mut out, "capability")?;
    for capability in records[BROKERS[0]].capabilities.keys() {
        let cells = BROKERS.iter().map(|broker| {
            let value = records[broker].capabilities.get(capability);
            value.map_or_else(|| "no".to_owned(), |value| shown(capability, value))
        });
        writeln!(out, "| `{capability}` | {} |", cells.collect::<Vec<_>>().join(" | "))?;
    }
    out.push_str("\n## What is guaranteed\n\n");
    heading(&mut out, "guarantee | scenario")?;
    for scenario in &records[BROKERS[0]].scenarios {
        let name = scenario["name"].as_str().ok_or("a scenario without a name")?;
        let guarantee = scenario["guarantee"].as_str().ok_or("a scenario without a guarantee")?;
        let cells = BROKERS.iter().map(|broker| cell(&records[broker], name));
        writeln!(out, "| {guarantee} | `{name}` | {} |", cells.collect::<Vec<_>>().join(" | "))?;
    }
    out.push_str("\n## What is weaker\n\n");
    for Weakness { brokers, what, shown_by } in WEAKER {
        let of =
            if brokers.len() == BROKERS.len() { String::new() } else { format!("{}: ", brokers.join(", ")) };
        writeln!(out, "- {of}{what} Shown by `{shown_by}`.")?;
    }
    Ok(out)
}

fn heading(out: &mut String, first: &str) -> std::fmt::Result {
    writeln!(out, "| {first} | {} |", BROKERS.join(" | "))?;
    let columns = first.split('|').count() + BROKERS.len();
    writeln!(out, "|{}", " --- |".repeat(columns))
}

/// A capability's value, for people.
fn shown(capability: &str, value: &Value) -> String {
    match value {
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) | Value::Null => "no".to_owned(),
        Value::String(word) => word.clone(),
        Value::Object(fields) if capability == "delay" => {
            let days = fields.get("maxMs").and_then(Value::as_u64).unwrap_or(0) / 86_400_000;
            format!("up to {days} days")
        }
        Value::Object(fields) => {
            let kib = |(name, bytes): (&String, &Value)| {
                format!("{name} {} KiB", bytes.as_u64().unwrap_or(0) / 1024)
            };
            fields.iter().map(kib).collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    }
}

fn cell(record: &Record, name: &str) -> &'static str {
    let faults = || {
        let mut needs = ["network", "process"].into_iter().flat_map(|need| record.about(need));
        needs.any(|(scenario, _)| scenario == name)
    };
    match record.status(name) {
        Some("passed") => "yes",
        Some("unsupported") if faults() => "–",
        Some("unsupported") => "no",
        _ => "not proven",
    }
}
