//! The stream of completions of one address.

use super::{
    Shared, ToSql, claim,
    enqueue::millis,
    error::{self, Effect},
};
use crate::{
    Address, Completion, CompletionPage, CompletionReceipt, Error, JobId, Limits, QueueName, ReadCompletions,
    Result, Timestamp,
};
use std::time::Duration;
use tokio_postgres::{Row, types::Type};

/// Rounds of one read over completions that can't be read.
const ROUNDS: usize = 20;

/// What one look found.
pub(super) struct Look {
    pub(super) page: CompletionPage,
    /// How long it takes until one that is leased can be read again.
    pub(super) quiet: Option<Duration>,
}

/// Leases what can be read. Completions that make no sense are put aside.
pub(super) async fn read(shared: &Shared, address: &Address, read: &ReadCompletions) -> Result<Look> {
    let max = (read.max as usize).min(Limits::BATCH);
    let mut look = Look { page: CompletionPage { completions: Vec::new(), caught_up: false }, quiet: None };
    for _ in 0..ROUNDS {
        let (found, broken, next) = send(shared, address, max, read.lease).await?;
        look = next;
        look.page.completions = found;
        if broken.is_empty() {
            break;
        }
        shared.pool.call(Effect::Read, "park", &[(&broken, Type::INT8_ARRAY)]).await?;
        // Those don't count any more; a short page is looked for again only if nothing else was there.
        if !look.page.completions.is_empty() {
            break;
        }
    }
    Ok(look)
}

async fn send(
    shared: &Shared,
    address: &Address,
    max: usize,
    lease: Duration,
) -> Result<(Vec<Completion>, Vec<i64>, Look)> {
    let params: [(&(dyn ToSql + Sync), Type); 3] = [
        (&address.as_str(), Type::TEXT),
        (&i32::try_from(max).unwrap_or(i32::MAX), Type::INT4),
        (&millis(lease), Type::INT8),
    ];
    let rows = shared.pool.call(Effect::Change, "read_completions", &params).await?;
    let failed = |error: tokio_postgres::Error| error::of_statement(&error, Effect::Change);
    // What belongs to all of them stands in the last row.
    let Some((last, rows)) = rows.split_last() else {
        return Err(Error::new(crate::ErrorKind::Fatal, "a read of completions was answered with nothing"));
    };
    let now: i64 = last.try_get(7).map_err(failed)?;
    let next: Option<i64> = last.try_get(8).map_err(failed)?;
    let there: i64 = last.try_get(9).map_err(failed)?;
    let (mut found, mut broken) = (Vec::with_capacity(rows.len()), Vec::new());
    for row in rows {
        let id: i64 = row.try_get(0).map_err(failed)?;
        match decode(row, id) {
            Ok(completion) => found.push(completion),
            Err(error) => {
                tracing::warn!(completion = id, %error, "a completion that can't be read is put aside");
                broken.push(id);
            }
        }
    }
    let caught_up = usize::try_from(there).unwrap_or(usize::MAX) == rows.len();
    let quiet = next.map(|next| Duration::from_millis(u64::try_from(next - now).unwrap_or(0)));
    Ok((found, broken, Look { page: CompletionPage { completions: Vec::new(), caught_up }, quiet }))
}

fn decode(row: &Row, id: i64) -> Result<Completion> {
    let bad = |error: tokio_postgres::Error| Error::invalid(format!("its row is damaged: {error}"));
    let queue: QueueName = row
        .try_get::<_, &str>(1)
        .map_err(bad)?
        .parse()
        .map_err(|error: crate::QueueNameError| Error::invalid(error.to_string()))?;
    let outcome = serde_json::from_str(row.try_get(3).map_err(bad)?)
        .map_err(|error| Error::invalid(format!("its outcome is damaged: {error}")))?;
    Ok(Completion {
        receipt: CompletionReceipt(id.to_string()),
        queue,
        job: JobId::new(row.try_get::<_, &str>(2).map_err(bad)?)?,
        outcome,
        settled_at: Timestamp::from_millis(row.try_get(4).map_err(bad)?),
        context: claim::context(row, 5)?,
        delivery: u32::try_from(row.try_get::<_, i32>(6).map_err(bad)?).unwrap_or(1),
    })
}

pub(super) async fn acknowledge(
    shared: &Shared,
    address: &Address,
    receipts: &[CompletionReceipt],
) -> Result<()> {
    let mut ids: Vec<i64> = receipts.iter().filter_map(|receipt| receipt.0.parse().ok()).collect();
    ids.sort_unstable();
    if receipts.is_empty() {
        return Ok(());
    }
    let params: [(&(dyn ToSql + Sync), Type); 2] =
        [(&address.as_str(), Type::TEXT), (&ids, Type::INT8_ARRAY)];
    shared.pool.call(Effect::Change, "acknowledge", &params).await.map(drop)
}

pub(super) async fn unpin(shared: &Shared, queue: &QueueName, ids: &[JobId]) -> Result<()> {
    let ids: Vec<&str> = ids.iter().map(JobId::as_str).collect();
    let params: [(&(dyn ToSql + Sync), Type); 2] = [(&queue.as_str(), Type::TEXT), (&ids, Type::TEXT_ARRAY)];
    shared.pool.call(Effect::Change, "unpin", &params).await.map(drop)
}
