//! The client against a peer that resets, half-closes, lies or hangs: what each means for a change and for a look.

use super::{config, in_time, queue, raw};
use longshore_drivers::{
    Driver, DriverExt, Error,
    ErrorKind::{self, Ambiguous, Conflict, Full, NotFound, Timeout, TooLarge, Unauthorized, Unavailable},
    JobId, NewJob, Payload,
    http::client::{HttpConfig, HttpDriver, TokenSource},
};
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

#[derive(Debug, Clone, Copy)]
enum Script {
    /// Closes with unread bytes, which resets.
    Reset,
    /// Closes once it has read the request.
    Close,
    /// Sends no more, but goes on reading.
    HalfClose,
    /// Says something and closes.
    Say(&'static str),
    /// Reads the request and says nothing.
    Hang,
}

struct Peer {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

async fn peer(script: Script) -> Peer {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(act(script, stream));
        }
    });
    Peer { address, connections }
}

async fn act(script: Script, mut stream: TcpStream) {
    if matches!(script, Script::Reset) {
        let mut one = [0; 1];
        drop(stream.read_exact(&mut one).await);
        return;
    }
    if raw::request(&mut stream).await.is_none() {
        return;
    }
    match script {
        Script::Reset | Script::Close => {}
        Script::Say(text) => drop(stream.write_all(text.as_bytes()).await),
        Script::HalfClose => {
            stream.shutdown().await.unwrap();
            drop(stream.read(&mut [0; 1]).await);
        }
        Script::Hang => drop(stream.read(&mut [0; 1]).await),
    }
}

/// What the peer makes of a change and of a look.
async fn kinds(config: HttpConfig) -> (ErrorKind, ErrorKind) {
    let client = HttpDriver::new(config);
    let name = queue();
    let change = client.enqueue_one(&name, NewJob::new("a", Payload::default()));
    let change: Error = in_time(change).await.unwrap_err();
    let look: Error = in_time(client.stats(&name)).await.unwrap_err();
    (change.kind, look.kind)
}

fn impatient(address: SocketAddr) -> HttpConfig {
    let mut config = config(address);
    config.call_timeout = Duration::from_millis(300);
    config
}

/// A peer, and the kinds of a change and of a look.
type Case = (Script, ErrorKind, ErrorKind);

const SILENT: [Case; 4] = [
    (Script::Reset, Ambiguous, Unavailable),
    (Script::Close, Ambiguous, Unavailable),
    (Script::HalfClose, Ambiguous, Unavailable),
    (Script::Hang, Ambiguous, Timeout),
];

/// Answers that break off, are no JSON, or come from somebody else.
const WRONG: [(&str, ErrorKind, ErrorKind); 13] = [
    ("SSH-2.0-hello\r\n", Ambiguous, Unavailable),
    ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", Ambiguous, Unavailable),
    ("HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{\"results\":", Ambiguous, Unavailable),
    ("HTTP/1.1 200 OK\r\ncontent-length: 999999999\r\n\r\n", Ambiguous, Unavailable),
    ("HTTP/1.1 502 Bad\r\ncontent-length: 4\r\n\r\n<p/>", Ambiguous, Unavailable),
    ("HTTP/1.1 504 Late\r\ncontent-length: 0\r\n\r\n", Ambiguous, Timeout),
    ("HTTP/1.1 503 Off\r\ncontent-length: 0\r\n\r\n", Unavailable, Unavailable),
    ("HTTP/1.1 302 There\r\ncontent-length: 0\r\n\r\n", Ambiguous, Unavailable),
    ("HTTP/1.1 401 Who\r\ncontent-length: 0\r\n\r\n", Unauthorized, Unauthorized),
    ("HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n", NotFound, NotFound),
    ("HTTP/1.1 409 No\r\ncontent-length: 21\r\n\r\n{\"kind\":\"Unknown-to\"}", Conflict, Conflict),
    ("HTTP/1.1 413 No\r\ncontent-length: 0\r\n\r\n", TooLarge, TooLarge),
    ("HTTP/1.1 400 No\r\ncontent-length: 15\r\n\r\n{\"kind\":\"Full\"}", Full, Full),
];

#[tokio::test]
async fn lost_answers_are_told_from_unsent_requests() {
    let wrong = WRONG.map(|(text, change, look)| (Script::Say(text), change, look));
    for (script, change, look) in SILENT.into_iter().chain(wrong) {
        let peer = peer(script).await;
        // Whoever does answer has all the time that calls have.
        let hangs = matches!(script, Script::Hang);
        let config = if hangs { impatient(peer.address) } else { config(peer.address) };
        assert_eq!(kinds(config).await, (change, look), "{script:?}");
    }
}

#[tokio::test]
async fn answers_to_another_number_of_items_say_nothing() {
    let peer = peer(Script::Say("HTTP/1.1 200 OK\r\ncontent-length: 14\r\n\r\n{\"results\":[]}")).await;
    let client = HttpDriver::new(config(peer.address));
    let lost = client.redrive(&queue(), vec![JobId::new("a").unwrap()]).await;
    assert_eq!(lost.unwrap_err().kind, Ambiguous);
}

#[tokio::test]
async fn nobody_there_is_unavailable() {
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    assert_eq!(kinds(config(address)).await, (ErrorKind::Unavailable, ErrorKind::Unavailable));
    let config = HttpConfig::new("http://no-such-host.invalid:1", TokenSource::fixed("t")).unwrap();
    let error = HttpDriver::connect(config).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
}

#[tokio::test]
async fn a_waiting_call_gets_its_wait_and_a_margin() {
    let peer = peer(Script::Hang).await;
    let mut config = impatient(peer.address);
    config.call_timeout = Duration::from_mins(1);
    config.wait_margin = Duration::from_millis(100);
    let client = HttpDriver::new(config);
    let claim = longshore_drivers::Claim {
        max: 1,
        wait: Duration::from_millis(100),
        lease: Duration::from_secs(30),
        worker: String::new(),
    };
    let error = in_time(client.claim(&queue(), claim)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Ambiguous);
}

#[tokio::test]
async fn an_idle_connection_that_was_closed_is_replaced() {
    const ANSWER: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
    let peer = peer(Script::Say(ANSWER)).await;
    let client = HttpDriver::new(config(peer.address));
    for expected in 1..=20 {
        in_time(client.stats(&queue())).await.unwrap();
        assert!(peer.connections.load(Ordering::SeqCst) >= expected, "each answer ends its connection");
    }
}
