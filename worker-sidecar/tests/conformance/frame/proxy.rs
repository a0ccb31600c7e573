//! A wire between a sidecar and its broker that can be held, in either direction.

use super::port;
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

/// What the wire lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wire {
    /// Everything.
    Open,
    /// Answers only: what is asked from now on never arrives.
    RequestsHeld,
    /// Requests only: they are carried out, and nobody hears of it.
    AnswersHeld,
}

/// The wire.
pub(crate) struct Proxy {
    address: SocketAddr,
    wire: watch::Sender<Wire>,
    held: Arc<AtomicUsize>,
    end: CancellationToken,
    _accepting: AbortOnDropHandle<()>,
}

impl Proxy {
    /// A wire to `upstream`.
    pub(crate) fn start(upstream: SocketAddr) -> Self {
        let listener = TcpListener::from_std(port::listen()).unwrap();
        let address = listener.local_addr().unwrap();
        let (wire, held, end) = (watch::Sender::new(Wire::Open), Arc::default(), CancellationToken::new());
        let accepting = accept(listener, upstream, wire.clone(), Arc::clone(&held), end.clone());
        let accepting = AbortOnDropHandle::new(tokio::spawn(accepting));
        Self { address, wire, held, end, _accepting: accepting }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn set(&self, wire: Wire) {
        self.wire.send_replace(wire);
    }

    /// Bytes that were held so far. They are never delivered unless the wire opens again.
    pub(crate) fn held(&self) -> usize {
        self.held.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

async fn accept(
    listener: TcpListener,
    upstream: SocketAddr,
    wire: watch::Sender<Wire>,
    held: Arc<AtomicUsize>,
    end: CancellationToken,
) {
    while let Ok((near, _)) = listener.accept().await {
        let (wire, held, end) = (wire.clone(), held.clone(), end.clone());
        tokio::spawn(async move {
            let Ok(far) = TcpStream::connect(upstream).await else { return };
            let _ = (near.set_nodelay(true), far.set_nodelay(true));
            let (near_read, near_write) = near.into_split();
            let (far_read, far_write) = far.into_split();
            let requests = pump(near_read, far_write, wire.subscribe(), Wire::RequestsHeld, &held);
            let answers = pump(far_read, near_write, wire.subscribe(), Wire::AnswersHeld, &held);
            tokio::select! {
                () = requests => {}
                () = answers => {}
                () = end.cancelled() => {}
            }
        });
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut wire: watch::Receiver<Wire>,
    holds: Wire,
    held: &AtomicUsize,
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let Ok(read @ 1..) = from.read(&mut buffer).await else { return };
        if *wire.borrow() == holds {
            held.fetch_add(read, Ordering::SeqCst);
            if wire.wait_for(|now| *now != holds).await.is_err() {
                return;
            }
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
