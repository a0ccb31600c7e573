//! What becomes of a job for each way in which an app can answer, or not.

use crate::support::{Pod, eventually, job};
use longshore_drivers::{DeadReason, Failure, Settle};
use std::time::Duration;

async fn end_of(job_type: &str) -> Settle {
    let pod = Pod::start(|_| {}).await;
    pod.enqueue("job-1", job_type);
    pod.settled("job-1").await
}

fn retry(reason: &str, settle: Settle) -> Failure {
    match settle {
        Settle::Retry { delay, failure }
            if failure.reason == reason && delay == Duration::from_millis(700) =>
        {
            failure
        }
        other => panic!("{other:?} is no retry because of {reason}"),
    }
}

#[tokio::test]
async fn each_status_ends_as_the_table_says() {
    let pod = Pod::start(|policy| policy.concurrency = 8).await;
    let statuses =
        [200, 201, 204, 299, 302, 307, 400, 401, 403, 404, 405, 407, 408, 409, 410, 413, 422, 423, 425];
    for status in statuses.into_iter().chain([429, 451, 500, 501, 502, 503, 504, 599]) {
        let id = format!("job-{status}");
        pod.enqueue(&id, &format!("status-{status}"));
        let settle = pod.settled(&id).await;
        let fits = match status {
            200..=299 => settle == Settle::Succeed { result: None },
            408 | 409 | 423 | 425 | 500 | 502 | 504 | 599 => matches!(settle, Settle::Retry { .. }),
            429 | 503 => settle == Settle::Release { delay: Duration::from_secs(1) },
            302 | 307 | 404 | 405 | 501 | 401 | 403 | 407 => {
                settle == Settle::Release { delay: Duration::from_secs(5) }
            }
            _ => matches!(&settle, Settle::Bury { reason: DeadReason::Rejected, .. }),
        };
        assert!(fits, "{status}: {settle:?}");
        assert_eq!(pod.broker.settles(&id).len(), 1);
    }
    let faults = &pod.status().await["faults"];
    assert_eq!((&faults["routable"], &faults["authorized"]), (&false.into(), &false.into()));
}

#[tokio::test]
async fn the_body_of_a_success_is_the_result() {
    let Settle::Succeed { result: Some(result) } = end_of("json").await else {
        panic!("no result");
    };
    assert_eq!((result.content_type.as_str(), &result.bytes[..]), ("application/json", &b"{\"sent\":3}"[..]));
}

#[tokio::test]
async fn headers_refine_the_status() {
    assert_eq!(end_of("busy").await, Settle::Release { delay: Duration::from_secs(3) });
    let Settle::Bury { failure, .. } = end_of("dead").await else {
        panic!("not dead");
    };
    assert_eq!(failure.message, "no such tenant");
}

#[tokio::test]
async fn a_text_tells_of_the_failure() {
    assert_eq!(retry("HandlerError", end_of("said").await).message, "out of paper");
}

#[tokio::test]
async fn a_closed_connection_costs_an_attempt() {
    retry("ConnectionLost", end_of("close").await);
    retry("ConnectionLost", end_of("half").await);
}

#[tokio::test]
async fn garbage_costs_an_attempt() {
    retry("BadAnswer", end_of("garbage").await);
}

#[tokio::test]
async fn interim_answers_are_no_answers() {
    assert_eq!(end_of("early").await, Settle::Succeed { result: None });
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let pod = Pod::start(|_| {}).await;
    pod.enqueue("job-1", "redirect");
    assert_eq!(pod.settled("job-1").await, Settle::Release { delay: Duration::from_secs(5) });
    assert_eq!(pod.app.seen().len(), 1);
}

#[tokio::test]
async fn a_hanging_app_is_hung_up_on_when_the_time_is_over() {
    let pod = Pod::start(|policy| policy.queues[0].timeout = Duration::from_millis(100)).await;
    pod.enqueue("job-1", "hang");
    retry("Timeout", pod.settled("job-1").await);
    eventually("hung up", || async { pod.app.hung_up() == 1 }).await;
}

#[tokio::test]
async fn an_answer_of_a_hundred_megabytes_is_not_read() {
    for endless in ["huge", "endless"] {
        let pod = Pod::start(|_| {}).await;
        pod.enqueue("job-1", endless);
        let Settle::Bury { reason, failure } = pod.settled("job-1").await else {
            panic!("{endless} was no end");
        };
        assert_eq!((reason, failure.reason.as_str()), (DeadReason::Rejected, "ResultTooLarge"));
        if endless == "huge" {
            eventually("hung up", || async { pod.app.hung_up() == 1 }).await;
        }
    }
}

#[tokio::test]
async fn the_app_gets_the_payload_and_all_about_it() {
    let pod = Pod::start(|_| {}).await;
    let mut new = job("job-1", "emails.send");
    new.headers.insert("traceparent".into(), "00-abc-def-01".into());
    pod.broker.add("test.shop.emails", new);
    pod.settled("job-1").await;
    let seen = pod.app.seen().remove(0);
    assert_eq!(seen.line, "POST /jobs HTTP/1.1\r\n");
    assert_eq!(seen.body, b"{\"n\":1}");
    for (name, value) in [
        ("content-type", "application/json"),
        ("job-id", "job-1"),
        ("job-queue", "emails"),
        ("job-attempt", "1"),
        ("job-max-attempts", "3"),
        ("idempotency-key", "job-1"),
        ("ce-source", "/namespaces/shop/queues/emails"),
        ("traceparent", "00-abc-def-01"),
    ] {
        assert_eq!(seen.header(name), value, "{name}");
    }
}

#[tokio::test]
async fn attempts_end_in_the_dead_letters() {
    let pod = Pod::start(|policy| policy.queues[0].retry.initial = Duration::ZERO).await;
    pod.enqueue("job-1", "status-500");
    eventually("three settles", || async { pod.broker.settles("job-1").len() == 3 }).await;
    let last = pod.broker.settles("job-1").remove(2);
    assert!(matches!(last, Settle::Bury { reason: DeadReason::Exhausted, .. }), "{last:?}");
}

#[tokio::test]
async fn a_second_answer_to_one_job_is_no_answer_to_the_next() {
    let pod = Pod::start(|policy| policy.concurrency = 1).await;
    pod.enqueue("job-1", "twice");
    pod.enqueue("job-2", "status-500");
    assert_eq!(pod.settled("job-1").await, Settle::Succeed { result: None });
    retry("HandlerError", pod.settled("job-2").await);
}

#[tokio::test]
async fn every_job_has_a_connection_of_its_own_and_the_app_is_told() {
    let pod = Pod::start(|policy| policy.concurrency = 1).await;
    for number in 0..5 {
        pod.enqueue(&format!("job-{number}"), "status-204");
    }
    eventually("all settled", || async { pod.broker.settled() == 5 }).await;
    // One more is the readiness probe's.
    assert!(pod.app.connections() >= 6, "{}", pod.app.connections());
    assert!(pod.app.seen().iter().all(|seen| seen.header("connection") == "close"));
}

#[tokio::test]
async fn an_app_that_wants_a_job_back_at_once_every_time_gets_no_hot_loop() {
    let pod = Pod::start(|policy| policy.concurrency = 8).await;
    pod.enqueue("job-1", "again");
    eventually("released twice", || async { pod.broker.settles("job-1").len() >= 2 }).await;
    let again = |seconds| Settle::Release { delay: Duration::from_secs(seconds) };
    assert_eq!(pod.broker.settles("job-1")[..2], [again(0), again(1)]);
}
