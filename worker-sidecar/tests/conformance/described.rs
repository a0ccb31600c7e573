//! Holds the scenarios against the page that says what they mean.

use crate::scenarios::ALL;
use libtest_mimic::{Failed, Trial};
use std::path::Path;

/// The pages that may describe them.
const PAGES: [&str; 2] = ["scenarios.md", "scenarios-workers.md"];

/// Each scenario stands in the table, and is told as one sentence.
pub(crate) fn trial() -> Trial {
    Trial::test("described::each_scenario_stands_in_the_docs", || {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
        let pages: String =
            PAGES.iter().map(|page| std::fs::read_to_string(docs.join(page)).unwrap_or_default()).collect();
        let missing: Vec<_> = ALL
            .iter()
            .filter(|scenario| {
                !pages.contains(&format!("| `{}` |", scenario.name)) || !scenario.guarantee.ends_with('.')
            })
            .map(|scenario| scenario.name)
            .collect();
        if missing.is_empty() { Ok(()) } else { Err(Failed::from(format!("not described: {missing:?}"))) }
    })
}
