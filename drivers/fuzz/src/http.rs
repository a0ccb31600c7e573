//! Requests to every route, in process.

use axum::body::Body;
use http::{Method, Request, StatusCode, header::CONTENT_TYPE};
use http_body_util::BodyExt;
use longshore_drivers::{
    Declaration, DynDriver, Owner, QueueSettings,
    http::{
        PROBLEM_JSON, Problem,
        server::{ApiLimits, ROUTES, Tokens, Verb, broker_router},
    },
    memory::Memory,
};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tower_service::Service;

/// A route, flags, and then, apart by zero bytes: a path segment, a query, a header's name and value, the body.
///
/// Nothing panics, no answer is an internal error, every refusal is a problem in JSON, every success JSON or empty.
pub(crate) fn http(data: &[u8]) {
    let [route, flags, rest @ ..] = data else {
        return;
    };
    let route = &ROUTES[usize::from(*route) % ROUTES.len()];
    let mut parts = rest.splitn(5, |byte| *byte == 0);
    let mut next = || parts.next().unwrap_or_default();
    let (segment, query, name, value, body) = (next(), next(), next(), next(), next());
    let segment = if flags & 1 == 0 { "emails".into() } else { String::from_utf8_lossy(segment) };
    let mut path = String::new();
    for part in route.path.split('/').skip(1) {
        path.push('/');
        path.push_str(if part.starts_with('{') { &segment } else { part });
    }
    if !query.is_empty() {
        path.push('?');
        path.push_str(&String::from_utf8_lossy(query));
    }
    let method = match route.verb {
        Verb::Get => Method::GET,
        Verb::Put => Method::PUT,
        Verb::Post => Method::POST,
        Verb::Delete => Method::DELETE,
    };
    let mut request = Request::builder().method(method).uri(path);
    if flags & 2 == 0 {
        request = request.header("authorization", "Bearer token");
    }
    if flags & 4 == 0 {
        request = request.header(CONTENT_TYPE, "application/json");
    }
    if !name.is_empty() {
        request = request.header(name, value);
    }
    // What is no request never reaches a handler.
    let Ok(request) = request.body(Body::from(body.to_vec())) else {
        return;
    };
    let streams = route.path == "/v1/wake";
    // Waits are over at once: nobody else is there.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(ask(request, streams));
}

async fn ask(request: Request<Body>, streams: bool) {
    let driver: DynDriver = Arc::new(Memory::default());
    let declaration = Declaration {
        owner: Owner { installation: "i".into(), uid: "u".into() },
        settings: QueueSettings::default(),
        adopt: false,
    };
    driver.declare(&"emails".parse().expect("a name"), declaration).await.expect("a queue");
    let tokens = Arc::new(Tokens::fixed(["token"]));
    let mut router = broker_router(driver, tokens, ApiLimits::default(), CancellationToken::new());
    let response = router.call(request).await.expect("the router never fails");
    let (head, body) = response.into_parts();
    assert_ne!(head.status, StatusCode::INTERNAL_SERVER_ERROR, "an internal error");
    if streams && head.status.is_success() {
        return;
    }
    let body = body.collect().await.expect("a whole body").to_bytes();
    if head.status.is_client_error() || head.status.is_server_error() {
        let kind = head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        assert_eq!(kind, Some(PROBLEM_JSON), "{} is no problem", head.status);
        let problem: Problem = serde_json::from_slice(&body).expect("a problem in JSON");
        assert_eq!(problem.status, head.status.as_u16());
        assert!(!problem.detail.is_empty(), "it says nothing");
    } else if !body.is_empty() {
        drop(serde_json::from_slice::<serde_json::Value>(&body).expect("an answer in JSON"));
    }
}
