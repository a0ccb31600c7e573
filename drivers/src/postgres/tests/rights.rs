//! Roles that may do their part only, producers that know no Longshore, encryption.

use super::{BROKER, Bench, WIRE, as_user, block, claim, connect, job};
use crate::{
    Claim, Driver, DriverExt, ErrorKind, Settle,
    conformance::servers::postgres::{Server, programs},
    postgres::{Postgres, PostgresConfig},
};
use std::{
    path::Path,
    process::{Command, Output},
    time::Duration,
};

fn psql(url: &str, script: &str) -> Output {
    Command::new(programs().unwrap().join("psql"))
        .args([url, "--no-psqlrc", "--quiet", "--tuples-only", "--set=ON_ERROR_STOP=1", "--command"])
        .arg(script)
        .output()
        .unwrap()
}

fn psql_file(url: &str, script: &str) -> Output {
    let file = std::env::temp_dir().join(format!("longshore-psql-{}-{}", std::process::id(), script.len()));
    std::fs::write(&file, script).unwrap();
    let out = Command::new(programs().unwrap().join("psql"))
        .args([url, "--no-psqlrc", "--quiet", "--tuples-only", "--set=ON_ERROR_STOP=1", "--file"])
        .arg(&file)
        .output()
        .unwrap();
    std::fs::remove_file(file).unwrap();
    out
}

#[tokio::test]
async fn a_worker_needs_no_more_than_the_documented_rights() {
    let bench = Bench::start().await;
    bench.admin.batch_execute(block(BROKER, "CREATE ROLE shop_worker")).await.unwrap();
    let worker = Postgres::new(PostgresConfig::new(&as_user(&bench, "shop_worker")).unwrap()).unwrap();
    worker.enqueue_one(&bench.queue, job()).await.unwrap();
    let claimed = claim(&worker, &bench.queue, 1, Duration::from_secs(5)).await.unwrap();
    worker.extend_one(&bench.queue, &claimed[0].receipt, Duration::from_secs(9)).await.unwrap();
    worker.settle_one(&bench.queue, &claimed[0].receipt, Settle::Succeed { result: None }).await.unwrap();
    worker.stats(&bench.queue).await.unwrap();
    let error = worker.delete_queue(&bench.queue, &super::owner()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unauthorized);
    assert!(error.message.contains("docs/brokers/postgres.md"), "{error}");
    let client = connect(&as_user(&bench, "shop_worker")).await;
    for forbidden in ["SELECT * FROM longshore.jobs", "DELETE FROM longshore.finished"] {
        let code = client.batch_execute(forbidden).await.unwrap_err().code().cloned();
        assert_eq!(code, Some(tokio_postgres::error::SqlState::INSUFFICIENT_PRIVILEGE), "{forbidden}");
    }
}

#[tokio::test]
async fn wrong_passwords_are_told_from_servers_that_are_away() {
    let bench = Bench::start().await;
    let wrong = bench.url().replace(":conformance@", ":s3cret@");
    let driver = Postgres::new(PostgresConfig::new(&wrong).unwrap()).unwrap();
    let error = driver.stats(&bench.queue).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unauthorized, "{error}");
    let away = "postgres://somebody:s3cret@127.0.0.1:1/db?sslmode=disable";
    let driver = Postgres::new(PostgresConfig::new(away).unwrap()).unwrap();
    let error = driver.stats(&bench.queue).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert!(!error.message.contains("s3cret"), "{error}");
}

#[tokio::test]
async fn a_producer_enqueues_within_its_own_transaction() {
    let bench = Bench::start().await;
    bench.admin.batch_execute("CREATE TABLE orders (id int PRIMARY KEY)").await.unwrap();
    bench.admin.batch_execute(block(WIRE, "CREATE ROLE shop_producer")).await.unwrap();
    bench.admin.batch_execute("GRANT ALL ON orders TO shop_producer").await.unwrap();
    let url = as_user(&bench, "shop_producer");
    let undone = psql_file(&url, block(WIRE, "BEGIN;\nINSERT INTO orders VALUES (1)"));
    assert!(undone.status.success(), "{undone:?}");
    assert!(bench.claim(1, Duration::ZERO).await.is_empty(), "a job of a transaction that was undone");
    let (driver, queue) = (bench.driver.clone(), bench.queue.clone());
    let waiting = tokio::spawn(async move {
        let claim = Claim {
            max: 10,
            wait: Duration::from_secs(20),
            lease: Duration::from_secs(60),
            worker: "tester".into(),
        };
        (driver.claim(&queue, claim).await.unwrap(), std::time::Instant::now())
    });
    // Until it listens and sleeps.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let script = block(WIRE, "BEGIN;\nINSERT INTO orders VALUES (2)");
    let done = tokio::task::spawn_blocking(move || psql_file(&url, script)).await.unwrap();
    let committed = std::time::Instant::now();
    assert!(done.status.success(), "{done:?}");
    let (claimed, at) = waiting.await.unwrap();
    assert_eq!(claimed.len(), 1);
    assert_eq!((claimed[0].id.as_str(), claimed[0].job_type.as_str()), ("order-2", "mail.send"));
    assert_eq!(&claimed[0].payload.bytes[..], br#"{"order": 2}"#);
    let late = at.saturating_duration_since(committed);
    assert!(late < Duration::from_secs(1), "a waiting claim slept on for {late:?}");
    let refused =
        psql(&as_user(&bench, "shop_producer"), "SELECT longshore.enqueue('test.shop.mails', 'a b', '{}')");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("type must be"), "{refused:?}");
}

fn openssl(directory: &Path, arguments: &str) {
    let out = Command::new("openssl").args(arguments.split(' ')).current_dir(directory).output().unwrap();
    assert!(out.status.success(), "{out:?}");
}

#[tokio::test]
async fn certificates_are_checked_against_the_named_authority() {
    let bench = Bench::start().await;
    let data = bench.server.data();
    openssl(&data, "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days 2 -subj /CN=test-ca");
    openssl(&data, "req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj /CN=localhost");
    std::fs::write(data.join("names"), "subjectAltName=DNS:localhost,IP:127.0.0.1").unwrap();
    openssl(
        &data,
        "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out server.crt -days 2 -extfile names",
    );
    let mut owned = Command::new("chown");
    owned.arg("--reference=PG_VERSION").args(["server.key", "server.crt"]).current_dir(&data);
    assert!(owned.status().unwrap().success());
    let mode = Command::new("chmod").args(["600", "server.key"]).current_dir(&data).status().unwrap();
    assert!(mode.success());
    bench.admin.batch_execute("ALTER SYSTEM SET ssl = on").await.unwrap();
    bench.server.restart().await.unwrap();
    let ca = std::fs::read(data.join("ca.crt")).unwrap();
    let url = |mode: &str| bench.url().replace("sslmode=disable", mode);
    let mut trusted = PostgresConfig::new(&url("sslmode=prefer")).unwrap();
    trusted.ca = Some(ca);
    let driver = Postgres::new(trusted).unwrap();
    driver.stats(&bench.queue).await.unwrap();
    let encrypted = bench_connections(&bench).await;
    assert!(encrypted > 0, "nobody speaks TLS");
    // Nobody named this authority, and no system knows it.
    let strict = PostgresConfig::new(&url("sslmode=verify-full")).and_then(Postgres::new);
    if let Ok(driver) = strict {
        assert_eq!(driver.stats(&bench.queue).await.unwrap_err().kind, ErrorKind::Unavailable);
    }
    let careless = Postgres::new(PostgresConfig::new(&url("sslmode=prefer")).unwrap()).unwrap();
    careless.stats(&bench.queue).await.unwrap();
}

async fn bench_connections(bench: &Bench) -> i64 {
    let client = connect(&bench.url()).await;
    client.query_one("SELECT count(*) FROM pg_stat_ssl WHERE ssl", &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn a_server_that_only_reads_says_so() {
    let bench = Bench::start().await;
    bench.admin.batch_execute("ALTER SYSTEM SET default_transaction_read_only = on").await.unwrap();
    bench.server.restart().await.unwrap();
    let error = bench.driver.enqueue_one(&bench.queue, job()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    let again = Postgres::new(PostgresConfig::new(&bench.url()).unwrap()).unwrap();
    let error = again.enqueue_one(&bench.queue, job()).await.unwrap_err();
    assert!(error.message.contains("only reads"), "{error}");
}

#[tokio::test]
async fn durability_is_what_the_server_does() {
    let server = Server::start(&["synchronous_commit = off"]).await.unwrap();
    let driver = Postgres::new(PostgresConfig::new(&server.url(server.address())).unwrap()).unwrap();
    let probe = driver.probe().await.unwrap();
    assert_eq!(probe.capabilities.durability, crate::Durability::None);
    assert!(probe.version.starts_with(|digit: char| digit.is_ascii_digit()), "{}", probe.version);
}
