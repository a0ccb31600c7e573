//! The wake stream, which comes back by itself.

use super::transport::{Call, Transport};
use crate::{Error, ErrorKind, Result, Wake, WakeStream};
use bytes::{Buf, Bytes, BytesMut};
use futures::{StreamExt, stream};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::Deserialize;
use std::{sync::Arc, time::Duration};

/// A longer line is no hint.
const LINE: usize = 4096;
/// Pauses before attempts to come back double from the first to the last of these.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(5);

/// Subscribes once, and fails if that fails. From then on every loss is one error in the stream, so that the subscriber
/// looks for itself, and the stream goes on until the driver is closed or the broker turns out to have no hints.
pub(super) async fn subscribe(transport: Arc<Transport>) -> Result<WakeStream> {
    let lines = Lines::open(&transport).await?;
    let subscription = Subscription { transport, lines: Some(lines), pause: FIRST_PAUSE, over: false };
    let hints = stream::unfold(subscription, |mut subscription| async move {
        let hint = subscription.next().await?;
        Some((hint, subscription))
    });
    Ok(hints.boxed())
}

struct Subscription {
    transport: Arc<Transport>,
    lines: Option<Lines>,
    pause: Duration,
    over: bool,
}

impl Subscription {
    async fn next(&mut self) -> Option<Result<Wake>> {
        let closed = self.transport.closed.clone();
        tokio::select! {
            () = closed.cancelled() => None,
            hint = self.hint() => hint,
        }
    }

    async fn hint(&mut self) -> Option<Result<Wake>> {
        while !self.over {
            let Some(lines) = &mut self.lines else {
                match self.come_back().await {
                    Ok(lines) => self.lines = Some(lines),
                    Err(error) => return Some(Err(error)),
                }
                continue;
            };
            match lines.next(self.transport.config.silence).await {
                Ok(line) => {
                    self.pause = FIRST_PAUSE;
                    if let Some(wake) = line.into_wake() {
                        return Some(Ok(wake));
                    }
                }
                Err(error) => {
                    self.lines = None;
                    return Some(Err(error));
                }
            }
        }
        None
    }

    async fn come_back(&mut self) -> Result<Lines> {
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LAST_PAUSE);
        let lines = Lines::open(&self.transport).await;
        self.over = lines.as_ref().is_err_and(|error| error.kind == ErrorKind::Unsupported);
        lines
    }
}

/// One line. What a newer server says besides is no hint for this client.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", tag = "wake")]
enum Line {
    Queue {
        queue: crate::QueueName,
    },
    Completions {
        address: crate::Address,
    },
    #[serde(other)]
    Heartbeat,
}

impl Line {
    fn into_wake(self) -> Option<Wake> {
        match self {
            Self::Queue { queue } => Some(Wake::Queue { queue }),
            Self::Completions { address } => Some(Wake::Completions { address }),
            Self::Heartbeat => None,
        }
    }
}

struct Lines {
    body: Incoming,
    read: BytesMut,
}

impl Lines {
    async fn open(transport: &Transport) -> Result<Self> {
        let body = transport.open(&Call::get("/v1/wake")).await?;
        let read = BytesMut::new();
        Ok(Self { body, read })
    }

    async fn next(&mut self, silence: Duration) -> Result<Line> {
        loop {
            if let Some(end) = self.read.iter().position(|&byte| byte == b'\n') {
                let line = self.read.split_to(end);
                self.read.advance(1);
                return serde_json::from_slice(&line).map_err(|_| lost("sends something else"));
            }
            if self.read.len() > LINE {
                return Err(lost("sends something else"));
            }
            let more = self.more(silence).await?;
            self.read.extend_from_slice(&more);
        }
    }

    async fn more(&mut self, silence: Duration) -> Result<Bytes> {
        match tokio::time::timeout(silence, self.body.frame()).await {
            Ok(Some(Ok(frame))) => Ok(frame.into_data().unwrap_or_default()),
            Ok(Some(Err(_)) | None) => Err(lost("ended")),
            Err(_) => Err(lost("fell silent")),
        }
    }
}

fn lost(how: &str) -> Error {
    Error::unavailable(format!("the broker's stream of hints {how}"))
}
