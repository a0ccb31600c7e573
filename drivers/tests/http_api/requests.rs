//! What the server does with requests, good and bad.

use super::{Server, Setup, TOKEN, eventually, in_time, queue, raw, stub::Stub};
use longshore_drivers::{
    Claim, Driver, DriverExt, DynDriver, Error, ErrorKind, NewJob, Payload, QueueName, Result,
    http::server::{Api, ApiLimits, Directory, Group, ServeLimits, Tokens, serve},
};
use std::{
    fs,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::sync::CancellationToken;

const JOBS: &str = "/v1/queues/test.shop.emails/jobs";
const CLAIM: &str = "/v1/queues/test.shop.emails/claim";
const SETTLE: &str = "/v1/queues/test.shop.emails/settle";

#[tokio::test]
async fn a_job_goes_in_and_out_as_plain_json() {
    let server = Server::start().await;
    let body = r#"{"jobs":[{"id":"a","type":"mail","payload":{"json":{"to": "x"}}}]}"#;
    let added = raw::send(server.address, "POST", JOBS, body).await;
    assert_eq!((added.status, added.body.as_str()), (200, r#"{"results":[{"ok":{"created":{"id":"a"}}}]}"#));
    let claimed = raw::send(server.address, "POST", CLAIM, r#"{"max":10,"leaseMs":1000}"#).await;
    assert_eq!(claimed.json()["jobs"][0]["payload"]["json"]["to"], "x");
    let again = raw::send(server.address, "POST", CLAIM, r#"{"max":10,"leaseMs":1000}"#).await;
    assert_eq!(again.body, r#"{"jobs":[]}"#);
}

#[tokio::test]
async fn items_fail_one_by_one() {
    let server = Server::start().await;
    let body = r#"{"jobs":[{"type":"not ok"},{"type":"a","id":"a b"},{"type":"a","id":"good"},{"type":"a","no":1},
        {"type":"a","payload":{"base64":"?"}},{"type":"a","payload":{"jsn":1}},{"type":"a","overrides":{"no":1}},
        {"type":"a","notify":{"address":"a","no":1}},{"type":"a","overrides":{"timeoutMs":0}},{},7]}"#;
    let added = raw::send(server.address, "POST", JOBS, body).await.json();
    for (at, answer) in added["results"].as_array().unwrap().iter().enumerate() {
        if at == 2 {
            assert_eq!(answer["ok"]["created"]["id"], "good");
        } else {
            assert_eq!(answer["error"]["kind"], "Invalid", "{at}: {answer}");
        }
    }
    let body = r#"{"ids":["a b","a"]}"#;
    let redriven =
        raw::send(server.address, "POST", "/v1/queues/test.shop.emails/redrive", body).await.json();
    assert_eq!(redriven["results"][0]["error"]["kind"], "Invalid");
    assert!(redriven["results"][1]["ok"].is_null());
}

#[tokio::test]
async fn a_misspelt_settle_loses_nothing() {
    let server = Server::start().await;
    for settle in [
        r#"{"succeed":{"resutl":{"json":1}}}"#,
        r#"{"succeed":{"result":{"jsn":1}}}"#,
        r#"{"succeed":{"result":{"base64":"?"}}}"#,
        r#"{"succeed":{}},"more":1"#,
        r#"{"retry":{"failure":{"reason":"R","message":"m"},"delay":5}}"#,
        r#"{"retry":{"failure":{"reason":"R","message":"m","no":1}}}"#,
        r#"{"release":{"delay":5}}"#,
        r#"{"bury":{"reason":"Bored","failure":{"reason":"R","message":"m"}}}"#,
        r#"{"bury":{"reason":"Rejected","failure":{"reason":"R","message":"m"},"no":1}}"#,
        r#"{"succeed":{},"release":{}}"#,
        r#"{"forget":{}}"#,
    ] {
        let good = r#"{"receipt":"good","settle":{"succeed":{"result":{"json":null}}}}"#;
        let body = format!(r#"{{"settlements":[{{"receipt":"good","settle":{settle}}},{good}]}}"#);
        let settled = raw::send(server.address, "POST", SETTLE, &body).await.json();
        assert_eq!(settled["results"][0]["error"]["kind"], "Invalid", "{settle}");
        assert!(settled["results"][1].as_object().unwrap().contains_key("ok"), "{settle}");
    }
}

#[tokio::test]
async fn a_payload_of_null_is_null() {
    let server = Server::start().await;
    raw::send(server.address, "POST", JOBS, r#"{"jobs":[{"type":"a","payload":{"json":null}}]}"#).await;
    let jobs = server.client().claim(&queue(), claim(1)).await.unwrap();
    assert_eq!(jobs[0].payload, Payload::json("null"));
}

#[tokio::test]
async fn bad_requests_are_problems() {
    let server = Server::start().await;
    let huge = format!("/v1/queues/{}/stats", "x".repeat(300));
    for (method, path, body, status, kind) in [
        ("POST", JOBS, "{", 400, "Invalid"),
        ("POST", JOBS, "", 400, "Invalid"),
        ("POST", JOBS, r#"{"jobs":[],"more":1}"#, 400, "Invalid"),
        ("POST", CLAIM, r#"{"max":-1,"leaseMs":1}"#, 400, "Invalid"),
        ("GET", "/v1/queues/UPPER/stats", "", 400, "Invalid"),
        ("GET", "/v1/queues/%ff/stats", "", 400, "Invalid"),
        ("GET", &huge, "", 400, "Invalid"),
        ("GET", "/v1/queues/no.such.queue/stats", "", 404, "NotFound"),
        ("GET", "/v1/queues/test.shop.emails/jobs?limit=1", "", 400, "Invalid"),
        ("GET", "/v1/queues/test.shop.emails/jobs?state=dead&no=1", "", 400, "Invalid"),
        ("GET", "/v1/queues/test.shop.emails/jobs/a%20b", "", 400, "Invalid"),
        ("POST", "/v1/queues/test.shop.emails/cancel", r#"{"ids":["a"]}"#, 501, "Unsupported"),
        ("POST", "/v1/completions/NO/acknowledge", r#"{"receipts":[]}"#, 400, "Invalid"),
        ("GET", "/v1/nothing", "", 404, "Unsupported"),
        ("PATCH", JOBS, "", 405, "Unsupported"),
    ] {
        let answer = raw::send(server.address, method, path, body).await;
        assert_eq!((answer.status, answer.kind().as_str()), (status, kind), "{method} {path} {body}");
    }
}

#[tokio::test]
async fn errors_of_the_driver_keep_their_kind_and_say_when_to_come_back() {
    for (kind, status, later) in [
        (ErrorKind::Unavailable, 503, true),
        (ErrorKind::Full, 429, true),
        (ErrorKind::Ambiguous, 502, false),
        (ErrorKind::Fatal, 500, false),
    ] {
        let stub = Stub { stats: Err(Error::new(kind, "because")), ..Stub::default() };
        let server = Setup { stub, ..Setup::default() }.start().await;
        let answer = raw::send(server.address, "GET", "/v1/queues/test.shop.emails/stats", "").await;
        assert_eq!((answer.status, answer.kind()), (status, kind.to_string()));
        assert_eq!(answer.head.contains("retry-after: 1"), later, "{kind}");
        let error = server.client().stats(&queue()).await.unwrap_err();
        assert_eq!((error.kind, error.message.as_str()), (kind, "because"));
    }
}

#[tokio::test]
async fn batches_and_bodies_have_limits() {
    let api = ApiLimits { body: 100_000, ..ApiLimits::default() };
    let server = Setup { api, ..Setup::default() }.start().await;
    let ids = vec!["\"a\""; 1001].join(",");
    let answer = raw::send(
        server.address,
        "POST",
        "/v1/queues/test.shop.emails/redrive",
        &format!("{{\"ids\":[{ids}]}}"),
    )
    .await;
    assert_eq!((answer.status, answer.kind().as_str()), (400, "Invalid"));
    let answer = raw::send(server.address, "POST", JOBS, &" ".repeat(100_001)).await;
    assert_eq!((answer.status, answer.kind().as_str()), (413, "TooLarge"));
}

#[tokio::test]
async fn a_crowd_of_bodies_is_sent_away() {
    let api = ApiLimits { bodies: 10_000, ..ApiLimits::default() };
    let stub = Stub::closed_gate();
    let server = Setup { stub, api, ..Setup::default() }.start().await;
    let body = |name: &str| format!("{{\"jobs\":[{{\"type\":\"{name}\"}}]}}{}", " ".repeat(6000));
    let first = body("first");
    let (first, second) = tokio::join!(raw::send(server.address, "POST", JOBS, &first), async {
        eventually("the first is held", || !server.stub.batches.lock().unwrap().is_empty()).await;
        let second = raw::send(server.address, "POST", JOBS, &body("second")).await;
        server.stub.gate.add_permits(1);
        second
    });
    assert_eq!((second.status, second.kind().as_str()), (503, "Unavailable"));
    assert_eq!(first.status, 200);
}

#[tokio::test]
async fn a_crowd_of_producers_keeps_nobody_from_settling() {
    let api = ApiLimits { bodies: 10_000, reserved: 10_000, ..ApiLimits::default() };
    let stub = Stub { gate: Semaphore::new(0), ..Stub::default() };
    let server = Setup { stub, api, ..Setup::default() }.start().await;
    let body = format!(r#"{{"jobs":[{{"type":"a"}}]}}{}"#, " ".repeat(9000));
    let (produced, ()) = tokio::join!(raw::send(server.address, "POST", JOBS, &body), async {
        eventually("a producer has all of it", || !server.stub.batches.lock().unwrap().is_empty()).await;
        let refused = raw::send(server.address, "POST", JOBS, &body).await;
        assert_eq!(refused.kind(), "Unavailable");
        let extend = format!(r#"{{"receipts":["a"],"leaseMs":1000}}{}"#, " ".repeat(9000));
        let extended = raw::send(server.address, "POST", "/v1/queues/test.shop.emails/extend", &extend).await;
        assert_eq!(extended.status, 200);
        server.stub.gate.add_permits(2);
        assert_eq!(raw::send(server.address, "POST", SETTLE, r#"{"settlements":[]}"#).await.status, 200);
    });
    assert_eq!(produced.status, 200);
}

#[tokio::test]
async fn a_crowd_that_waits_holds_no_bodies() {
    let api = ApiLimits { bodies: 10_000, reserved: 0, responses: 1, ..ApiLimits::default() };
    let server = Setup { api, ..Setup::default() }.start().await;
    let body = format!(r#"{{"max":1,"leaseMs":1000,"waitMs":60000}}{}"#, " ".repeat(9000));
    let add = async |waiting| {
        let waits = || server.stub.waiting.load(Ordering::SeqCst) == waiting;
        eventually("they wait", waits).await;
        let body = format!(r#"{{"jobs":[{{"type":"a"}}]}}{}"#, " ".repeat(9000));
        let added = raw::send(server.address, "POST", JOBS, &body).await;
        assert_eq!(added.status, 200);
    };
    let claims = async || {
        let claimed = raw::send(server.address, "POST", CLAIM, &body).await;
        assert_eq!(claimed.json()["jobs"].as_array().unwrap().len(), 1);
    };
    tokio::join!(claims(), async {
        eventually("the first waits", || server.stub.waiting.load(Ordering::SeqCst) == 1).await;
        tokio::join!(claims(), async {
            add(2).await;
            add(1).await;
        });
    });
}

#[tokio::test]
async fn nothing_but_health_is_answered_without_a_token() {
    let server = Server::start().await;
    for token in [None, Some("wrong"), Some("")] {
        let answer = raw::send_as(server.address, "GET", "/v1/probe", "", token).await;
        assert_eq!((answer.status, answer.kind().as_str()), (401, "Unauthorized"));
        assert!(answer.head.contains("www-authenticate: bearer"));
        let answer = raw::send_as(server.address, "POST", JOBS, r#"{"jobs":[{"type":"a"}]}"#, token).await;
        assert_eq!(answer.status, 401);
        for path in ["/healthz", "/readyz"] {
            assert_eq!(raw::send_as(server.address, "GET", path, "", token).await.status, 200);
        }
    }
    assert!(server.stub.batches.lock().unwrap().is_empty());
}

#[tokio::test]
async fn tokens_rotate_under_running_clients() {
    let directory = tempfile::tempdir().unwrap();
    let [servers, clients] = ["current", "client"].map(|name| directory.path().join(name));
    fs::write(&servers, TOKEN).unwrap();
    fs::write(&clients, TOKEN).unwrap();
    let tokens = Tokens::load(vec![servers.clone()]).unwrap().with_refresh(Duration::ZERO);
    let tokens = Some(tokens);
    let server = Setup { tokens, ..Setup::default() }.start().await;
    let mut config = super::config(server.address);
    config.token = longshore_drivers::http::client::TokenSource::file(&clients);
    let client = longshore_drivers::http::client::HttpDriver::new(config);
    client.probe().await.unwrap();
    fs::write(&servers, "another").unwrap();
    assert_eq!(client.probe().await.unwrap_err().kind, ErrorKind::Unauthorized);
    fs::write(&clients, "another").unwrap();
    client.probe().await.unwrap();
    client.enqueue_one(&queue(), NewJob::new("a", Payload::default())).await.unwrap();
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_ended() {
    let api = ApiLimits { call: Duration::from_millis(50), ..ApiLimits::default() };
    let stub = Stub::closed_gate();
    let server = Setup { stub, api, ..Setup::default() }.start().await;
    let answer = raw::send(server.address, "POST", JOBS, r#"{"jobs":[{"type":"a"}]}"#).await;
    assert_eq!((answer.status, answer.kind().as_str()), (502, "Ambiguous"));
}

fn claim(max: u32) -> Claim {
    Claim { max, wait: Duration::ZERO, lease: Duration::from_secs(30), worker: "w".to_owned() }
}

async fn add(server: &Server, count: usize, bytes: usize) {
    let jobs = vec![NewJob::new("a", Payload::json("1".repeat(bytes))); count];
    server.client().enqueue(&queue(), jobs).await.unwrap();
}

#[tokio::test]
async fn claims_stay_within_the_size_of_a_response() {
    let api = ApiLimits { claimed: 64 * 1024, ..ApiLimits::default() };
    let stub = Stub::with_limits(16 * 1024);
    let server = Setup { stub, api, ..Setup::default() }.start().await;
    let client = server.client();
    add(&server, 10, 16 * 1024).await;
    for expected in [4, 3, 3] {
        assert_eq!(client.claim(&queue(), claim(10)).await.unwrap().len(), expected);
    }
    add(&server, 10, 1).await;
    assert_eq!(client.claim(&queue(), claim(10)).await.unwrap().len(), 10, "small ones fit");
}

#[tokio::test]
async fn small_jobs_come_in_few_slices() {
    let server = Server::start().await;
    add(&server, 1000, 200).await;
    assert_eq!(server.client().claim(&queue(), claim(1000)).await.unwrap().len(), 1000);
    let slices = server.stub.claims.lock().unwrap().len();
    assert!(slices <= 7, "{slices}");
    add(&server, 1000, 200).await;
    assert_eq!(server.client().claim(&queue(), claim(100)).await.unwrap().len(), 100);
    assert_eq!(server.stub.claims.lock().unwrap().len(), slices + 1, "sizes are remembered");
}

#[tokio::test]
async fn responses_share_one_budget() {
    let api = ApiLimits { responses: 40 * 1024, ..ApiLimits::default() };
    let stub = Stub { claim_gate: Semaphore::new(0), ..Stub::with_limits(16 * 1024) };
    let server = Setup { stub, api, ..Setup::default() }.start().await;
    add(&server, 10, 16 * 1024).await;
    let client = server.client();
    let claims = futures::future::join_all((0..10).map(|_| async {
        let claimed = client.claim(&queue(), claim(1)).await.unwrap();
        assert_eq!(claimed.len(), 1);
    }));
    in_time(async {
        tokio::join!(claims, async {
            for done in 0..10 {
                let inside = || server.stub.waiting.load(Ordering::SeqCst);
                eventually("as many as fit are inside", || inside() == 2.min(10 - done)).await;
                server.stub.claim_gate.add_permits(1);
                let claims = || server.stub.queues.lock().unwrap()[&queue()].len();
                eventually("one is through", || claims() == 9 - done).await;
                assert!(inside() <= 2);
            }
        })
    })
    .await;
}

#[tokio::test]
async fn whoever_finds_no_room_for_an_answer_is_told_so() {
    let call = Duration::from_millis(200);
    let api = ApiLimits { responses: 20 * 1024, call, wait: Duration::from_mins(1), ..ApiLimits::default() };
    let stub = Stub { claim_gate: Semaphore::new(0), ..Stub::with_limits(16 * 1024) };
    let server = Setup { stub, api, ..Setup::default() }.start().await;
    add(&server, 1, 1).await;
    let (client, name) = (server.client(), queue());
    let (first, ()) = tokio::join!(client.claim(&name, claim(1)), async {
        eventually("the first is inside", || server.stub.waiting.load(Ordering::SeqCst) == 1).await;
        let refused = client.claim(&queue(), claim(1)).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Unavailable);
        let ids = vec![longshore_drivers::JobId::new("a").unwrap()];
        let refused = client.results(&queue(), ids).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Unavailable);
        server.stub.claim_gate.add_permits(1);
    });
    assert_eq!(first.unwrap().len(), 1);
}

#[tokio::test]
async fn a_claimer_that_goes_away_takes_no_job_with_it() {
    let server = Server::start().await;
    let (client, name) = (server.client(), queue());
    let wait = Duration::from_mins(1);
    let waiting = client.claim(&name, Claim { wait, ..claim(1) });
    let waits = |count| move |stub: &Stub| stub.waiting.load(Ordering::SeqCst) == count;
    tokio::select! {
        _ = waiting => panic!("there is nothing to claim"),
        () = eventually("the claim waits", || waits(1)(&server.stub)) => {}
    }
    eventually("the server noticed", || waits(0)(&server.stub)).await;
    client.enqueue_one(&name, NewJob::new("a", Payload::default())).await.unwrap();
    assert_eq!(client.claim(&name, claim(1)).await.unwrap().len(), 1);
}

/// What a sidecar does: its own names, and only some routes.
#[derive(Debug)]
struct Local(Arc<Stub>);

impl Directory for Local {
    fn find(&self, name: &str) -> Result<(DynDriver, QueueName)> {
        match name {
            "emails" => Ok((self.0.clone(), queue())),
            _ => Err(Error::new(ErrorKind::NotFound, "this worker has no such queue")),
        }
    }
}

#[tokio::test]
async fn a_sidecar_mounts_some_routes_under_its_own_names() {
    let stub = Arc::new(Stub::default());
    let stop = CancellationToken::new();
    let api = Api::new(Arc::new(Local(stub.clone())), ApiLimits::default(), stop.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = api.router(&[Group::Producer, Group::Worker]);
    let serving = tokio::spawn(serve(listener, app, ServeLimits::default(), stop.clone()));
    let body = r#"{"jobs":[{"type":"a"}]}"#;
    assert_eq!(raw::send(address, "POST", "/v1/queues/emails/jobs", body).await.status, 200);
    assert_eq!(stub.queues.lock().unwrap()[&queue()].len(), 1);
    assert_eq!(raw::send(address, "POST", "/v1/queues/others/jobs", body).await.kind(), "NotFound");
    assert_eq!(raw::send(address, "GET", "/v1/queues/emails/stats", "").await.kind(), "Unsupported");
    assert_eq!(raw::send(address, "GET", "/v1/probe", "").await.kind(), "Unsupported");
    stop.cancel();
    in_time(serving).await.unwrap();
}
