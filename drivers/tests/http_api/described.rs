//! Requests and answers of every route are as `docs/openapi.yaml` says, and what it refuses the server refuses too.

use super::{TOKEN, description::description, raw, schema::Schemas};
use longshore_drivers::{
    Address, DynDriver, Wake,
    http::server::{ApiLimits, ROUTES, ServeLimits, Tokens, broker_router, serve},
    memory::Memory,
};
use serde_json::{Value, json};
use std::{cell::RefCell, collections::BTreeSet, net::SocketAddr, sync::Arc};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const QUEUE: &str = "/v1/queues/a.b.c";

/// A server over the reference model, and its description.
struct Described {
    address: SocketAddr,
    description: Value,
    /// What was called.
    called: RefCell<BTreeSet<String>>,
}

/// One answer: its status and its JSON, `null` without a body.
type Told = (u16, Value);

impl Described {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let driver: DynDriver = Arc::new(Memory::new());
        let (tokens, stop) = (Arc::new(Tokens::fixed([TOKEN])), CancellationToken::new());
        let app = broker_router(driver, tokens, ApiLimits::default(), stop.clone());
        tokio::spawn(serve(listener, app, ServeLimits::default(), stop));
        let server = Self { address, description: description(), called: RefCell::default() };
        server.declare().await;
        server
    }

    async fn declare(&self) {
        let settings = json!({ "maxDepth": 100, "maxDeliveries": 3, "retainCompletedMs": 60_000,
            "retainDeadMs": 60_000, "paused": false });
        let declaration =
            json!({ "owner": { "installation": "i", "uid": "u" }, "settings": settings, "adopt": false });
        assert_eq!(self.call("PUT", QUEUE, Some(declaration)).await.0, 200);
    }

    /// The operation behind a request, whose path has parameters.
    fn operation(&self, method: &str, path: &str) -> &Value {
        let path = path.split('?').next().unwrap();
        let fits = |template: &str| {
            let fits = |(part, wanted): (&str, &str)| part == wanted || wanted.starts_with('{');
            template.matches('/').count() == path.matches('/').count()
                && path.split('/').zip(template.split('/')).all(fits)
        };
        let paths = self.description["paths"].as_object().unwrap();
        let (_, item) = paths.iter().find(|(template, _)| fits(template)).unwrap();
        &item[method.to_lowercase()]
    }

    /// Whether the description lets a body through.
    fn allows(&self, method: &str, path: &str, body: &Value) -> Result<(), String> {
        let schemas = Schemas::of(&self.description);
        let request = schemas.resolve(&self.operation(method, path)["requestBody"]);
        schemas.check(&request["content"]["application/json"]["schema"], body)
    }

    async fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Told {
        let body = body.map(Value::to_string).unwrap_or_default();
        let answer = raw::send(self.address, method, path, &body).await;
        let json = if answer.body.is_empty() { Value::Null } else { answer.json() };
        (answer.status, json)
    }

    /// Sends what the description allows, and compares the answer with it.
    async fn call(&self, method: &str, path: &str, body: Option<Value>) -> Told {
        let operation = self.operation(method, path);
        self.called.borrow_mut().insert(operation["operationId"].as_str().unwrap().to_owned());
        if let Some(body) = &body {
            self.allows(method, path, body).unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        }
        let told = self.send(method, path, body.as_ref()).await;
        self.compare(operation, &told).unwrap_or_else(|error| panic!("{method} {path} {told:?}: {error}"));
        told
    }

    fn compare(&self, operation: &Value, (status, json): &Told) -> Result<(), String> {
        let schemas = Schemas::closed(&self.description);
        let responses = &operation["responses"];
        let response = responses.get(status.to_string()).or_else(|| responses.get("default"));
        let response = schemas.resolve(response.ok_or("no such status")?);
        match response.get("content").and_then(Value::as_object) {
            Some(content) => schemas.check(&content.values().next().unwrap()["schema"], json),
            None if json.is_null() => Ok(()),
            None => Err("nothing is described".to_owned()),
        }
    }

    async fn post(&self, what: &str, body: Value) -> Value {
        let (status, json) = self.call("POST", &format!("{QUEUE}/{what}"), Some(body)).await;
        assert_eq!(status, 200, "{what}: {json}");
        json
    }

    async fn enqueue(&self, ids: &[&str]) {
        let notify = json!({ "address": "here", "context": "c" });
        let jobs = ids.iter().map(|id| json!({ "id": id, "type": "t", "notify": notify }));
        self.post("jobs", json!({ "jobs": jobs.collect::<Vec<_>>() })).await;
    }

    async fn receipts(&self) -> Vec<Value> {
        let claim = json!({ "max": 100, "waitMs": 0, "leaseMs": 60_000, "worker": "w" });
        let claimed = self.post("claim", claim).await;
        claimed["jobs"].as_array().unwrap().iter().map(|job| job["receipt"].clone()).collect()
    }
}

#[tokio::test]
async fn every_route_speaks_as_it_is_described() {
    let server = Described::start().await;
    enqueues(&server).await;
    settles(&server).await;
    looks(&server).await;
    mends(&server).await;
    completions(&server).await;
    owns(&server).await;
    let mut called = server.called.take();
    for hint in [
        json!({ "wake": "heartbeat" }),
        serde_json::to_value(Wake::Queue { queue: "a.b.c".parse().unwrap() }).unwrap(),
        serde_json::to_value(Wake::Completions { address: Address::new("a").unwrap() }).unwrap(),
    ] {
        let operation = server.operation("GET", "/v1/wake");
        server.compare(operation, &(200, hint)).unwrap();
        called.insert("wake".to_owned());
    }
    assert_eq!(called.len(), ROUTES.len() + 2, "some are never called: {called:?}");
}

async fn enqueues(server: &Described) {
    let full = json!({ "id": "full", "type": "t/v1", "payload": { "json": { "a": [1, null] } }, "delayMs": 0,
        "overrides": { "maxAttempts": 3, "timeoutMs": 1 }, "headers": { "traceparent": "x" },
        "notify": { "address": "here", "context": "c" } });
    let image = json!({ "type": "t", "payload": { "contentType": "image/png", "base64": "AAEC" } });
    let jobs = json!([full, image, { "type": "t", "payload": { "json": null }, "delayMs": 1000 }, full]);
    let added = server.post("jobs", json!({ "jobs": jobs })).await;
    assert!(added["results"][3]["ok"]["duplicate"].is_object(), "{added}");
    let other = json!([{ "id": "full", "type": "t", "payload": { "json": 1 } }]);
    let refused = server.post("jobs", json!({ "jobs": other })).await;
    assert_eq!(refused["results"][0]["error"]["kind"], "Conflict");
    let unknown = server.call("POST", "/v1/queues/no.such/jobs", Some(json!({ "jobs": other }))).await;
    assert_eq!(unknown.0, 404);
}

async fn settles(server: &Described) {
    server.enqueue(&["inline", "stored", "retry", "release", "bury"]).await;
    let receipts = server.receipts().await;
    assert_eq!(receipts.len(), 7);
    let extended =
        server.post("extend", json!({ "receipts": [receipts[0], "stale"], "leaseMs": 60_000 })).await;
    assert_eq!(extended["results"][1]["error"]["kind"], "StaleReceipt");
    let failure = json!({ "reason": "R", "message": "m" });
    let settles = [
        json!({ "succeed": {} }),
        json!({ "succeed": { "result": null } }),
        json!({ "succeed": { "result": { "json": 1 } } }),
        json!({ "succeed": { "result": { "contentType": "a/b", "base64": "AAEC".repeat(1000) } } }),
        json!({ "retry": { "delayMs": 0, "failure": failure } }),
        json!({ "release": { "delayMs": 1 } }),
        json!({ "bury": { "reason": "Rejected", "failure": failure } }),
        json!({ "release": {} }),
    ];
    let receipts = receipts.into_iter().chain([json!("stale")]);
    let settlements =
        receipts.zip(settles).map(|(receipt, settle)| json!({ "receipt": receipt, "settle": settle }));
    let settled = server.post("settle", json!({ "settlements": settlements.collect::<Vec<_>>() })).await;
    let errors = settled["results"].as_array().unwrap().iter().filter(|answer| answer["error"].is_object());
    assert_eq!(errors.count(), 1, "{settled}");
    // Known ids tell how they ended.
    server.enqueue(&["inline", "stored", "bury"]).await;
}

async fn looks(server: &Described) {
    server.call("GET", &format!("{QUEUE}/stats"), None).await;
    for state in ["ready", "scheduled", "retrying", "active", "succeeded", "dead", "cancelled"] {
        let (status, _) = server.call("GET", &format!("{QUEUE}/jobs?state={state}&limit=1"), None).await;
        assert_eq!(status, 200);
    }
    for (id, is_known) in
        [("inline", true), ("stored", true), ("bury", true), ("retry", true), ("no-such", false)]
    {
        let (_, told) = server.call("GET", &format!("{QUEUE}/jobs/{id}"), None).await;
        assert_eq!(told["job"].is_object(), is_known, "{id}: {told}");
    }
    let results = server.post("results", json!({ "ids": ["inline", "stored", "no-such"] })).await;
    assert_eq!(results["results"][0]["json"], 1, "{results}");
    assert!(results["results"][2].is_null());
}

async fn mends(server: &Described) {
    server.enqueue(&["waits"]).await;
    let cancelled = server.post("cancel", json!({ "ids": ["waits", "no-such"] })).await;
    assert_eq!(cancelled["results"][0]["ok"], "cancelled", "{cancelled}");
    assert!(cancelled["results"][1]["error"].is_object());
    let redriven = server.post("redrive", json!({ "ids": ["bury", "no-such"] })).await;
    assert!(redriven["results"][1]["error"].is_object(), "{redriven}");
    server.enqueue(&["purged"]).await;
    assert!(
        server.post("purge", json!({ "state": "ready", "limit": 100 })).await["purged"].as_u64() > Some(0)
    );
}

async fn completions(server: &Described) {
    let path = "/v1/completions/here/read";
    let read = json!({ "max": 100, "waitMs": 0, "leaseMs": 1000 });
    let (_, page) = server.call("POST", path, Some(read)).await;
    let completions = page["completions"].as_array().unwrap();
    let text = page.to_string();
    for outcome in ["inline", "stored", "dead", "\"cancelled\"", "\"purged\""] {
        assert!(text.contains(outcome), "no {outcome} in {text}");
    }
    let receipts: Vec<_> = completions.iter().map(|completion| completion["receipt"].clone()).collect();
    let body = json!({ "receipts": receipts });
    assert_eq!(server.call("POST", "/v1/completions/here/acknowledge", Some(body)).await.0, 204);
}

async fn owns(server: &Described) {
    server.call("GET", "/v1/probe", None).await;
    let unpin = json!({ "ids": ["inline", "no-such"] });
    assert_eq!(server.call("POST", &format!("{QUEUE}/unpin"), Some(unpin)).await.0, 204);
    let of = |uid: &str| format!("{QUEUE}?installation=i&uid={uid}");
    assert_eq!(server.call("DELETE", &of("somebody-else"), None).await.0, 409);
    assert_eq!(server.call("DELETE", &of("u"), None).await.0, 204);
    assert_eq!(server.call("GET", &format!("{QUEUE}/stats"), None).await.0, 404);
    server.call("GET", "/healthz", None).await;
    server.call("GET", "/readyz", None).await;
}

/// Whether all went well, down to the items.
fn is_fine((status, json): &Told) -> bool {
    let items = json["results"].as_array().into_iter().flatten();
    (200..300).contains(status) && items.into_iter().all(|item| item["error"]["kind"] != "Invalid")
}

const YEAR: u64 = 366 * 24 * 3600 * 1000;

/// Bodies at both sides of each bound, and fields that don't exist.
fn bodies() -> Vec<(&'static str, Value)> {
    let failure = |extra: &str| json!({ "reason": "R", "message": "m", extra: "m" });
    let settle =
        |settle: Value| ("settle", json!({ "settlements": [{ "receipt": "stale", "settle": settle }] }));
    let job = |field: &str, value: Value| {
        let mut job = json!({ "type": "t" });
        job[field] = value;
        ("jobs", json!({ "jobs": [job] }))
    };
    let mut bodies =
        vec![("jobs", json!({})), ("jobs", json!({ "jobs": [{}] })), ("claim", json!({ "max": 1 }))];
    for max in [0, 1, 1000, 1001, u64::from(u32::MAX), u64::from(u32::MAX) + 1] {
        bodies.push(("claim", json!({ "max": max, "leaseMs": 1 })));
        bodies.push(("purge", json!({ "state": "dead", "limit": max })));
        bodies.push(("/v1/completions/a/read", json!({ "max": max, "leaseMs": 1 })));
        bodies.push(job("overrides", json!({ "maxAttempts": max })));
    }
    for millis in [0, 1, 10_000, 10_001, YEAR, YEAR + 1] {
        bodies.push(("claim", json!({ "max": 1, "leaseMs": millis })));
        bodies.push(("extend", json!({ "receipts": [], "leaseMs": millis })));
        bodies.push(("/v1/completions/a/read", json!({ "max": 1, "leaseMs": millis })));
        bodies.push(job("delayMs", json!(millis)));
        bodies.push(job("overrides", json!({ "timeoutMs": millis })));
        bodies.push(settle(json!({ "release": { "delayMs": millis } })));
        bodies.push(settle(json!({ "retry": { "delayMs": millis, "failure": failure("message") } })));
    }
    for state in ["ready", "scheduled", "retrying", "active", "succeeded", "dead", "cancelled", "other"] {
        bodies.push(("purge", json!({ "state": state, "limit": 1 })));
    }
    for (field, value) in [
        ("id", json!(null)),
        ("id", json!("")),
        ("id", json!("a b")),
        ("id", json!("x".repeat(201))),
        ("id", json!("x".repeat(200))),
        ("type", json!("")),
        ("type", json!("a b")),
        ("type", json!("\"")),
        ("type", json!("\\")),
        ("type", json!("!~[]/")),
        ("type", json!("ü")),
        ("type", json!("x".repeat(128))),
        ("type", json!("x".repeat(129))),
        ("payload", json!({})),
        ("payload", json!(null)),
        ("payload", json!({ "jsn": 1 })),
        ("payload", json!({ "json": null })),
        ("headers", json!({ "a": 1 })),
        ("overrides", json!({ "no": 1 })),
        ("overrides", json!({ "maxAttempts": null, "timeoutMs": null })),
        ("notify", json!(null)),
        ("notify", json!({ "address": "" })),
        ("notify", json!({ "address": "A" })),
        ("notify", json!({ "address": "x".repeat(63) })),
        ("notify", json!({ "address": "x".repeat(64) })),
        ("notify", json!({ "address": "a", "no": 1 })),
        ("no", json!(1)),
        ("delayMs", json!(-1)),
        ("delayMs", json!(1.5)),
    ] {
        bodies.push(job(field, value));
    }
    for (way, content) in [
        ("succeed", json!({})),
        ("succeed", json!({ "resutl": 1 })),
        ("succeed", json!({ "result": { "jsn": 1 } })),
        ("succeed", json!({ "result": null })),
        ("retry", json!({})),
        ("retry", json!({ "failure": failure("no") })),
        ("bury", json!({ "reason": "Rejected", "failure": failure("message") })),
        ("bury", json!({ "reason": "Bored", "failure": failure("message") })),
        ("bury", json!({ "reason": "Rejected", "failure": failure("no") })),
        ("release", json!({ "no": 1 })),
        ("forget", json!({})),
    ] {
        bodies.push(settle(json!({ way: content })));
    }
    bodies.push(settle(json!({ "succeed": {}, "release": {} })));
    bodies.extend(lists());
    bodies
}

fn lists() -> [(&'static str, Value); 3] {
    [
        ("redrive", json!({ "ids": ["a b"] })),
        ("extend", json!({ "receipts": ["a"], "leaseMs": 1, "no": 1 })),
        ("extend", json!({ "receipts": vec!["a"; 1001], "leaseMs": 1 })),
    ]
}

#[tokio::test]
async fn the_server_refuses_what_the_description_refuses() {
    let server = Described::start().await;
    for (what, body) in bodies() {
        let path = if what.starts_with('/') { what.to_owned() } else { format!("{QUEUE}/{what}") };
        let allowed = server.allows("POST", &path, &body);
        let told = server.send("POST", &path, Some(&body)).await;
        assert_eq!(allowed.is_ok(), is_fine(&told), "{what} {body}: {allowed:?}, but {told:?}");
    }
    for (limit, is_good) in [("0", false), ("1", true), ("4294967295", true), ("4294967296", false)] {
        let told = server.send("GET", &format!("{QUEUE}/jobs?state=dead&limit={limit}"), None).await;
        assert_eq!(is_fine(&told), is_good, "{limit}: {told:?}");
    }
}
