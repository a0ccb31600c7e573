//! Connections: too few of them, those that hang, those that lead to the wrong server.

use super::{BROKER, Bench, as_user, block, job};
use crate::{
    Driver, DriverExt, ErrorKind,
    postgres::{Postgres, PostgresConfig},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::net::{TcpListener, TcpStream};

/// Calls that are under way at once; how long the slowest one took.
async fn crowd(driver: &Postgres, bench: &Bench) -> Duration {
    let call = |_| async {
        let since = Instant::now();
        driver.stats(&bench.queue).await.unwrap();
        since.elapsed()
    };
    futures::future::join_all((0..50).map(call)).await.into_iter().max().unwrap()
}

#[tokio::test]
async fn calls_go_on_over_the_connections_that_the_server_grants() {
    let bench = Bench::start().await;
    bench.admin.batch_execute(block(BROKER, "CREATE ROLE shop_worker")).await.unwrap();
    bench.admin.batch_execute("ALTER ROLE shop_worker CONNECTION LIMIT 1").await.unwrap();
    let mut config = PostgresConfig::new(&as_user(&bench, "shop_worker")).unwrap();
    config.listen = false;
    let driver = Postgres::new(config).unwrap();
    driver.stats(&bench.queue).await.unwrap();
    for _ in 0..5 {
        crowd(&driver, &bench).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Leads the first `open` connections to the server; the others are taken and never answered.
async fn doorman(bench: &Bench, open: usize) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, target) = (listener.local_addr().unwrap().port(), bench.server.address());
    let came = Arc::new(AtomicUsize::new(0));
    let count = came.clone();
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((mut client, _)) = listener.accept().await {
            if count.fetch_add(1, Ordering::Relaxed) >= open {
                held.push(client);
                continue;
            }
            tokio::spawn(async move {
                let mut server = TcpStream::connect(target).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    (port, came)
}

#[tokio::test]
async fn a_connection_that_hangs_while_it_is_made_holds_up_no_call() {
    let bench = Bench::start().await;
    let (port, came) = doorman(&bench, 1).await;
    let mut config = PostgresConfig::new(&bench.server.url(([127, 0, 0, 1], port).into())).unwrap();
    config.listen = false;
    let driver = Postgres::new(config).unwrap();
    driver.stats(&bench.queue).await.unwrap();
    let slowest = crowd(&driver, &bench).await;
    assert!(slowest < Duration::from_secs(3), "a call took {slowest:?}");
    assert!(came.load(Ordering::Relaxed) > 1, "nobody wished for a second connection");
}

#[tokio::test]
async fn a_connection_to_a_server_that_only_reads_is_given_up() {
    let bench = Bench::start().await;
    bench
        .admin
        .batch_execute("ALTER DATABASE postgres SET default_transaction_read_only = on")
        .await
        .unwrap();
    let driver = Postgres::new(PostgresConfig::new(&bench.url()).unwrap()).unwrap();
    let error = driver.enqueue_one(&bench.queue, job()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert!(error.message.contains("only reads"), "{error}");
    // Its name leads to the new primary from now on.
    bench.admin.batch_execute("ALTER DATABASE postgres RESET default_transaction_read_only").await.unwrap();
    driver.enqueue_one(&bench.queue, job()).await.unwrap();
}
