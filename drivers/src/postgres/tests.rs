//! What the conformance suite doesn't see: damage, versions, rights, faults of a real server.

mod bounds;
mod faults;
mod links;
mod meetings;
mod migrations;
mod plans;
mod rights;
mod rows;

use super::{Postgres, PostgresConfig};
use crate::{
    Claim, Claimed, Declaration, Driver, NewJob, Owner, Payload, QueueName, QueueSettings,
    conformance::servers::postgres::Server,
};
use std::{sync::Arc, time::Duration};
use tokio_postgres::{Client, NoTls};

const BROKER: &str = include_str!("../../../docs/brokers/postgres.md");
const WIRE: &str = include_str!("../../../docs/wire-format-postgres.md");

/// The block of a page that begins with a line.
fn block(page: &'static str, begin: &str) -> &'static str {
    let at = page.find(begin).unwrap_or_else(|| panic!("no block begins with {begin:?}"));
    page[at..].split("```").next().unwrap()
}

fn as_user(bench: &Bench, user: &str) -> String {
    bench.url().replace("postgres:conformance@", &format!("{user}:secret@"))
}

/// A server with a declared queue, a driver, and a client beside it.
struct Bench {
    server: Server,
    driver: Arc<Postgres>,
    admin: Client,
    queue: QueueName,
}

fn owner() -> Owner {
    Owner { installation: "test".into(), uid: "one".into() }
}

fn declaration(settings: QueueSettings) -> Declaration {
    Declaration { owner: owner(), settings, adopt: false }
}

fn job() -> NewJob {
    NewJob::new("mail", Payload::json("{}"))
}

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

impl Bench {
    async fn start() -> Self {
        let server = Server::start(&[]).await.unwrap();
        let url = server.url(server.address());
        let driver = Arc::new(Postgres::new(PostgresConfig::new(&url).unwrap()).unwrap());
        let queue: QueueName = "test.shop.mails".parse().unwrap();
        driver.declare(&queue, declaration(QueueSettings::default())).await.unwrap();
        Self { admin: connect(&url).await, server, driver, queue }
    }

    fn url(&self) -> String {
        self.server.url(self.server.address())
    }

    async fn claim(&self, max: u32, wait: Duration) -> Vec<Claimed> {
        claim(&self.driver, &self.queue, max, wait).await.unwrap()
    }
}

/// Waits until a query of one number answers `wanted`.
async fn until(client: &Client, query: &str, wanted: i64, within: Duration) {
    let deadline = std::time::Instant::now() + within;
    loop {
        let seen: i64 = client.query_one(query, &[]).await.unwrap().get(0);
        if seen == wanted {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "{query} answers {seen} instead of {wanted}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn claim(
    driver: &Postgres,
    queue: &QueueName,
    max: u32,
    wait: Duration,
) -> crate::Result<Vec<Claimed>> {
    driver.claim(queue, Claim { max, wait, lease: Duration::from_secs(60), worker: "tester".into() }).await
}
