//! A schema that is brought up to date while it is worked with.

use super::{Bench, connect, job, until};
use crate::{
    Driver, ErrorKind, Settle, Settlement,
    conformance::servers::postgres::Server,
    postgres::{
        Postgres, PostgresConfig,
        schema::{Step, climb},
    },
};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// A step as a later version may have it: it changes a table that every call uses, and a function.
const STEP: Step = &[
    "ALTER TABLE @schema@.jobs ADD COLUMN spare bigint; ALTER TABLE @schema@.waiting ADD COLUMN spare bigint; \
     CREATE FUNCTION @schema@.spare() RETURNS bigint LANGUAGE sql @hot@ AS 'SELECT 7::bigint';",
];
/// The first version is there already.
const STEPS: &[Step] = &[&[], STEP];
const TRIES: Duration = Duration::from_secs(30);

/// Enqueues, claims and settles for as long as `going` says; how many, and how long the slowest round took.
async fn load(bench: &Bench, going: impl Fn() -> bool) -> (usize, Duration) {
    let (mut done, mut slowest) = (0, Duration::ZERO);
    while going() {
        let since = Instant::now();
        let added = bench.driver.enqueue(&bench.queue, vec![job(); 20]).await.unwrap();
        assert!(added.iter().all(Result::is_ok), "{added:?}");
        let claimed = bench.claim(20, Duration::from_secs(5)).await;
        let ends = claimed
            .into_iter()
            .map(|job| Settlement { receipt: job.receipt, settle: Settle::Succeed { result: None } });
        let settled = bench.driver.settle(&bench.queue, ends.collect()).await.unwrap();
        assert!(settled.iter().all(Result::is_ok), "{settled:?}");
        done += settled.len();
        slowest = slowest.max(since.elapsed());
    }
    (done, slowest)
}

/// The same for so long; how many.
async fn load_for(bench: &Bench, span: Duration) -> usize {
    let since = Instant::now();
    load(bench, || since.elapsed() < span).await.0
}

#[tokio::test]
async fn steps_go_on_when_whoever_asked_for_them_gives_up() {
    let server = Server::start(&[]).await.unwrap();
    let url = server.url(server.address());
    let other = connect(&url).await;
    // Another operator is at it.
    let lock = "SELECT pg_advisory_lock(hashtextextended('longshore.longshore', 0))";
    other.batch_execute(lock).await.unwrap();
    let driver = Postgres::new(PostgresConfig::new(&url).unwrap()).unwrap();
    tokio::time::timeout(Duration::from_millis(500), driver.probe()).await.unwrap_err();
    other.batch_execute("SELECT pg_advisory_unlock_all()").await.unwrap();
    let there = "SELECT count(*) FROM pg_namespace WHERE nspname = 'longshore'";
    until(&other, there, 1, Duration::from_secs(10)).await;
}

#[tokio::test]
async fn a_step_waits_for_a_reader_without_stopping_the_work() {
    let bench = Bench::start().await;
    // Somebody counts jobs and takes their time.
    let reader = connect(&bench.url()).await;
    reader.batch_execute("BEGIN; SELECT count(*) FROM longshore.jobs").await.unwrap();
    let operator = connect(&bench.url()).await;
    let climbed = std::cell::Cell::new(None);
    let climb = async {
        let identity = climb(&operator, "longshore", STEPS, TRIES).await.unwrap();
        climbed.set(Some(identity.version));
    };
    let hold = async {
        sleep(Duration::from_secs(3)).await;
        assert_eq!(climbed.get(), None, "the step didn't need the table");
        reader.batch_execute("COMMIT").await.unwrap();
    };
    let work = load(&bench, || climbed.get().is_none());
    let ((), (), (done, slowest)) = tokio::join!(climb, hold, work);
    assert_eq!(climbed.get(), Some(2));
    assert!(done > 0, "nothing was done meanwhile");
    // A step that waited in line for its reader would stop everybody for as long.
    assert!(slowest < Duration::from_secs(2), "a round took {slowest:?}");
    // What is there is worked with as before, by those who know only the first version.
    until(&bench.admin, "SELECT longshore.spare()", 7, Duration::from_secs(1)).await;
    bench.driver.probe().await.unwrap();
    assert!(load_for(&bench, Duration::from_millis(300)).await > 0, "nothing is done afterwards");
}

#[tokio::test]
async fn a_step_that_fails_leaves_the_version_that_was() {
    let bench = Bench::start().await;
    let operator = connect(&bench.url()).await;
    let broken: &[Step] = &[&[], &["ALTER TABLE @schema@.jobs ADD COLUMN spare bigint; SELECT 1 / 0;"]];
    climb(&operator, "longshore", broken, TRIES).await.unwrap_err();
    until(&bench.admin, "SELECT version::bigint FROM longshore.meta", 1, Duration::from_secs(1)).await;
    let column = "SELECT count(*) FROM information_schema.columns WHERE column_name = 'spare'";
    until(&bench.admin, column, 0, Duration::from_secs(1)).await;
    assert!(load_for(&bench, Duration::from_millis(200)).await > 0);
    let identity = climb(&operator, "longshore", STEPS, TRIES).await.unwrap();
    assert_eq!(identity.version, 2);
}

#[tokio::test]
async fn a_step_that_never_gets_its_table_says_so_and_stops_nobody() {
    let bench = Bench::start().await;
    let reader = connect(&bench.url()).await;
    reader.batch_execute("BEGIN; SELECT count(*) FROM longshore.jobs").await.unwrap();
    let operator = connect(&bench.url()).await;
    let error = climb(&operator, "longshore", STEPS, Duration::from_millis(500)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    assert!(error.message.contains("long transactions"), "{error}");
    assert!(load_for(&bench, Duration::from_millis(200)).await > 0);
    reader.batch_execute("COMMIT").await.unwrap();
}
