//! What the conformance suite doesn't see: damage, versions, rights, faults of a real server.

mod faults;
mod rights;
mod rows;

use super::{Postgres, PostgresConfig};
use crate::{
    Claim, Claimed, Declaration, Driver, NewJob, Owner, Payload, QueueName, QueueSettings,
    conformance::servers::postgres::Server,
};
use std::{sync::Arc, time::Duration};
use tokio_postgres::{Client, NoTls};

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

async fn claim(
    driver: &Postgres,
    queue: &QueueName,
    max: u32,
    wait: Duration,
) -> crate::Result<Vec<Claimed>> {
    driver.claim(queue, Claim { max, wait, lease: Duration::from_secs(60), worker: "tester".into() }).await
}
