//! The API on localhost, for the containers of this pod that hold its token. Queues go by the names of the policy.

use crate::{
    budget::{Budget, Share},
    core::Core,
    drain::Event,
    headers::{self, Refinement},
    in_flight::{Completion, Said, Settled},
    outcome::{Answer, Body as Outcome, Response as AppResponse},
    pull::{Local, no_queue},
    stop,
};
use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::post,
};
use bytes::BytesMut;
use http_body_util::BodyExt;
use longshore_drivers::{
    DriverExt, Enqueued, Error, ErrorKind, JobId, NewJob, Overrides, Payload, Receipt, Result, Timestamp,
    http::server::{Api, ApiLimits, Group, Tokens, protect},
};
use serde::Serialize;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{sync::oneshot, time::timeout};
use tokio_util::sync::CancellationToken;

/// Bytes of text that may tell of a failure; what is kept of it is less.
const FAILURE: usize = 16 * 1024;
/// This serves one pod.
const LIMITS: ApiLimits = ApiLimits {
    body: 8 * 1024 * 1024,
    bodies: 16 * 1024 * 1024,
    reserved: 4 * 1024 * 1024,
    responses: 32 * 1024 * 1024,
    call: Duration::from_secs(30),
    wait: Duration::from_secs(60),
    claimed: 16 * 1024 * 1024,
    heartbeat: Duration::from_secs(5),
};

/// Bytes of all bodies that the sidecar's own routes read or work on.
const OWN_BODIES: u32 = 16 * 1024 * 1024;

const DRAIN: &str = "/v1/drain";
const COMPLETE: &str = "/v1/jobs/{receipt}/complete";
const FAIL: &str = "/v1/jobs/{receipt}/fail";
/// The same pattern as for looking at a job; here the last part is the type of a new one.
const ENQUEUE: &str = "/v1/queues/{queue}/jobs/{id}";

/// What the sidecar's own routes share.
#[derive(Clone)]
struct Own {
    core: Arc<Core>,
    bodies: Budget,
}

/// The routes of every broker's API that are about the worker's queues, and the sidecar's own.
pub(crate) fn router(core: Arc<Core>, token: &str, stop: CancellationToken) -> Router {
    let local = Arc::new(Local::new(core.clone()));
    let shared = Api::new(local, LIMITS, stop).router(&[Group::Producer, Group::Worker, Group::Inspection]);
    let own = Router::new()
        .route(DRAIN, post(drain))
        .route(COMPLETE, post(complete))
        .route(FAIL, post(fail))
        .route(ENQUEUE, post(enqueue))
        .with_state(Own { core, bodies: Budget::new(OWN_BODIES) });
    protect(shared.merge(own), Arc::new(Tokens::fixed([token])))
}

/// The sidecar's own preStop hook: starts the drain and returns at once.
async fn drain(State(own): State<Own>) -> StatusCode {
    stop::apply(&own.core, Event::Requested);
    StatusCode::ACCEPTED
}

/// The app finished a job that it answered with 202, or that it pulled. The body is the result.
async fn complete(
    State(own): State<Own>,
    Path(receipt): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode> {
    let receipt = Receipt(receipt);
    let (_, lane) = own.core.in_flight.find(&receipt).ok_or_else(|| Error::stale(&receipt))?;
    let limit = lane.driver.capabilities().limits.max_result;
    let (body, share) = match read(&own, body, limit).await {
        Ok((bytes, share)) => {
            (Outcome::Result(Payload { content_type: headers::media_type(&headers), bytes }), Some(share))
        }
        Err(error) if error.kind == ErrorKind::TooLarge => (Outcome::TooLarge(limit), None),
        Err(error) => return Err(error),
    };
    finish(&own, receipt, (200, Refinement::default(), body), share).await
}

/// The app failed at such a job. `Job-Outcome`, `Retry-After` and `Job-Error` say how, as in an answer to a push.
async fn fail(
    State(own): State<Own>,
    Path(receipt): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode> {
    let mut refinement = headers::refinement(&headers, Timestamp::now());
    let (text, share) = read(&own, body, FAILURE).await?;
    if refinement.error.is_none() && !text.is_empty() {
        refinement.error = Some(String::from_utf8_lossy(&text).into_owned());
    }
    finish(&own, Receipt(receipt), (500, refinement, Outcome::Empty), Some(share)).await
}

async fn finish(
    own: &Own,
    receipt: Receipt,
    (status, refinement, body): (u16, Refinement, Outcome),
    share: Option<Share>,
) -> Result<StatusCode> {
    let Refinement { wanted, retry_after, error } = refinement;
    let answer = Answer::Response(AppResponse { status, wanted, retry_after, error, body });
    let (reply, settled) = oneshot::channel();
    let completion = Completion { said: Box::new(Said::Answer(answer)), reply, share };
    if !own.core.in_flight.complete(&receipt, completion) {
        return Err(Error::stale(&receipt));
    }
    // The settle goes on when nobody waits for it any more.
    let settled = in_time(async { Ok(settled.await.unwrap_or(Settled::Abandoned)) }).await?;
    settled.answer(&receipt).map(|()| StatusCode::NO_CONTENT)
}

/// Waits for a change as long as a request may take.
async fn in_time<T>(call: impl Future<Output = Result<T>>) -> Result<T> {
    let late = || Error::new(ErrorKind::Ambiguous, format!("not done within {} s", LIMITS.call.as_secs()));
    timeout(LIMITS.call, call).await.unwrap_or_else(|_| Err(late()))
}

/// What an enqueue answers.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Added {
    id: JobId,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    duplicate: bool,
}

/// The short way to enqueue: the body is the payload.
async fn enqueue(
    State(own): State<Own>,
    Path((name, job_type)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response> {
    let plan = own.core.plan();
    let lane = plan.lane(&name).ok_or_else(|| no_queue(&name))?;
    let (bytes, _share) = read(&own, body, lane.driver.capabilities().limits.max_payload).await?;
    let job = new_job(job_type, &headers, bytes)?;
    let enqueued = in_time(lane.driver.enqueue_one(&lane.queue.physical, job)).await?;
    let (status, duplicate) = match enqueued {
        Enqueued::Created { .. } => (StatusCode::CREATED, false),
        Enqueued::Duplicate { .. } => (StatusCode::OK, true),
    };
    let id = enqueued.id().clone();
    Ok((status, Json(Added { id, duplicate })).into_response())
}

/// The job that a raw request describes.
fn new_job(job_type: String, headers: &HeaderMap, bytes: Bytes) -> Result<NewJob> {
    let text = |name: &str| {
        let value = headers.get(name).map(|value| value.to_str().map(str::trim));
        value.transpose().map_err(|_| Error::invalid(format!("header {name} is no text")))
    };
    let number = |name: &str| {
        let parsed = text(name)?.map(str::parse::<u64>).transpose();
        parsed.map_err(|_| Error::invalid(format!("header {name} is no whole number")))
    };
    let max_attempts = number("job-max-attempts")?.map(u32::try_from).transpose();
    let max_attempts = max_attempts.map_err(|_| Error::invalid("header job-max-attempts is too large"))?;
    let content_type = text(CONTENT_TYPE.as_str())?.filter(|text| !text.is_empty());
    Ok(NewJob {
        id: text("job-id")?.map(JobId::new).transpose()?,
        job_type,
        payload: Payload { content_type: content_type.unwrap_or("application/json").to_owned(), bytes },
        delay: Duration::from_millis(number("job-delay-ms")?.unwrap_or_default()),
        overrides: Overrides { max_attempts, timeout: number("job-timeout-ms")?.map(Duration::from_millis) },
        headers: metadata(headers),
        ordering_key: text("job-ordering-key")?.map(str::to_owned),
        notify: None,
    })
}

/// The headers that travel with a job.
fn metadata(all: &HeaderMap) -> BTreeMap<String, String> {
    let texts = all.iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
    texts
        .filter(|(name, _)| headers::travels(name))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// A body within its own limit and that of all bodies, and its share of the latter.
async fn read(own: &Own, mut body: Body, limit: usize) -> Result<(Bytes, Share)> {
    let too_large = || Error::new(ErrorKind::TooLarge, format!("the body takes more than {limit} bytes"));
    let share_of = |bytes: usize| {
        let share = own.bodies.take(bytes);
        share.ok_or_else(|| Error::unavailable("too many bytes are on their way in; try again"))
    };
    let reading = async {
        let (mut bytes, mut share) = (BytesMut::new(), share_of(0)?);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Error::invalid("the body ended early"))?;
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() + data.len() > limit {
                return Err(too_large());
            }
            // Taken as bytes arrive: announcing a big body and never sending it costs nobody anything.
            share.merge(share_of(data.len())?);
            bytes.extend_from_slice(&data);
        }
        Ok((bytes.freeze(), share))
    };
    let late = || Error::new(ErrorKind::Timeout, "the body did not arrive in time");
    timeout(LIMITS.call, reading).await.unwrap_or_else(|_| Err(late()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::{StreamExt, stream};

    fn own(bytes: u32) -> Own {
        Own { core: Arc::new(Core::new("pod-1".to_owned())), bodies: Budget::new(bytes) }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_never_ends_is_given_up_in_time() {
        let own = own(1000);
        let chunk = Ok::<_, std::io::Error>(Bytes::from_static(b"12345678"));
        let body = Body::from_stream(stream::iter([chunk]).chain(stream::pending()));
        assert_eq!(read(&own, body, 100).await.unwrap_err().kind, ErrorKind::Timeout);
        assert_eq!(own.bodies.spent(), 0);
    }

    #[test]
    fn the_own_routes_and_no_others_are_described_as_the_sidecars() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.yaml");
        let description = std::fs::read_to_string(path).unwrap();
        // Paths are indented by two columns, what belongs to them by more.
        let paths = description.split("\n  /").skip(1);
        let own = paths.filter(|item| item.contains("    post:\n") && item.contains("tags: [sidecar]"));
        let mut own: Vec<_> = own.map(|item| format!("/{}", item.split(':').next().unwrap())).collect();
        own.sort();
        assert_eq!(own, [DRAIN, COMPLETE, FAIL, ENQUEUE]);
    }

    #[tokio::test]
    async fn bodies_of_the_own_routes_share_one_budget() {
        let own = own(150);
        let (_, share) = read(&own, Body::from(vec![b'x'; 100]), 100).await.unwrap();
        let refused = read(&own, Body::from(vec![b'x'; 100]), 100).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Unavailable);
        drop(share);
        assert!(read(&own, Body::from(vec![b'x'; 100]), 100).await.is_ok());
        assert_eq!(read(&own, Body::from(vec![b'x'; 101]), 100).await.unwrap_err().kind, ErrorKind::TooLarge);
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_that_takes_too_long_is_ambiguous() {
        let late = in_time::<()>(std::future::pending()).await.unwrap_err();
        assert_eq!(late.kind, ErrorKind::Ambiguous);
    }
}
