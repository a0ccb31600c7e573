//! Statements that run all the time find what they look for by an index.

use crate::embedded::{Config, claim, completions, inspect, ordering, schema, transition};

#[test]
fn hot_statements_use_their_indexes() {
    let directory = tempfile::tempdir().unwrap();
    let db = schema::open(&Config::new(directory.path().join("jobs.db"))).unwrap();
    let state = "jobs_by_state (queue=? AND state=?";
    for (statement, index) in [
        (inspect::SAME_TIME, format!("SEARCH jobs USING INDEX {state} AND at=? AND rowid>?)")),
        (inspect::LATER, format!("SEARCH jobs USING INDEX {state} AND at>?)")),
        (claim::READY, format!("SEARCH jobs USING INDEX {state})")),
        (transition::EARLIEST, format!("SEARCH jobs USING INDEX {state} AND at<?)")),
        (transition::OLDEST_PINNED, format!("SEARCH jobs USING INDEX {state} AND at>? AND at<?)")),
        (transition::NEAREST, format!("SEARCH jobs USING COVERING INDEX {state})")),
        (transition::FIRST_PINNED, format!("SEARCH jobs USING COVERING INDEX {state} AND at>?)")),
        (ordering::FIRST, "SEARCH jobs USING INDEX jobs_first (queue=? AND ordering_key=?)".into()),
        (ordering::NEXT, "SEARCH jobs USING INDEX jobs_behind (queue=? AND ordering_key=?)".into()),
        (ordering::NEXT_AFTER, "SEARCH jobs USING INDEX jobs_behind (queue=? AND ordering_key=?)".into()),
        (
            ordering::LINE_AFTER,
            "SEARCH jobs USING COVERING INDEX jobs_behind (queue=? AND ordering_key>?)".into(),
        ),
        (
            ordering::OUTSIDE,
            "SEARCH jobs USING COVERING INDEX jobs_behind (queue=? AND ordering_key=?)".into(),
        ),
        (inspect::UNREADABLE_JOBS, "SEARCH jobs USING COVERING INDEX jobs_unreadable (queue=?)".into()),
        (
            completions::READABLE,
            "SEARCH completions USING INDEX completions_by_address (address=? AND leased_until=?)".into(),
        ),
        (
            completions::END_LEASES,
            "SEARCH completions USING INDEX completions_by_address \
             (address=? AND leased_until>? AND leased_until<?)"
                .into(),
        ),
        (
            completions::NEXT_LEASE_END,
            "SEARCH completions USING COVERING INDEX completions_by_address \
             (address=? AND leased_until>? AND leased_until<?)"
                .into(),
        ),
        (
            completions::UNACKNOWLEDGED,
            "SEARCH completions USING INDEX completions_by_job (queue=? AND job=?)".into(),
        ),
        (
            inspect::PARKED_COMPLETIONS,
            "SEARCH completions USING COVERING INDEX completions_parked (queue=?)".into(),
        ),
    ] {
        let mut plan = db.prepare(&format!("EXPLAIN QUERY PLAN {statement}")).unwrap();
        let mut rows = plan.raw_query();
        let mut steps: Vec<String> = Vec::new();
        while let Some(row) = rows.next().unwrap() {
            steps.push(row.get(3).unwrap());
        }
        assert!(steps.contains(&index), "{statement}: {steps:?}");
        assert!(!steps.iter().any(|step| step.contains("TEMP B-TREE")), "{statement}: {steps:?}");
    }
}
