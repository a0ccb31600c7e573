//! Writes `docs/guarantees.md` from what the conformance suites recorded, or checks that it says just that.
//!
//! `guarantees [--check] RECORDS FILE`. RECORDS is the folder that the suites wrote to; the pages of scenarios lie beside FILE
//! and say to which area each belongs. What `prove` finds wrong is an error: a cell without a proof, a claim without a
//! scenario, a scenario without a claim, a "no" without an explanation, a bound that is spoken of and not asserted.
#![expect(clippy::print_stdout, reason = "it talks to a person")]

mod capabilities;
mod notes;
mod prove;
mod records;
mod render;
#[cfg(test)]
mod tests;

use records::Suite;
use std::{fs, path::Path, process::ExitCode};

type Failure = Box<dyn std::error::Error>;

/// The brokers in the order of the tables. `http` is the embedded broker behind its own server.
const BROKERS: &[&str] = &["embedded", "http", "redis", "postgres", "postgres-poll", "memory"];

/// The brokers on which the scenarios of workers have to have run. One more is one more word here.
const WORKER_BROKERS: &[&str] = &["http", "redis", "postgres"];

fn main() -> Result<ExitCode, Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (check, records, file) = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--check", records, file] => (true, records.to_owned(), file.to_owned()),
        [records, file] => (false, records.to_owned(), file.to_owned()),
        _ => return Err("usage: guarantees [--check] RECORDS FILE".into()),
    };
    let docs = Path::new(&file).parent().unwrap_or_else(|| Path::new("."));
    let page = |name: &str| fs::read_to_string(docs.join(name)).map_err(|error| format!("{name}: {error}"));
    let drivers = Suite::read(Path::new(&records), "", BROKERS, notes::OF_BROKERS, &page("scenarios.md")?)?;
    let workers = Suite::read(
        Path::new(&records),
        "workers-",
        WORKER_BROKERS,
        notes::OF_WORKERS,
        &page("scenarios-workers.md")?,
    )?;
    let text = document(&drivers, &workers)?;
    if !check {
        fs::write(&file, &text)?;
        return Ok(ExitCode::SUCCESS);
    }
    if is_same(&fs::read_to_string(&file).unwrap_or_default(), &text) {
        return Ok(ExitCode::SUCCESS);
    }
    println!("{file} does not say what was proven: run `make guarantees`");
    Ok(ExitCode::FAILURE)
}

/// The page, if everything that it says is proven.
fn document(drivers: &Suite, workers: &Suite) -> Result<String, Failure> {
    prove::suite(drivers)?;
    prove::suite(workers)?;
    prove::capabilities(drivers)?;
    render::page(drivers, workers)
}

/// Whether the page that stands is the one that was proven, to the letter.
fn is_same(stands: &str, proven: &str) -> bool {
    stands == proven
}
