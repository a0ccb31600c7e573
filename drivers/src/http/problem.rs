//! Errors on the wire: RFC 9457 problems with the kind beside the status.

use super::Effect;
use crate::{Error, ErrorKind};
use http::StatusCode;
use serde::{Deserialize, Serialize};

/// The media type of a problem.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// An error as the body of a response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// A URI for the kind.
    #[serde(rename = "type", default)]
    pub type_uri: String,
    /// The kind in words.
    #[serde(default)]
    pub title: String,
    /// The status of the response.
    #[serde(default)]
    pub status: u16,
    /// What happened.
    #[serde(default)]
    pub detail: String,
    /// What a caller may do about it.
    pub kind: ErrorKind,
}

impl Problem {
    /// `error` under the status of its kind.
    pub fn new(error: Error) -> Self {
        Self {
            type_uri: format!("urn:longshore:error:{}", error.kind),
            title: title_of(error.kind).to_owned(),
            status: status_of(error.kind).as_u16(),
            detail: error.message,
            kind: error.kind,
        }
    }

    /// Back to the error.
    pub fn into_error(self) -> Error {
        Error::new(self.kind, self.detail)
    }
}

/// The status that stands for `kind`.
pub const fn status_of(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::Timeout => StatusCode::GATEWAY_TIMEOUT,
        ErrorKind::Ambiguous => StatusCode::BAD_GATEWAY,
        ErrorKind::StaleReceipt | ErrorKind::Duplicate | ErrorKind::Conflict => StatusCode::CONFLICT,
        ErrorKind::Full => StatusCode::TOO_MANY_REQUESTS,
        ErrorKind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorKind::Unsupported => StatusCode::NOT_IMPLEMENTED,
        ErrorKind::Invalid => StatusCode::BAD_REQUEST,
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::Unauthorized => StatusCode::UNAUTHORIZED,
        ErrorKind::Fatal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The kind behind a status that came without a problem, from a proxy for instance.
///
/// A server error says nothing about whether a change was made, except 503: there nobody took the request.
pub const fn kind_of(status: StatusCode, effect: Effect) -> ErrorKind {
    match status {
        StatusCode::SERVICE_UNAVAILABLE => ErrorKind::Unavailable,
        StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT => effect.late(),
        StatusCode::CONFLICT => ErrorKind::Conflict,
        StatusCode::TOO_MANY_REQUESTS => ErrorKind::Full,
        StatusCode::PAYLOAD_TOO_LARGE => ErrorKind::TooLarge,
        StatusCode::NOT_IMPLEMENTED => ErrorKind::Unsupported,
        StatusCode::NOT_FOUND => ErrorKind::NotFound,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ErrorKind::Unauthorized,
        other if other.as_u16() / 100 == 4 => ErrorKind::Invalid,
        _ => effect.lost(),
    }
}

const fn title_of(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Unavailable => "the broker can't be reached",
        ErrorKind::Timeout => "the broker did not answer in time",
        ErrorKind::Ambiguous => "the outcome is unknown",
        ErrorKind::StaleReceipt => "the receipt no longer holds the lease",
        ErrorKind::Duplicate => "the id is known already",
        ErrorKind::Conflict => "the request conflicts with what is there",
        ErrorKind::Full => "the queue is full",
        ErrorKind::TooLarge => "something is over its limit",
        ErrorKind::Unsupported => "the broker can't do this",
        ErrorKind::Invalid => "the request makes no sense",
        ErrorKind::NotFound => "there is no such queue or job",
        ErrorKind::Unauthorized => "the credentials were refused",
        ErrorKind::Fatal => "the backend is broken",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [ErrorKind; 13] = [
        ErrorKind::Unavailable,
        ErrorKind::Timeout,
        ErrorKind::Ambiguous,
        ErrorKind::StaleReceipt,
        ErrorKind::Duplicate,
        ErrorKind::Conflict,
        ErrorKind::Full,
        ErrorKind::TooLarge,
        ErrorKind::Unsupported,
        ErrorKind::Invalid,
        ErrorKind::NotFound,
        ErrorKind::Unauthorized,
        ErrorKind::Fatal,
    ];

    #[test]
    fn every_kind_survives_the_wire() {
        for kind in KINDS {
            let problem = Problem::new(Error::new(kind, "why"));
            let text = serde_json::to_string(&problem).unwrap();
            let back: Problem = serde_json::from_str(&text).unwrap();
            assert_eq!(back, problem);
            assert_eq!(back.into_error().kind, kind);
        }
    }

    #[test]
    fn a_bare_status_never_claims_that_a_change_was_not_made() {
        for status in [500, 502, 504, 408, 200, 302] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(kind_of(status, Effect::Changes), ErrorKind::Ambiguous, "{status}");
            assert!(kind_of(status, Effect::Reads).is_transient(), "{status}");
        }
    }

    #[test]
    fn a_bare_status_leads_back_to_its_kind() {
        for kind in KINDS {
            let back = kind_of(status_of(kind), Effect::Reads);
            let expected = match kind {
                ErrorKind::StaleReceipt | ErrorKind::Duplicate => ErrorKind::Conflict,
                ErrorKind::Ambiguous | ErrorKind::Fatal => ErrorKind::Unavailable,
                same => same,
            };
            assert_eq!(back, expected);
        }
    }
}
