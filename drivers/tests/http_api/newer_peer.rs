//! The client against a broker of the next version, which says more than this one knows.

use super::{config, in_time, queue, raw};
use longshore_drivers::{
    Address, Claim, DeadReason, Driver, Durability, Enqueued, ErrorKind, Failure, IdMemory, JobId, JobState,
    Lease, NewJob, Outcome, Payload, ReadCompletions, Receipt, Settle, Settlement, StoredResult,
    http::client::HttpDriver,
};
use std::time::Duration;
use tokio::{io::AsyncWriteExt, net::TcpListener};

/// A client whose broker answers everything with `status` and `body`.
async fn hearing(status: &'static str, body: &'static str) -> HttpDriver {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = HttpDriver::new(config(listener.local_addr().unwrap()));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            if raw::request(&mut stream).await.is_some() {
                let head =
                    format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}", body.len());
                stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).await.unwrap();
            }
        }
    });
    client
}

const CLAIM: Claim =
    Claim { max: 5, wait: Duration::ZERO, lease: Duration::from_secs(30), worker: String::new() };

#[tokio::test]
async fn a_claimed_job_with_more_fields_can_be_run() {
    let client = hearing(
        "200 OK",
        r#"{"jobs":[{"id":"a","receipt":"r","type":"t","new":[1],
            "payload":{"json":{"x":1e400},"compression":"none"},
            "overrides":{"maxAttempts":3,"priority":9},
            "notify":{"address":"here","context":"c","format":2},
            "lastFailure":{"reason":"Timeout","message":"m","at":5},
            "attempt":1,"delivery":1,"enqueuedAt":1,"readyAt":1,"leaseUntil":2}],"more":true}"#,
    )
    .await;
    let jobs = in_time(client.claim(&queue(), CLAIM)).await.unwrap();
    let job = &jobs[0];
    assert_eq!(job.payload, Payload::json(r#"{"x":1e400}"#));
    assert_eq!(job.overrides.max_attempts, Some(3));
    assert_eq!(job.notify.as_ref().unwrap().context, "c");
    assert_eq!(job.last_failure.as_ref().unwrap(), &Failure::new("Timeout", "m"));
}

#[tokio::test]
async fn an_answer_in_unknown_words_concerns_its_item_only() {
    let client = hearing(
        "200 OK",
        r#"{"results":[{"ok":{"created":{"id":"a","shard":3}}},
            {"error":{"kind":"Frozen","message":"thaw it","retryable":false}},
            {"ok":{"merged":{"into":"c"}}},
            {"later":{}},
            {"ok":{"duplicate":{"id":"e","state":"frozen","outcome":null}}}]}"#,
    )
    .await;
    let jobs = vec![NewJob::new("t", Payload::default()); 5];
    let answers = in_time(client.enqueue(&queue(), jobs)).await.unwrap();
    assert_eq!(answers[0].as_ref().unwrap().id().as_str(), "a");
    let frozen = answers[1].as_ref().unwrap_err();
    assert_eq!((frozen.kind, frozen.message.as_str()), (ErrorKind::Fatal, "thaw it"));
    for unknown in &answers[2..4] {
        assert_eq!(unknown.as_ref().unwrap_err().kind, ErrorKind::Ambiguous);
    }
    let id = JobId::new("e").unwrap();
    let expected = Enqueued::Duplicate { id, state: JobState::Scheduled, outcome: None };
    assert_eq!(answers[4].as_ref().unwrap(), &expected);
}

#[tokio::test]
async fn a_settle_that_answers_more_than_nothing_was_done() {
    let client = hearing("200 OK", r#"{"results":[{"ok":{"at":17}}]}"#).await;
    let settle = Settle::Succeed { result: None };
    let settlement = Settlement { receipt: Receipt("r".to_owned()), settle };
    assert!(in_time(client.settle(&queue(), vec![settlement])).await.unwrap()[0].is_ok());
}

#[tokio::test]
async fn completions_go_on_after_an_unknown_end() {
    let client = hearing(
        "200 OK",
        r#"{"caughtUp":true,"completions":[
        {"receipt":"1","queue":"q","job":"a","settledAt":1,"context":"","delivery":1,"x":1,
         "outcome":{"succeeded":{"result":{"chunked":{"chunks":4}},"took":5}}},
        {"receipt":"2","queue":"q","job":"b","settledAt":2,"context":"","delivery":1,
         "outcome":{"dead":{"reason":"Poisoned","failure":{"reason":"R","message":"m","stack":[]}}}},
        {"receipt":"3","queue":"q","job":"c","settledAt":3,"context":"","delivery":1,
         "outcome":{"archived":{"where":"tape"}}},
        {"receipt":"4","queue":"q","job":"d","settledAt":4,"context":"","delivery":1,"outcome":"lost"},
        {"receipt":"5","queue":"q","job":"e","settledAt":5,"context":"","delivery":1,"outcome":"purged"}]}"#,
    )
    .await;
    let read = ReadCompletions { max: 9, wait: Duration::ZERO, lease: Duration::from_secs(1) };
    let page = in_time(client.completions(&Address::new("a").unwrap(), read)).await.unwrap();
    let outcomes: Vec<_> = page.completions.into_iter().map(|completion| completion.outcome).collect();
    let result = Some(StoredResult::Stored { bytes: 0 });
    assert_eq!(outcomes[0], Outcome::Succeeded { result });
    let failure = Failure::new("R", "m");
    assert_eq!(outcomes[1], Outcome::Dead { reason: DeadReason::Rejected, failure });
    for (outcome, word) in outcomes[2..4].iter().zip(["archived", "lost"]) {
        let Outcome::Dead { failure, .. } = outcome else { panic!("{outcome:?}") };
        assert_eq!(failure.reason, "UnknownOutcome");
        assert!(failure.message.contains(word));
    }
    assert_eq!(outcomes[4], Outcome::Purged);
}

#[tokio::test]
async fn a_broker_that_speaks_of_more_or_less_can_be_probed() {
    let client = hearing(
        "200 OK",
        r#"{"backend":"b","version":"9","backendId":"i","capabilities":{"idMemory":"Forever","fencing":true,
            "lease":"Token","delay":{"maxMs":5,"stepMs":1},"teleport":true,
            "limits":{"maxPayload":1,"maxResult":1,"maxName":1}}}"#,
    )
    .await;
    let capabilities = in_time(client.probe()).await.unwrap().capabilities;
    assert_eq!((capabilities.id_memory, capabilities.lease), (IdMemory::None, Lease::Connection));
    assert!(capabilities.fencing && capabilities.durability == Durability::None);
}

#[tokio::test]
async fn a_problem_of_an_unknown_kind_keeps_its_status_and_its_text() {
    let client = hearing("409 Conflict", r#"{"kind":"Frozen","detail":"thaw it","status":409}"#).await;
    let error = in_time(client.stats(&queue())).await.unwrap_err();
    assert_eq!((error.kind, error.message.as_str()), (ErrorKind::Conflict, "thaw it"));
}
