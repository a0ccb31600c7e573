//! Which replica leads, decided through a Lease.
//!
//! The lease saves work; it is not the fence. A check and the effect after it are never one step, so the writes of status
//! compare and swap. What this module promises is that a leader that could not renew, be it that it was cut off or
//! stopped, finds [`Leadership::is_leader`] false before anybody else may lead.

mod lease;

use anyhow::Context as _;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use lease::{Config, Decision, Observed, Record, Term, decide};
use longshore_crds::label;
use std::{
    collections::BTreeMap,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// How long one request may take: short enough that two fit between a renewal that succeeded and its deadline. The
/// client by itself would repeat a request for many minutes.
const REQUEST: Duration = Duration::from_secs(4);
/// How long giving the lease back may take. The process is about to end, and the lease ends by itself.
const RELEASE: Duration = Duration::from_secs(5);
/// How long the API server may refuse what we ask for, as before grants are known to it, until it is an error.
const REFUSED: Duration = Duration::from_secs(60);
/// Before looking again at a lease that somebody else wrote to at the same time.
const CHANGED: Duration = Duration::from_millis(200);

/// Whether this process leads, to be asked right before each batch of effects.
#[derive(Debug, Clone)]
pub(crate) struct Leadership(Arc<Validity>);

impl Leadership {
    /// Whether this process leads now. It compares clocks and asks nobody, so it is right in the first instruction after
    /// the process was stopped for a while, when no task has run yet.
    pub(crate) fn is_leader(&self) -> bool {
        self.0.covers(Instant::now())
    }

    /// Leadership that nobody contests.
    #[cfg(test)]
    pub(crate) fn always() -> Self {
        let validity = Validity::default();
        validity.until.store(u64::MAX, Ordering::SeqCst);
        Self(Arc::new(validity))
    }
}

/// Until when this process leads, by the monotonic clock, which goes on while a process is stopped.
#[derive(Debug)]
struct Validity {
    base: Instant,
    /// Milliseconds after `base`.
    until: AtomicU64,
}

impl Default for Validity {
    fn default() -> Self {
        Self { base: Instant::now(), until: AtomicU64::new(0) }
    }
}

impl Validity {
    fn covers(&self, now: Instant) -> bool {
        // Rounded up, as `extend` rounds down: in doubt, not leading.
        let past = now.saturating_duration_since(self.base).as_nanos().div_ceil(1_000_000);
        past < u128::from(self.until.load(Ordering::SeqCst))
    }

    fn extend(&self, until: Instant) {
        let until = until.saturating_duration_since(self.base).as_millis();
        self.until.store(u64::try_from(until).unwrap_or(u64::MAX), Ordering::SeqCst);
    }

    fn end(&self) {
        self.until.store(0, Ordering::SeqCst);
    }
}

/// Why holding the lease ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Held {
    /// It could not be renewed in time, or it is somebody else's. The process has to exit.
    Lost,
    /// It was given back, as asked.
    Released,
}

/// A request that did not do what it should.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// Somebody else wrote to the lease.
    #[error("the lease changed")]
    Changed,
    /// The API server answered that it won't.
    #[error("failed to {action}")]
    Refused {
        action: &'static str,
        #[source]
        source: Box<kube::Error>,
    },
    /// The API server could not be reached, or it has troubles of its own.
    #[error("failed to {action}")]
    Unreachable {
        action: &'static str,
        #[source]
        source: Box<kube::Error>,
    },
    /// Nobody knows whether it happened.
    #[error("failed to {action}: no answer within {after:?}")]
    Unanswered { action: &'static str, after: Duration },
}

/// A process that leads or wants to.
#[derive(Debug)]
pub(crate) struct Election {
    api: Api<Lease>,
    name: String,
    identity: String,
    config: Config,
    validity: Arc<Validity>,
    /// The lease as the API server last showed it.
    lease: Option<Lease>,
    observed: Option<Observed>,
    /// The term that was begun, or that was tried to begin with a write whose fate is not known.
    term: Option<Term>,
    /// When the last renewal that succeeded was begun.
    last_renew: Option<Instant>,
}

impl Drop for Election {
    /// Nobody renews any more.
    fn drop(&mut self) {
        self.validity.end();
    }
}

impl Election {
    /// An election for the Lease `name` in `namespace`, in which this process is called `identity`.
    pub(crate) fn new(client: Client, namespace: &str, name: &str, identity: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            identity: identity.to_owned(),
            config: Config::default(),
            validity: Arc::default(),
            lease: None,
            observed: None,
            term: None,
            last_renew: None,
        }
    }

    /// Waits until this process leads, or until `stop`: then what is returned leads nothing. The one who called has to
    /// [`hold`](Self::hold) at once.
    ///
    /// # Errors
    /// The API server has refused for a minute what the election needs.
    pub(crate) async fn acquire(&mut self, stop: &CancellationToken) -> anyhow::Result<Leadership> {
        let mut refused_since = None;
        loop {
            let tried = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                tried = self.try_acquire() => tried,
            };
            let retry = Instant::now() + self.config.retry_after(roll());
            let next = match tried {
                Ok(None) => return Ok(Leadership(self.validity.clone())),
                Ok(Some(due)) => {
                    refused_since = None;
                    due.min(retry)
                }
                Err(failure) => {
                    let refused = matches!(failure, Failure::Refused { .. });
                    let since = refused.then(|| refused_since.unwrap_or_else(Instant::now));
                    refused_since = since;
                    let error = anyhow::Error::from(failure);
                    if since.is_some_and(|since| since.elapsed() >= REFUSED) {
                        return Err(error).context("failed to take part in the election of a leader");
                    }
                    tracing::warn!(lease = %self.name, error = format!("{error:#}"), "can't become the leader for now");
                    retry
                }
            };
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep_until(next.into()) => {}
            }
        }
        // The last write may have made us the leader, and nobody is going to hold it.
        self.validity.end();
        self.release().await;
        Ok(Leadership(self.validity.clone()))
    }

    /// Renews the lease until it is lost or until `stop`, and gives it back then, so that another goes on at once. From
    /// its end on, and however it ends, [`Leadership::is_leader`] is false.
    pub(crate) async fn hold(mut self, stop: &CancellationToken) -> Held {
        let lost = tokio::select! {
            biased;
            () = stop.cancelled() => false,
            () = self.renew_until_lost() => true,
        };
        self.validity.end();
        if lost {
            return Held::Lost;
        }
        self.release().await;
        Held::Released
    }

    /// `None` if this process leads now, else when there may be something to do.
    async fn try_acquire(&mut self) -> Result<Option<Instant>, Failure> {
        self.look(REQUEST).await?;
        let now = Instant::now();
        match self.decide(now) {
            Decision::Acquire => self.take(now).await.map(|()| None),
            Decision::WaitUntil(_) if self.left_by_this_pod() => self.take(now).await.map(|()| None),
            Decision::Renew => self.renew(now, REQUEST).await.map(|()| None),
            Decision::WaitUntil(due) => Ok(Some(due)),
            // Only who leads is told so.
            Decision::StepDown => Err(Failure::Changed),
        }
    }

    /// Whether the lease was left by the process that ran in this pod before. The kubelet starts a container again only
    /// after the one before it ended, and no two pods have one name: whatever holds the lease under it is dead.
    fn left_by_this_pod(&self) -> bool {
        let holder =
            self.observed.as_ref().and_then(|seen| seen.record.term.as_ref()).map(|term| &term.holder);
        self.term.is_none() && self.last_renew.is_none() && holder == Some(&self.identity)
    }

    async fn renew_until_lost(&mut self) {
        while let Some(last) = self.last_renew {
            let now = Instant::now();
            match self.decide(now) {
                Decision::WaitUntil(due) => tokio::time::sleep_until(due.into()).await,
                Decision::Renew => {
                    let deadline = last + self.config.renew_deadline;
                    if let Err(failure) = self.try_renew(now, deadline).await {
                        let changed = matches!(failure, Failure::Changed);
                        let error = anyhow::Error::from(failure);
                        tracing::warn!(lease = %self.name, error = format!("{error:#}"), "the lease was not renewed");
                        if self.decide(Instant::now()) == Decision::StepDown {
                            return;
                        }
                        let pause = if changed { CHANGED } else { self.config.retry };
                        tokio::time::sleep_until(deadline.min(now + pause).into()).await;
                    }
                }
                // Taking it anew is for a process that remembers nothing.
                Decision::StepDown | Decision::Acquire => return,
            }
        }
    }

    /// Renews, or sees why that can't be.
    async fn try_renew(&mut self, start: Instant, deadline: Instant) -> Result<(), Failure> {
        let left = || REQUEST.min(deadline.saturating_duration_since(Instant::now()));
        match self.renew(start, left()).await {
            Err(Failure::Changed) => {
                self.look(left()).await?;
                Err(Failure::Changed)
            }
            other => other,
        }
    }

    fn decide(&self, now: Instant) -> Decision {
        decide(self.term.as_ref(), self.observed.as_ref(), self.last_renew, now, &self.config)
    }

    async fn look(&mut self, budget: Duration) -> Result<(), Failure> {
        let lease = request("read the lease", budget, self.api.get_opt(&self.name)).await?;
        self.saw(lease);
        Ok(())
    }

    fn saw(&mut self, lease: Option<Lease>) {
        let now = Instant::now();
        let previous = self.observed.take();
        self.observed = lease.as_ref().map(|lease| Observed::next(previous, Record::of(&spec(lease)), now));
        self.lease = lease;
    }

    /// Begins a term, unless somebody was faster.
    async fn take(&mut self, start: Instant) -> Result<(), Failure> {
        let lease = self.lease.clone();
        let previous = lease.as_ref().map(spec).unwrap_or_default();
        let next = lease::acquired(&previous, &self.identity, wall_clock(), &self.config);
        self.term = Record::of(&next).term;
        let written = match lease {
            Some(lease) => self.replace(lease, next, REQUEST).await?,
            None => self.create(next).await?,
        };
        self.leads(written, start);
        Ok(())
    }

    async fn renew(&mut self, start: Instant, budget: Duration) -> Result<(), Failure> {
        let lease = self.lease.clone().ok_or(Failure::Changed)?;
        let next = lease::renewed(&spec(&lease), wall_clock(), &self.config);
        let written = self.replace(lease, next, budget).await?;
        self.leads(written, start);
        Ok(())
    }

    /// A write that was begun at `start` succeeded. What it is good for counts from there: the others may have seen it
    /// from then on, and the answer may have been waiting here while this process was stopped.
    fn leads(&mut self, written: Lease, start: Instant) {
        self.saw(Some(written));
        self.last_renew = Some(start);
        self.validity.extend(start + self.config.renew_deadline);
    }

    async fn create(&self, spec: LeaseSpec) -> Result<Lease, Failure> {
        let labels = BTreeMap::from([(label::MANAGED_BY.to_owned(), label::MANAGED_BY_VALUE.to_owned())]);
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                labels: Some(labels),
                ..ObjectMeta::default()
            },
            spec: Some(spec),
        };
        let parameters = PostParams::default();
        request("create the lease", REQUEST, self.api.create(&parameters, &lease)).await
    }

    /// Writes `spec` unless anybody wrote since `lease` was read: its resourceVersion goes along.
    async fn replace(&self, lease: Lease, spec: LeaseSpec, budget: Duration) -> Result<Lease, Failure> {
        let next = Lease { spec: Some(spec), ..lease };
        let parameters = PostParams::default();
        request("write the lease", budget, self.api.replace(&self.name, &parameters, &next)).await
    }

    /// Clears the holder if that is this process.
    async fn release(&mut self) {
        if self.term.is_none() {
            return;
        }
        match tokio::time::timeout(RELEASE, self.try_release()).await {
            Ok(Ok(())) => tracing::info!(lease = %self.name, "gave the lease back"),
            Ok(Err(failure)) => {
                let error = anyhow::Error::from(failure);
                tracing::warn!(lease = %self.name, error = format!("{error:#}"), "the lease was not given back");
            }
            Err(_elapsed) => tracing::warn!(lease = %self.name, "the lease was not given back in time"),
        }
        self.last_renew = None;
    }

    async fn try_release(&mut self) -> Result<(), Failure> {
        loop {
            // A renewal may have been on its way: what is stored can be newer than what we know.
            self.look(REQUEST).await?;
            let Some(lease) = self.lease.clone() else {
                return Ok(());
            };
            let current = spec(&lease);
            if Record::of(&current).term != self.term {
                return Ok(());
            }
            let next = lease::released(&current, wall_clock());
            match self.replace(lease, next, REQUEST).await {
                Err(Failure::Changed) => {}
                other => return other.map(|written| self.saw(Some(written))),
            }
        }
    }
}

fn spec(lease: &Lease) -> LeaseSpec {
    lease.spec.clone().unwrap_or_default()
}

/// For people who read the lease; nothing here compares it with a clock.
fn wall_clock() -> Timestamp {
    Timestamp::now()
}

fn roll() -> u8 {
    uuid::Uuid::new_v4().as_bytes()[0]
}

async fn request<T>(
    action: &'static str,
    budget: Duration,
    future: impl Future<Output = kube::Result<T>>,
) -> Result<T, Failure> {
    let Ok(answer) = tokio::time::timeout(budget, future).await else {
        return Err(Failure::Unanswered { action, after: budget });
    };
    answer.map_err(|error| match &error {
        kube::Error::Api(status) if status.code == 409 => Failure::Changed,
        // It was deleted. Where reading and creating find nothing, the namespace is missing, and waiting may not help.
        kube::Error::Api(status) if status.code == 404 && action == "write the lease" => Failure::Changed,
        kube::Error::Api(status) if (400..500).contains(&status.code) && status.code != 429 => {
            Failure::Refused { action, source: Box::new(error) }
        }
        _ => Failure::Unreachable { action, source: Box::new(error) },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::{
        Json, Router,
        extract::State,
        http::StatusCode,
        response::{IntoResponse, Response},
        routing::get,
    };
    use serde_json::{Value, json};
    use std::sync::Mutex;

    /// Long enough that a machine which stands still for a moment loses nothing.
    const LEASE: Duration = Duration::from_secs(8);
    const DEADLINE: Duration = Duration::from_secs(6);

    /// An API server that knows one lease and compares resourceVersions.
    #[derive(Clone, Default)]
    struct Server(Arc<Mutex<Stored>>);

    #[derive(Default)]
    struct Stored {
        lease: Option<Lease>,
        version: u64,
        /// Writes are done, but their answers never come.
        mute: bool,
        /// Nothing is answered at all.
        silent: bool,
        /// Everything is refused with this.
        refuse: Option<u16>,
    }

    impl Server {
        fn election(&self, identity: &str) -> Election {
            let path = "/apis/coordination.k8s.io/v1/namespaces/ns/leases";
            let app = Router::new()
                .route(path, axum::routing::post(write))
                .route(&format!("{path}/lease"), get(read).put(write))
                .with_state(self.clone());
            let mut election = Election::new(Client::new(app, "ns"), "ns", "lease", identity);
            election.config =
                Config { duration: LEASE, renew_deadline: DEADLINE, retry: Duration::from_millis(100) };
            election
        }

        fn set(&self, change: impl FnOnce(&mut Stored)) {
            change(&mut self.0.lock().unwrap());
        }

        fn spec(&self) -> LeaseSpec {
            spec(self.0.lock().unwrap().lease.as_ref().unwrap())
        }
    }

    fn status(code: u16, reason: &str) -> Response {
        let body = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason });
        (StatusCode::from_u16(code).unwrap(), Json(body)).into_response()
    }

    async fn troubles(server: &Server) -> Option<Response> {
        let (silent, refuse) = {
            let stored = server.0.lock().unwrap();
            (stored.silent, stored.refuse)
        };
        if silent {
            std::future::pending::<()>().await;
        }
        refuse.map(|code| status(code, "Forbidden"))
    }

    async fn read(State(server): State<Server>) -> Response {
        if let Some(trouble) = troubles(&server).await {
            return trouble;
        }
        match &server.0.lock().unwrap().lease {
            Some(lease) => Json(lease.clone()).into_response(),
            None => status(404, "NotFound"),
        }
    }

    async fn write(State(server): State<Server>, body: String) -> Response {
        if let Some(trouble) = troubles(&server).await {
            return trouble;
        }
        let mut lease: Lease = serde_json::from_str(&body).unwrap();
        let mute = {
            let mut stored = server.0.lock().unwrap();
            let found = stored.lease.as_ref().map(|lease| lease.metadata.resource_version.clone());
            if found.unwrap_or_default() != lease.metadata.resource_version {
                return status(409, "Conflict");
            }
            stored.version += 1;
            lease.metadata.resource_version = Some(stored.version.to_string());
            stored.lease = Some(lease.clone());
            stored.mute
        };
        if mute {
            std::future::pending::<()>().await;
        }
        Json(serde_json::to_value(&lease).unwrap_or(Value::Null)).into_response()
    }

    #[tokio::test]
    async fn a_leader_that_falls_silent_is_no_leader_before_another_one_is() {
        let (server, stop) = (Server::default(), CancellationToken::new());
        // Acquired and never renewed, as if the process had been stopped.
        let mut first = server.election("first");
        let stopped = first.acquire(&stop).await.unwrap();
        assert!(stopped.is_leader());
        let taken = Instant::now();
        let next = server.election("second").acquire(&stop).await;
        assert!(!stopped.is_leader());
        assert!(taken.elapsed() + Duration::from_millis(50) >= LEASE, "{:?}", taken.elapsed());
        assert!(taken.elapsed() < LEASE * 3, "{:?}", taken.elapsed());
        // The election that made it was dropped: nobody holds it.
        assert!(!next.unwrap().is_leader());
        assert_eq!(server.spec().holder_identity.as_deref(), Some("second"));
        assert_eq!(server.spec().lease_transitions, Some(1));
        // What wakes up gives up without touching what is another's now.
        assert_eq!(first.hold(&stop).await, Held::Lost);
        assert_eq!(server.spec().holder_identity.as_deref(), Some("second"));
    }

    #[tokio::test]
    async fn a_leader_that_renews_keeps_leading() {
        let (server, stop) = (Server::default(), CancellationToken::new());
        let mut first = server.election("first");
        let leads = first.acquire(&stop).await.unwrap();
        let (give_back, enough) = (CancellationToken::new(), CancellationToken::new());
        let holding = tokio::spawn({
            let give_back = give_back.clone();
            async move { first.hold(&give_back).await }
        });
        let mut second = server.election("second");
        let waiting = tokio::spawn({
            let enough = enough.clone();
            async move { second.acquire(&enough).await.map(|leads| leads.is_leader()) }
        });
        let start = Instant::now();
        while start.elapsed() < LEASE + Duration::from_millis(500) {
            assert!(leads.is_leader());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(server.spec().holder_identity.as_deref(), Some("first"));
        enough.cancel();
        assert!(!waiting.await.unwrap().unwrap());
        give_back.cancel();
        assert_eq!(holding.await.unwrap(), Held::Released);
        assert!(!leads.is_leader());
    }

    #[tokio::test]
    async fn a_lease_that_was_given_back_is_taken_at_once() {
        let (server, stop) = (Server::default(), CancellationToken::new());
        let mut first = server.election("first");
        first.acquire(&stop).await.unwrap();
        let released = CancellationToken::new();
        released.cancel();
        assert_eq!(first.hold(&released).await, Held::Released);
        assert_eq!(server.spec().holder_identity, None);
        let start = Instant::now();
        let mut second = server.election("second");
        assert!(second.acquire(&stop).await.unwrap().is_leader());
        assert!(start.elapsed() < DEADLINE, "{:?}", start.elapsed());
    }

    #[tokio::test]
    async fn a_leader_that_reaches_nobody_loses_at_the_deadline() {
        let (server, stop) = (Server::default(), CancellationToken::new());
        let mut first = server.election("first");
        let leads = first.acquire(&stop).await.unwrap();
        server.set(|stored| stored.silent = true);
        let start = Instant::now();
        assert_eq!(first.hold(&stop).await, Held::Lost);
        assert!(!leads.is_leader());
        assert!(start.elapsed() < DEADLINE * 2, "{:?}", start.elapsed());
    }

    #[tokio::test]
    async fn a_leader_whose_lease_was_taken_or_deleted_steps_down() {
        for deleted in [true, false] {
            let (server, stop) = (Server::default(), CancellationToken::new());
            let mut first = server.election("first");
            let leads = first.acquire(&stop).await.unwrap();
            server.set(|stored| {
                stored.version += 1;
                let version = stored.version.to_string();
                if let Some(lease) = &mut stored.lease {
                    lease.metadata.resource_version = Some(version);
                    lease.spec.as_mut().unwrap().holder_identity = Some("other".to_owned());
                }
                if deleted {
                    stored.lease = None;
                }
            });
            assert_eq!(first.hold(&stop).await, Held::Lost);
            assert!(!leads.is_leader());
            assert_eq!(server.0.lock().unwrap().lease.is_none(), deleted);
        }
    }

    #[tokio::test]
    async fn a_touched_lease_is_renewed_all_the_same() {
        let (server, stop) = (Server::default(), CancellationToken::new());
        let mut first = server.election("first");
        let leads = first.acquire(&stop).await.unwrap();
        server.set(|stored| {
            stored.version += 1;
            let version = stored.version.to_string();
            let lease = stored.lease.as_mut().unwrap();
            lease.metadata.resource_version = Some(version);
            lease.metadata.annotations = Some(BTreeMap::from([("touched".to_owned(), "yes".to_owned())]));
        });
        let before = server.spec().renew_time;
        let give_back = CancellationToken::new();
        let holding = tokio::spawn({
            let give_back = give_back.clone();
            async move { first.hold(&give_back).await }
        });
        let start = Instant::now();
        while server.spec().renew_time == before {
            assert!(start.elapsed() < DEADLINE, "it was not renewed");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(leads.is_leader());
        give_back.cancel();
        assert_eq!(holding.await.unwrap(), Held::Released);
        let stored = server.0.lock().unwrap();
        assert!(stored.lease.as_ref().unwrap().metadata.annotations.is_some());
    }

    #[tokio::test]
    async fn a_candidate_that_stops_during_its_write_leaves_no_lease_behind() {
        let (server, stop) = (Server::default(), CancellationToken::new());
        server.set(|stored| stored.mute = true);
        let mut first = server.election("first");
        let waiting = tokio::spawn({
            let stop = stop.clone();
            async move { first.acquire(&stop).await.map(|leads| leads.is_leader()) }
        });
        while server.0.lock().unwrap().lease.is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        server.set(|stored| stored.mute = false);
        stop.cancel();
        assert!(!waiting.await.unwrap().unwrap());
        assert_eq!(server.spec().holder_identity, None);
    }

    #[tokio::test]
    async fn a_write_whose_answer_was_lost_is_found_and_used() {
        let (server, stop) = (Server::default(), CancellationToken::new());
        server.set(|stored| stored.mute = true);
        let mut first = server.election("first");
        let written = async {
            while server.0.lock().unwrap().lease.is_none() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            answer = first.try_acquire() => panic!("an answer that was lost came: {:?}", answer.is_ok()),
            () = written => {}
        }
        server.set(|stored| stored.mute = false);
        let start = Instant::now();
        assert!(first.acquire(&stop).await.unwrap().is_leader());
        assert!(start.elapsed() < DEADLINE, "{:?}", start.elapsed());
        assert_eq!(server.spec().lease_transitions, Some(0));
    }

    #[tokio::test]
    async fn what_is_refused_for_a_moment_is_tried_again() {
        let (server, stop) = (Server::default(), CancellationToken::new());
        server.set(|stored| stored.refuse = Some(403));
        let mut first = server.election("first");
        let refused = first.try_acquire().await;
        assert!(matches!(refused, Err(Failure::Refused { .. })), "{refused:?}");
        server.set(|stored| stored.refuse = None);
        assert!(first.acquire(&stop).await.unwrap().is_leader());
    }

    #[test]
    fn leadership_ends_by_the_clock_alone() {
        let validity = Validity::default();
        let start = Instant::now();
        assert!(!validity.covers(start));
        validity.extend(start + Duration::from_secs(10));
        assert!(validity.covers(start + Duration::from_millis(9_990)));
        assert!(!validity.covers(start + Duration::from_secs(10)));
        assert!(!validity.covers(start + Duration::from_secs(3_600)));
        validity.end();
        assert!(!validity.covers(start));
    }

    #[test]
    fn leadership_that_nobody_contests_never_ends() {
        let leads = Leadership::always();
        assert!(leads.is_leader());
        assert!(leads.0.covers(Instant::now() + Duration::from_secs(1_000_000)));
    }
}
