//! A few connections, each carrying many statements at once.
//!
//! Every statement is a transaction of its own and names no session state, so any connection does. Statements are sent
//! unprepared, with the types of their parameters: one round trip, and nothing for PgBouncer to get wrong.

use super::{
    config::PostgresConfig,
    error::{self, Effect},
    schema::{self, Identity},
    tls::Tls,
};
use crate::{Error, ErrorKind, Result};
use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;
use tokio_postgres::{
    Client, Connection, Row, Socket,
    types::{ToSql, Type},
};
use tokio_util::sync::CancellationToken;

/// How often a statement is repeated that others were in the way of.
const REPEATS: u32 = 6;
/// How long a statement is repeated while others hold what it needs. The server gives each attempt up after half a second,
/// because whatever is behind it on its connection waits too.
pub(super) const LOCKS: Duration = Duration::from_secs(5);
/// How long bringing the schema up to date may take.
const MIGRATES: Duration = Duration::from_secs(60);
/// How long nobody tries to connect after a failure, at first and at most.
const REST: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// What a session is told, where a session lasts: to give a statement up a little before its answer is given up.
fn session(answers: Duration) -> String {
    let timeout = (answers * 4 / 5).as_millis().max(1);
    format!(
        "SET statement_timeout = '{timeout}ms'; SET idle_in_transaction_session_timeout = '30s'; \
         SET client_min_messages = 'warning'"
    )
}

/// Parameters of a statement, each with its type.
pub(super) type Params<'a> = &'a [(&'a (dyn ToSql + Sync), Type)];

/// How a statement is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// It is repeated while others hold what it needs.
    Patient,
    /// It isn't.
    Hasty,
    /// It is repeated, and goes over the connection that is kept for it if the others are busy.
    Urgent,
}

/// An open connection.
#[derive(Debug)]
struct Link {
    client: Client,
    busy: AtomicUsize,
    /// Nothing more goes over it: an answer was given up, behind which others would wait, or its server only reads.
    stuck: AtomicBool,
}

impl Link {
    fn is_usable(&self) -> bool {
        !self.client.is_closed() && !self.stuck.load(Ordering::Relaxed)
    }
}

/// One statement on its way.
struct Ride(Arc<Link>);

impl Ride {
    fn new(link: Arc<Link>) -> Self {
        link.busy.fetch_add(1, Ordering::Relaxed);
        Self(link)
    }
}

impl Drop for Ride {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why there is no connection, and until when nobody tries.
#[derive(Debug)]
struct Outage {
    until: Instant,
    pause: Duration,
    error: Error,
}

#[derive(Debug, Default)]
struct State {
    /// The last one is for what is urgent.
    links: Vec<Option<Arc<Link>>>,
    outage: Option<Outage>,
    identity: Option<Identity>,
    /// How often the schema was brought up to date: what was seen before is no longer true.
    migrations: u64,
}

/// The connections of one driver.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) config: PostgresConfig,
    tls: Tls,
    state: Mutex<State>,
    /// One connection is made at a time.
    door: Arc<tokio::sync::Mutex<()>>,
    /// The schema is brought up to date once at a time.
    migrates: tokio::sync::Mutex<()>,
    pub(super) closed: CancellationToken,
}

impl Pool {
    pub(super) fn new(config: PostgresConfig) -> Result<Self> {
        config.validate()?;
        let tls = Tls::new(&config)?;
        let links = (0..=config.connections).map(|_| None).collect();
        let state = Mutex::new(State { links, ..State::default() });
        let migrates = tokio::sync::Mutex::default();
        Ok(Self { config, tls, state, door: Arc::default(), migrates, closed: CancellationToken::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends all connections. Statements that are under way come to their end in the server.
    pub(super) fn close(&self) {
        self.closed.cancel();
        let mut state = self.lock();
        state.links.iter_mut().for_each(|link| *link = None);
    }

    /// How many statements are under way.
    pub(super) fn busy(&self) -> usize {
        let state = self.lock();
        state.links.iter().flatten().map(|link| link.busy.load(Ordering::Relaxed)).sum()
    }

    /// Brings the schema up to date, on a connection of its own. Steps go on when the caller goes away: a caller who gives up
    /// early, again and again, would undo a long one each time.
    pub(super) async fn migrate(self: &Arc<Self>) -> Result<Identity> {
        if let Some(identity) = self.lock().identity.clone() {
            return Ok(identity);
        }
        let look = self.beside(async |client| schema::current(client, &self.config.schema).await);
        let late = |_| Error::unavailable("PostgreSQL can't be reached: it doesn't answer");
        // Mostly there is nothing to do, and nobody has to wait for somebody else to find that out.
        let identity = match tokio::time::timeout(self.config.answers, look).await.map_err(late)?? {
            Some(identity) => identity,
            None => self.climb().await?,
        };
        let mut state = self.lock();
        (state.outage, state.migrations) = (None, state.migrations + 1);
        Ok(identity)
    }

    /// Takes the steps that are missing, in a task of their own, once at a time.
    async fn climb(self: &Arc<Self>) -> Result<Identity> {
        let pool = self.clone();
        let work = async move {
            let _turn = pool.migrates.lock().await;
            let climb = pool.beside(async |client| schema::migrate(client, &pool.config).await);
            let ended = pool.closed.run_until_cancelled(tokio::time::timeout(MIGRATES, climb)).await;
            let ended = ended.ok_or_else(|| Error::unavailable("the driver is closed"))?;
            ended.map_err(|_| error::late(Effect::Change, MIGRATES))?
        };
        let ended = |_| Err(Error::new(ErrorKind::Ambiguous, "the migration of the schema ended early"));
        tokio::spawn(work).await.unwrap_or_else(ended)
    }

    /// Does something on a connection that is made for it alone.
    async fn beside<T>(&self, work: impl AsyncFnOnce(&Client) -> Result<T>) -> Result<T> {
        let (client, connection) = self.connect().await?;
        let carrier = tokio::spawn(connection);
        let done = work(&client).await;
        drop(client);
        // It ends with its client.
        drop(carrier);
        done
    }

    /// A new connection, and what carries it.
    pub(super) async fn connect(&self) -> Result<(Client, Connection<Socket, super::tls::Stream<Socket>>)> {
        let mut server = self.config.server.clone();
        server.ssl_mode(self.config.ssl_mode()).connect_timeout(self.config.connects);
        let made = tokio::time::timeout(self.config.connects * 2, server.connect(self.tls.clone())).await;
        made.map_err(|_| Error::unavailable("PostgreSQL can't be reached: it doesn't answer"))?
            .map_err(|failure| error::of_connect(&failure))
    }

    /// A connection that is ready for statements.
    async fn open(&self) -> Result<(Link, Identity)> {
        let (client, connection) = self.connect().await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to PostgreSQL ended");
            }
        });
        let ready = async {
            if self.config.listen {
                let session = session(self.config.answers);
                client.batch_execute(&session).await.map_err(|failure| error::of_connect(&failure))?;
            }
            schema::verify(&client, &self.config.schema).await
        };
        let identity = tokio::time::timeout(self.config.answers, ready)
            .await
            .map_err(|_| Error::unavailable("PostgreSQL can't be reached: it doesn't answer"))??;
        Ok((Link { client, busy: AtomicUsize::new(0), stuck: AtomicBool::new(false) }, identity))
    }

    /// The usable connection with the least to do; and where another one could be made.
    fn pick(&self, manner: Manner) -> (Option<Ride>, Option<usize>) {
        let mut state = self.lock();
        let usual = self.config.connections;
        for link in &mut state.links {
            if link.as_ref().is_some_and(|link| !link.is_usable()) {
                *link = None;
            }
        }
        let links = if manner == Manner::Urgent { &state.links[..] } else { &state.links[..usual] };
        let free = links.iter().position(Option::is_none);
        let least = links.iter().flatten().min_by_key(|link| link.busy.load(Ordering::Relaxed));
        // Counted under the lock, so that two callers don't take the same idle one.
        (least.map(|link| Ride::new(link.clone())), free)
    }

    /// A connection to send a statement on. Nothing was sent when it fails.
    async fn ride(self: &Arc<Self>, manner: Manner) -> Result<Ride> {
        loop {
            if self.closed.is_cancelled() {
                return Err(Error::unavailable("the driver is closed"));
            }
            if let (Some(ride), free) = self.pick(manner) {
                if free.is_some() && ride.0.busy.load(Ordering::Relaxed) > 1 {
                    self.widen(manner);
                }
                return Ok(ride);
            }
            // Whoever makes a connection makes it for all.
            let _door = self.door.lock().await;
            match self.pick(manner) {
                (Some(ride), _) => return Ok(ride),
                (None, Some(place)) => self.fill(place).await?,
                (None, None) => return Err(Error::unavailable("the driver has no connections")),
            }
        }
    }

    /// Makes one more connection, beside the calls: those go on over the ones that there are.
    fn widen(self: &Arc<Self>, manner: Manner) {
        let Ok(door) = self.door.clone().try_lock_owned() else { return };
        let pool = self.clone();
        tokio::spawn(async move {
            let (Some(_), Some(place)) = pool.pick(manner) else { return };
            if let Some(Err(error)) = pool.closed.run_until_cancelled(pool.fill(place)).await {
                tracing::debug!(%error, "there are no more connections for now");
            }
            drop(door);
        });
    }

    /// Makes a connection, unless that failed a moment ago.
    async fn fill(&self, place: usize) -> Result<()> {
        if let Some(outage) = &self.lock().outage
            && Instant::now() < outage.until
        {
            return Err(outage.error.clone());
        }
        let migrations = self.lock().migrations;
        let opened = self.open().await;
        let mut state = self.lock();
        match opened {
            // It looked for a schema that is there by now.
            Err(_) if state.migrations != migrations => Ok(()),
            Ok((link, identity)) => {
                state.outage = None;
                state.identity = Some(identity);
                if let Some(slot) = state.links.get_mut(place) {
                    *slot = Some(Arc::new(link));
                }
                Ok(())
            }
            Err(error) => {
                let pause = state.outage.as_ref().map_or(REST.0, |outage| (outage.pause * 2).min(REST.1));
                state.outage = Some(Outage { until: Instant::now() + pause, pause, error: error.clone() });
                if !state.links.iter().flatten().any(|link| link.is_usable()) {
                    // A server may have come back with other data.
                    state.identity = None;
                }
                Err(error)
            }
        }
    }

    /// Calls a function of the schema.
    pub(super) async fn call(
        self: &Arc<Self>,
        effect: Effect,
        function: &str,
        params: Params<'_>,
    ) -> Result<Vec<Row>> {
        self.query(effect, &self.statement(function, params), params).await
    }

    /// The same for a function that can't wait for long.
    pub(super) async fn call_urgently(
        self: &Arc<Self>,
        effect: Effect,
        function: &str,
        params: Params<'_>,
    ) -> Result<Vec<Row>> {
        let statement = self.statement(function, params);
        self.send(effect, &statement, params, Manner::Urgent).await?.ok_or_else(error::held)
    }

    /// The same for a function that others may be in the way of for long; `None` when they are, and nothing was done.
    pub(super) async fn try_call(
        self: &Arc<Self>,
        effect: Effect,
        function: &str,
        params: Params<'_>,
    ) -> Result<Option<Vec<Row>>> {
        self.send(effect, &self.statement(function, params), params, Manner::Hasty).await
    }

    fn statement(&self, function: &str, params: Params<'_>) -> String {
        let list: Vec<String> = (1..=params.len()).map(|number| format!("${number}")).collect();
        format!("SELECT * FROM {}.{function}({})", schema::quoted(&self.config.schema), list.join(","))
    }

    /// Carries a statement out, again and again while others are in its way.
    pub(super) async fn query(
        self: &Arc<Self>,
        effect: Effect,
        statement: &str,
        params: Params<'_>,
    ) -> Result<Vec<Row>> {
        self.send(effect, statement, params, Manner::Patient).await?.ok_or_else(error::held)
    }

    async fn send(
        self: &Arc<Self>,
        effect: Effect,
        statement: &str,
        params: Params<'_>,
        manner: Manner,
    ) -> Result<Option<Vec<Row>>> {
        let (since, mut repeats) = (Instant::now(), 0);
        loop {
            let ride = self.ride(manner).await?;
            let link = ride.0.clone();
            let sent = link.client.query_typed(statement, params);
            match tokio::time::timeout(self.config.answers, sent).await {
                Ok(Ok(rows)) => return Ok(Some(rows)),
                Ok(Err(failure)) if error::is_locked(&failure) => {
                    if manner == Manner::Hasty || since.elapsed() > LOCKS {
                        return Ok(None);
                    }
                    drop(ride);
                    tokio::time::sleep(Duration::from_millis(u64::from(fastrand(20)))).await;
                }
                Ok(Err(failure)) if error::is_conflict(&failure) && repeats < REPEATS => {
                    repeats += 1;
                    tokio::time::sleep(Duration::from_millis(u64::from(fastrand(10 * repeats)))).await;
                }
                Ok(Err(failure)) => {
                    if error::is_read_only(&failure) {
                        // Its name may lead to another server by now.
                        link.stuck.store(true, Ordering::Relaxed);
                    }
                    return Err(error::of_statement(&failure, effect));
                }
                Err(_) => {
                    self.give_up(&link);
                    return Err(error::late(effect, self.config.answers));
                }
            }
        }
    }

    /// Nobody waits for this connection any more, and the server needn't go on either. A pooler is not asked to cancel:
    /// PgBouncer 1.18 and 1.19 can end with such a request, for all who use it (its issue 801). It ends the statement's
    /// session when the connection closes.
    fn give_up(&self, link: &Arc<Link>) {
        link.stuck.store(true, Ordering::Relaxed);
        if !self.config.listen {
            return;
        }
        let (token, tls, limit) = (link.client.cancel_token(), self.tls.clone(), self.config.connects);
        tokio::spawn(async move {
            let asked = tokio::time::timeout(limit, token.cancel_query(tls)).await;
            tracing::debug!(done = asked.is_ok(), "a statement that takes too long was cancelled");
        });
    }
}

/// A small number that differs from caller to caller.
fn fastrand(below: u32) -> u32 {
    let bytes = uuid::Uuid::new_v4().into_bytes();
    u32::from(u16::from_le_bytes([bytes[0], bytes[1]])) % below.max(1) + 1
}
