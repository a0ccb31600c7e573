use super::*;
use crate::{
    fake_broker::Broker,
    fixture::{claimed, queue},
    outcome::{Body, Moment, Response, Verdict, Wanted, decide},
};
use longshore_drivers::{Failure, Payload, Timestamp};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
    sync::Mutex,
};
use tracing_subscriber::EnvFilter;

const PAGE: &str = "../docs/events.md";

/// What a log gets.
#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The lines that `act` writes into a log as the sidecar's, whose filter was asked for like this.
fn logged(asked: Option<&str>, act: impl FnOnce()) -> Vec<Value> {
    let sink = Sink::default();
    let writer = sink.clone();
    let log = tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_env_filter(EnvFilter::try_new(filter(asked)).unwrap())
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::with_default(log, act);
    let bytes = sink.0.lock().unwrap().clone();
    String::from_utf8(bytes).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

const ASKED: Option<&str> = Some("info,longshore::events=info");

fn lane() -> Lane {
    Lane::new(queue("emails"), "shop".to_owned(), Arc::new(Broker::default()))
}

/// The line of one event.
fn line(job: &Claimed, event: JobEvent<'_>) -> Value {
    let mut lines = logged(ASKED, || write("pod-1", &lane(), job, event));
    assert_eq!(lines.len(), 1, "lines of one event");
    lines.remove(0)
}

fn samples() -> Vec<JobEvent<'static>> {
    let delay = Duration::from_millis(1500);
    vec![
        JobEvent::Claimed,
        JobEvent::Started,
        JobEvent::Detached,
        JobEvent::Succeeded,
        JobEvent::Retried { failure: "Timeout", delay },
        JobEvent::Dead { reason: DeadReason::Rejected, failure: "HandlerRejected" },
        JobEvent::Released { reason: Released::Throttled, delay },
        JobEvent::Cancelled,
        JobEvent::LeaseLost { reason: Lost::Running },
        JobEvent::SettleUnknown { settle: "succeeded" },
        JobEvent::SettleAbandoned { settle: "dead" },
    ]
}

/// The names between backticks.
fn quoted(text: &str) -> BTreeSet<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The rows of the first table under `heading`: the name in the first cell, and the names in the last one.
fn rows(heading: &str) -> BTreeMap<String, BTreeSet<String>> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
    let page = std::fs::read_to_string(page).unwrap();
    let under = page.lines().skip_while(|line| *line != heading).skip(1);
    let table = under.skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let rows = table.filter(|line| line.starts_with("| `")).map(|row| {
        let cells: Vec<_> = row.trim_matches('|').split('|').collect();
        (quoted(cells[0]).into_iter().next().unwrap(), quoted(cells[cells.len() - 1]))
    });
    rows.collect()
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn the_page_and_the_code_have_the_same_events_with_the_same_fields() {
    let told = rows("## The events");
    let common: BTreeSet<String> = rows("## The fields").into_keys().collect();
    let mut seen = BTreeMap::new();
    for event in samples() {
        let line = line(&claimed("job-1", 2), event);
        let fields: BTreeSet<String> = line.as_object().unwrap().keys().cloned().collect();
        assert!(common.is_subset(&fields), "{} lacks {:?}", event.name(), common.difference(&fields));
        seen.insert(event.name().to_owned(), fields.difference(&common).cloned().collect::<BTreeSet<_>>());
    }
    let all: BTreeSet<String> = seen.keys().cloned().collect();
    assert_eq!(all, names(JobEvent::NAMES), "a sample is missing here");
    assert_eq!(told, seen, "the page and the code differ");
}

#[test]
fn the_page_and_the_code_have_the_same_reasons() {
    let told = |event: &str| rows(&format!("### Reasons of `{event}`")).into_keys().collect::<BTreeSet<_>>();
    let all = [DeadReason::Exhausted, DeadReason::Rejected, DeadReason::Expired, DeadReason::Quarantined];
    assert_eq!(told("job.dead.v1"), names(&all.map(dead)));
    assert_eq!(told("job.released.v1"), names(Released::WORDS));
    assert_eq!(told("job.lease_lost.v1"), names(Lost::WORDS));
}

#[test]
fn an_event_says_which_delivery_it_is_about_and_nothing_that_the_app_may_read() {
    let mut job = claimed("job-1", 2);
    job.payload = Payload::json("\"secret-payload\"");
    job.headers.insert("job-meta-key".to_owned(), "secret-header".to_owned());
    job.receipt.0 = "secret-receipt".to_owned();
    job.last_failure = Some(Failure::new("HandlerError", "secret-message"));
    let line = line(&job, JobEvent::Retried { failure: "Timeout", delay: Duration::from_millis(1500) });
    let text = |name: &str| line[name].as_str().unwrap().to_owned();
    assert_eq!(text("id"), "test.shop.emails/job-1/1700000000123-2/job.retried.v1");
    let said = ["namespace", "queue", "job", "jobType", "worker", "failure"].map(text);
    assert_eq!(said, ["shop", "emails", "job-1", "emails.send", "pod-1", "Timeout"]);
    assert_eq!((&line["attempt"], &line["delivery"], &line["delayMs"]), (&2.into(), &2.into(), &1500.into()));
    assert!(!line.to_string().contains("secret"), "{line}");
}

#[test]
fn an_id_is_that_of_one_event_of_one_delivery_of_one_life() {
    let ids = |job: &Claimed| -> BTreeSet<String> {
        samples().into_iter().map(|event| line(job, event)["id"].as_str().unwrap().to_owned()).collect()
    };
    let first = claimed("job-1", 1);
    let count = JobEvent::NAMES.len();
    assert_eq!((ids(&first).len(), ids(&first)), (count, ids(&first.clone())), "the same again");
    let next = Claimed { delivery: 2, ..first.clone() };
    // A dead job that is redriven has its first delivery again.
    let redriven = Claimed { ready_at: Timestamp::from_millis(1_700_000_000_124), ..first.clone() };
    let other = claimed("job-2", 1);
    let all: BTreeSet<_> = [&first, &next, &redriven, &other].into_iter().flat_map(ids).collect();
    assert_eq!(all.len(), 4 * count);
}

#[test]
fn events_are_off_unless_the_filter_names_them() {
    let settle = Settle::Release { delay: Duration::ZERO };
    for asked in [None, Some(""), Some("debug"), Some("trace,longshore=trace"), Some("info")] {
        let lines = logged(asked, || {
            write("pod-1", &lane(), &claimed("job-1", 1), JobEvent::Claimed);
            assert_eq!(Wish::of(&settle, None), None, "nothing is kept for nobody");
            tracing::info!("the rest of the log");
        });
        assert_eq!(lines.len(), 1, "{asked:?}: {lines:?}");
    }
    for asked in [ASKED, Some("longshore::events=info"), Some("warn,longshore::events")] {
        let lines = logged(asked, || {
            write("pod-1", &lane(), &claimed("job-1", 1), JobEvent::Claimed);
            assert_eq!(Wish::of(&settle, None), Some(Wish::Release { reason: None, delay: Duration::ZERO }));
        });
        assert_eq!(lines.len(), 1, "{asked:?}");
    }
}

#[test]
fn a_delivery_ends_as_the_broker_says() {
    let delay = Duration::from_secs(1);
    let failure = || Failure::new("HandlerError", "what the app said");
    let settles = [
        (Settle::Succeed { result: None }, None, JobEvent::Succeeded),
        (
            Settle::Retry { delay, failure: failure() },
            None,
            JobEvent::Retried { failure: "HandlerError", delay },
        ),
        (
            Settle::Bury { reason: DeadReason::Exhausted, failure: failure() },
            None,
            JobEvent::Dead { reason: DeadReason::Exhausted, failure: "HandlerError" },
        ),
        (
            Settle::Release { delay },
            Some(Released::Throttled),
            JobEvent::Released { reason: Released::Throttled, delay },
        ),
        (Settle::Release { delay }, None, JobEvent::Cancelled),
    ];
    for (settle, released, taken) in settles {
        let wish = Wish::read(&settle, released);
        assert_eq!(wish.event(Settled::Done, "asked"), taken);
        assert_eq!(wish.event(Settled::Lost, "asked"), JobEvent::LeaseLost { reason: Lost::Settling });
        assert_eq!(wish.event(Settled::Unknown, "asked"), JobEvent::SettleUnknown { settle: "asked" });
        assert_eq!(wish.event(Settled::Abandoned, "asked"), JobEvent::SettleAbandoned { settle: "asked" });
    }
    let too_large = JobEvent::Dead { reason: DeadReason::Rejected, failure: "ResultTooLarge" };
    assert_eq!(Wish::Succeed.event(Settled::Buried, "succeeded"), too_large);
}

/// The reason of the release that `answer` leads to.
fn released(answer: Answer, app_stops: bool) -> Option<Released> {
    let moment = Moment { dice: 0, app_stops, bounces: 0 };
    let why = Released::after(&answer);
    let decision = decide(answer, &claimed("job-1", 1), &queue("emails"), moment);
    assert!(matches!(decision.verdict, Verdict::Settle(Settle::Release { .. })), "{decision:?}");
    why.map(|why| why.learned(decision.signal))
}

#[test]
fn a_release_says_why() {
    let response = |status, wanted| {
        Answer::Response(Response { status, wanted, retry_after: None, error: None, body: Body::Empty })
    };
    for (statuses, why) in [
        (&[429, 503][..], Released::Throttled),
        (&[301, 404, 405, 501], Released::Unroutable),
        (&[401, 403, 407], Released::Unauthorized),
    ] {
        for status in statuses {
            assert_eq!(released(response(*status, None), false), Some(why), "{status}");
            let asked = released(response(*status, Some(Wanted::Release)), false);
            assert_eq!(asked, Some(Released::AppAsked), "{status} with Job-Outcome");
        }
    }
    assert_eq!(released(Answer::Refused, false), Some(Released::AppUnreachable));
    assert_eq!(released(Answer::Reset(String::new()), true), Some(Released::AppStops));
    assert_eq!(released(Answer::Stopped, false), Some(Released::Draining));
    assert_eq!(released(Answer::Cancelled, false), None);
}

#[test]
fn what_an_app_calls_a_failure_is_told_if_it_is_a_word() {
    let told = |reason: &str| match Wish::read(
        &Settle::Retry { delay: Duration::ZERO, failure: Failure::new(reason, "") },
        None,
    ) {
        Wish::Retry { failure, .. } => failure,
        other => panic!("{other:?}"),
    };
    assert_eq!(told("CardDeclined2"), "CardDeclined2");
    for reason in ["", "card 4111 1111 declined", "a\nb", "é", &"x".repeat(WORD + 1)] {
        assert_eq!(told(reason), "Unnamed", "{reason:?}");
    }
}
