//! Waiting on conditions, with deadlines.

use anyhow::{Result, bail};
use std::{future::Future, time::Duration};
use tokio::time::Instant;

/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Looks until `check` gives something, for `limit` at most. The last reason why not is in the error.
///
/// # Errors
/// When time is up; `what` was waited for.
pub async fn eventually<T, F, Fut>(what: &str, limit: Duration, mut check: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T>>,
{
    let end = Instant::now() + limit;
    loop {
        let problem = match tokio::time::timeout(limit, check()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => format!("{error:#}"),
            Err(_elapsed) => "looking took too long".to_owned(),
        };
        if Instant::now() >= end {
            bail!("waited {limit:?} for {what}: {problem}");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Watches that `check` holds all through `span`.
///
/// # Errors
/// When it doesn't, once.
pub async fn always<F, Fut>(what: &str, span: Duration, mut check: F) -> Result<()>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<()>>,
{
    let end = Instant::now() + span;
    while Instant::now() < end {
        if let Err(error) = check().await {
            bail!("{what} stopped to hold: {error:#}");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}
