//! What the server does without the driver, twice: bare, and with no more than the contract asks for.
//!
//! *Bare* is plain statements on a table with an id, a state and a payload: insert, mark as claimed, delete.
//!
//! *The contract's minimum* is what a careful person writes by hand for one queue: an id that comes twice adds nothing, jobs
//! come in the order of their due times by the server's clock, a claim has a token and a lease and a settle is fenced by both,
//! and who is over is remembered; leases that ended and memories that are old enough can be found by an index. It leaves out
//! the limit of the depth, other states, failures, results, ordering keys, completions, inspection, counts, and wake-ups, all
//! of which the driver has. Its statements are prepared; each client has a connection of its own.

use super::{BATCH, PAUSE, payload};
use longshore_drivers::JobId;
use std::time::{Duration, Instant};
use tokio_postgres::{AsyncMessage, Client, NoTls, Statement, types::Type};

/// Clients that do one job at a time, and batches.
const CLIENTS: (usize, usize) = (64, 4);
/// Clients that claim and settle one job at a time: more are in each other's way.
const TAKERS: usize = 16;
/// The present instant by the server's clock, in milliseconds.
const NOW: &str = "floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint";

/// A raw side: its table and its statements.
pub(super) struct Raw {
    url: String,
    /// The table's name; the sequence of tokens has it too.
    table: String,
    least: bool,
}

impl Raw {
    pub(super) async fn new(url: &str, schema: &str, least: bool) -> Self {
        let table = format!("{schema}.{}", if least { "least" } else { "bare" });
        let columns = if least {
            "seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, id text UNIQUE, at bigint NOT NULL, \
             state smallint NOT NULL DEFAULT 0, token bigint, until bigint, over_at bigint, payload bytea NOT NULL"
        } else {
            "seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, id text UNIQUE, state smallint NOT NULL DEFAULT 0, \
             payload bytea NOT NULL"
        };
        let indexes = if least {
            format!(
                "CREATE INDEX ON {table} (at, seq) WHERE state = 0; CREATE INDEX ON {table} (until) WHERE state = 1; \
                 CREATE INDEX ON {table} (over_at) WHERE state = 2"
            )
        } else {
            format!("CREATE INDEX ON {table} (seq) WHERE state = 0")
        };
        let made =
            format!("CREATE TABLE {table} ({columns}); {indexes}; CREATE SEQUENCE {table}_tokens CACHE 64");
        connect(url).await.batch_execute(&made).await.unwrap();
        Self { url: url.to_owned(), table, least }
    }

    /// Empties the table.
    pub(super) async fn fresh(&self) {
        connect(&self.url).await.batch_execute(&format!("TRUNCATE {}", self.table)).await.unwrap();
    }

    /// Plans are made for a table that has rows.
    async fn analyze(&self) {
        connect(&self.url).await.batch_execute(&format!("ANALYZE {}", self.table)).await.unwrap();
    }

    async fn clients(&self, count: usize, statements: &[(&str, &[Type])]) -> Vec<(Client, Vec<Statement>)> {
        let mut clients = Vec::new();
        for _ in 0..count {
            let client = connect(&self.url).await;
            let mut prepared = Vec::new();
            for (statement, types) in statements {
                prepared.push(client.prepare_typed(statement, types).await.unwrap());
            }
            clients.push((client, prepared));
        }
        clients
    }

    /// Ready to enqueue about `total` jobs, `batch` at a time.
    pub(super) async fn producers(&self, total: usize, batch: usize) -> Producers {
        let table = &self.table;
        let statement = if self.least {
            format!(
                "INSERT INTO {table} (id, at, payload) SELECT id, {NOW}, payload \
                 FROM unnest($1::text[], $2::bytea[]) AS u(id, payload) ON CONFLICT (id) DO NOTHING RETURNING id"
            )
        } else {
            format!("INSERT INTO {table} (id, payload) SELECT * FROM unnest($1::text[], $2::bytea[])")
        };
        let count = if batch == 1 { CLIENTS.0 } else { CLIENTS.1 };
        let types = [Type::TEXT_ARRAY, Type::BYTEA_ARRAY];
        let clients = self.clients(count, &[(&statement, &types)]).await;
        Producers { clients, rounds: total / count / batch, batch }
    }

    /// Ready to claim and settle all that is there, `batch` at a time.
    pub(super) async fn claimers(&self, batch: usize) -> Claimers {
        self.analyze().await;
        let table = &self.table;
        let (claim, settle) = if self.least {
            (
                format!(
                    "WITH best AS MATERIALIZED (SELECT seq FROM {table} WHERE state = 0 AND at <= {NOW} \
                     ORDER BY at, seq LIMIT $1 FOR UPDATE SKIP LOCKED) \
                     UPDATE {table} r SET state = 1, token = nextval('{table}_tokens'), until = {NOW} + 60000 \
                     FROM best b WHERE r.seq = b.seq RETURNING r.seq, r.token, r.id, r.payload"
                ),
                format!(
                    "UPDATE {table} r SET state = 2, over_at = {NOW} FROM unnest($1::bigint[], $2::bigint[]) AS u(seq, token) \
                     WHERE r.seq = u.seq AND r.token = u.token AND r.state = 1 AND r.until > {NOW}"
                ),
            )
        } else {
            (
                format!(
                    "WITH best AS MATERIALIZED (SELECT seq FROM {table} WHERE state = 0 ORDER BY seq LIMIT $1 \
                     FOR UPDATE SKIP LOCKED) \
                     UPDATE {table} r SET state = 1 FROM best b WHERE r.seq = b.seq \
                     RETURNING r.seq, r.seq, r.id, r.payload"
                ),
                format!(
                    "DELETE FROM {table} r USING unnest($1::bigint[], $2::bigint[]) AS u(seq, token) \
                     WHERE r.seq = u.seq AND r.state = 1"
                ),
            )
        };
        let count = if batch == 1 { TAKERS } else { CLIENTS.1 };
        let statements: [(&str, &[Type]); 2] =
            [(&claim, &[Type::INT8]), (&settle, &[Type::INT8_ARRAY, Type::INT8_ARRAY])];
        Claimers { clients: self.clients(count, &statements).await, batch }
    }
}

pub(super) async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

pub(super) struct Producers {
    clients: Vec<(Client, Vec<Statement>)>,
    rounds: usize,
    batch: usize,
}

impl Producers {
    /// How many jobs were added.
    pub(super) async fn run(&mut self) -> usize {
        let (rounds, batch) = (self.rounds, self.batch);
        let payload = payload().into_bytes();
        let tasks = self.clients.iter().map(async |(client, statements)| {
            for _ in 0..rounds {
                let ids: Vec<JobId> = (0..batch).map(|_| JobId::generate()).collect();
                let ids: Vec<&str> = ids.iter().map(JobId::as_str).collect();
                let payloads = vec![&payload[..]; batch];
                let added = client.execute(&statements[0], &[&ids, &payloads]).await.unwrap();
                assert_eq!(added, batch as u64);
            }
        });
        futures::future::join_all(tasks).await;
        rounds * self.clients.len() * batch
    }
}

pub(super) struct Claimers {
    clients: Vec<(Client, Vec<Statement>)>,
    batch: usize,
}

impl Claimers {
    /// Claims and settles until there is nothing left; how many.
    pub(super) async fn run(&mut self) -> usize {
        let batch = i64::try_from(self.batch).unwrap();
        let tasks = self.clients.iter().map(async |(client, statements)| {
            let mut done = 0;
            loop {
                let rows = client.query(&statements[0], &[&batch]).await.unwrap();
                if rows.is_empty() {
                    return done;
                }
                let seqs: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
                let tokens: Vec<i64> = rows.iter().map(|row| row.get(1)).collect();
                done += client.execute(&statements[1], &[&seqs, &tokens]).await.unwrap();
            }
        });
        usize::try_from(futures::future::join_all(tasks).await.into_iter().sum::<u64>()).unwrap()
    }
}

/// From the begin of an insert that notifies in its own transaction to the answer of the claim of a client that listens,
/// one job at a time.
pub(super) async fn idle(raw: &Raw, jobs: usize) -> Vec<Duration> {
    let producer = connect(&raw.url).await;
    let insert = format!(
        "WITH added AS (INSERT INTO {} (id, at, payload) VALUES ($1, {NOW}, $2) ON CONFLICT (id) DO NOTHING RETURNING id) \
         SELECT pg_notify('bench_raw', '') FROM added",
        raw.table
    );
    let insert = producer.prepare_typed(&insert, &[Type::TEXT, Type::BYTEA]).await.unwrap();
    let mut claimers = raw.claimers(BATCH).await;
    let (claimer, statements) = claimers.clients.swap_remove(0);
    let (listener, mut connection) = tokio_postgres::connect(&raw.url, NoTls).await.unwrap();
    let (heard, mut hears) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut messages = futures::stream::poll_fn(move |context| connection.poll_message(context));
        while let Some(Ok(message)) = futures::StreamExt::next(&mut messages).await {
            if matches!(message, AsyncMessage::Notification(_)) && heard.send(()).is_err() {
                return;
            }
        }
    });
    listener.batch_execute("LISTEN bench_raw").await.unwrap();
    let mut times = Vec::new();
    for _ in 0..jobs {
        tokio::time::sleep(PAUSE).await;
        let (id, payload) = (JobId::generate(), payload().into_bytes());
        let since = Instant::now();
        let push = async {
            producer.query(&insert, &[&id.as_str(), &payload]).await.unwrap();
        };
        let take = async {
            hears.recv().await.unwrap();
            let rows = claimer.query(&statements[0], &[&1_i64]).await.unwrap();
            (Instant::now(), rows)
        };
        let ((), (at, rows)) = tokio::join!(push, take);
        times.push(at.saturating_duration_since(since));
        let (seq, token): (i64, i64) = (rows[0].get(0), rows[0].get(1));
        claimer.execute(&statements[1], &[&vec![seq], &vec![token]]).await.unwrap();
    }
    times
}
