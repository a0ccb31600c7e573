//! The headers of the protocol, in both directions. Pure.

use crate::outcome::Wanted;
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Uri,
    header::{CONTENT_TYPE, RETRY_AFTER},
};
use http_body_util::Full;
use longshore_drivers::{Claimed, Timestamp, policy::QueuePolicy};
use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

/// Whether a header travels from a producer to the app. Everything else belongs to a connection or to this protocol.
pub(crate) fn travels(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    matches!(name.as_str(), TRACE | "tracestate" | "baggage") || name.starts_with("job-meta-")
}

const TRACE: &str = "traceparent";

/// The headers of `job` that travel, and a trace for it if its producer started none.
fn travelling(job: &Claimed) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
    let own = job.headers.iter().filter(|(name, _)| travels(name));
    let own = own.map(|(name, value)| (name.clone(), value.clone()));
    let is_traced = job.headers.keys().any(|name| name.eq_ignore_ascii_case(TRACE));
    let made = (!is_traced).then(|| (TRACE.to_owned(), trace(job.id.as_str())));
    // What is no header can't be sent; the broker checks them when they come in.
    own.chain(made).filter_map(|(name, value)| {
        Some((HeaderName::try_from(name).ok()?, HeaderValue::try_from(value).ok()?))
    })
}

/// The trace of a job whose producer started none: made of its id, so that all attempts on whichever pod share it. It is
/// sampled, as it would be if the app had started it itself.
fn trace(id: &str) -> String {
    let part = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        (salt, id).hash(&mut hasher);
        // Zero is no id.
        hasher.finish().max(1)
    };
    format!("00-{:016x}{:016x}-{:016x}-01", part(0), part(1), part(2))
}

/// What a pulled job is told beside its payload: what a pushed one finds in its request.
pub(crate) fn told(job: &Claimed, queue: &QueuePolicy, now: Timestamp) -> BTreeMap<String, String> {
    let timeout = queue.timeout_of(&job.overrides);
    let text = |value: HeaderValue| value.to_str().map(str::to_owned).unwrap_or_default();
    let mut headers: BTreeMap<_, _> =
        travelling(job).map(|(name, value)| (name.as_str().to_owned(), text(value))).collect();
    headers.extend([
        ("job-max-attempts".to_owned(), queue.max_attempts_of(&job.overrides).to_string()),
        ("job-deadline".to_owned(), rfc3339(now.after(timeout))),
        ("job-timeout-ms".to_owned(), timeout.as_millis().to_string()),
    ]);
    headers
}

/// The request that hands `job` to the app at `now`.
pub(crate) fn request(
    uri: &Uri,
    namespace: &str,
    queue: &QueuePolicy,
    job: &Claimed,
    now: Timestamp,
) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(job.payload.bytes.clone()));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = uri.clone();
    let headers = request.headers_mut();
    headers.extend(travelling(job));
    let timeout = queue.timeout_of(&job.overrides);
    let id = job.id.as_str();
    let lines = [
        ("content-type", job.payload.content_type.clone()),
        ("ce-specversion", "1.0".to_owned()),
        ("ce-id", id.to_owned()),
        ("ce-type", escaped(&job.job_type)),
        ("ce-source", format!("/namespaces/{namespace}/queues/{}", queue.name)),
        ("ce-time", rfc3339(job.enqueued_at)),
        ("job-id", id.to_owned()),
        ("job-type", job.job_type.clone()),
        ("job-queue", queue.name.clone()),
        ("job-attempt", job.attempt.to_string()),
        ("job-max-attempts", queue.max_attempts_of(&job.overrides).to_string()),
        ("job-delivery", job.delivery.to_string()),
        ("job-deadline", rfc3339(now.after(timeout))),
        ("job-timeout-ms", timeout.as_millis().to_string()),
        ("job-receipt", job.receipt.0.clone()),
        ("idempotency-key", id.to_owned()),
    ];
    let key = job.ordering_key.clone().map(|key| ("job-ordering-key", key));
    for (name, value) in lines.into_iter().chain(key) {
        // What is no header value can't be sent; the broker checks types and media types when they come in.
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    if let Some(context) = headers.get(TRACE).cloned() {
        headers.insert(HeaderName::from_static("ce-traceparent"), context);
    }
    request
}

/// `CloudEvents` escapes `%` in header values; the other characters that it escapes are not legal in a job's type.
fn escaped(text: &str) -> String {
    text.replace('%', "%25")
}

/// An instant as UTC text with milliseconds.
pub(crate) fn rfc3339(at: Timestamp) -> String {
    jiff::Timestamp::from_millisecond(at.as_millis()).map_or_else(|_| String::new(), |at| format!("{at:.3}"))
}

/// What the headers of an answer say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Refinement {
    pub(crate) wanted: Option<Wanted>,
    pub(crate) retry_after: Option<Duration>,
    pub(crate) error: Option<String>,
}

/// Reads what refines the status. Headers that make no sense are as good as absent.
pub(crate) fn refinement(headers: &HeaderMap, now: Timestamp) -> Refinement {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    Refinement {
        wanted: text("job-outcome").and_then(Wanted::parse),
        retry_after: text(RETRY_AFTER.as_str()).and_then(|text| retry_after(text, now)),
        error: headers
            .get("job-error")
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
            .filter(|text| !text.is_empty()),
    }
}

/// Seconds, or a date whose distance from `now` counts.
fn retry_after(text: &str, now: Timestamp) -> Option<Duration> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // Digits that are too many mean a very long time.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let date = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    Some(Timestamp::from_millis(date.as_millisecond()).since(now))
}

/// The media type of an answer as it is kept. UTF-8 is what JSON is anyway; saying so must not make it something else.
pub(crate) fn media_type(headers: &HeaderMap) -> String {
    let text = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (essence, parameters) = text.split_once(';').unwrap_or((text, ""));
    let parameters = parameters.trim().to_ascii_lowercase().replace('"', "");
    let is_json = essence.trim().eq_ignore_ascii_case("application/json");
    if is_json && (parameters.is_empty() || parameters == "charset=utf-8") {
        return "application/json".to_owned();
    }
    if text.is_empty() || text.len() > longshore_drivers::Limits::CONTENT_TYPE {
        return "application/octet-stream".to_owned();
    }
    text.to_owned()
}

/// Whether a body of this media type can be shown to people.
pub(crate) fn is_text(media_type: &str) -> bool {
    let essence = media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence.starts_with("text/") || essence.ends_with("json") || essence.ends_with("xml")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{claimed, queue};

    const NOW: Timestamp = Timestamp::from_millis(784_111_777_000);

    fn sent(job: &Claimed) -> HeaderMap {
        let uri = Uri::from_static("http://127.0.0.1:8080/jobs");
        let request = request(&uri, "shop", &queue("emails"), job, NOW);
        assert_eq!(request.method(), Method::POST);
        request.into_parts().0.headers
    }

    #[test]
    fn a_job_travels_as_a_cloud_event_with_its_numbers() {
        let mut job = claimed("job-1", 2);
        job.delivery = 4;
        job.job_type = "50%.off".into();
        let headers = sent(&job);
        let expected = [
            ("content-type", "application/json"),
            ("ce-specversion", "1.0"),
            ("ce-id", "job-1"),
            ("ce-type", "50%25.off"),
            ("ce-source", "/namespaces/shop/queues/emails"),
            ("ce-time", "2023-11-14T22:13:20.123Z"),
            ("job-id", "job-1"),
            ("job-type", "50%.off"),
            ("job-queue", "emails"),
            ("job-attempt", "2"),
            ("job-max-attempts", "5"),
            ("job-delivery", "4"),
            ("job-deadline", "1994-11-06T08:50:07.000Z"),
            ("job-timeout-ms", "30000"),
            ("job-receipt", "receipt-of-job-1"),
            ("idempotency-key", "job-1"),
            ("traceparent", &trace("job-1")),
            ("ce-traceparent", &trace("job-1")),
        ];
        for (name, value) in expected {
            assert_eq!(headers[name], value, "{name}");
        }
        assert_eq!(headers.len(), expected.len());
    }

    #[test]
    fn producers_add_headers_but_replace_none_of_ours() {
        let mut job = claimed("job-1", 1);
        for (name, value) in [
            ("traceparent", "00-1-2-01"),
            ("Job-Meta-Tenant", "42"),
            ("Job-Id", "spoofed"),
            ("Job-Ordering-Key", "spoofed"),
            ("ce-id", "spoofed"),
            ("Host", "evil"),
            ("Transfer-Encoding", "chunked"),
            ("Content-Length", "0"),
            ("Authorization", "spoofed"),
            ("bad name", "x"),
        ] {
            job.headers.insert(name.into(), value.into());
        }
        let headers = sent(&job);
        assert_eq!(headers["traceparent"], "00-1-2-01");
        assert_eq!(headers["ce-traceparent"], "00-1-2-01");
        assert_eq!(headers["job-meta-tenant"], "42");
        assert_eq!(headers["job-id"], "job-1");
        assert_eq!(headers["ce-id"], "job-1");
        for absent in ["host", "transfer-encoding", "content-length", "authorization", "job-ordering-key"] {
            assert!(!headers.contains_key(absent), "{absent}");
        }
    }

    #[test]
    fn a_job_with_an_ordering_key_tells_it() {
        let mut job = claimed("job-1", 1);
        job.ordering_key = Some("customer:42".into());
        job.headers.insert("Job-Ordering-Key".into(), "spoofed".into());
        let headers = sent(&job);
        let told: Vec<_> = headers.get_all("job-ordering-key").iter().collect();
        assert_eq!(told, ["customer:42"]);
    }

    #[test]
    fn a_job_without_a_trace_gets_the_same_one_for_all_its_attempts() {
        let (first, second) = (sent(&claimed("job-1", 1)), sent(&claimed("job-1", 2)));
        assert_eq!(first[TRACE], second[TRACE]);
        assert_ne!(first[TRACE], sent(&claimed("job-2", 1))[TRACE]);
        let parts: Vec<_> = first[TRACE].to_str().unwrap().split('-').map(str::len).collect();
        assert_eq!(parts, [2, 32, 16, 2]);
    }

    #[test]
    fn a_pulled_job_is_told_its_bounds() {
        let mut job = claimed("job-1", 1);
        job.overrides.max_attempts = Some(9);
        job.headers.insert("Job-Meta-Tenant".into(), "42".into());
        job.headers.insert("job-deadline".into(), "never".into());
        let told = told(&job, &queue("emails"), NOW);
        for (name, value) in [
            ("job-max-attempts", "9"),
            ("job-deadline", "1994-11-06T08:50:07.000Z"),
            ("job-timeout-ms", "30000"),
            ("job-meta-tenant", "42"),
            (TRACE, &trace("job-1")),
        ] {
            assert_eq!(told[name], value, "{name}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        for (text, expected) in [
            ("0", Some(0)),
            (" 120 ", Some(120)),
            ("Sun, 06 Nov 1994 08:49:47 GMT", Some(10)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("99999999999999999999999", Some(u64::MAX)),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(retry_after(text, NOW).map(|wait| wait.as_secs()), expected, "{text:?}");
        }
    }

    #[test]
    fn answers_are_refined_by_their_headers() {
        let mut headers = HeaderMap::new();
        assert_eq!(refinement(&headers, NOW), Refinement::default());
        headers.insert("job-outcome", HeaderValue::from_static("dead"));
        headers.insert("retry-after", HeaderValue::from_static("7"));
        headers.insert("job-error", HeaderValue::from_bytes(b"na\xefve").unwrap());
        let read = refinement(&headers, NOW);
        assert_eq!(read.wanted, Some(Wanted::Dead));
        assert_eq!(read.retry_after, Some(Duration::from_secs(7)));
        assert_eq!(read.error.as_deref(), Some("na\u{fffd}ve"));
    }

    #[test]
    fn json_with_its_own_charset_stays_json() {
        for (sent, kept) in [
            ("application/json", "application/json"),
            ("application/JSON; charset=UTF-8", "application/json"),
            ("application/json;charset=\"utf-8\"", "application/json"),
            ("application/json; profile=x", "application/json; profile=x"),
            ("text/html; charset=utf-8", "text/html; charset=utf-8"),
            ("", "application/octet-stream"),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(sent));
            assert_eq!(media_type(&headers), kept);
        }
    }
}
