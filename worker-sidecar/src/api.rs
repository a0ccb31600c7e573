//! The API on localhost, for the containers of this pod that hold its token. Queues go by the names of the policy.

use crate::{
    core::Core,
    drain::Event,
    headers::{self, Refinement},
    in_flight::{Completion, Settled},
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
use http_body_util::{BodyExt, LengthLimitError, Limited};
use longshore_drivers::{
    DriverExt, Enqueued, Error, ErrorKind, JobId, NewJob, Overrides, Payload, Receipt, Result, Timestamp,
    http::server::{Api, ApiLimits, Group, Tokens, protect},
};
use serde::Serialize;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// Bytes of text that may tell of a failure; what is kept of it is less.
const FAILURE: usize = 16 * 1024;
/// This serves one pod.
const LIMITS: ApiLimits = ApiLimits {
    body: 8 * 1024 * 1024,
    bodies: 32 * 1024 * 1024,
    reserved: 8 * 1024 * 1024,
    responses: 32 * 1024 * 1024,
    call: Duration::from_secs(30),
    wait: Duration::from_secs(60),
    claimed: 16 * 1024 * 1024,
    heartbeat: Duration::from_secs(5),
};

/// The routes of every broker's API that are about the worker's queues, and the sidecar's own.
pub(crate) fn router(core: Arc<Core>, token: &str, stop: CancellationToken) -> Router {
    let local = Arc::new(Local::new(core.clone()));
    let shared = Api::new(local, LIMITS, stop).router(&[Group::Producer, Group::Worker, Group::Inspection]);
    let own = Router::new()
        .route("/v1/drain", post(drain))
        .route("/v1/jobs/{receipt}/complete", post(complete))
        .route("/v1/jobs/{receipt}/fail", post(fail))
        // The same pattern as for looking at a job; here the last part is the type of a new one.
        .route("/v1/queues/{queue}/jobs/{id}", post(enqueue))
        .with_state(core);
    protect(shared.merge(own), Arc::new(Tokens::fixed([token])))
}

/// The sidecar's own preStop hook: starts the drain and returns at once.
async fn drain(State(core): State<Arc<Core>>) -> StatusCode {
    stop::apply(&core, Event::Requested);
    StatusCode::ACCEPTED
}

/// The app finished a job that it answered with 202, or that it pulled. The body is the result.
async fn complete(
    State(core): State<Arc<Core>>,
    Path(receipt): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode> {
    let receipt = Receipt(receipt);
    let (_, lane) = core.in_flight.find(&receipt).ok_or_else(|| Error::stale(&receipt))?;
    let limit = lane.driver.capabilities().limits.max_result;
    let body = match read(body, limit).await {
        Ok(bytes) => Outcome::Result(Payload { content_type: headers::media_type(&headers), bytes }),
        Err(error) if error.kind == ErrorKind::TooLarge => Outcome::TooLarge(limit),
        Err(error) => return Err(error),
    };
    finish(&core, receipt, 200, Refinement::default(), body).await
}

/// The app failed at such a job. `Job-Outcome`, `Retry-After` and `Job-Error` say how, as in an answer to a push.
async fn fail(
    State(core): State<Arc<Core>>,
    Path(receipt): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode> {
    let mut refinement = headers::refinement(&headers, Timestamp::now());
    let text = read(body, FAILURE).await?;
    if refinement.error.is_none() && !text.is_empty() {
        refinement.error = Some(String::from_utf8_lossy(&text).into_owned());
    }
    finish(&core, Receipt(receipt), 500, refinement, Outcome::Empty).await
}

async fn finish(
    core: &Core,
    receipt: Receipt,
    status: u16,
    refinement: Refinement,
    body: Outcome,
) -> Result<StatusCode> {
    let Refinement { wanted, retry_after, error } = refinement;
    let answer = Answer::Response(AppResponse { status, wanted, retry_after, error, body });
    let (reply, settled) = oneshot::channel();
    let handed = core.in_flight.complete(&receipt, Completion { answer, reply });
    handed.map_err(|_| Error::stale(&receipt))?;
    match settled.await {
        Ok(Settled::Done) => Ok(StatusCode::NO_CONTENT),
        Ok(Settled::Lost) => Err(Error::stale(&receipt)),
        Ok(Settled::Abandoned) | Err(_) => {
            let message = "the broker did not take the settle; the job may run again";
            Err(Error::new(ErrorKind::Ambiguous, message))
        }
    }
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
    State(core): State<Arc<Core>>,
    Path((name, job_type)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response> {
    let plan = core.plan();
    let lane = plan.lane(&name).ok_or_else(|| no_queue(&name))?;
    let bytes = read(body, lane.driver.capabilities().limits.max_payload).await?;
    let job = new_job(job_type, &headers, bytes)?;
    let enqueued = lane.driver.enqueue_one(&lane.queue.physical, job).await?;
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
        notify: None,
    })
}

/// The headers that travel with a job.
fn metadata(headers: &HeaderMap) -> BTreeMap<String, String> {
    let travels = |name: &str| {
        matches!(name, "traceparent" | "tracestate" | "baggage") || name.starts_with("job-meta-")
    };
    let texts = headers.iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
    texts.filter(|(name, _)| travels(name)).map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

async fn read(body: Body, limit: usize) -> Result<Bytes> {
    let collected = Limited::new(body, limit).collect().await;
    collected.map(http_body_util::Collected::to_bytes).map_err(|error| {
        if error.is::<LengthLimitError>() {
            Error::new(ErrorKind::TooLarge, format!("the body takes more than {limit} bytes"))
        } else {
            Error::invalid("the body ended early")
        }
    })
}
