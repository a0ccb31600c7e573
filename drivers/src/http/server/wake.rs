//! The wake stream: a line of JSON per hint, and one now and then that only says that somebody is still there.
//!
//! Without such lines neither side would notice that the other one is gone: this one learns it by writing, the
//! subscriber by not hearing anything.

use super::Api;
use crate::{Result, WakeStream};
use axum::{
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use http::header::CONTENT_TYPE;
use std::convert::Infallible;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// The line that only says that the stream is alive.
const HEARTBEAT: &str = "{\"wake\":\"heartbeat\"}\n";

struct Subscription {
    hints: WakeStream,
    beat: Interval,
    stop: CancellationToken,
}

pub(super) async fn wake(State(api): State<Api>) -> Result<Response> {
    let hints = api.shared.directory.broker()?.wake().await?;
    // The first beat comes at once, so that a subscriber knows that it is heard.
    let mut beat = interval(api.shared.limits.heartbeat);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let stop = api.shared.stop.clone();
    let body = Body::from_stream(lines(Subscription { hints, beat, stop }));
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

fn lines(subscription: Subscription) -> impl Stream<Item = Result<Bytes, Infallible>> + Send {
    stream::unfold(subscription, |mut subscription| async move {
        let line = next(&mut subscription).await?;
        Some((Ok(line), subscription))
    })
}

/// The next line; none when the driver's stream ended or failed, which ends the response: the subscriber comes back.
async fn next(subscription: &mut Subscription) -> Option<Bytes> {
    tokio::select! {
        () = subscription.stop.cancelled() => None,
        hint = subscription.hints.next() => match hint? {
            Ok(hint) => {
                let mut line = serde_json::to_vec(&hint).ok()?;
                line.push(b'\n');
                Some(line.into())
            }
            Err(error) => {
                tracing::debug!(%error, "hints ended");
                None
            }
        },
        _ = subscription.beat.tick() => Some(Bytes::from_static(HEARTBEAT.as_bytes())),
    }
}
