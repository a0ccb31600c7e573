//! Tables and functions in the database, and how they come there.
//!
//! The schema has a version. `probe` and `declare`, which only operators call, bring it up to date, one numbered step
//! after the other, each in a transaction of its own, and one operator at a time. Everybody else goes on meanwhile: whoever
//! waits for the lock of a table keeps up all who come behind, so a step waits a moment, is undone, and begins again later.
//! Everything else looks at the version when it connects.

use super::{
    config::PostgresConfig,
    error::{self, Effect},
};
use crate::{Error, ErrorKind, Result};
use std::time::Duration;
use tokio::time::Instant;
use tokio_postgres::Client;

/// What brings a database from one version to the next.
pub(super) type Step = &'static [&'static str];

/// The version that this driver knows.
pub(super) const VERSION: i32 = 1;

/// The steps: what brings a database to the version that is their place in the list, counted from 1.
const STEPS: &[Step] = &[&[
    include_str!("sql/v1_tables.sql"),
    include_str!("sql/v1_moves.sql"),
    include_str!("sql/v1_producers.sql"),
    include_str!("sql/v1_work.sql"),
    include_str!("sql/v1_removals.sql"),
    include_str!("sql/v1_people.sql"),
]];

/// Settings of functions that drivers call.
const HOT: &str = "SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '500ms' \
    SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off \
    SET enable_hashjoin = off SET enable_mergejoin = off";
/// The same for those that join lists.
const WARM: &str = "SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '500ms' \
    SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off";
/// The same for those that producers call in transactions of their own, which nobody repeats for them.
const PATIENT: &str = "SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '5s' \
    SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off \
    SET enable_hashjoin = off SET enable_mergejoin = off";

/// How long a step is tried that others are in the way of, and how long it rests in between at first and at most.
const TRIES: Duration = Duration::from_secs(30);
const REST: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// A schema's name as statements hold it: it may be a word that means something there.
pub(super) fn quoted(schema: &str) -> String {
    format!("\"{schema}\"")
}

/// Whose data it is.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    pub(super) version: i32,
    compatible: i32,
    pub(super) backend_id: String,
}

/// What stands in the database; `None` when there is no schema.
async fn look(client: &Client, schema: &str) -> Result<Option<Identity>> {
    let statement = format!("SELECT version, compatible, backend_id FROM {}.version()", quoted(schema));
    match client.query_typed(&statement, &[]).await {
        Ok(rows) => {
            let Some(row) = rows.first() else {
                return Err(Error::new(
                    ErrorKind::Fatal,
                    format!("schema {schema} of PostgreSQL has no version"),
                ));
            };
            let read = |error: tokio_postgres::Error| error::of_statement(&error, Effect::Read);
            Ok(Some(Identity {
                version: row.try_get(0).map_err(read)?,
                compatible: row.try_get(1).map_err(read)?,
                backend_id: row.try_get(2).map_err(read)?,
            }))
        }
        Err(error) if error::is_missing(&error) => Ok(None),
        Err(error) => Err(error::of_statement(&error, Effect::Read)),
    }
}

/// Whether this driver may work with what stands in the database.
fn check(schema: &str, found: Option<Identity>) -> Result<Identity> {
    let Some(found) = found else {
        return Err(Error::new(
            ErrorKind::NotFound,
            format!(
                "PostgreSQL has no schema {schema}: no queue was ever declared there; the operator makes it when it \
                 declares the first one"
            ),
        ));
    };
    if found.compatible > VERSION {
        return Err(Error::new(
            ErrorKind::Fatal,
            format!(
                "schema {schema} of PostgreSQL has version {}, this driver knows {VERSION}; use a newer Longshore",
                found.version
            ),
        ));
    }
    if found.version < VERSION {
        return Err(Error::unavailable(format!(
            "schema {schema} of PostgreSQL has version {}, this driver needs {VERSION}; the operator brings it up to \
             date",
            found.version
        )));
    }
    Ok(found)
}

/// Fails unless the schema is there and known.
pub(super) async fn verify(client: &Client, schema: &str) -> Result<Identity> {
    check(schema, look(client, schema).await?)
}

/// What stands in the database, if nothing has to be done to it.
pub(super) async fn current(client: &Client, schema: &str) -> Result<Option<Identity>> {
    let found = look(client, schema).await?;
    if found.as_ref().is_none_or(|found| found.version < VERSION && found.compatible <= VERSION) {
        return Ok(None);
    }
    check(schema, found).map(Some)
}

/// Brings the schema up to date.
pub(super) async fn migrate(client: &Client, config: &PostgresConfig) -> Result<Identity> {
    climb(client, &config.schema, STEPS, TRIES).await
}

/// Takes the steps that are missing, and gives up after `tries` what others are in the way of.
pub(super) async fn climb(
    client: &Client,
    schema: &str,
    steps: &[Step],
    tries: Duration,
) -> Result<Identity> {
    let (since, mut rest) = (Instant::now(), REST.0);
    loop {
        let found = look(client, schema).await?;
        let version = found.as_ref().map_or(0, |found| found.version);
        let next = usize::try_from(version).unwrap_or(usize::MAX);
        let Some(step) = steps.get(next) else {
            return check(schema, found);
        };
        if found.as_ref().is_some_and(|found| found.compatible > VERSION) {
            return check(schema, found);
        }
        match take_step(client, schema, version, step).await? {
            Taken::Yes => rest = REST.0,
            Taken::Held if since.elapsed() > tries => return Err(error::held()),
            Taken::Held => {
                tokio::time::sleep(rest).await;
                rest = (rest * 2).min(REST.1);
            }
        }
    }
}

/// What came of a step.
enum Taken {
    /// It is done, by this operator or by another one.
    Yes,
    /// Somebody holds what it needs, so it was undone.
    Held,
}

/// One step, unless somebody else took it in the meantime.
async fn take_step(client: &Client, schema: &str, version: i32, step: Step) -> Result<Taken> {
    let quoted = quoted(schema);
    // PostgreSQL makes a schema before it looks whether it is there, which needs a right that its owner may not have.
    let begin = format!(
        "BEGIN; SET LOCAL lock_timeout = '5s'; SET LOCAL statement_timeout = '30s'; \
         SELECT pg_advisory_xact_lock(hashtextextended('longshore.{schema}', 0)); SET LOCAL lock_timeout = '200ms'; \
         DO $$ BEGIN IF to_regnamespace('{quoted}') IS NULL THEN CREATE SCHEMA {quoted}; END IF; END $$"
    );
    let work = async {
        client.batch_execute(&begin).await?;
        if stands(client, &quoted).await? != version {
            return Ok(None);
        }
        let statements: String = step.concat();
        let statements =
            statements.replace("@hot@", HOT).replace("@warm@", WARM).replace("@patient@", PATIENT);
        let statements = statements.replace("@schema@", &quoted).replace("@channel@", schema);
        client.batch_execute(&statements).await?;
        let note = format!(
            "INSERT INTO {quoted}.meta (version, compatible, backend_id) VALUES ({}, 1, '{}') \
             ON CONFLICT (one) DO UPDATE SET version = excluded.version",
            version + 1,
            uuid::Uuid::now_v7()
        );
        client.batch_execute(&note).await?;
        let encoding = client.query_typed("SHOW server_encoding", &[]).await?;
        let encoding: String = encoding.first().and_then(|row| row.try_get(0).ok()).unwrap_or_default();
        Ok((encoding != "UTF8").then_some(encoding))
    };
    let done: std::result::Result<_, tokio_postgres::Error> = work.await;
    let end = if matches!(done, Ok(None)) { "COMMIT" } else { "ROLLBACK" };
    let failed = |error: tokio_postgres::Error| error::of_statement(&error, Effect::Change);
    let ended = client.batch_execute(end).await.map_err(failed);
    match done {
        Err(error) if error::is_locked(&error) => ended.map(|()| Taken::Held),
        Err(error) => Err(failed(error)),
        Ok(Some(encoding)) => Err(Error::new(
            ErrorKind::Fatal,
            format!("the database has the encoding {encoding}; make one with UTF8"),
        )),
        Ok(None) => ended.map(|()| Taken::Yes),
    }
}

/// The version, read under the lock and without a function that may not be there.
async fn stands(client: &Client, quoted: &str) -> std::result::Result<i32, tokio_postgres::Error> {
    let there = client.query_typed(&format!("SELECT to_regclass('{quoted}.meta') IS NOT NULL"), &[]).await?;
    if !there.first().is_some_and(|row| row.try_get(0).unwrap_or(false)) {
        return Ok(0);
    }
    let rows = client.query_typed(&format!("SELECT version FROM {quoted}.meta"), &[]).await?;
    Ok(rows.first().and_then(|row| row.try_get(0).ok()).unwrap_or(0))
}
