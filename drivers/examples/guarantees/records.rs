//! What the suites wrote down, and what the pages of scenarios say beside it.

use super::{Failure, notes::Note};
use longshore_drivers::conformance::Bound;
use serde::Deserialize;
use serde_json::Value;
use std::{collections::BTreeMap, fs, path::Path};

/// What became of a scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    Passed,
    Failed,
    Unsupported,
}

/// A scenario on one broker.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Scenario {
    pub(super) name: String,
    pub(super) status: Status,
    pub(super) guarantee: String,
    /// The capabilities that it needs.
    #[serde(default)]
    pub(super) needs: Vec<String>,
    /// The one for want of which it is unsupported.
    #[serde(default)]
    pub(super) missing: Option<String>,
    /// Its twin passed, which shows what is there instead.
    #[serde(default)]
    pub(super) twin: bool,
    /// What it asserted.
    pub(super) bounds: Vec<Bound>,
}

impl Scenario {
    pub(super) fn passed(&self) -> bool {
        self.status == Status::Passed
    }
}

/// What one run of a suite on one broker recorded.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Record {
    #[serde(default)]
    pub(super) capabilities: BTreeMap<String, Value>,
    pub(super) scenarios: Vec<Scenario>,
    /// What holds for each scenario beside its own bounds.
    pub(super) bounds: Vec<Bound>,
}

impl Record {
    pub(super) fn scenario(&self, name: &str) -> Option<&Scenario> {
        self.scenarios.iter().find(|scenario| scenario.name == name)
    }
}

/// A suite: the records of each of its brokers, and what is said about them.
#[derive(Debug, Clone)]
pub(super) struct Suite {
    pub(super) brokers: &'static [&'static str],
    pub(super) records: BTreeMap<&'static str, Record>,
    pub(super) notes: &'static [Note],
    /// The area of each scenario, as the first letter of its place in the test plan.
    pub(super) areas: BTreeMap<String, char>,
}

impl Suite {
    pub(super) fn read(
        folder: &Path,
        prefix: &str,
        brokers: &'static [&'static str],
        notes: &'static [Note],
        page: &str,
    ) -> Result<Self, Failure> {
        let mut records = BTreeMap::new();
        for broker in brokers {
            let path = folder.join(format!("{prefix}{broker}.json"));
            let run = "run `make conformance`";
            let text = fs::read_to_string(&path)
                .map_err(|error| format!("the record {} is missing: {error}; {run}", path.display()))?;
            let record = serde_json::from_str(&text)
                .map_err(|error| format!("{} is no record of this suite: {error}; {run}", path.display()))?;
            records.insert(*broker, record);
        }
        Ok(Self { brokers, records, notes, areas: areas(page) })
    }

    /// The scenarios in their order, as the first broker has them.
    pub(super) fn scenarios(&self) -> &[Scenario] {
        self.brokers.first().map_or(&[], |broker| &self.records[broker].scenarios)
    }

    /// `scenario` on `broker`.
    pub(super) fn on(&self, broker: &str, scenario: &str) -> Option<&Scenario> {
        self.records.get(broker)?.scenario(scenario)
    }

    /// The brokers on which `scenario` passed.
    pub(super) fn proven_on(&self, scenario: &str) -> Vec<&'static str> {
        let passed = |broker: &&str| self.on(broker, scenario).is_some_and(Scenario::passed);
        self.brokers.iter().copied().filter(|broker| passed(broker)).collect()
    }

    /// What is said of a cell of `row` on `broker`.
    pub(super) fn notes_of(&self, row: &str, broker: &str) -> impl Iterator<Item = &'static Note> {
        let missing = self.on(broker, row).and_then(|scenario| scenario.missing.as_deref());
        self.notes.iter().filter(move |note| note.brokers.contains(&broker) && note.is_about(row, missing))
    }
}

/// What stands in the last column of a page of scenarios begins with the area: a letter, P for the priorities.
fn areas(page: &str) -> BTreeMap<String, char> {
    let row = |line: &str| {
        let mut cells = line.strip_prefix("| `")?.strip_suffix(" |")?.split(" | ");
        let name = cells.next()?.strip_suffix('`')?;
        Some((name.to_owned(), cells.last()?.chars().next()?))
    };
    page.lines().filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_area_is_the_first_letter_of_the_last_column() {
        let page = "| scenario | what | test plan |\n| --- | --- | --- |\n| `one` | It does. | A, P1-7: this |\n\
                    | `two` | It is `so` \u{2013} or not. | P1-8: that |\ntext\n";
        assert_eq!(areas(page), BTreeMap::from([("one".into(), 'A'), ("two".into(), 'P')]));
    }
}
