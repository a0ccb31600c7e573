//! Every cell has a proof, every claim a scenario, every "no" an explanation that a scenario shows.

use super::{
    Failure,
    capabilities::{MEANINGS, PROVEN_BY, SIZES, is_none, meaning},
    notes::{About, Note},
    records::{Record, Scenario, Status, Suite},
};
use serde_json::Value;

type Proof = Result<(), Failure>;

/// Words of a guarantee that speak of a number. Who says one has to have asserted it.
const SPEAKS_OF_A_BOUND: &[&str] =
    &["late by little", "bounded time", "its bound", "the limit", "hundred thousand", "Of many", "Many"];

/// The records are whole and nothing failed; what is not there is explained, what is said is shown.
pub(super) fn suite(suite: &Suite) -> Proof {
    for broker in suite.brokers {
        let record = suite.records.get(broker).ok_or_else(|| format!("there is no record of {broker}"))?;
        whole(suite, broker, record)?;
        for scenario in &record.scenarios {
            proven_or_explained(suite, broker, scenario)?;
        }
    }
    suite.notes.iter().try_for_each(|note| shown(suite, note))
}

/// It has the scenarios that the others have.
fn whole(suite: &Suite, broker: &str, record: &Record) -> Proof {
    if record.bounds.is_empty() {
        return Err(
            format!("the record of {broker} tells no bounds of the suite: run `make conformance`").into()
        );
    }
    let names = |scenarios: &[Scenario]| scenarios.iter().map(|one| one.name.clone()).collect::<Vec<_>>();
    let (expected, found) = (names(suite.scenarios()), names(&record.scenarios));
    if expected.is_empty() || expected != found {
        let first = expected.iter().zip(&found).find(|(one, other)| one != other);
        return Err(format!(
            "{broker} ran {} scenarios, {} ran {}; they differ first at {first:?}: run `make conformance`",
            found.len(),
            suite.brokers[0],
            expected.len()
        )
        .into());
    }
    Ok(())
}

fn proven_or_explained(suite: &Suite, broker: &str, scenario: &Scenario) -> Proof {
    let name = &scenario.name;
    if !suite.areas.contains_key(name) {
        return Err(format!("the page of scenarios has no row of {name}, so it belongs to no area").into());
    }
    match scenario.status {
        Status::Failed => Err(format!("{broker}: scenario {name} failed").into()),
        Status::Passed => {
            let speaks = SPEAKS_OF_A_BOUND.iter().find(|words| scenario.guarantee.contains(**words));
            match speaks {
                Some(words) if scenario.bounds.is_empty() => {
                    Err(format!("{broker}: {name} promises {words:?}, and its scenario asserts no number")
                        .into())
                }
                _ => Ok(()),
            }
        }
        Status::Unsupported => {
            let missing = scenario.missing.as_deref();
            let explains = |note: &&Note| matches!(note.about, About::Want(need) if missing == Some(need));
            if suite.notes_of(name, broker).any(|note| explains(&note)) {
                return Ok(());
            }
            let want = missing.unwrap_or("nobody knows what");
            Err(format!("{broker}: {name} is not there for want of {want}, and no note explains it").into())
        }
    }
}

/// A note is shown on each of its brokers, and is about something that is there.
fn shown(suite: &Suite, note: &Note) -> Proof {
    for broker in note.brokers {
        let shows = suite.on(broker, note.shown_by).is_some_and(|shows| shows.passed() || shows.twin);
        if !shows {
            return Err(format!("no scenario {} shows on {broker}: {}", note.shown_by, note.what).into());
        }
        let record = &suite.records[broker];
        let wanting = |need: &str| {
            let scenarios = record.scenarios.iter();
            scenarios
                .filter(|scenario| scenario.status == Status::Unsupported)
                .any(|scenario| scenario.missing.as_deref() == Some(need))
        };
        let about = match note.about {
            About::Want(need) => wanting(need),
            About::Rows(rows) => rows
                .iter()
                .all(|row| record.scenario(row).is_some() || record.capabilities.contains_key(*row)),
        };
        if !about {
            return Err(format!("nothing on {broker} is as a note says: {}", note.what).into());
        }
    }
    Ok(())
}

/// Every claim has a proof, and every proof a claim; what can't be done is explained.
pub(super) fn capabilities(suite: &Suite) -> Proof {
    for (broker, record) in &suite.records {
        for (capability, _) in MEANINGS {
            let value = record.capabilities.get(*capability);
            if is_none(value) && suite.notes_of(capability, broker).next().is_none() {
                return Err(format!("{broker} can't do {capability}, and no note explains it").into());
            }
        }
        for (capability, value) in &record.capabilities {
            if meaning(capability).is_none() {
                return Err(format!("nobody says what the capability {capability} means").into());
            }
            claim(broker, record, capability, value)?;
        }
    }
    Ok(())
}

/// What a broker says that it can do, a scenario that needs it did there, and the sizes that it tells were asserted.
fn claim(broker: &str, record: &Record, capability: &str, value: &Value) -> Proof {
    let sizes = SIZES.iter().filter(|(of, ..)| *of == capability);
    for (_, field, scenario, name) in sizes.clone() {
        let told = value.get(field).and_then(Value::as_u64);
        let asserted = record.scenario(scenario).filter(|one| one.passed()).is_some_and(|one| {
            one.bounds.iter().any(|bound| bound.name == *name && Some(bound.bound) == told)
        });
        if !asserted && !is_none(Some(value)) {
            return Err(format!(
                "{broker} tells {capability} {field} {told:?}, and {scenario} didn't assert it"
            )
            .into());
        }
    }
    let about = |scenario: &&Scenario| scenario.needs.iter().any(|need| need == capability);
    let passed = record.scenarios.iter().filter(about).find(|scenario| scenario.passed());
    match (is_none(Some(value)), passed) {
        (true, Some(scenario)) => {
            Err(format!("{broker} passed {}, but doesn't claim {capability}", scenario.name).into())
        }
        (true, None) | (false, Some(_)) => Ok(()),
        (false, None) => match PROVEN_BY.iter().find(|(name, _)| *name == capability) {
            Some((_, scenario)) if record.scenario(scenario).is_some_and(Scenario::passed) => Ok(()),
            Some((_, scenario)) => {
                Err(format!("{broker} claims {capability}, but {scenario} did not pass").into())
            }
            // Its sizes are all that there is to it.
            None if sizes.count() > 0 => Ok(()),
            None => Err(format!("{broker} claims {capability}, and no scenario that needs it passed").into()),
        },
    }
}
