use super::*;
use crate::fixture::{claimed, queue};
use bytes::Bytes;

const CALM: Moment = Moment { dice: 0, app_stops: false, bounces: 0 };

fn response(status: u16) -> Response {
    Response { status, wanted: None, retry_after: None, error: None, body: Body::Empty }
}

fn of(response: Response) -> Decision {
    decide(Answer::Response(response), &claimed("job", 1), &queue("emails"), CALM)
}

/// One word for what happens, so that the table below reads like the one in the design.
fn word(decision: &Decision) -> &'static str {
    match &decision.verdict {
        Verdict::Detach => "detach",
        Verdict::Settle(Settle::Succeed { .. }) => "succeed",
        Verdict::Settle(Settle::Retry { .. }) => "retry",
        Verdict::Settle(Settle::Release { .. }) => "release",
        Verdict::Settle(Settle::Bury { .. }) => "bury",
    }
}

#[test]
fn every_status_has_its_place_in_the_table() {
    for status in 0..=999_u16 {
        let decision = of(response(status));
        let expected = match status {
            202 => ("detach", Signal::Works),
            200..=299 => ("succeed", Signal::Works),
            404 | 405 | 501 | 300..=399 => ("release", Signal::Unroutable(status)),
            401 | 403 | 407 => ("release", Signal::Unauthorized(status)),
            429 | 503 => ("release", Signal::Throttled(THROTTLED)),
            408 | 409 | 423 | 425 => ("retry", Signal::Works),
            400..=499 => ("bury", Signal::Works),
            _ => ("retry", Signal::Works),
        };
        assert_eq!((word(&decision), decision.signal), expected, "{status}");
    }
}

#[test]
fn the_outcome_header_wins_over_the_status() {
    for status in [200, 202, 302, 400, 404, 429, 500, 503] {
        for (wanted, expected) in
            [(Wanted::Retry, "retry"), (Wanted::Release, "release"), (Wanted::Dead, "bury")]
        {
            let decision = of(Response { wanted: Some(wanted), ..response(status) });
            assert_eq!(word(&decision), expected, "{status} {wanted:?}");
            assert_eq!(decision.signal, Signal::Works);
        }
    }
    assert_eq!(Wanted::parse(" Retry "), Some(Wanted::Retry));
    assert_eq!(Wanted::parse("discard"), None);
}

#[test]
fn the_last_attempt_ends_in_the_dead_letters() {
    let job = claimed("job", 5);
    for answer in [
        Answer::Response(response(500)),
        Answer::TimedOut,
        Answer::Reset("eof".into()),
        Answer::Garbled("x".into()),
        Answer::Panicked,
    ] {
        let decision = decide(answer.clone(), &job, &queue("emails"), CALM);
        let Verdict::Settle(Settle::Bury { reason, .. }) = decision.verdict else {
            panic!("{answer:?}");
        };
        assert_eq!(reason, DeadReason::Exhausted);
    }
}

#[test]
fn a_jobs_own_attempts_win_over_the_queues() {
    let mut job = claimed("job", 5);
    job.overrides.max_attempts = Some(6);
    let decision = decide(Answer::TimedOut, &job, &queue("emails"), CALM);
    assert_eq!(word(&decision), "retry");
}

#[test]
fn a_retry_waits_for_the_longer_of_policy_and_retry_after() {
    for (attempt, wish, expected) in
        [(1, None, 1), (3, None, 4), (1, Some(7), 7), (3, Some(2), 4), (1, Some(0), 1)]
    {
        let answer = Response { retry_after: wish.map(Duration::from_secs), ..response(500) };
        let decision = decide(Answer::Response(answer), &claimed("job", attempt), &queue("emails"), CALM);
        let Verdict::Settle(Settle::Retry { delay, .. }) = decision.verdict else {
            panic!("no retry");
        };
        assert_eq!(delay.as_secs(), expected, "attempt {attempt}, Retry-After {wish:?}");
    }
}

fn release_delay(status: u16, delivery: u32, retry_after: Option<u64>) -> u64 {
    let mut job = claimed("job", 1);
    job.delivery = delivery;
    let answer = Response { retry_after: retry_after.map(Duration::from_secs), ..response(status) };
    let decision = decide(Answer::Response(answer), &job, &queue("emails"), CALM);
    let Verdict::Settle(Settle::Release { delay }) = decision.verdict else {
        panic!("no release");
    };
    delay.as_secs()
}

#[test]
fn releases_grow_with_each_release_up_to_a_minute() {
    let throttled: Vec<_> = (1..=8).map(|delivery| release_delay(429, delivery, None)).collect();
    assert_eq!(throttled, [1, 2, 4, 8, 16, 32, 60, 60]);
    let misrouted: Vec<_> = (1..=6).map(|delivery| release_delay(404, delivery, None)).collect();
    assert_eq!(misrouted, [5, 10, 20, 40, 60, 60]);
    assert_eq!(release_delay(429, u32::MAX, None), 60);
}

#[test]
fn retry_after_is_honoured_for_up_to_an_hour() {
    assert_eq!(release_delay(503, 1, Some(0)), 0);
    assert_eq!(release_delay(503, 9, Some(25)), 25);
    assert_eq!(release_delay(429, 1, Some(3600)), 3600);
    assert_eq!(release_delay(429, 1, Some(u64::MAX)), 3600);
    let answer = Response { retry_after: Some(Duration::MAX), ..response(500) };
    let Verdict::Settle(Settle::Retry { delay, .. }) = of(answer).verdict else {
        panic!("no retry");
    };
    assert_eq!(delay.as_secs(), 3600);
}

#[test]
fn an_app_that_wants_its_jobs_back_at_once_gets_no_hot_loop() {
    let delays: Vec<_> = (1..=7).map(|delivery| release_delay(503, delivery, Some(0))).collect();
    assert_eq!(delays, [0, 1, 2, 4, 8, 10, 10]);
}

#[test]
fn a_job_that_only_found_no_slot_is_none_the_worse_for_it() {
    let mut job = claimed("job", 1);
    job.delivery = 6;
    let moment = Moment { bounces: 5, ..CALM };
    let decision = decide(Answer::Response(response(429)), &job, &queue("emails"), moment);
    assert_eq!(decision.verdict, Verdict::Settle(release(THROTTLED)));
}

#[test]
fn a_settle_in_the_words_of_a_broker_follows_the_same_rules() {
    let ask = |wish: Settle, attempt: u32| ruled(wish, &claimed("job", attempt), &queue("emails"), 3, CALM);
    let again = |seconds: u64| Settle::Retry {
        delay: Duration::from_secs(seconds),
        failure: Failure::new("Flaky", "once more"),
    };
    assert_eq!(ask(again(0), 3), again(4), "the policy's backoff is the least");
    assert_eq!(ask(again(7), 3), again(7));
    let exhausted = bury(DeadReason::Exhausted, Failure::new("Flaky", "once more"));
    assert_eq!(ask(again(0), 5), exhausted);
    assert_eq!(ask(release(Duration::MAX), 1), release(LONGEST_WISH));
    assert_eq!(ask(release(Duration::ZERO), 1), release(Duration::ZERO));
    let result = |text: &'static str| Settle::Succeed { result: Some(Payload::json(text)) };
    assert_eq!(ask(result("123"), 1), result("123"));
    assert_eq!(ask(result("1234"), 1), too_large(3));
}

#[test]
fn a_lost_connection_costs_an_attempt_unless_the_app_is_being_stopped() {
    let reset = || Answer::Reset("eof".into());
    let job = claimed("job", 1);
    let decision = decide(reset(), &job, &queue("emails"), CALM);
    assert_eq!(word(&decision), "retry");
    let stopping = Moment { app_stops: true, ..CALM };
    let decision = decide(reset(), &job, &queue("emails"), stopping);
    assert_eq!(decision.verdict, Verdict::Settle(release(Duration::ZERO)));
}

#[test]
fn what_never_reached_the_app_costs_nothing() {
    for (answer, signal) in [
        (Answer::Refused, Signal::Unreachable),
        (Answer::Cancelled, Signal::Silent),
        (Answer::Stopped, Signal::Silent),
    ] {
        let decision = decide(answer, &claimed("job", 5), &queue("emails"), CALM);
        assert_eq!(decision.verdict, Verdict::Settle(release(Duration::ZERO)));
        assert_eq!(decision.signal, signal);
    }
}

#[test]
fn a_body_is_the_result_and_an_empty_one_is_none() {
    let result = Payload::json(Bytes::from_static(b"{\"ok\":true}"));
    assert_eq!(succeed(Body::Result(result.clone())), Settle::Succeed { result: Some(result) });
    for empty in [Body::Empty, Body::Result(Payload::default())] {
        assert_eq!(succeed(empty), Settle::Succeed { result: None });
    }
}

#[test]
fn a_result_that_is_too_large_is_permanent() {
    let decision = of(Response { body: Body::TooLarge(1024), ..response(200) });
    let Verdict::Settle(Settle::Bury { reason, failure }) = decision.verdict else {
        panic!("no bury");
    };
    assert_eq!((reason, failure.reason.as_str()), (DeadReason::Rejected, "ResultTooLarge"));
}

#[test]
fn the_apps_words_stand_in_the_failure() {
    let decision = of(Response { error: Some("no such tenant".into()), ..response(422) });
    let Verdict::Settle(Settle::Bury { failure, .. }) = decision.verdict else {
        panic!("no bury");
    };
    assert_eq!(failure.message, "no such tenant");
}
