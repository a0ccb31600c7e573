//! Connections to the app, whose segments are acknowledged at once.
//!
//! Many HTTP servers write the head and the body of an answer in two pieces and leave Nagle's algorithm on (Python's
//! `http.server` is one). The kernel then holds the second piece back until the first was acknowledged, and an
//! acknowledgement that waits for company takes 40 ms: on every job. Linux acknowledges at once when asked to, but forgets
//! it again, so it is asked before every read (tcp(7), `TCP_QUICKACK`).

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use std::{
    io,
    net::Ipv4Addr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{net::TcpStream, time::timeout};

/// A connection on localhost that takes longer is none.
const CONNECT: Duration = Duration::from_secs(2);

/// Opens a connection to the app.
pub(crate) async fn open(port: u16) -> io::Result<AppConnection> {
    let connecting = TcpStream::connect((Ipv4Addr::LOCALHOST, port));
    let stream = timeout(CONNECT, connecting).await.map_err(|_| io::ErrorKind::TimedOut)??;
    stream.set_nodelay(true)?;
    Ok(AppConnection(TokioIo::new(stream)))
}

/// A connection to the app.
#[derive(Debug)]
pub(crate) struct AppConnection(TokioIo<TcpStream>);

impl Read for AppConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        // Where it can't be had, jobs are only slower.
        #[cfg(target_os = "linux")]
        let _ = self.0.inner().set_quickack(true);
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl Write for AppConnection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(context, pieces)
    }
}
