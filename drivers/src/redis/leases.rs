//! What claimers do with the jobs they hold.

use super::{
    claims::{parse, stale},
    core::SHARED,
    link::Link,
    reply, scripts,
    slices::{Answers, cut},
};
use crate::{
    Error, Extension, Failure, Limits, QueueName, Receipt, Result, Settle, Settlement,
    coalesce::{Coalescer, Size},
};
use redis::Cmd;
use std::{sync::Arc, time::Duration};

pub(super) fn settle_lanes(link: &Arc<Link>) -> Arc<Coalescer<QueueName, Settlement, Result<()>>> {
    let link = link.clone();
    Coalescer::of_items(
        SHARED,
        |settlement| Size::item(size(settlement)),
        move |queue, settlements| {
            let link = link.clone();
            async move { settle(&link, &queue, settlements).await }
        },
    )
}

pub(super) fn extend_lanes(link: &Arc<Link>) -> Arc<Coalescer<(QueueName, u64), Receipt, Result<Extension>>> {
    let link = link.clone();
    Coalescer::of_items(
        SHARED,
        |_| Size::item(256),
        move |(queue, lease), receipts| {
            let link = link.clone();
            async move { extend(&link, &queue, &receipts, lease).await }
        },
    )
}

pub(super) fn size(settlement: &Settlement) -> usize {
    let result = match &settlement.settle {
        Settle::Succeed { result: Some(result) } => result.len(),
        _ => 0,
    };
    result + 256
}

fn check(settle: &Settle) -> Result<()> {
    if let Settle::Succeed { result: Some(result) } = settle {
        crate::job::check_payload("result", result, Limits::default().max_result)?;
    }
    if let Settle::Retry { delay, .. } | Settle::Release { delay } = settle
        && *delay > Limits::MAX_DELAY
    {
        return Err(Error::invalid("a job can be delayed by 366 days at most"));
    }
    Ok(())
}

/// Settles, in as many requests as the size of the results asks for.
pub(super) async fn settle(
    link: &Link,
    queue: &QueueName,
    settlements: Vec<Settlement>,
) -> Result<Vec<Result<()>>> {
    let checked: Vec<_> = settlements.iter().map(|settlement| check(&settlement.settle)).collect();
    let fine: Vec<_> = settlements
        .iter()
        .zip(&checked)
        .filter(|(_, check)| check.is_ok())
        .map(|(settlement, _)| settlement)
        .collect();
    if fine.is_empty() {
        // Whether there is such a queue is asked all the same.
        send(link, queue, &[]).await?;
    }
    let mut codes = Answers::new();
    for now in cut(&fine, |settlement| size(settlement)) {
        if codes.go_on(now.len()) {
            codes.take(now.len(), send(link, queue, now).await)?;
        }
    }
    let mut codes = codes.finish().into_iter();
    let answers = checked.into_iter().zip(&settlements).map(|(check, settlement)| {
        check?;
        match codes.next().transpose()? {
            Some(b'K') => Ok(()),
            Some(b'T') => Err(stale(&settlement.receipt)),
            _ => Err(reply::broken()),
        }
    });
    Ok(answers.collect())
}

/// A letter for each of them.
async fn send(link: &Link, queue: &QueueName, settlements: &[&Settlement]) -> Result<Vec<Result<u8>>> {
    let answer = link
        .run(&scripts::SETTLE, queue, |cmd| {
            for settlement in settlements {
                let (id, token) = parse(&settlement.receipt);
                cmd.arg(id).arg(token);
                write(cmd, &settlement.settle);
            }
        })
        .await?;
    Ok(reply::opened(answer, queue)?.bytes()?.into_iter().map(Ok).collect())
}

fn write(cmd: &mut Cmd, settle: &Settle) {
    let cut = |failure: &Failure| Failure::new(failure.reason.as_str(), failure.message.as_str());
    match settle {
        Settle::Succeed { result: None } => cmd.arg("K"),
        Settle::Succeed { result: Some(result) } => {
            cmd.arg("S").arg(result.len()).arg("").arg("").arg(reply::pack_result(result))
        }
        Settle::Retry { delay, failure } => {
            let failure = cut(failure);
            cmd.arg("R").arg(millis(*delay)).arg("").arg(failure.reason).arg(failure.message)
        }
        Settle::Release { delay } => cmd.arg("L").arg(millis(*delay)).arg("").arg("").arg(""),
        Settle::Bury { reason, failure } => {
            let failure = cut(failure);
            cmd.arg("B").arg(0).arg(reply::reason_word(*reason)).arg(failure.reason).arg(failure.message)
        }
    };
}

/// Whole milliseconds; a part of one is one, because the script rounds up only what is more than nothing.
pub(super) fn millis(duration: Duration) -> u64 {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    millis + u64::from(millis == 0 && !duration.is_zero())
}

pub(super) async fn extend(
    link: &Link,
    queue: &QueueName,
    receipts: &[Receipt],
    lease: u64,
) -> Result<Vec<Result<Extension>>> {
    let answer = link
        .run(&scripts::EXTEND, queue, |cmd| {
            cmd.arg(lease);
            for receipt in receipts {
                let (id, token) = parse(receipt);
                cmd.arg(id).arg(token);
            }
        })
        .await?;
    let mut items = reply::opened(answer, queue)?;
    let lease_until = items.time()?;
    let codes = items.bytes()?;
    if codes.len() != receipts.len() {
        return Err(reply::broken());
    }
    let answers = codes.iter().zip(receipts).map(|(code, receipt)| match code {
        b'K' => Ok(Extension { lease_until, cancel_requested: false }),
        b'C' => Ok(Extension { lease_until, cancel_requested: true }),
        _ => Err(stale(receipt)),
    });
    Ok(answers.collect())
}
