//! Connections to brokers.

use crate::policy::Connect;
use futures::FutureExt;
use longshore_drivers::{
    Driver, DynDriver, ErrorKind,
    http::client::{HttpConfig, HttpDriver, TokenSource},
    policy::BrokerAccess,
};
use std::{
    sync::{Arc, Weak},
    time::Duration,
};
use tokio::time::sleep;

/// How often a broker that was not there is asked what it can do.
const ASK_EVERY: Duration = Duration::from_secs(3);

/// Connects to brokers over HTTP.
pub fn connect() -> Connect {
    Arc::new(|access| futures::future::ready(open(&access)).boxed())
}

/// A driver whose broker need not be there: a sidecar that starts during an outage has to work when it is over.
fn open(access: &BrokerAccess) -> longshore_drivers::Result<DynDriver> {
    let config = HttpConfig::new(
        &access.url,
        TokenSource::files(access.token_files.iter().map(Into::into).collect()),
    )?;
    let driver = Arc::new(HttpDriver::new(config));
    tokio::spawn(learn(Arc::downgrade(&driver)));
    Ok(driver)
}

/// Asks until the broker says what it can do. Until then the driver assumes the usual limits.
async fn learn(driver: Weak<HttpDriver>) {
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
