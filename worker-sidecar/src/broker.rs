//! Connections to brokers.

use crate::policy::Connect;
use futures::FutureExt;
use longshore_drivers::{
    Driver, DynDriver, ErrorKind, open,
    policy::{BrokerAccess, Via},
};
use std::{
    sync::{Arc, Weak},
    time::Duration,
};
use tokio::time::sleep;

/// How often a broker that was not there is asked what it can do.
const ASK_EVERY: Duration = Duration::from_secs(3);

/// Connects to brokers of every kind.
pub fn connect() -> Connect {
    Arc::new(|access| futures::future::ready(open(&access)).boxed())
}

/// A driver whose broker need not be there: a sidecar that starts during an outage has to work when it is over.
fn open(access: &BrokerAccess) -> longshore_drivers::Result<DynDriver> {
    let driver = open::open(&access.via)?;
    if matches!(access.via, Via::Http { .. }) {
        tokio::spawn(learn(Arc::downgrade(&driver)));
    }
    Ok(driver)
}

/// Asks until the broker says what it can do: over HTTP anything may answer. Until then the driver assumes the usual limits.
async fn learn(driver: Weak<dyn Driver>) {
    loop {
        match driver.upgrade() {
            None => return,
            Some(driver) => match driver.probe().await {
                Ok(_) => return,
                // An older broker that doesn't tell.
                Err(error) if error.kind == ErrorKind::Unsupported => return,
                Err(_) => {}
            },
        }
        sleep(ASK_EVERY).await;
    }
}
