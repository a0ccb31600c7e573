//! Whether the figures are worse than they once were: ratios within a run are compared, never times, so that a slow
//! machine doesn't fail them.

use serde_json::Value;
use std::{collections::BTreeMap, path::Path};

/// A ratio may be this much worse than the stored one: the machine's noise is less, a mistake in the hot path mostly more.
const SLACK: f64 = 1.6;
/// A job in the deepest queue may cost this much more than in the shallowest.
const DEEP: f64 = 2.0;

/// The stored ratios of a benchmark, by row.
type Baseline = BTreeMap<String, f64>;

/// How much worse each ratio is than its baseline, if that is too much; rows that lack.
pub(super) fn worse(rows: &[Value], baseline: &Baseline) -> Vec<String> {
    let now = ratios(rows);
    let deep = rows.iter().filter_map(|row| Some((row["name"].as_str()?, row["shallow_ratio"].as_f64()?)));
    let deep = deep.filter(|(_, ratio)| *ratio * DEEP < 1.0).map(|(name, ratio)| {
        format!("{name}: {ratio:.2} of the rate in the shallowest queue, less than {:.2}", 1.0 / DEEP)
    });
    let known = baseline.iter().filter_map(|(name, stored)| {
        let Some((ratio, time)) = now.get(name) else {
            return Some(format!("{name}: it has a stored ratio and was not measured"));
        };
        let factor = if *time { ratio / stored } else { stored / ratio };
        (factor > SLACK).then(|| format!("{name}: {ratio:.2} of raw, it once was {stored:.2}"))
    });
    deep.chain(known).collect()
}

/// The ratios to raw by row, and whether a row is a time, of which less is better. The slowest of a hundred say more of the
/// machine than of the driver, so they are left out.
fn ratios(rows: &[Value]) -> BTreeMap<String, (f64, bool)> {
    let ratio = |row: &Value| {
        Some((row["name"].as_str()?.to_owned(), (row["raw_ratio"].as_f64()?, row["unit"] == "ms")))
    };
    rows.iter().filter_map(ratio).filter(|(name, _)| !name.ends_with("p99")).collect()
}

/// Compares with the baseline in `file`, or writes it anew. What is worse is told, and ends the process with 3.
pub(super) fn check(rows: &[Value], file: &Path, store: bool) {
    if store {
        // Two digits: more are noise.
        let kept: Baseline = ratios(rows)
            .into_iter()
            .map(|(name, (ratio, _))| (name, (ratio * 100.0).round() / 100.0))
            .collect();
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, serde_json::to_string_pretty(&kept).unwrap() + "\n").unwrap();
        return;
    }
    let Ok(text) = std::fs::read_to_string(file) else {
        println!("nothing is stored in {}: STORE=1 stores these ratios", file.display());
        return;
    };
    let stored: Baseline = serde_json::from_str(&text).unwrap();
    let worse = worse(rows, &stored);
    for line in &worse {
        println!("worse than {}: {line}", file.display());
    }
    if !worse.is_empty() {
        std::process::exit(3);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn baseline(ratio: f64) -> Baseline {
        [("enqueue".to_owned(), ratio)].into()
    }

    fn rate(ratio: f64) -> Vec<Value> {
        vec![json!({ "name": "enqueue", "value": 1.0, "unit": "1/s", "raw_ratio": ratio })]
    }

    fn time(ratio: f64) -> Vec<Value> {
        vec![json!({ "name": "enqueue", "value": 1.0, "unit": "ms", "raw_ratio": ratio })]
    }

    #[test]
    fn a_rate_that_falls_far_below_its_stored_ratio_is_worse() {
        assert!(worse(&rate(0.5), &baseline(0.75)).is_empty());
        assert_eq!(worse(&rate(0.4), &baseline(0.75)).len(), 1);
        assert!(worse(&rate(2.0), &baseline(0.75)).is_empty());
    }

    #[test]
    fn a_time_that_grows_far_above_its_stored_ratio_is_worse() {
        assert!(worse(&time(4.0), &baseline(3.0)).is_empty());
        assert_eq!(worse(&time(5.0), &baseline(3.0)).len(), 1);
        assert!(worse(&time(1.0), &baseline(3.0)).is_empty());
    }

    #[test]
    fn a_stored_row_that_was_not_measured_is_worse() {
        assert_eq!(worse(&[], &baseline(0.75)).len(), 1);
    }

    #[test]
    fn a_job_may_cost_twice_as_much_in_the_deepest_queue() {
        let deep = |ratio: f64| vec![json!({ "name": "claim", "unit": "1/s", "shallow_ratio": ratio })];
        assert!(worse(&deep(0.55), &Baseline::new()).is_empty());
        assert_eq!(worse(&deep(0.45), &Baseline::new()).len(), 1);
    }
}
