//! The rules, each with records that break it.

use super::{
    document, is_same,
    notes::{About, Note},
    records::{Record, Suite},
};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const TWO: &[&str] = &["http", "memory"];
const ONE: &[&str] = &["http"];

const NOTES: &[Note] = &[
    Note { brokers: TWO, about: About::Rows(&["once"]), what: "At least once.", shown_by: "once" },
    Note { brokers: &["memory"], about: About::Want("durability"), what: "It forgets.", shown_by: "restart" },
];

const SILENT: &[Note] = &[
    Note { brokers: &["memory"], about: About::Rows(&["wake"]), what: "Silent.", shown_by: "once" },
    NOTES[1],
];

const STALE: &[Note] = &[
    NOTES[1],
    Note { brokers: &["http"], about: About::Want("network"), what: "No network.", shown_by: "once" },
];

const ELSEWHERE: &[Note] =
    &[NOTES[1], Note { brokers: TWO, about: About::Rows(&["twice"]), what: "Twice.", shown_by: "once" }];

/// The values of all capabilities of a broker that can do everything.
fn able() -> Value {
    let yes = [
        "atomicSettle",
        "cancel",
        "exactDepth",
        "fencing",
        "fifo",
        "inspect",
        "pause",
        "resultStore",
        "wake",
    ];
    let mut able: BTreeMap<&str, Value> = yes.into_iter().map(|name| (name, Value::Bool(true))).collect();
    able.insert("delay", json!({ "maxMs": 86_400_000_u64 * 366 }));
    able.insert("durability", json!("Machine"));
    able.insert("idMemory", json!("UntilAcked"));
    able.insert("lease", json!("Extendable"));
    able.insert("limits", json!({ "maxPayload": 1_048_576, "maxResult": 1_048_576 }));
    json!(able)
}

fn most(name: &str, most: u64, unit: &str) -> Value {
    json!([{ "name": name, "holds": "atMost", "bound": most, "unit": unit }])
}

fn passed(name: &str, guarantee: &str, needs: &[&str], bounds: &Value) -> Value {
    json!({ "name": name, "status": "passed", "guarantee": guarantee, "needs": needs, "bounds": bounds })
}

fn scenarios() -> Vec<Value> {
    let all = [
        "cancel",
        "exactDepth",
        "fencing",
        "fifo",
        "idMemory",
        "inspect",
        "lease",
        "pause",
        "resultStore",
        "wake",
    ];
    vec![
        passed("once", "A job comes once.", &all, &json!([])),
        passed("delayed", "It is late by little.", &["delay"], &most("late", 2000, "ms")),
        passed("completion_is_written_with_the_settle", "A settle writes.", &[], &json!([])),
        passed("restart", "It survives.", &["durability"], &json!([])),
        passed("payload_large", "Up to the limit.", &[], &most("of payload", 1 << 20, "bytes")),
        passed("result_large", "Up to the limit.", &[], &most("of result", 1 << 20, "bytes")),
        passed("config_option_fuzz", "An edge.", &[], &most("delay", 86_400_000 * 366, "ms")),
    ]
}

fn record(capabilities: &Value, scenarios: &[Value]) -> Record {
    let record =
        json!({ "capabilities": capabilities, "scenarios": scenarios, "bounds": most("late", 10_000, "ms") });
    serde_json::from_value(record).unwrap()
}

/// A suite in which everything is in order: `memory` isn't durable.
fn drivers() -> Suite {
    let mut forgetful = able();
    forgetful["durability"] = json!("None");
    let mut fewer = scenarios();
    fewer[3]["status"] = json!("unsupported");
    fewer[3]["missing"] = json!("durability");
    fewer[3]["twin"] = json!(true);
    let areas = [
        ("once", 'A'),
        ("delayed", 'B'),
        ("completion_is_written_with_the_settle", 'F'),
        ("restart", 'D'),
        ("payload_large", 'H'),
        ("result_large", 'H'),
        ("config_option_fuzz", 'I'),
    ];
    Suite {
        brokers: TWO,
        records: [("http", record(&able(), &scenarios())), ("memory", record(&forgetful, &fewer))].into(),
        notes: NOTES,
        areas: areas.map(|(name, area)| (name.to_owned(), area)).into(),
    }
}

fn workers() -> Suite {
    let one = passed("worked", "It works.", &[], &json!([]));
    Suite {
        brokers: ONE,
        records: [("http", record(&json!({}), &[one]))].into(),
        notes: &[],
        areas: [("worked".to_owned(), 'A')].into(),
    }
}

/// What is wrong with the suite that `change` makes.
fn wrong(change: impl FnOnce(&mut Suite)) -> String {
    let mut suite = drivers();
    change(&mut suite);
    document(&suite, &workers()).expect_err("it is not in order").to_string()
}

fn of<'a>(suite: &'a mut Suite, broker: &str) -> &'a mut Record {
    suite.records.get_mut(broker).expect("it is there")
}

#[test]
fn a_page_tells_bounds_areas_and_what_is_weaker() {
    let page = document(&drivers(), &workers()).unwrap();
    for line in [
        "### Delivery",
        "| A job comes once. (1) | `once` |  | yes | yes |",
        "| It is late by little. | `delayed` | ≤ 2 s late | yes | yes |",
        "| It survives. | `restart` |  | yes | no (2) |",
        "| It works. | `worked` |  | yes |",
        "1. At least once. Shown by `once`.",
        "2. memory: It forgets. Shown by `restart__unsupported`.",
    ] {
        assert!(page.lines().any(|one| one == line), "no line {line}:\n{page}");
    }
    assert!(page.contains("`Machine` | `None` (2) |"), "{page}");
}

#[test]
fn a_bound_that_differs_stands_in_the_cells() {
    let mut suite = drivers();
    of(&mut suite, "memory").scenarios[1].bounds[0].bound = 500;
    let page = document(&suite, &workers()).unwrap();
    let row = "| It is late by little. | `delayed` |  | yes: ≤ 2 s late | yes: ≤ 500 ms late |";
    assert!(page.lines().any(|line| line == row), "{page}");
}

#[test]
fn a_page_that_says_something_else_is_found() {
    let page = document(&drivers(), &workers()).unwrap();
    assert!(is_same(&page, &page));
    assert!(!is_same(&page.replace("2 s late", "3 s late"), &page));
    let mut later = drivers();
    for broker in TWO {
        of(&mut later, broker).scenarios[1].bounds[0].bound = 3000;
    }
    assert!(!is_same(&page, &document(&later, &workers()).unwrap()), "a bound that changed");
}

#[test]
fn a_claim_needs_a_scenario() {
    let found = wrong(|suite| of(suite, "http").scenarios[0].needs.retain(|need| need != "cancel"));
    assert!(found.contains("http claims cancel, and no scenario that needs it passed"), "{found}");
}

#[test]
fn a_claim_that_one_scenario_proves_needs_it_to_have_run() {
    let found = wrong(|suite| {
        for broker in TWO {
            of(suite, broker).scenarios.remove(2);
        }
    });
    assert!(found.contains("claims atomicSettle, but completion_is_written"), "{found}");
}

#[test]
fn a_size_that_is_told_has_to_have_been_asserted() {
    let found = wrong(|suite| of(suite, "http").scenarios[4].bounds[0].bound -= 1);
    assert!(
        found.contains("http tells limits maxPayload Some(1048576), and payload_large didn't"),
        "{found}"
    );
    let found =
        wrong(|suite| drop(of(suite, "http").capabilities.insert("delay".into(), json!({ "maxMs": 1 }))));
    assert!(found.contains("http tells delay maxMs Some(1)"), "{found}");
}

#[test]
fn a_word_about_how_much_is_a_claim_too() {
    let found = wrong(|suite| of(suite, "http").scenarios[3].needs.clear());
    assert!(found.contains("http claims durability, and no scenario that needs it passed"), "{found}");
    let found = wrong(|suite| of(suite, "memory").scenarios[0].needs.push("durability".to_owned()));
    assert!(found.contains("memory passed once, but doesn't claim durability"), "{found}");
}

#[test]
fn a_scenario_needs_a_claim() {
    let unclaimed = |suite: &mut Suite, value: Value| {
        of(suite, "memory").capabilities.insert("wake".to_owned(), value);
    };
    let found = wrong(|suite| unclaimed(suite, json!(false)));
    assert!(found.contains("memory can't do wake, and no note explains it"), "{found}");
    let found = wrong(|suite| {
        unclaimed(suite, json!(false));
        suite.notes = SILENT;
    });
    assert!(found.contains("memory passed once, but doesn't claim wake"), "{found}");
}

#[test]
fn what_is_not_there_needs_an_explanation() {
    let found = wrong(|suite| suite.notes = &NOTES[..1]);
    assert!(found.contains("memory: restart is not there for want of durability"), "{found}");
    let found = wrong(|suite| of(suite, "memory").scenarios[3].missing = Some("alone".to_owned()));
    assert!(found.contains("for want of alone"), "{found}");
    let found = wrong(|suite| of(suite, "memory").scenarios[3].missing = None);
    assert!(found.contains("nobody knows what"), "{found}");
}

#[test]
fn an_explanation_has_to_be_shown_and_to_be_true() {
    let found = wrong(|suite| of(suite, "memory").scenarios[3].twin = false);
    assert!(found.contains("no scenario restart shows on memory"), "{found}");
    let found = wrong(|suite| suite.notes = STALE);
    assert!(found.contains("nothing on http is as a note says: No network."), "{found}");
    let found = wrong(|suite| suite.notes = ELSEWHERE);
    assert!(found.contains("is as a note says: Twice."), "{found}");
}

#[test]
fn a_bound_that_is_spoken_of_has_to_be_asserted() {
    let found = wrong(|suite| of(suite, "memory").scenarios[1].bounds.clear());
    assert!(found.contains("delayed promises \"late by little\""), "{found}");
}

#[test]
fn nothing_failed_and_nothing_is_missing() {
    let found = wrong(|suite| of(suite, "http").scenarios[0].status = super::records::Status::Failed);
    assert!(found.contains("http: scenario once failed"), "{found}");
    let found = wrong(|suite| of(suite, "memory").scenarios.truncate(3));
    assert!(found.contains("memory ran 3 scenarios, http ran 7"), "{found}");
    let found = wrong(|suite| suite.records.retain(|name, _| *name != "memory"));
    assert!(found.contains("there is no record of memory"), "{found}");
    let found = wrong(|suite| suite.areas.retain(|name, _| name != "once"));
    assert!(found.contains("no row of once"), "{found}");
    let found = wrong(|suite| of(suite, "memory").bounds.clear());
    assert!(found.contains("tells no bounds of the suite"), "{found}");
    let found = wrong(|suite| of(suite, "memory").bounds[0].bound += 1);
    assert!(found.contains("memory ran within other bounds than http"), "{found}");
}

#[test]
fn a_record_that_is_named_has_to_be_there() {
    let folder = tempfile::tempdir().unwrap();
    let read = || Suite::read(folder.path(), "workers-", ONE, &[], "");
    let found = read().expect_err("nothing is there").to_string();
    assert!(found.contains("workers-http.json is missing"), "{found}");
    std::fs::write(folder.path().join("workers-http.json"), "{\"scenarios\": [{}]}").unwrap();
    let found = read().expect_err("nothing of use is there").to_string();
    assert!(found.contains("is no record of this suite"), "{found}");
}
