//! Connections to the app whose segments are acknowledged at once.
//!
//! Many HTTP servers write the head and the body of an answer in two pieces and leave Nagle's algorithm on (Python's
//! `http.server` is one). The kernel then holds the second piece back until the first was acknowledged, and an
//! acknowledgement that waits for company takes 40 ms: on every job. Linux acknowledges at once when asked to, but forgets
//! it again, so it is asked before every read (tcp(7), `TCP_QUICKACK`).

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::{
    client::legacy::connect::{Connected, Connection, HttpConnector},
    rt::TokioIo,
};
use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::net::TcpStream;
use tower_service::Service;

/// A connection on localhost that takes longer is none.
const CONNECT: Duration = Duration::from_secs(2);

/// Opens connections to the app.
#[derive(Debug, Clone)]
pub(crate) struct AppConnector(HttpConnector);

impl AppConnector {
    pub(crate) fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT));
        Self(connector)
    }
}

impl Service<Uri> for AppConnector {
    type Response = AppConnection;
    type Error = <HttpConnector as Service<Uri>>::Error;
    type Future = Pin<Box<dyn Future<Output = Result<AppConnection, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.0.call(uri);
        Box::pin(async move { connecting.await.map(AppConnection) })
    }
}

/// A connection to the app.
#[derive(Debug)]
pub(crate) struct AppConnection(TokioIo<TcpStream>);

impl Connection for AppConnection {
    fn connected(&self) -> Connected {
        self.0.connected()
    }
}

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
