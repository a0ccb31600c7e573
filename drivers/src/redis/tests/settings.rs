//! How the server is set up: what is refused, and what is told.

use super::{ALWAYS, Redis, RedisConfig, Subject, job};
use crate::{
    Driver, DriverExt, Durability, ErrorKind, NewJob, Payload,
    conformance::{
        Broker,
        servers::process::{Directory, free_port},
        servers::redis::RedisBroker,
    },
};
use std::process::Command;

#[tokio::test]
async fn a_server_that_throws_jobs_away_is_refused_by_name() {
    let subject = Subject::start(ALWAYS).await;
    let () = subject.raw(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]).await;
    for error in [subject.driver.probe().await.unwrap_err(), subject.declare().await.unwrap_err()] {
        assert_eq!(error.kind, ErrorKind::Fatal);
        assert!(error.message.contains("allkeys-lru") && error.message.contains("noeviction"), "{error}");
    }
    let () = subject.raw(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]).await;
    subject.declare().await.unwrap();
    subject.end().await;
}

#[tokio::test]
async fn a_node_of_a_cluster_is_refused_by_name() {
    let server = RedisBroker::start(&["--cluster-enabled", "yes"]).await.unwrap();
    let driver = Redis::new(RedisConfig::new(&server.url()).unwrap()).unwrap();
    let queue = "test".parse().unwrap();
    let refused = [
        driver.probe().await.unwrap_err(),
        driver.declare(&queue, super::declaration()).await.unwrap_err(),
        driver.enqueue_one(&queue, job("one")).await.unwrap_err(),
    ];
    for error in refused {
        assert_eq!(error.kind, ErrorKind::Unsupported);
        assert!(error.message.starts_with("cluster: "), "{error}");
    }
    driver.close().await;
    server.stop().await;
}

#[tokio::test]
async fn durability_is_what_the_server_does() {
    let cases: [(&[&str], Durability); 4] = [
        (ALWAYS, Durability::Machine),
        (&["--appendonly", "yes", "--appendfsync", "everysec"], Durability::Mostly),
        (&["--appendonly", "yes", "--appendfsync", "no"], Durability::Process),
        (&["--appendonly", "no"], Durability::None),
    ];
    for (settings, expected) in cases {
        let subject = Subject::start(settings).await;
        let probe = subject.driver.probe().await.unwrap();
        assert_eq!(probe.capabilities.durability, expected, "{settings:?}");
        assert!(probe.version.starts_with(char::is_numeric), "{}", probe.version);
        subject.end().await;
    }
}

#[tokio::test]
async fn a_full_memory_refuses_new_jobs_and_lets_others_end() {
    let subject = Subject::start(ALWAYS).await;
    for index in 0..20 {
        subject.enqueue(&format!("job-{index}")).await.unwrap();
    }
    let held = subject.claim(1).await;
    let () = subject.raw(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let full = subject.enqueue("one-more").await.unwrap_err();
    assert_eq!(full.kind, ErrorKind::Unavailable);
    assert!(full.message.contains("maxmemory"), "{full}");
    subject.succeed(&held[0]).await.unwrap();
    let claimed = subject.claim(100).await;
    assert_eq!(claimed.len(), 19);
    for job in &claimed {
        subject.succeed(job).await.unwrap();
    }
    let stats = subject.driver.stats(&subject.queue).await.unwrap();
    assert_eq!((stats.ready, stats.active), (Some(0), Some(0)));
    let () = subject.raw(&["CONFIG", "SET", "maxmemory", "0"]).await;
    subject.enqueue("one-more").await.unwrap();
    subject.end().await;
}

#[tokio::test]
async fn a_suspended_queue_that_filled_the_memory_can_be_resumed_and_emptied() {
    let subject = Subject::start(ALWAYS).await;
    let mut paused = super::declaration();
    paused.settings.paused = true;
    subject.driver.declare(&subject.queue, paused).await.unwrap();
    subject.enqueue("one").await.unwrap();
    let () = subject.raw(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let mut resumed = super::declaration();
    resumed.settings.retain_completed = std::time::Duration::ZERO;
    assert!(!subject.driver.declare(&subject.queue, resumed).await.unwrap().created);
    let claimed = subject.claim(1).await;
    assert_eq!(claimed.len(), 1);
    subject.succeed(&claimed[0]).await.unwrap();
    assert!(subject.driver.inspect(&subject.queue, &claimed[0].id).await.unwrap().is_none());
    // A new queue takes room.
    let other = "other".parse().unwrap();
    let full = subject.driver.declare(&other, super::declaration()).await.unwrap_err();
    assert_eq!(full.kind, ErrorKind::Unavailable, "{full}");
    subject.end().await;
}

#[tokio::test]
async fn data_of_another_layout_is_left_alone() {
    let subject = Subject::start(ALWAYS).await;
    for layout in [1, 3] {
        let meta = format!(r#"{{"layout":{layout},"backendId":"x"}}"#);
        let () = subject.raw(&["SET", "longshore:meta", &meta]).await;
        assert_eq!(subject.driver.probe().await.unwrap_err().kind, ErrorKind::Fatal);
        let fresh = Redis::new(RedisConfig::new(&subject.server.url()).unwrap()).unwrap();
        let refused = fresh.enqueue_one(&subject.queue, job("one")).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Fatal, "layout {layout}");
    }
    subject.end().await;
}

#[tokio::test]
async fn wrong_credentials_are_told_without_being_shown() {
    let server = RedisBroker::start(&[]).await.unwrap();
    let url = server.url().replace("redis://", "redis://:secret@");
    let driver = Redis::new(RedisConfig::new(&url).unwrap()).unwrap();
    let open = redis::Client::open(server.url()).unwrap();
    let mut raw = open.get_multiplexed_async_connection().await.unwrap();
    let () = redis::cmd("CONFIG").arg(&["SET", "requirepass", "other"]).query_async(&mut raw).await.unwrap();
    let error = driver.probe().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unauthorized);
    assert!(!error.message.contains("secret"), "{error}");
    server.stop().await;
}

#[tokio::test]
async fn a_server_with_a_certificate_of_its_own_is_trusted_when_told_so() {
    let directory = Directory::new("redis-tls").unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
        ])
        .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .args(["-keyout", &path("key"), "-out", &path("crt")])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let port = free_port().unwrap();
    let tls_port = port.to_string();
    let (key, certificate) = (path("key"), path("crt"));
    let settings = ["--tls-port", &tls_port, "--tls-key-file", &key, "--tls-cert-file", &certificate];
    let settings = [&settings[..], &["--tls-auth-clients", "no"]].concat();
    let server = RedisBroker::start(&settings).await.unwrap();
    let mut config = RedisConfig::new(&format!("rediss://localhost:{port}")).unwrap();
    let stranger = Redis::new(config.clone()).unwrap();
    assert_eq!(stranger.probe().await.unwrap_err().kind, ErrorKind::Unavailable);
    config.ca = Some(std::fs::read(&certificate).unwrap());
    let driver = Redis::new(config).unwrap();
    let queue = "test".parse().unwrap();
    driver.declare(&queue, super::declaration()).await.unwrap();
    driver.enqueue_one(&queue, NewJob::new("mail", Payload::json("{}"))).await.unwrap();
    let claim = super::claim(1, std::time::Duration::from_secs(1));
    assert_eq!(driver.claim(&queue, claim).await.unwrap().len(), 1);
    driver.close().await;
    server.stop().await;
}
