//! What the server does without the driver, twice: bare, and with no more than the contract asks for.
//!
//! *Bare* is plain statements on a table with an id, a state and a payload: insert, mark as claimed, delete.
//!
//! *The contract's minimum* is what a careful person writes by hand for one queue: an id that comes twice adds nothing, jobs
//! come in the order of their due times, a claim has a token and a lease and a settle is fenced by both, and who is over is
//! remembered. It leaves out the limit of the depth, other states, failures, results, ordering keys, completions, inspection,
//! counts, and wake-ups, all of which the driver has. Its statements are prepared; each client has a connection of its own.

use super::{BATCH, PAUSE, payload};
use longshore_drivers::JobId;
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio_postgres::{AsyncMessage, Client, NoTls, Statement, types::Type};

/// Clients that do one job at a time, and batches.
const CLIENTS: (usize, usize) = (64, 4);
/// Clients that claim and settle one job at a time: more are in each other's way.
const CLAIMERS: usize = 16;

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
        let order = if least { "at, seq" } else { "seq" };
        let made = format!(
            "CREATE TABLE {table} ({columns}); CREATE INDEX ON {table} ({order}) WHERE state = 0; \
             CREATE SEQUENCE {table}_tokens CACHE 64"
        );
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
                "INSERT INTO {table} (id, at, payload) SELECT * FROM unnest($1::text[], $2::bigint[], $3::bytea[]) \
                 ON CONFLICT (id) DO NOTHING RETURNING id"
            )
        } else {
            format!(
                "INSERT INTO {table} (id, payload) SELECT id, payload \
                 FROM unnest($1::text[], $2::bigint[], $3::bytea[]) AS u(id, at, payload)"
            )
        };
        let count = if batch == 1 { CLIENTS.0 } else { CLIENTS.1 };
        let types = [Type::TEXT_ARRAY, Type::INT8_ARRAY, Type::BYTEA_ARRAY];
        let clients = self.clients(count, &[(&statement, &types)]).await;
        Producers { clients, rounds: total / count / batch, batch }
    }

    /// Ready to claim and settle all that is there, `batch` at a time.
    pub(super) async fn claimers(&self, batch: usize) -> Claimers {
        self.analyze().await;
        let table = &self.table;
        let order = if self.least { "at, seq" } else { "seq" };
        let best = format!(
            "WITH best AS MATERIALIZED (SELECT seq FROM {table} WHERE state = 0 AND $2 > 0 ORDER BY {order} LIMIT $1 \
             FOR UPDATE SKIP LOCKED)"
        );
        let (claim, settle) = if self.least {
            (
                format!(
                    "{} UPDATE {table} r SET state = 1, token = nextval('{table}_tokens'), until = $2 + 60000 \
                     FROM best b WHERE r.seq = b.seq RETURNING r.seq, r.token, r.id, r.payload",
                    best.replace("$2 > 0", "at <= $2")
                ),
                format!(
                    "UPDATE {table} r SET state = 2, over_at = $3 FROM unnest($1::bigint[], $2::bigint[]) AS u(seq, token) \
                     WHERE r.seq = u.seq AND r.token = u.token AND r.state = 1 AND r.until > $3"
                ),
            )
        } else {
            (
                format!(
                    "{best} UPDATE {table} r SET state = 1 FROM best b WHERE r.seq = b.seq \
                     RETURNING r.seq, r.seq, r.id, r.payload"
                ),
                format!(
                    "DELETE FROM {table} r USING unnest($1::bigint[], $2::bigint[]) AS u(seq, token) \
                     WHERE r.seq = u.seq AND r.state = 1 AND $3 > 0"
                ),
            )
        };
        let count = if batch == 1 { CLAIMERS } else { CLIENTS.1 };
        let statements: [(&str, &[Type]); 2] = [
            (&claim, &[Type::INT8, Type::INT8]),
            (&settle, &[Type::INT8_ARRAY, Type::INT8_ARRAY, Type::INT8]),
        ];
        Claimers { clients: self.clients(count, &statements).await, batch }
    }
}

pub(super) async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

fn now() -> i64 {
    i64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap()
}

pub(super) struct Producers {
    clients: Vec<(Client, Vec<Statement>)>,
    rounds: usize,
    batch: usize,
}

impl Producers {
    /// How many jobs were added.
    pub(super) async fn run(self) -> usize {
        let (rounds, batch) = (self.rounds, self.batch);
        let count = self.clients.len();
        let tasks = self.clients.into_iter().map(|(client, statements)| {
            tokio::spawn(async move {
                for _ in 0..rounds {
                    let ids: Vec<JobId> = (0..batch).map(|_| JobId::generate()).collect();
                    let ids: Vec<&str> = ids.iter().map(JobId::as_str).collect();
                    let payloads: Vec<Vec<u8>> = (0..batch).map(|_| payload().into_bytes()).collect();
                    let added = client
                        .execute(&statements[0], &[&ids, &vec![now(); batch], &payloads])
                        .await
                        .unwrap();
                    assert_eq!(added, batch as u64);
                }
            })
        });
        futures::future::join_all(tasks).await.into_iter().for_each(|ended| ended.unwrap());
        rounds * count * batch
    }
}

pub(super) struct Claimers {
    clients: Vec<(Client, Vec<Statement>)>,
    batch: usize,
}

impl Claimers {
    /// Claims and settles until there is nothing left; how many.
    pub(super) async fn run(self) -> usize {
        let done = Arc::new(AtomicUsize::new(0));
        let batch = i64::try_from(self.batch).unwrap();
        let tasks = self.clients.into_iter().map(|(client, statements)| {
            let done = done.clone();
            tokio::spawn(async move {
                loop {
                    let rows = client.query(&statements[0], &[&batch, &now()]).await.unwrap();
                    if rows.is_empty() {
                        return;
                    }
                    let seqs: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
                    let tokens: Vec<i64> = rows.iter().map(|row| row.get(1)).collect();
                    let settled = client.execute(&statements[1], &[&seqs, &tokens, &now()]).await.unwrap();
                    done.fetch_add(usize::try_from(settled).unwrap(), Ordering::Relaxed);
                }
            })
        });
        futures::future::join_all(tasks).await.into_iter().for_each(|ended| ended.unwrap());
        done.load(Ordering::Relaxed)
    }
}

/// From the begin of an insert that notifies in its own transaction to the answer of the claim of a client that listens,
/// one job at a time.
pub(super) async fn idle(raw: &Raw, jobs: usize) -> Vec<Duration> {
    let mut producers = raw.producers(jobs, BATCH).await;
    let (producer, insert) = producers.clients.swap_remove(0);
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
        let since = Instant::now();
        let push = async {
            producer.batch_execute("BEGIN").await.unwrap();
            let id = JobId::generate();
            let params: [&(dyn tokio_postgres::types::ToSql + Sync); 3] =
                [&vec![id.as_str()], &vec![now()], &vec![payload().into_bytes()]];
            producer.execute(&insert[0], &params).await.unwrap();
            producer.batch_execute("NOTIFY bench_raw; COMMIT").await.unwrap();
        };
        let take = async {
            hears.recv().await.unwrap();
            let rows = claimer.query(&statements[0], &[&1_i64, &now()]).await.unwrap();
            (Instant::now(), rows)
        };
        let ((), (at, rows)) = tokio::join!(push, take);
        times.push(at.saturating_duration_since(since));
        let (seq, token): (i64, i64) = (rows[0].get(0), rows[0].get(1));
        claimer.execute(&statements[1], &[&vec![seq], &vec![token], &now()]).await.unwrap();
    }
    times
}
