//! An app that speaks just enough HTTP, and less when asked to. The type of a job says what it does with it.
//!
//! `status-404` answers that status, `wait` answers 200 once it is let go, `hang` never answers, and so on.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
};

/// One request as it came.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    pub(crate) line: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map_or("", |(_, value)| value)
    }
}

#[derive(Default)]
struct Inner {
    seen: Mutex<Vec<Seen>>,
    running: AtomicUsize,
    most: AtomicUsize,
    hung_up: AtomicUsize,
    connections: AtomicUsize,
}

/// The app.
pub(crate) struct App {
    port: u16,
    inner: Arc<Inner>,
    letting_go: Arc<Semaphore>,
    stop: watch::Sender<bool>,
}

impl App {
    pub(crate) async fn start() -> Self {
        let app = Self::absent().await;
        app.up().await;
        app
    }

    /// An app that does not listen yet.
    pub(crate) async fn absent() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self {
            port: listener.local_addr().unwrap().port(),
            inner: Arc::default(),
            letting_go: Arc::new(Semaphore::new(0)),
            stop: watch::Sender::new(true),
        }
    }

    /// Starts to listen.
    pub(crate) async fn up(&self) {
        let listener = TcpListener::bind(("127.0.0.1", self.port)).await.unwrap();
        self.stop.send_replace(false);
        let mut stop = self.stop.subscribe();
        let (inner, letting_go) = (self.inner.clone(), self.letting_go.clone());
        tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    Ok((stream, _)) = listener.accept() => {
                        inner.connections.fetch_add(1, Ordering::SeqCst);
                        connections.spawn(serve(stream, inner.clone(), letting_go.clone()));
                    }
                    _ = stop.wait_for(|stop| *stop) => return,
                }
            }
        });
    }

    /// Dies: every connection is closed and nobody listens.
    pub(crate) fn down(&self) {
        self.stop.send_replace(true);
    }

    pub(crate) async fn listens(&self) -> bool {
        TcpStream::connect(("127.0.0.1", self.port)).await.is_ok()
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Lets `count` waiting jobs go.
    pub(crate) fn let_go(&self, count: usize) {
        self.letting_go.add_permits(count);
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.inner.seen.lock().unwrap().clone()
    }

    pub(crate) fn running(&self) -> usize {
        self.inner.running.load(Ordering::SeqCst)
    }

    /// The most jobs that ran at once.
    pub(crate) fn most(&self) -> usize {
        self.inner.most.load(Ordering::SeqCst)
    }

    /// Requests that the sidecar hung up on.
    pub(crate) fn hung_up(&self) -> usize {
        self.inner.hung_up.load(Ordering::SeqCst)
    }

    pub(crate) fn connections(&self) -> usize {
        self.inner.connections.load(Ordering::SeqCst)
    }
}

struct Running<'a>(&'a Inner);

impl<'a> Running<'a> {
    fn new(inner: &'a Inner) -> Self {
        let now = inner.running.fetch_add(1, Ordering::SeqCst) + 1;
        inner.most.fetch_max(now, Ordering::SeqCst);
        Self(inner)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn serve(stream: TcpStream, inner: Arc<Inner>, letting_go: Arc<Semaphore>) {
    let mut stream = BufReader::new(stream);
    while let Some(seen) = read(&mut stream).await {
        let job_type = seen.header("job-type").to_owned();
        inner.seen.lock().unwrap().push(seen);
        let running = Running::new(&inner);
        let mut probe = [0];
        let answer = tokio::select! {
            answer = behave(&job_type, &letting_go) => answer,
            // A client that waits for an answer sends nothing: this is the end of the connection.
            _ = stream.get_mut().peek(&mut probe) => {
                inner.hung_up.fetch_add(1, Ordering::SeqCst);
                return;
            }
        };
        drop(running);
        let Some(answer) = answer else { return };
        if stream.get_mut().write_all(answer.as_bytes()).await.is_err() {
            return;
        }
        if job_type == "huge" {
            let chunk = vec![b'x'; 1 << 20];
            for _ in 0..100 {
                if stream.get_mut().write_all(&chunk).await.is_err() {
                    inner.hung_up.fetch_add(1, Ordering::SeqCst);
                    return;
                }
            }
        }
        if job_type == "twice" {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            let _ = stream.get_mut().write_all(answer.as_bytes()).await;
        }
        if job_type == "half" {
            return;
        }
    }
}

/// The answer; none closes the connection.
async fn behave(job_type: &str, letting_go: &Semaphore) -> Option<String> {
    let plain = |status: &str, headers: &str, body: &str| {
        Some(format!("HTTP/1.1 {status} X\r\n{headers}content-length: {}\r\n\r\n{body}", body.len()))
    };
    if let Some(status) = job_type.strip_prefix("status-") {
        return plain(status, "", "");
    }
    match job_type {
        "wait" => {
            letting_go.acquire().await.unwrap().forget();
            plain("200", "", "")
        }
        "hang" => std::future::pending().await,
        "close" => None,
        "garbage" => Some("220 smtp.example.com ESMTP ready\r\n\r\n".into()),
        "huge" => Some("HTTP/1.1 200 OK\r\ncontent-length: 104857600\r\n\r\n".into()),
        "endless" => {
            let chunk = format!("100000\r\n{}\r\n", "x".repeat(0x10_0000));
            Some(format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{}", chunk.repeat(3)))
        }
        "half" => Some("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf".into()),
        "json" => plain("200", "content-type: application/json; charset=utf-8\r\n", "{\"sent\":3}"),
        "redirect" => plain("302", "location: /elsewhere\r\n", ""),
        "busy" => plain("429", "retry-after: 3\r\n", ""),
        "again" => plain("503", "retry-after: 0\r\n", ""),
        "dead" => plain("500", "job-outcome: dead\r\njob-error: no such tenant\r\n", ""),
        "said" => plain("500", "content-type: text/plain\r\n", "out of paper"),
        "early" => Some("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".into()),
        _ => plain("200", "", ""),
    }
}

async fn read(stream: &mut BufReader<TcpStream>) -> Option<Seen> {
    let mut seen = Seen::default();
    stream.read_line(&mut seen.line).await.ok().filter(|read| *read > 0)?;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) => seen.headers.push((name.to_owned(), value.to_owned())),
            None => break,
        }
    }
    let length = seen.header("content-length").parse().unwrap_or(0);
    seen.body = vec![0; length];
    stream.read_exact(&mut seen.body).await.ok()?;
    Some(seen)
}

/// One request as `curl` would send it.
pub(crate) async fn request(
    to: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> (u16, String) {
    let Ok(mut stream) = TcpStream::connect(to).await else {
        return (0, String::new());
    };
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {to}\r\nconnection: close\r\n");
    for (name, value) in headers {
        head.extend([name, ": ", value, "\r\n"]);
    }
    head.extend(["content-length: ", &body.len().to_string(), "\r\n\r\n"]);
    stream.write_all(head.as_bytes()).await.unwrap();
    // A server may answer and hang up before it read everything.
    let _ = stream.write_all(body).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, body.to_owned())
}
