//! A database with damaged rows beside healthy ones.

use longshore_drivers::{
    Address, Claim, DeadReason, Declaration, Driver, DriverExt, Failure, JobId, JobState, ListJobs, NewJob,
    Notify, Owner, Payload, QueueName, QueueSettings, ReadCompletions, Result, Settle,
    embedded::{Config, Embedded},
};
use rusqlite::{Connection, types::Value};
use std::{fs, future::Future, path::Path, sync::OnceLock, time::Duration};

const TABLES: [&str; 5] = ["jobs", "bodies", "results", "completions", "queues"];
const DAMAGES: usize = 12;
const STATES: [JobState; 8] = [
    JobState::Ready,
    JobState::Scheduled,
    JobState::Retrying,
    JobState::Blocked,
    JobState::Active,
    JobState::Succeeded,
    JobState::Dead,
    JobState::Cancelled,
];
const LONG: Duration = Duration::from_secs(30);

fn queue(name: &str) -> QueueName {
    name.parse().expect("a name")
}

fn claim() -> Claim {
    Claim { max: 100, wait: Duration::ZERO, lease: LONG, worker: "w".into() }
}

fn address() -> Address {
    Address::new("a").expect("an address")
}

/// Whoever hangs is found too.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, what).await.expect("no answer within 30 s")
}

/// Damages rows of one queue, then opens the database. It opens, the queue beside serves all of its jobs, and whatever is
/// asked about the damaged ones is answered without a panic.
pub(crate) fn rows(data: &[u8]) {
    static WHOLE: OnceLock<Vec<u8>> = OnceLock::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("jobs.db");
    let whole = WHOLE.get_or_init(|| runtime.block_on(make(&directory.path().join("whole.db"))));
    fs::write(&path, whole).expect("a copy");
    damage(&path, data);
    runtime.block_on(async {
        let driver = Embedded::open(Config::new(&path)).expect("a damaged row keeps nobody from opening");
        healthy_is_served(&driver).await;
        damaged_is_answered(&driver).await;
        healthy_is_still_there(&driver).await;
        soon(driver.close()).await;
    });
}

async fn make(path: &Path) -> Vec<u8> {
    let driver = Embedded::open(Config::new(path)).expect("a new database");
    for name in ["healthy", "damaged"] {
        let owner = Owner { installation: "i".into(), uid: name.into() };
        let declaration = Declaration { owner, settings: QueueSettings::default(), adopt: false };
        driver.declare(&queue(name), declaration).await.expect("a queue");
    }
    for id in ["one", "two"] {
        driver.enqueue_one(&queue("healthy"), job(id)).await.expect("a job");
    }
    let later = NewJob { delay: LONG * 100, ..job("later") };
    driver.enqueue_one(&queue("healthy"), later).await.expect("a job");
    for id in ["done", "dead", "again", "held", "cancelled"] {
        driver.enqueue_one(&queue("damaged"), job(id)).await.expect("a job");
    }
    for claimed in driver.claim(&queue("damaged"), claim()).await.expect("jobs") {
        let failure = Failure::new("Broken", "it broke");
        let settle = match claimed.id.as_str() {
            "done" => Settle::Succeed { result: Some(Payload::json("[1]")) },
            "dead" => Settle::Bury { reason: DeadReason::Rejected, failure },
            "again" => Settle::Retry { delay: Duration::ZERO, failure },
            _ => continue,
        };
        driver.settle_one(&queue("damaged"), &claimed.receipt, settle).await.expect("a settle");
    }
    driver.cancel(&queue("damaged"), vec![id("cancelled")]).await.expect("a cancel");
    driver.enqueue_one(&queue("damaged"), job("ready")).await.expect("a job");
    let later = NewJob { delay: Duration::from_millis(1), ..job("due") };
    driver.enqueue_one(&queue("damaged"), later).await.expect("a job");
    driver.close().await;
    fs::read(path).expect("a database")
}

fn id(text: &str) -> JobId {
    JobId::new(text).expect("an id")
}

fn job(name: &str) -> NewJob {
    let mut job = NewJob::new("send", Payload::json("{}"));
    job.id = Some(id(name));
    job.headers.insert("x".into(), "y".into());
    job.notify = Some(Notify { address: address(), context: "c".into() });
    job
}

/// Eleven bytes each: the table, the column, the row and the value. What SQLite itself refuses changes nothing.
fn damage(path: &Path, data: &[u8]) {
    let db = Connection::open(path).expect("a database");
    db.execute_batch(
        "PRAGMA journal_mode = DELETE; PRAGMA synchronous = OFF; PRAGMA ignore_check_constraints = ON",
    )
    .expect("a setting");
    let whose: i64 =
        db.query_row("SELECT id FROM queues WHERE name = 'damaged'", (), |row| row.get(0)).expect("a queue");
    let seqs = all(&db, &format!("SELECT seq FROM jobs WHERE queue = {whose}"));
    let completions = all(&db, "SELECT id FROM completions WHERE queue = 'damaged'");
    for step in data.chunks_exact(11).take(DAMAGES) {
        let table = TABLES[usize::from(step[0]) % TABLES.len()];
        let columns: Vec<String> = db
            .prepare(&format!("SELECT name FROM pragma_table_info('{table}')"))
            .and_then(|mut sql| sql.query_map((), |row| row.get(0))?.collect())
            .expect("columns");
        let column = &columns[usize::from(step[1]) % columns.len()];
        let (key, rows) = match table {
            "completions" => ("id", &completions),
            "queues" => ("id", &vec![whose]),
            _ => ("seq", &seqs),
        };
        let row = rows[usize::from(step[2] >> 4) % rows.len()];
        let bytes: [u8; 8] = std::array::from_fn(|at| step[3 + at]);
        let (value, expression) = if column == key {
            // A key at the end of its range leaves no room for new rows: SQLite says `full`, and rightly.
            (Value::Integer(i64::from_le_bytes(bytes) >> 16), "?1")
        } else {
            value(step[2] & 15, bytes)
        };
        let sql = format!("UPDATE {table} SET {column} = {expression} WHERE {key} = {row}");
        drop(db.execute(&sql, [value]));
    }
    db.close().expect("a closed database");
}

fn all(db: &Connection, sql: &str) -> Vec<i64> {
    db.prepare(sql).and_then(|mut sql| sql.query_map((), |row| row.get(0))?.collect()).expect("rows")
}

fn value(kind: u8, bytes: [u8; 8]) -> (Value, &'static str) {
    let number = i64::from_le_bytes(bytes);
    match kind {
        0 => (Value::Integer(number), "?1"),
        1 => (Value::Integer(i64::MAX - i64::from(bytes[0])), "?1"),
        2 => (Value::Integer(i64::MIN + i64::from(bytes[0])), "?1"),
        3 => (Value::Integer(i64::from(bytes[0]) - 8), "?1"),
        4 => (Value::Null, "?1"),
        5 => (Value::Blob(bytes.to_vec()), "?1"),
        6 => (Value::Blob(bytes.to_vec()), "CAST(?1 AS TEXT)"),
        7 => (Value::Text("x".repeat(usize::from(u16::from_le_bytes([bytes[0], bytes[1]])))), "?1"),
        8 => (Value::Text("{broken".into()), "?1"),
        9 => (Value::Text(String::new()), "?1"),
        10 => (Value::Real(f64::from_bits(number.cast_unsigned())), "?1"),
        11 => (Value::Text("{\"x\":null}".into()), "?1"),
        12 => (Value::Integer(1_700_000_000_000 + (number & 0xFF_FFFF_FFFF)), "?1"),
        _ => (Value::Text(String::from_utf8_lossy(&bytes).into_owned()), "?1"),
    }
}

async fn healthy_is_served(driver: &Embedded) {
    let healthy = queue("healthy");
    let claimed = soon(driver.claim(&healthy, claim())).await.expect("a claim beside damaged rows");
    for id in ["one", "two"] {
        let job = claimed.iter().find(|job| job.id.as_str() == id);
        assert!(job.is_some(), "{id} was not handed out: {claimed:?}");
        if let Some(job) = job.filter(|_| id == "one") {
            let settle = Settle::Succeed { result: None };
            soon(driver.settle_one(&healthy, &job.receipt, settle))
                .await
                .expect("a settle beside damaged rows");
        }
    }
    soon(driver.stats(&healthy)).await.expect("numbers beside damaged rows");
}

async fn healthy_is_still_there(driver: &Embedded) {
    for (state, id) in
        [(JobState::Succeeded, "one"), (JobState::Active, "two"), (JobState::Scheduled, "later")]
    {
        let list = ListJobs { state, limit: 100, after: None };
        let page = soon(driver.list(&queue("healthy"), list)).await.expect("a list beside damaged rows");
        assert!(page.jobs.iter().any(|job| job.id.as_str() == id), "{id} is not listed as {state:?}");
    }
    let read = ReadCompletions { max: 100, wait: Duration::ZERO, lease: Duration::from_secs(5) };
    let page = soon(driver.completions(&address(), read)).await.expect("completions beside damaged ones");
    assert!(
        page.completions.iter().any(|completion| completion.job.as_str() == "one"),
        "a completion is missing"
    );
}

/// Any answer will do but a panic.
fn answered<T>(answer: Result<T>) {
    if let Err(error) = answer {
        assert!(!error.message.contains("panicked"), "{error}");
    }
}

async fn damaged_is_answered(driver: &Embedded) {
    let damaged = queue("damaged");
    answered(soon(driver.stats(&damaged)).await);
    if let Ok(claimed) = soon(driver.claim(&damaged, claim())).await {
        for job in claimed {
            answered(soon(driver.extend_one(&damaged, &job.receipt, LONG)).await);
            let failure = Failure::new("Broken", "it broke");
            let settle = Settle::Retry { delay: Duration::ZERO, failure };
            answered(soon(driver.settle_one(&damaged, &job.receipt, settle)).await);
        }
    }
    for state in STATES {
        answered(soon(driver.list(&damaged, ListJobs { state, limit: 100, after: None })).await);
    }
    let ids: Vec<_> = ["done", "dead", "again", "held", "cancelled", "ready", "due"].map(id).into();
    for id in &ids {
        answered(soon(driver.inspect(&damaged, id)).await);
    }
    answered(soon(driver.results(&damaged, ids.clone())).await);
    answered(soon(driver.redrive(&damaged, ids.clone())).await);
    answered(soon(driver.cancel(&damaged, ids.clone())).await);
    answered(soon(driver.unpin(&damaged, ids)).await);
    for state in [JobState::Dead, JobState::Succeeded, JobState::Ready] {
        answered(soon(driver.purge(&damaged, state, 1)).await);
    }
}
