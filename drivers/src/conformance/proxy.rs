//! The way to a broker, which can be broken in every way that a network breaks: refused, silent, slow, cut in the middle.

use crate::{Error, Result};
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
    sync::watch,
    task::JoinHandle,
};
use tokio_util::task::TaskTracker;

/// What the way does to what goes along it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weather {
    /// Everything passes.
    Fair,
    /// Connections that exist are reset, new ones too as soon as they are made.
    Reset,
    /// Connections stand and are made, and nothing passes: both sides believe that the other one is slow. What was sent
    /// meanwhile arrives when it is fair again.
    Silent,
    /// Everything comes this much later, in both directions.
    Slow(Duration),
    /// Each connection is reset once this many bytes have passed from one side, counted from now on.
    Cut(Side, usize),
    /// What this side sends from now on waits until the weather changes; what the other one sends passes.
    Held(Side),
    /// The same, on each connection from the first bytes of this side on that have the text in them.
    HeldFrom(Side, &'static str),
}

/// Who sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The callers.
    Client,
    /// The broker.
    Server,
}

/// A TCP proxy on the loopback interface. It ends when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    weather: watch::Sender<Weather>,
    seen: Arc<Seen>,
    listening: JoinHandle<()>,
}

/// What came to a proxy.
#[derive(Debug, Default)]
struct Seen {
    /// Bytes.
    all: AtomicUsize,
    held: AtomicUsize,
    /// How often clients said something.
    asked: AtomicUsize,
}

impl Proxy {
    /// A proxy in fair weather that leads to `target`.
    ///
    /// # Errors
    /// `Unavailable` when there is no port for it.
    pub async fn start(target: SocketAddr) -> Result<Self> {
        let no_port = |error| Error::unavailable(format!("no port of this machine: {error}"));
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(no_port)?;
        let address = listener.local_addr().map_err(no_port)?;
        let (weather, now) = watch::channel(Weather::Fair);
        let seen = Arc::default();
        let listening = tokio::spawn(listen(listener, target, now, Arc::clone(&seen)));
        Ok(Self { address, weather, seen, listening })
    }

    /// Where callers connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the weather for connections that exist and for those that come.
    pub fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    /// Bytes that came from either side so far.
    pub fn seen(&self) -> usize {
        self.seen.all.load(Ordering::SeqCst)
    }

    /// How often clients said something so far: one that waits for each answer does so once for a request.
    pub fn asked(&self) -> usize {
        self.seen.asked.load(Ordering::SeqCst)
    }

    /// Bytes that had to wait in [`Weather::Held`] or [`Weather::HeldFrom`] so far. Those that still do when the proxy
    /// ends never arrive.
    pub fn held(&self) -> usize {
        self.seen.held.load(Ordering::SeqCst)
    }

    /// Makes it fair again.
    pub fn heal(&self) {
        self.set(Weather::Fair);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // The connections see that the weather ended.
        self.listening.abort();
    }
}

async fn listen(
    listener: TcpListener,
    target: SocketAddr,
    weather: watch::Receiver<Weather>,
    seen: Arc<Seen>,
) {
    let connections = TaskTracker::new();
    while let Ok((client, _)) = listener.accept().await {
        connections.spawn(serve(client, target, weather.clone(), seen.clone()));
    }
}

/// Why a connection is over.
enum Over {
    /// Both sides said that they were done.
    Done,
    /// It breaks.
    Broken,
}

async fn serve(
    mut client: TcpStream,
    target: SocketAddr,
    weather: watch::Receiver<Weather>,
    seen: Arc<Seen>,
) {
    let refused = *weather.borrow() == Weather::Reset;
    let mut over = Over::Broken;
    if !refused && let Ok(mut server) = TcpStream::connect(target).await {
        // The small packets of a request must not wait for each other.
        let _ = client.set_nodelay(true).and_then(|()| server.set_nodelay(true));
        over = carry(&mut client, &mut server, weather, &seen).await;
        if matches!(over, Over::Broken) {
            let _ = server.set_zero_linger();
        }
    }
    if matches!(over, Over::Broken) {
        let _ = client.set_zero_linger();
    }
}

async fn carry(
    client: &mut TcpStream,
    server: &mut TcpStream,
    weather: watch::Receiver<Weather>,
    seen: &Seen,
) -> Over {
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let there = Pump::new(Side::Client, weather.clone(), seen);
    let back = Pump::new(Side::Server, weather, seen);
    match tokio::try_join!(there.run(from_client, to_server), back.run(from_server, to_client)) {
        Ok(_) => Over::Done,
        Err(Broken) => Over::Broken,
    }
}

struct Broken;

/// Carries the bytes of one side of one connection.
struct Pump<'a> {
    side: Side,
    weather: watch::Receiver<Weather>,
    seen: &'a Seen,
    /// Bytes that passed in this weather.
    passed: usize,
    /// The last bytes in this weather: a text may come in two pieces.
    last: Vec<u8>,
}

impl<'a> Pump<'a> {
    fn new(side: Side, weather: watch::Receiver<Weather>, seen: &'a Seen) -> Self {
        Self { side, weather, seen, passed: 0, last: Vec::new() }
    }

    async fn run(
        mut self,
        mut from: impl AsyncReadExt + Unpin,
        mut to: impl AsyncWriteExt + Unpin,
    ) -> Result<(), Broken> {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let read = tokio::select! {
                biased;
                changed = self.weather.changed() => {
                    changed.map_err(|_| Broken)?;
                    self.turned();
                    if *self.weather.borrow() == Weather::Reset {
                        return Err(Broken);
                    }
                    continue;
                }
                read = from.read(&mut buffer) => read.map_err(|_| Broken)?,
            };
            self.seen.all.fetch_add(read, Ordering::SeqCst);
            self.seen.asked.fetch_add(usize::from(self.side == Side::Client && read > 0), Ordering::SeqCst);
            let allowed = self.pass(&buffer[..read]).await?;
            to.write_all(&buffer[..allowed]).await.map_err(|_| Broken)?;
            self.passed += allowed;
            if allowed < read {
                return Err(Broken);
            }
            if read == 0 {
                return to.shutdown().await.map_err(|_| Broken);
            }
        }
    }

    /// The weather is another one.
    fn turned(&mut self) {
        (self.passed, self.last) = (0, Vec::new());
    }

    /// How many of the bytes that were read may go on, once the weather lets any.
    async fn pass(&mut self, bytes: &[u8]) -> Result<usize, Broken> {
        loop {
            let now = *self.weather.borrow_and_update();
            match now {
                Weather::Reset => return Err(Broken),
                Weather::Silent => self.wait().await?,
                Weather::Held(which) if which == self.side => self.hold(bytes).await?,
                Weather::HeldFrom(which, text) if which == self.side && self.has(bytes, text) => {
                    self.hold(bytes).await?;
                }
                Weather::Slow(by) => {
                    tokio::time::sleep(by).await;
                    return Ok(bytes.len());
                }
                Weather::Cut(which, after) if which == self.side => {
                    return Ok(bytes.len().min(after.saturating_sub(self.passed)));
                }
                Weather::Fair | Weather::Cut(..) | Weather::Held(_) | Weather::HeldFrom(..) => {
                    return Ok(bytes.len());
                }
            }
        }
    }

    async fn wait(&mut self) -> Result<(), Broken> {
        self.weather.changed().await.map_err(|_| Broken)?;
        self.turned();
        Ok(())
    }

    async fn hold(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        self.seen.held.fetch_add(bytes.len(), Ordering::SeqCst);
        self.wait().await
    }

    /// Whether the text comes with these bytes.
    fn has(&mut self, bytes: &[u8], text: &str) -> bool {
        self.last.extend_from_slice(bytes);
        let found = self.last.windows(text.len().max(1)).any(|part| part == text.as_bytes());
        let keep = text.len().saturating_sub(1);
        self.last.drain(..self.last.len().saturating_sub(keep));
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io, time::Instant};

    const LONG: Duration = Duration::from_secs(10);

    /// A server that answers each byte with the same byte, and the way to it.
    async fn echo() -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
        Proxy::start(target).await.unwrap()
    }

    /// A server that does what the test does, and the way to it.
    async fn server() -> (TcpListener, Proxy) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy::start(listener.local_addr().unwrap()).await.unwrap();
        (listener, proxy)
    }

    async fn connect(proxy: &Proxy) -> TcpStream {
        TcpStream::connect(proxy.address()).await.unwrap()
    }

    async fn ask(stream: &mut TcpStream, text: &[u8]) -> io::Result<Vec<u8>> {
        stream.write_all(text).await?;
        let mut answer = vec![0; text.len()];
        tokio::time::timeout(LONG, stream.read_exact(&mut answer)).await??;
        Ok(answer)
    }

    #[tokio::test]
    async fn fair_weather_changes_nothing_and_ends_are_orderly() {
        let proxy = echo().await;
        let mut stream = connect(&proxy).await;
        let sent: Vec<u8> = (0..100_000).map(|at| u8::try_from(at % 251).unwrap()).collect();
        let (mut read, mut write) = stream.split();
        let mut got = Vec::new();
        let (wrote, heard) = tokio::join!(
            async {
                write.write_all(&sent).await?;
                write.shutdown().await
            },
            read.read_to_end(&mut got)
        );
        wrote.unwrap();
        heard.unwrap();
        assert!(got == sent);
    }

    #[tokio::test]
    async fn questions_are_counted_and_answers_are_not() {
        let proxy = echo().await;
        let mut stream = connect(&proxy).await;
        for count in 1..4 {
            ask(&mut stream, b"question").await.unwrap();
            assert_eq!(proxy.asked(), count);
        }
    }

    #[tokio::test]
    async fn a_reset_ends_what_is_there_and_what_comes() {
        let proxy = echo().await;
        let mut old = connect(&proxy).await;
        ask(&mut old, b"a").await.unwrap();
        proxy.set(Weather::Reset);
        let error = ask(&mut old, b"b").await.unwrap_err();
        assert!(
            matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe),
            "{error:?}"
        );
        let mut new = connect(&proxy).await;
        ask(&mut new, b"c").await.unwrap_err();
        proxy.heal();
        ask(&mut connect(&proxy).await, b"d").await.unwrap();
    }

    #[tokio::test]
    async fn silence_keeps_connections_and_what_they_carry() {
        let proxy = echo().await;
        let mut old = connect(&proxy).await;
        ask(&mut old, b"a").await.unwrap();
        proxy.set(Weather::Silent);
        let mut new = connect(&proxy).await;
        for stream in [&mut old, &mut new] {
            stream.write_all(b"b").await.unwrap();
            let answer = tokio::time::timeout(Duration::from_millis(100), stream.read_u8()).await;
            assert!(answer.is_err(), "{answer:?}");
        }
        proxy.heal();
        for mut stream in [old, new] {
            let answer = tokio::time::timeout(LONG, stream.read_u8()).await.unwrap().unwrap();
            assert_eq!(answer, b'b');
        }
    }

    #[tokio::test]
    async fn slow_is_late_in_both_directions() {
        let proxy = echo().await;
        let mut stream = connect(&proxy).await;
        ask(&mut stream, b"a").await.unwrap();
        let by = Duration::from_millis(60);
        proxy.set(Weather::Slow(by));
        let since = Instant::now();
        ask(&mut stream, b"b").await.unwrap();
        assert!(since.elapsed() >= by * 2, "{:?}", since.elapsed());
    }

    #[tokio::test]
    async fn a_cut_lets_just_so_much_pass() {
        for side in [Side::Client, Side::Server] {
            let proxy = echo().await;
            let mut stream = connect(&proxy).await;
            ask(&mut stream, b"before").await.unwrap();
            proxy.set(Weather::Cut(side, 3));
            stream.write_all(b"abcdef").await.unwrap();
            let mut got = Vec::new();
            let mut byte = [0];
            // A reset may overtake what was sent before it; more than what was allowed never comes.
            while matches!(tokio::time::timeout(LONG, stream.read(&mut byte)).await.unwrap(), Ok(1)) {
                got.extend_from_slice(&byte);
            }
            assert!(b"abc".starts_with(&got), "{got:?}");
            proxy.heal();
            ask(&mut connect(&proxy).await, b"after").await.unwrap();
        }
    }

    #[tokio::test]
    async fn what_one_side_says_is_held_and_the_other_heard() {
        for (side, arrives) in [(Side::Client, false), (Side::Server, true)] {
            let (listener, proxy) = server().await;
            let mut near = connect(&proxy).await;
            near.write_all(b"a").await.unwrap();
            let (mut far, _) = listener.accept().await.unwrap();
            assert_eq!(far.read_u8().await.unwrap(), b'a');
            proxy.set(Weather::Held(side));
            near.write_all(b"b").await.unwrap();
            far.write_all(b"c").await.unwrap();
            let (heard, silent) = if arrives { (&mut far, &mut near) } else { (&mut near, &mut far) };
            tokio::time::timeout(LONG, heard.read_u8()).await.unwrap().unwrap();
            tokio::time::timeout(Duration::from_millis(100), silent.read_u8()).await.unwrap_err();
            assert_eq!((proxy.seen(), proxy.held()), (3, 1));
            proxy.heal();
            tokio::time::timeout(LONG, silent.read_u8()).await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn what_is_held_when_the_proxy_ends_never_arrives() {
        let (listener, proxy) = server().await;
        let mut near = connect(&proxy).await;
        let (mut far, _) = listener.accept().await.unwrap();
        proxy.set(Weather::Held(Side::Client));
        near.write_all(b"b").await.unwrap();
        while proxy.held() == 0 {
            tokio::task::yield_now().await;
        }
        drop(proxy);
        let ended = tokio::time::timeout(LONG, far.read(&mut [0])).await.unwrap();
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    }

    #[tokio::test]
    async fn a_text_is_held_also_when_it_comes_in_pieces() {
        let proxy = echo().await;
        let mut stream = connect(&proxy).await;
        proxy.set(Weather::HeldFrom(Side::Server, "needle"));
        ask(&mut stream, b"hay needl").await.unwrap();
        stream.write_all(b"e").await.unwrap();
        let answer = tokio::time::timeout(Duration::from_millis(100), stream.read_u8()).await;
        assert!(answer.is_err(), "{answer:?}");
        ask(&mut connect(&proxy).await, b"other").await.unwrap();
        assert_eq!(proxy.held(), 1);
        proxy.heal();
        assert_eq!(tokio::time::timeout(LONG, stream.read_u8()).await.unwrap().unwrap(), b'e');
    }

    #[tokio::test]
    async fn a_dead_target_looks_dead() {
        let target = {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            listener.local_addr().unwrap()
        };
        let proxy = Proxy::start(target).await.unwrap();
        ask(&mut connect(&proxy).await, b"a").await.unwrap_err();
    }
}
