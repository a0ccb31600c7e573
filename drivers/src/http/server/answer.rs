//! From results to responses.

use super::super::problem::{PROBLEM_JSON, Problem};
use crate::{Error, ErrorKind};
use axum::response::{IntoResponse, Response};
use http::{
    HeaderValue, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
};
use serde::Serialize;

/// A value as JSON.
#[derive(Debug)]
pub(super) struct Json<T>(pub(super) T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        match serde_json::to_vec(&self.0) {
            Ok(body) => ([(CONTENT_TYPE, "application/json")], body).into_response(),
            Err(error) => {
                Error::new(ErrorKind::Fatal, format!("the answer can't be written: {error}")).into_response()
            }
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        problem(None, self)
    }
}

/// `error` as a problem, under another status than its kind's if one is given.
pub(super) fn problem(status: Option<StatusCode>, error: Error) -> Response {
    let kind = error.kind;
    if kind == ErrorKind::Fatal {
        tracing::error!(%error, "request failed");
    }
    let mut problem = Problem::new(error);
    let status = status.unwrap_or_else(|| super::super::status_of(kind));
    problem.status = status.as_u16();
    let body = serde_json::to_vec(&problem).unwrap_or_default();
    let mut response = (status, [(CONTENT_TYPE, PROBLEM_JSON)], body).into_response();
    let headers = response.headers_mut();
    if matches!(kind, ErrorKind::Unavailable | ErrorKind::Full) {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    if kind == ErrorKind::Unauthorized {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}
