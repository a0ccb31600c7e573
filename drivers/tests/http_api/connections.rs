//! Connections: how many, how slow, and how they end.

use super::{DEADLINE, Server, Setup, TOKEN, eventually, in_time, queue, raw, stub::Stub};
use longshore_drivers::{Claim, Driver, ErrorKind, NewJob, Payload, http::server::ServeLimits};
use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

#[tokio::test]
async fn a_head_that_never_ends_is_cut_off() {
    let connections = ServeLimits { head: Duration::from_millis(100), ..ServeLimits::default() };
    let server = Setup { connections, ..Setup::default() }.start().await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nx-slow: ").await.unwrap();
    let mut rest = Vec::new();
    in_time(stream.read_to_end(&mut rest)).await.unwrap();
    assert!(!rest.starts_with(b"HTTP/1.1 200"));
}

#[tokio::test]
async fn a_head_may_not_be_huge() {
    let server = Server::start().await;
    let path = format!("/healthz?{}", "x".repeat(200_000));
    let text = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    // The server may hang up before it has read all of it.
    drop(stream.write_all(text.as_bytes()).await);
    let mut rest = Vec::new();
    drop(in_time(stream.read_to_end(&mut rest)).await);
    assert!(!rest.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&rest));
}

#[tokio::test]
async fn beyond_the_limit_only_health_is_answered() {
    let connections = ServeLimits { connections: 1, overflow: 1, ..ServeLimits::default() };
    let server = Setup { connections, ..Setup::default() }.start().await;
    let head = format!("GET /v1/probe HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\n\r\n");
    let mut usual = TcpStream::connect(server.address).await.unwrap();
    usual.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    usual.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");

    let answer = raw::send(server.address, "GET", "/v1/probe", "").await;
    assert_eq!((answer.status, answer.kind().as_str()), (503, "Unavailable"));
    let healthy = || async { raw::send(server.address, "GET", "/healthz", "").await.status };
    assert_eq!(in_time(healthy()).await, 200);
    drop(usual);
    let deadline = Instant::now() + DEADLINE;
    while raw::send(server.address, "GET", "/v1/probe", "").await.status != 200 {
        assert!(Instant::now() < deadline, "the place never came free");
    }
}

#[tokio::test]
async fn a_stop_answers_long_polls_and_lets_requests_end() {
    let server = Setup { stub: Stub::closed_gate(), ..Setup::default() }.start().await;
    let (client, name) = (server.client(), queue());
    let claim =
        Claim { max: 1, wait: Duration::from_mins(1), lease: Duration::from_secs(30), worker: String::new() };
    let (claimed, enqueued, ()) = tokio::join!(
        client.claim(&name, claim),
        client.enqueue(&name, vec![NewJob::new("a", Payload::default())]),
        async {
            let busy = || {
                let is_waiting = server.stub.waiting.load(Ordering::SeqCst) == 1;
                is_waiting && server.stub.batches.lock().unwrap().len() == 1
            };
            eventually("both are under way", busy).await;
            server.stop.cancel();
            eventually("the claim ended", || server.stub.waiting.load(Ordering::SeqCst) == 0).await;
            server.stub.gate.add_permits(1);
        }
    );
    assert!(claimed.unwrap().is_empty());
    assert!(enqueued.unwrap()[0].is_ok());
    in_time(server.serving).await.unwrap();
    assert_eq!(client.stats(&name).await.unwrap_err().kind, ErrorKind::Unavailable);
}

#[tokio::test]
async fn a_stop_does_not_wait_forever() {
    let connections = ServeLimits { drain: Duration::from_millis(50), ..ServeLimits::default() };
    let stub = Stub::closed_gate();
    let server = Setup { stub, connections, ..Setup::default() }.start().await;
    let (client, name) = (server.client(), queue());
    let (enqueued, ()) =
        tokio::join!(client.enqueue(&name, vec![NewJob::new("a", Payload::default())]), async {
            eventually("it is under way", || server.stub.batches.lock().unwrap().len() == 1).await;
            server.stop.cancel();
        });
    assert_eq!(enqueued.unwrap_err().kind, ErrorKind::Ambiguous);
    in_time(server.serving).await.unwrap();
}
