//! From paths and queries to the contract's types.

use super::{Api, answer::Json};
use crate::{Address, DynDriver, Error, JobId, JobState, ListJobs, Owner, QueueName, Result};
use axum::{
    extract::{FromRequestParts, Query, RawPathParams},
    response::{IntoResponse, Response},
};
use http::request::Parts;
use serde::{Deserialize, de::DeserializeOwned};

/// What a handler answers.
pub(super) type Answer<T> = Result<Json<T>>;

/// The queue of the path, as the directory knows it.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) driver: DynDriver,
    pub(super) name: QueueName,
}

impl FromRequestParts<Api> for Queue {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self> {
        let name = segment(parts, api, "queue").await?;
        let (driver, name) = api.shared.directory.find(&name)?;
        Ok(Self { driver, name })
    }
}

/// The job of the path.
#[derive(Debug)]
pub(super) struct Job(pub(super) JobId);

impl FromRequestParts<Api> for Job {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self> {
        JobId::new(segment(parts, api, "id").await?).map(Self)
    }
}

/// The address of the path.
#[derive(Debug)]
pub(super) struct At(pub(super) Address);

impl FromRequestParts<Api> for At {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self> {
        Address::new(segment(parts, api, "address").await?).map(Self)
    }
}

/// The page that the query asks for.
#[derive(Debug)]
pub(super) struct Page(pub(super) ListJobs);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PageQuery {
    state: JobState,
    #[serde(default = "default_page")]
    limit: u32,
    #[serde(default)]
    after: Option<String>,
}

const fn default_page() -> u32 {
    100
}

impl FromRequestParts<Api> for Page {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &Api) -> Result<Self> {
        let PageQuery { state, limit, after } = query(parts)?;
        Ok(Self(ListJobs { state, limit, after }))
    }
}

/// The owner that the query names.
#[derive(Debug)]
pub(super) struct Owned(pub(super) Owner);

impl FromRequestParts<Api> for Owned {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &Api) -> Result<Self> {
        query(parts).map(Self)
    }
}

fn query<T: DeserializeOwned>(parts: &Parts) -> Result<T> {
    let Query(query) =
        Query::try_from_uri(&parts.uri).map_err(|rejection| Error::invalid(rejection.body_text()))?;
    Ok(query)
}

async fn segment(parts: &mut Parts, api: &Api, wanted: &str) -> Result<String> {
    let segments = RawPathParams::from_request_parts(parts, api)
        .await
        .map_err(|rejection| Error::invalid(rejection.body_text()))?;
    let found = segments.iter().find(|(name, _)| *name == wanted);
    found
        .map(|(_, value)| value.to_owned())
        .ok_or_else(|| Error::invalid(format!("the path has no {wanted}")))
}

/// A change that answers nothing.
pub(super) fn nothing() -> Response {
    http::StatusCode::NO_CONTENT.into_response()
}
