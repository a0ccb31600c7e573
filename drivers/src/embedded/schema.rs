//! Opening the database: checks, settings of the connection, migrations.

use super::{Config, filesystem, storage};
use crate::{Error, ErrorKind, Result, Timestamp};
use rusqlite::{Connection, OpenFlags, OptionalExtension, TransactionBehavior};
use std::{
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// Marks the file as ours (`LngS`).
const APPLICATION_ID: i64 = 0x4C6E_6753;

/// One step of the schema. It expands first, so that the broker before can still be used; what nobody uses any more goes
/// in a later step, which raises `readable_since`.
#[derive(Debug)]
struct Migration {
    statements: &'static str,
    /// The oldest version whose broker can use the result.
    readable_since: i64,
}

/// Each brings the schema from the version that is its index to the next one. Never edit one that was released.
const MIGRATIONS: [Migration; 1] =
    [Migration { statements: include_str!("schema_v1.sql"), readable_since: 1 }];

/// Opens the database of `config` and brings it up to date.
pub(super) fn open(config: &Config) -> Result<Connection> {
    let path = located(&config.path)?;
    refuse_network(&path)?;
    let deadline = Instant::now() + config.lock_wait;
    loop {
        match attempt(&path, config) {
            Err(error) if error.kind == ErrorKind::Unavailable && Instant::now() < deadline => {
                // SQLite's own busy handler isn't asked when a connection takes the whole file for itself.
                thread::park_timeout(Duration::from_millis(20));
            }
            other => return other,
        }
    }
}

/// The id of the data, made once.
pub(super) fn backend_id(connection: &Connection) -> Result<String> {
    let read = || -> rusqlite::Result<String> {
        let known = connection
            .query_row("SELECT value FROM meta WHERE key = 'backend_id'", (), |row| row.get(0))
            .optional()?;
        if let Some(id) = known {
            return Ok(id);
        }
        let id = uuid::Uuid::now_v7().to_string();
        connection.execute("INSERT INTO meta (key, value) VALUES ('backend_id', ?1)", [&id])?;
        Ok(id)
    };
    read().map_err(|error| storage::error(&error))
}

/// The instant that whoever had the database before knew to have passed.
pub(super) fn passed(connection: &Connection) -> rusqlite::Result<Timestamp> {
    let known: Option<String> = connection
        .query_row("SELECT value FROM meta WHERE key = 'passed'", (), |row| storage::text(row, 0))
        .optional()?;
    Ok(Timestamp::from_millis(known.and_then(|text| text.parse().ok()).unwrap_or(0)))
}

/// Keeps that `now` has passed: if the wall clock is behind it at the next start, time goes on from there.
pub(super) fn mark_passed(connection: &Connection, now: Timestamp) -> rusqlite::Result<()> {
    connection
        .prepare_cached("INSERT OR REPLACE INTO meta (key, value) VALUES ('passed', ?1)")?
        .execute([now.as_millis().to_string()])?;
    Ok(())
}

/// Where the file really is, or will be.
fn located(path: &Path) -> Result<PathBuf> {
    follow(path, 8)
}

fn follow(path: &Path, links: u32) -> Result<PathBuf> {
    let directory = directory_of(path);
    let fatal = |text: String| Error::new(ErrorKind::Fatal, text);
    let name = path.file_name().ok_or_else(|| fatal(format!("{} names no file", path.display())))?;
    let located = directory
        .canonicalize()
        .map(|directory| directory.join(name))
        .map_err(|error| fatal(format!("the directory of {} can't be used: {error}", path.display())))?;
    // The file itself may be a link, also one to a file that isn't there yet.
    match std::fs::read_link(&located) {
        Ok(target) if links == 0 => Err(fatal(format!("{} leads in circles", target.display()))),
        Ok(target) => follow(&directory_of(&located).join(target), links - 1),
        Err(_) => Ok(located),
    }
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn refuse_network(path: &Path) -> Result<()> {
    let Ok(mountinfo) = std::fs::read_to_string("/proc/self/mountinfo") else {
        tracing::debug!(
            "the mounts of this system can't be read; the type of the file system is not checked"
        );
        return Ok(());
    };
    match filesystem::network_type(&mountinfo, path) {
        Some(kind) => Err(Error::new(
            ErrorKind::Fatal,
            format!(
                "{} is on a network file system ({kind}), where SQLite loses data; use a local or block volume",
                path.display()
            ),
        )),
        None => Ok(()),
    }
}

fn attempt(path: &Path, config: &Config) -> Result<Connection> {
    let explain = |error: rusqlite::Error| explain(path, &error);
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags).map_err(explain)?;
    // Without this, looking at a file whose log is there would need an index in shared memory.
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE").map_err(explain)?;
    // Before anything is written: a database of something else stays as it is.
    check_ours(&connection, path)?;
    configure(&connection, config).map_err(explain)?;
    migrate(&mut connection, path, &MIGRATIONS)?;
    connection.set_prepared_statement_cache_capacity(128);
    Ok(connection)
}

fn check_ours(connection: &Connection, path: &Path) -> Result<()> {
    let explain = |error: rusqlite::Error| explain(path, &error);
    let application_id: i64 = pragma(connection, "application_id").map_err(explain)?;
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", (), |row| row.get(0)).map_err(explain)?;
    if application_id != APPLICATION_ID && (application_id != 0 || tables != 0) {
        return Err(Error::new(
            ErrorKind::Fatal,
            format!("{} is a database of something else than Longshore", path.display()),
        ));
    }
    Ok(())
}

/// A connection that owns the file, so that neither a second process nor a shared-memory index is possible.
fn configure(connection: &Connection, config: &Config) -> rusqlite::Result<()> {
    let cache_kib = i64::try_from(config.cache / 1024).unwrap_or(i64::MAX);
    // Only a database without tables takes this on; later it does nothing.
    connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "cache_size", -cache_kib)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    // 16 MiB between checkpoints: each one costs two more syncs.
    connection.pragma_update(None, "wal_autocheckpoint", 4096)?;
    connection.pragma_update(None, "journal_size_limit", 64 * 1024 * 1024)?;
    // Takes the lock now rather than with the first job.
    connection.execute_batch("BEGIN IMMEDIATE; COMMIT")
}

fn pragma(connection: &Connection, name: &str) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, name, |row| row.get(0))
}

fn migrate(connection: &mut Connection, path: &Path, migrations: &[Migration]) -> Result<()> {
    let explain = |error: rusqlite::Error| explain(path, &error);
    let known = i64::try_from(migrations.len()).unwrap_or(i64::MAX);
    let found = pragma(connection, "user_version").map_err(explain)?;
    if found > known && readable_since(connection).map_err(explain)?.unwrap_or(found) > known {
        return Err(Error::new(
            ErrorKind::Fatal,
            format!(
                "{} has schema version {found}, this broker knows versions up to {known}; use the newer broker again",
                path.display()
            ),
        ));
    }
    for (version, migration) in (1_i64..).zip(migrations).filter(|(version, _)| *version > found) {
        let transaction =
            connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(explain)?;
        let step = transaction
            .execute_batch(migration.statements)
            .and_then(|()| {
                let since = migration.readable_since.to_string();
                transaction
                    .execute(
                        "INSERT OR REPLACE INTO meta (key, value) VALUES ('readable_since', ?1)",
                        [since],
                    )
                    .map(drop)
            })
            .and_then(|()| transaction.pragma_update(None, "user_version", version))
            .and_then(|()| transaction.pragma_update(None, "application_id", APPLICATION_ID));
        step.and_then(|()| transaction.commit()).map_err(explain)?;
    }
    Ok(())
}

/// The oldest version whose broker can use the database.
fn readable_since(connection: &Connection) -> rusqlite::Result<Option<i64>> {
    let since: Option<String> = connection
        .query_row("SELECT value FROM meta WHERE key = 'readable_since'", (), |row| storage::text(row, 0))
        .optional()?;
    Ok(since.and_then(|text| text.parse().ok()))
}

/// What went wrong with the file in `path`, and what to do about it.
fn explain(path: &Path, error: &rusqlite::Error) -> Error {
    use rusqlite::ErrorCode;
    let path = path.display();
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Error::unavailable(format!(
            "{path} is open in another process or broker; one file has one broker"
        )),
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => Error::new(
            ErrorKind::Fatal,
            format!(
                "{path} is damaged or no database ({error}); move it and its -wal file away and restore a backup, or \
                 start without it and lose its jobs"
            ),
        ),
        _ => Error::new(ErrorKind::Fatal, format!("{path} can't be opened: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(directory: &tempfile::TempDir) -> Config {
        Config { lock_wait: Duration::ZERO, ..Config::new(directory.path().join("jobs.db")) }
    }

    #[test]
    fn the_backend_id_is_made_once() {
        let directory = tempfile::tempdir().unwrap();
        let first = backend_id(&open(&config(&directory)).unwrap()).unwrap();
        let second = backend_id(&open(&config(&directory)).unwrap()).unwrap();
        assert_eq!(first, second);
    }

    #[test]
    fn a_commit_is_synced_and_free_pages_can_be_given_back() {
        let directory = tempfile::tempdir().unwrap();
        let connection = open(&config(&directory)).unwrap();
        let (full, incremental) = (2, 2);
        assert_eq!(pragma(&connection, "synchronous").unwrap(), full);
        assert_eq!(pragma(&connection, "auto_vacuum").unwrap(), incremental);
        let journal: String = connection.pragma_query_value(None, "journal_mode", |row| row.get(0)).unwrap();
        assert_eq!(journal, "wal");
    }

    #[test]
    fn a_second_open_is_refused_while_the_first_lives() {
        let directory = tempfile::tempdir().unwrap();
        let first = open(&config(&directory)).unwrap();
        let error = open(&config(&directory)).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unavailable);
        assert!(error.message.contains("another process"), "{error}");
        drop(first);
        open(&config(&directory)).unwrap();
    }

    #[test]
    fn a_newer_schema_is_refused_with_both_versions() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(&directory);
        let newer = open(&config).unwrap();
        newer.pragma_update(None, "user_version", 7).unwrap();
        newer.execute("UPDATE meta SET value = '2' WHERE key = 'readable_since'", ()).unwrap();
        drop(newer);
        let error = open(&config).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Fatal);
        assert!(error.message.contains("version 7"), "{error}");
        assert!(error.message.contains("up to 1"), "{error}");
    }

    #[test]
    fn a_newer_schema_that_only_expanded_is_used_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(&directory);
        let newer = open(&config).unwrap();
        newer.execute_batch("ALTER TABLE jobs ADD COLUMN more INTEGER; PRAGMA user_version = 2").unwrap();
        drop(newer);
        assert_eq!(pragma(&open(&config).unwrap(), "user_version").unwrap(), 2);
        open(&config).unwrap().execute("DELETE FROM meta WHERE key = 'readable_since'", ()).unwrap();
        assert_eq!(open(&config).unwrap_err().kind, ErrorKind::Fatal);
    }

    #[test]
    fn a_link_is_followed_before_its_file_system_is_looked_at() {
        let directory = tempfile::tempdir().unwrap();
        let far = directory.path().canonicalize().unwrap().join("far");
        std::fs::create_dir(&far).unwrap();
        let link = directory.path().join("jobs.db");
        // The file that it names is not there yet.
        std::os::unix::fs::symlink("far/real.db", &link).unwrap();
        assert_eq!(located(&link).unwrap(), far.join("real.db"));
        let circle = directory.path().join("circle.db");
        std::os::unix::fs::symlink("circle.db", &circle).unwrap();
        assert!(located(&circle).unwrap_err().message.contains("circles"));
    }

    #[test]
    fn an_older_schema_is_migrated_and_a_failed_step_leaves_no_trace() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(&directory);
        let mut connection = open(&config).unwrap();
        let broken = "CREATE TABLE more (x); SELECT nonsense FROM nowhere;";
        let steps = |statements| [Migration { ..MIGRATIONS[0] }, Migration { statements, readable_since: 1 }];
        assert!(migrate(&mut connection, &config.path, &steps(broken)).is_err());
        assert_eq!(pragma(&connection, "user_version").unwrap(), 1);
        let whole = "CREATE TABLE more (x);";
        migrate(&mut connection, &config.path, &steps(whole)).unwrap();
        assert_eq!(pragma(&connection, "user_version").unwrap(), 2);
        connection.execute("INSERT INTO more VALUES (1)", ()).unwrap();
    }

    #[test]
    fn a_file_that_is_no_database_is_fatal_and_says_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(&directory);
        std::fs::write(&config.path, "this is no database, whatever its name says".repeat(100)).unwrap();
        let error = open(&config).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Fatal);
        assert!(error.message.contains("restore a backup"), "{error}");
    }

    #[test]
    fn a_database_of_something_else_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(&directory);
        Connection::open(&config.path).unwrap().execute_batch("CREATE TABLE theirs (x)").unwrap();
        let before = std::fs::read(&config.path).unwrap();
        let error = open(&config).unwrap_err();
        assert!(error.message.contains("something else"), "{error}");
        assert!(before == std::fs::read(&config.path).unwrap(), "their file was changed");
    }

    #[test]
    fn a_missing_directory_is_named() {
        let error = open(&Config::new("/nowhere/at/all/jobs.db")).unwrap_err();
        assert!(error.message.contains("/nowhere/at/all"), "{error}");
    }
}
