//! The one error of reconciliation, classed by what to do next.

use longshore_drivers::ErrorKind;
use std::time::Duration;

/// A reconciliation that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The API server refused or couldn't be reached.
    #[error("failed to {action}")]
    Api {
        /// What was tried, on what.
        action: String,
        #[source]
        source: Box<kube::Error>,
    },
    /// The broker refused or couldn't be reached.
    #[error("failed to {action}")]
    Broker {
        /// What was tried, on what.
        action: String,
        #[source]
        source: longshore_drivers::Error,
    },
    /// The object lacks what every stored object has.
    #[error("object has no {0}")]
    Incomplete(&'static str),
    /// It took too long.
    #[error("reconciliation took longer than {0:?}")]
    Deadline(Duration),
    /// Something that will be there later isn't there now.
    #[error("{0}")]
    NotNow(String),
    /// Expressions can't be evaluated now.
    #[error(transparent)]
    NoThread(crate::workflows::NoThread),
    /// This process is not the leader any more.
    #[error("leadership was lost")]
    LeadershipLost,
    /// A child couldn't be written down.
    #[error("failed to encode {what}")]
    Encode {
        /// What.
        what: String,
        #[source]
        source: serde_json::Error,
    },
}

pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn api(action: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let action = action.into();
        |source| Self::Api { action, source: Box::new(source) }
    }

    pub(crate) fn broker(action: impl Into<String>) -> impl FnOnce(longshore_drivers::Error) -> Self {
        let action = action.into();
        |source| Self::Broker { action, source }
    }

    /// A CamelCase word from a finite set, for metrics, Events and conditions.
    pub(crate) fn category(&self) -> &'static str {
        match self {
            Self::Api { source, .. } => match source.as_ref() {
                kube::Error::Api(status) if status.is_conflict() => "Conflict",
                kube::Error::Api(status) if status.message.contains("being terminated") => {
                    "NamespaceTerminating"
                }
                kube::Error::Api(status) if status.is_forbidden() => "Forbidden",
                kube::Error::Api(status) if status.code == 422 => "Refused",
                kube::Error::Api(_) => "ApiError",
                _ => "ApiUnreachable",
            },
            Self::Broker { source, .. } => match source.kind {
                ErrorKind::Unavailable | ErrorKind::Timeout => "BrokerUnavailable",
                ErrorKind::Unauthorized => "BrokerUnauthorized",
                ErrorKind::Conflict => "OwnedByAnother",
                _ => "BrokerError",
            },
            Self::Incomplete(_) => "Incomplete",
            Self::Deadline(_) => "Deadline",
            Self::NotNow(_) => "NotNow",
            Self::NoThread(_) => "NoThread",
            Self::LeadershipLost => "LeadershipLost",
            Self::Encode { .. } => "Encode",
        }
    }

    /// The API server's words, if it said that it will not take this.
    pub(crate) fn refusal(&self) -> Option<String> {
        let Self::Api { source, .. } = self else {
            return None;
        };
        let kube::Error::Api(status) = source.as_ref() else {
            return None;
        };
        let by_admission = status.code == 403
            && (status.message.contains("admission") || status.message.contains("denied the request"));
        let untyped = status.code == 500 && status.message.contains("failed to create typed patch object");
        (matches!(status.code, 400 | 422) || by_admission || untyped).then(|| status.message.clone())
    }

    /// Whether the API server said that the object changed meanwhile.
    pub(crate) fn is_conflict(&self) -> bool {
        self.category() == "Conflict"
    }

    /// The error and its causes, once.
    pub(crate) fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}
