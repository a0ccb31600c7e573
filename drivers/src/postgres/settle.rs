//! Ends of claims, and longer leases.

use super::{
    Shared,
    batch::Met,
    claim::parse_receipt,
    enqueue::{delay, millis},
    error::{self, Effect},
    pool::LOCKS,
    text,
};
use crate::{
    DeadReason, Error, Extension, Failure, Limits, Outcome, Payload, QueueName, Receipt, Result, Settle,
    Settlement, StoredResult, Timestamp, job::JSON,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    time::Duration,
};
use tokio_postgres::types::{ToSql, Type};

/// The reason of a job's death whose row makes no sense.
pub(super) const UNREADABLE: &str = "Unreadable";

/// A settlement that was checked, as a row.
#[derive(Debug)]
pub(super) struct End {
    seq: i64,
    token: i64,
    kind: i16,
    delay: i64,
    dead_reason: Option<&'static str>,
    failure: Option<Failure>,
    result: Option<Payload>,
    /// What a completion would say.
    outcome: Option<String>,
}

impl End {
    /// About how many bytes it takes on the way.
    pub(super) fn bytes(&self) -> usize {
        self.result.as_ref().map_or(0, |result| result.len() + Limits::INLINE_RESULT)
            + self.failure.as_ref().map_or(0, |failure| failure.message.len())
            + 64
    }
}

/// The word of a reason, as it is stored and travels.
pub(super) const fn reason(reason: DeadReason) -> &'static str {
    match reason {
        DeadReason::Exhausted => "Exhausted",
        DeadReason::Rejected => "Rejected",
        DeadReason::Expired => "Expired",
        DeadReason::Quarantined => "Quarantined",
    }
}

/// A result as outcomes carry it.
fn stored(result: &Payload) -> StoredResult {
    if result.len() <= Limits::INLINE_RESULT {
        StoredResult::Inline { payload: result.clone() }
    } else {
        StoredResult::Stored { bytes: result.len() as u64 }
    }
}

fn told(outcome: &Outcome) -> Option<String> {
    serde_json::to_string(outcome).ok()
}

fn kept(failure: &Failure) -> Failure {
    let cut = Failure::new(failure.reason.as_str(), failure.message.as_str());
    Failure { reason: text(&cut.reason), message: text(&cut.message) }
}

/// Checks a settlement and prepares what needs no server.
pub(super) fn prepare(settlement: Settlement, limits: &Limits) -> Result<End> {
    let Settlement { receipt, settle } = settlement;
    if let Settle::Succeed { result: Some(result) } = &settle {
        crate::job::check_payload("result", result, limits.max_result)?;
    }
    if let Settle::Retry { delay, .. } | Settle::Release { delay } = &settle
        && *delay > Limits::MAX_DELAY
    {
        return Err(Error::invalid("a job can be delayed by 366 days at most"));
    }
    let (seq, token) = parse_receipt(&receipt).ok_or_else(|| Error::stale(&receipt))?;
    let end =
        End { seq, token, kind: 0, delay: 0, dead_reason: None, failure: None, result: None, outcome: None };
    Ok(match settle {
        Settle::Succeed { result } => {
            let outcome = told(&Outcome::Succeeded { result: result.as_ref().map(stored) });
            End { result, outcome, ..end }
        }
        Settle::Retry { delay: after, failure } => {
            End { kind: 1, delay: delay(after), failure: Some(kept(&failure)), ..end }
        }
        Settle::Release { delay: after } => End { kind: 2, delay: delay(after), ..end },
        Settle::Bury { reason: why, failure } => {
            let failure = kept(&failure);
            let outcome = told(&Outcome::Dead { reason: why, failure: failure.clone() });
            End { kind: 3, dead_reason: Some(reason(why)), failure: Some(failure), outcome, ..end }
        }
    })
}

/// The end of a job whose row makes no sense.
pub(super) fn unreadable(receipt: &Receipt, error: &Error) -> Option<End> {
    let failure = Failure::new(UNREADABLE, error.message.as_str());
    let settle = Settle::Bury { reason: DeadReason::Rejected, failure };
    prepare(Settlement { receipt: receipt.clone(), settle }, &Limits::default()).ok()
}

/// Gives a job back that nobody received.
pub(super) fn released(receipt: &Receipt) -> Option<End> {
    let settle = Settle::Release { delay: Duration::ZERO };
    prepare(Settlement { receipt: receipt.clone(), settle }, &Limits::default()).ok()
}

fn stale(seq: i64, token: i64) -> Error {
    Error::stale(&Receipt(format!("{seq}-{token}")))
}

/// Ends claims in one statement. Rows go in the order of their numbers, as everybody's do, so that nobody waits in a
/// circle.
pub(super) async fn run(shared: &Shared, queue: &QueueName, ends: &[End]) -> Met<()> {
    // Of two settlements of one claim the first one counts.
    let mut seen = HashSet::new();
    let mut order: Vec<usize> =
        (0..ends.len()).filter(|&at| seen.insert((ends[at].seq, ends[at].token))).collect();
    order.sort_by_key(|&at| ends[at].seq);
    let sorted: Vec<&End> = order.iter().map(|&at| &ends[at]).collect();
    let seqs: Vec<_> = sorted.iter().map(|end| end.seq).collect();
    let tokens: Vec<_> = sorted.iter().map(|end| end.token).collect();
    let kinds: Vec<_> = sorted.iter().map(|end| end.kind).collect();
    let delays: Vec<_> = sorted.iter().map(|end| end.delay).collect();
    let dead: Vec<_> = sorted.iter().map(|end| end.dead_reason).collect();
    let reasons: Vec<_> =
        sorted.iter().map(|end| end.failure.as_ref().map(|failure| failure.reason.as_str())).collect();
    let messages: Vec<_> =
        sorted.iter().map(|end| end.failure.as_ref().map(|failure| failure.message.as_str())).collect();
    let types: Vec<_> = sorted
        .iter()
        .map(|end| {
            end.result.as_ref().map(|result| result.content_type.as_str()).filter(|media| *media != JSON)
        })
        .collect();
    let results: Vec<_> =
        sorted.iter().map(|end| end.result.as_ref().map(|result| &result.bytes[..])).collect();
    let outcomes: Vec<_> = sorted.iter().map(|end| end.outcome.as_deref()).collect();
    let params: [(&(dyn ToSql + Sync), Type); 11] = [
        (&queue.as_str(), Type::TEXT),
        (&seqs, Type::INT8_ARRAY),
        (&tokens, Type::INT8_ARRAY),
        (&kinds, Type::INT2_ARRAY),
        (&delays, Type::INT8_ARRAY),
        (&dead, Type::TEXT_ARRAY),
        (&reasons, Type::TEXT_ARRAY),
        (&messages, Type::TEXT_ARRAY),
        (&types, Type::TEXT_ARRAY),
        (&results, Type::BYTEA_ARRAY),
        (&outcomes, Type::TEXT_ARRAY),
    ];
    let Some(rows) = shared.pool.try_call(Effect::Change, "settle", &params).await? else {
        return Ok(ends.iter().map(|_| None).collect());
    };
    let read = |error: tokio_postgres::Error| error::of_statement(&error, Effect::Change);
    let mut answers: Vec<Option<Result<()>>> =
        ends.iter().map(|end| Some(Err(stale(end.seq, end.token)))).collect();
    for row in rows {
        if let Some(ord) = row.try_get::<_, Option<i64>>(0).map_err(read)? {
            let at = usize::try_from(ord - 1).ok().and_then(|at| order.get(at));
            if let Some(answer) = at.and_then(|&at| answers.get_mut(at)) {
                let held = row.try_get::<_, Option<bool>>(1).map_err(read)? == Some(false);
                *answer = (!held).then_some(Ok(()));
            }
        } else if row.try_get::<_, Option<bool>>(1).map_err(read)? == Some(true) {
            shared.wakes.tell_queue(queue);
        } else if let Some(address) = row.try_get::<_, Option<&str>>(2).map_err(read)? {
            shared.wakes.tell_addresses([address]);
        }
    }
    let delayed = sorted.iter().filter(|end| end.delay > 0).map(|end| end.delay).min();
    shared.upkeep.note(queue, delayed.map(|delay| Duration::from_millis(delay.unsigned_abs())));
    Ok(answers)
}

/// Ends claims for callers who went away, also where somebody else holds their keys for a while.
pub(super) async fn insist(shared: &Shared, queue: &QueueName, mut ends: Vec<End>) -> Result<()> {
    let since = tokio::time::Instant::now();
    loop {
        let mut met = run(shared, queue, &ends).await?.into_iter();
        ends.retain(|_| met.next().is_some_and(|answer| answer.is_none()));
        if ends.is_empty() {
            return Ok(());
        }
        if since.elapsed() > LOCKS {
            return Err(error::held());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Makes leases longer in one statement.
pub(super) async fn extend(
    shared: &Shared,
    queue: &QueueName,
    lease: Duration,
    claims: &[(i64, i64)],
) -> Result<Vec<Result<Extension>>> {
    let sorted: BTreeSet<(i64, i64)> = claims.iter().copied().collect();
    let (seqs, tokens): (Vec<i64>, Vec<i64>) = sorted.into_iter().unzip();
    let millis = millis(lease);
    let params: [(&(dyn ToSql + Sync), Type); 4] = [
        (&queue.as_str(), Type::TEXT),
        (&seqs, Type::INT8_ARRAY),
        (&tokens, Type::INT8_ARRAY),
        (&millis, Type::INT8),
    ];
    let rows = shared.pool.call_urgently(Effect::Change, "extend", &params).await?;
    let read = |error: tokio_postgres::Error| error::of_statement(&error, Effect::Change);
    let mut held = BTreeMap::new();
    for row in rows {
        let ord: i64 = row.try_get(0).map_err(read)?;
        let at = usize::try_from(ord - 1).unwrap_or(usize::MAX);
        if let (Some(seq), Some(token)) = (seqs.get(at), tokens.get(at)) {
            let lease_until = Timestamp::from_millis(row.try_get(1).map_err(read)?);
            let cancel_requested = row.try_get(2).map_err(read)?;
            held.insert((*seq, *token), Extension { lease_until, cancel_requested });
        }
    }
    shared.upkeep.note(queue, Some(lease));
    let answer = |claim: &(i64, i64)| held.get(claim).copied().ok_or_else(|| stale(claim.0, claim.1));
    Ok(claims.iter().map(answer).collect())
}
