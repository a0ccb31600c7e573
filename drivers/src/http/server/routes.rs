//! The routes as data: the router is built from this table, and the API's description is compared with it.

use super::{super::Effect, Api, answer::problem, handlers, wake};
use crate::{Error, ErrorKind};
use axum::{
    Router,
    extract::{Request, State},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{MethodRouter, delete, get, post, put},
};
use http::StatusCode;
use std::time::Duration;

/// What a route is for, and so who mounts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Adding jobs.
    Producer,
    /// Running jobs.
    Worker,
    /// Looking at queues and jobs, and mending them.
    Inspection,
    /// Owning the broker.
    Operator,
}

impl Group {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Producer, Self::Worker, Self::Inspection, Self::Operator];
}

/// The method of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "HTTP's own words")]
pub enum Verb {
    Get,
    Put,
    Post,
    Delete,
}

/// How long a request may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Patience {
    Call,
    /// As long as it asked to wait, and a call.
    Wait,
    /// Until one side goes away.
    Stream,
}

/// One route.
#[derive(Debug, Clone, Copy)]
pub struct Route {
    /// The method.
    pub verb: Verb,
    /// The path; segments in braces are parameters.
    pub path: &'static str,
    /// What it is for.
    pub group: Group,
    effect: Effect,
    patience: Patience,
    handler: fn() -> MethodRouter<Api>,
}

macro_rules! routes {
    ($($verb:ident $path:literal $group:ident $effect:ident $patience:ident => $method:ident($handler:expr),)*) => {
        &[$(Route {
            verb: Verb::$verb,
            path: $path,
            group: Group::$group,
            effect: Effect::$effect,
            patience: Patience::$patience,
            handler: || $method($handler),
        }),*]
    };
}

/// Every route of the API.
pub const ROUTES: &[Route] = routes![
    Post "/v1/queues/{queue}/jobs" Producer Changes Call => post(handlers::enqueue),
    Post "/v1/queues/{queue}/claim" Worker Changes Wait => post(handlers::claim),
    Post "/v1/queues/{queue}/extend" Worker Changes Call => post(handlers::extend),
    Post "/v1/queues/{queue}/settle" Worker Changes Call => post(handlers::settle),
    Get "/v1/queues/{queue}/stats" Inspection Reads Call => get(handlers::stats),
    Get "/v1/queues/{queue}/jobs" Inspection Reads Call => get(handlers::list),
    Get "/v1/queues/{queue}/jobs/{id}" Inspection Reads Call => get(handlers::inspect),
    Post "/v1/queues/{queue}/results" Inspection Reads Call => post(handlers::results),
    Post "/v1/queues/{queue}/cancel" Inspection Changes Call => post(handlers::cancel),
    Post "/v1/queues/{queue}/redrive" Inspection Changes Call => post(handlers::redrive),
    Post "/v1/queues/{queue}/purge" Inspection Changes Call => post(handlers::purge),
    Get "/v1/probe" Operator Reads Call => get(handlers::probe),
    Put "/v1/queues/{queue}" Operator Changes Call => put(handlers::declare),
    Delete "/v1/queues/{queue}" Operator Changes Call => delete(handlers::delete),
    Post "/v1/queues/{queue}/unpin" Operator Changes Call => post(handlers::unpin),
    Post "/v1/completions/{address}/read" Operator Changes Wait => post(handlers::read_completions),
    Post "/v1/completions/{address}/acknowledge" Operator Changes Call => post(handlers::acknowledge),
    Get "/v1/wake" Operator Reads Stream => get(wake::wake),
];

/// The routes of `groups`.
pub(super) fn router(api: &Api, groups: &[Group]) -> Router {
    let limits = &api.shared.limits;
    let mut router = Router::new();
    for route in ROUTES.iter().filter(|route| groups.contains(&route.group)) {
        let patience = match route.patience {
            Patience::Call => Some(limits.call),
            Patience::Wait => Some(limits.wait + limits.call),
            Patience::Stream => None,
        };
        let bound = from_fn_with_state(Bound { group: route.group, effect: route.effect, patience }, within);
        router = router.route(route.path, (route.handler)().layer(bound));
    }
    router
        .fallback(async || no_route(StatusCode::NOT_FOUND))
        .method_not_allowed_fallback(async || no_route(StatusCode::METHOD_NOT_ALLOWED))
        .with_state(api.clone())
}

/// What a route is told about its requests.
#[derive(Debug, Clone, Copy)]
struct Bound {
    group: Group,
    effect: Effect,
    patience: Option<Duration>,
}

/// Says whose request it is, and ends one that takes too long, its body included.
async fn within(State(bound): State<Bound>, mut request: Request, next: Next) -> Response {
    let Bound { group, effect, patience } = bound;
    request.extensions_mut().insert(group);
    let call = next.run(request);
    let Some(patience) = patience else {
        return call.await;
    };
    tokio::time::timeout(patience, call).await.unwrap_or_else(|_| {
        Error::new(effect.late(), format!("not done within {} s", patience.as_secs_f32())).into_response()
    })
}

/// Not `NotFound`: to a caller that would mean an unknown queue, where an older server just lacks a route.
fn no_route(status: StatusCode) -> Response {
    problem(Some(status), Error::new(ErrorKind::Unsupported, "this API has no such route"))
}
