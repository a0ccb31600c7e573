//! Completions of one address, from all queues that have some.
//!
//! Each queue keeps its own, written with the settle; an index names the queues. A read asks each of them which it has,
//! takes the oldest of all, and leases those. What was settled after the first queue was asked is left for the next read:
//! another queue may have had an older one by then.

use super::{
    claims::LONGEST_WAIT,
    core::Core,
    enqueue::index,
    errors::Call,
    hub::{Ear, Heard},
    leases::millis,
    link::closed,
    reply::{self, Items},
    scripts,
};
use crate::{
    Address, Completion, CompletionPage, CompletionReceipt, JobId, Limits, QueueName, ReadCompletions,
    Result, Timestamp,
};
use futures::future::try_join_all;
use std::{collections::BTreeMap, time::Duration};
use tokio::{sync::broadcast, time::Instant};

/// How often those who wait look by themselves.
const GLANCE: Duration = Duration::from_secs(2);
const LISTENS: Duration = Duration::from_secs(1);
/// Where a completion's number and its settle time stand in its name, in hexadecimal digits; the job's id follows.
const NUMBER: usize = 14;
const NAME: usize = 25;

/// What one queue has for an address.
struct Stock {
    queue: QueueName,
    now: i64,
    count: u64,
    next: Option<u64>,
    /// Settle times and names, oldest first.
    readable: Vec<(i64, String)>,
}

impl Core {
    pub(super) async fn read(&self, address: &Address, read: &ReadCompletions) -> Result<CompletionPage> {
        let deadline = Instant::now() + read.wait.min(LONGEST_WAIT);
        let mut hints = None;
        loop {
            let (page, next) = self.page(address, read).await?;
            if !page.completions.is_empty() || Instant::now() >= deadline {
                return Ok(page);
            }
            let Some(hints) = &mut hints else {
                // Once more from here on: nothing is missed any more.
                hints = Some(self.hub.subscribe());
                self.hub.listen(Ear::All, LISTENS.min(read.wait)).await;
                continue;
            };
            let look = deadline.min(Instant::now() + next.unwrap_or(GLANCE).min(GLANCE));
            tokio::select! {
                () = told(hints, address) => {}
                () = tokio::time::sleep_until(look) => {}
                () = self.link.closed.cancelled() => return Err(closed()),
            }
        }
    }

    async fn page(
        &self,
        address: &Address,
        read: &ReadCompletions,
    ) -> Result<(CompletionPage, Option<Duration>)> {
        let max = (read.max as usize).min(Limits::BATCH);
        let mut cmd = redis::cmd("SMEMBERS");
        cmd.arg(index(&self.link, address));
        let queues = Items::new(self.link.command(&cmd, "completions", Call::Prepares).await?)?;
        let queues = queues.filter_map(|name| match name {
            redis::Value::BulkString(name) => String::from_utf8(name).ok()?.parse().ok(),
            _ => None,
        });
        let stocks = try_join_all(queues.map(|queue: QueueName| self.stock(queue, address, max))).await?;
        let mut left: u64 = stocks.iter().map(|stock| stock.count).sum();
        let next = stocks.iter().filter_map(|stock| stock.next).min().map(Duration::from_millis);
        let leases = oldest(&stocks, max)
            .into_iter()
            .map(|(queue, names)| self.lease(queue, names, address, read.lease));
        let mut completions = Vec::new();
        for (found, aside) in try_join_all(leases).await? {
            left = left.saturating_sub(aside);
            completions.extend(found);
        }
        completions.sort_by_key(|one: &Completion| one.settled_at);
        let caught_up = completions.len() as u64 == left;
        Ok((CompletionPage { completions, caught_up }, next))
    }

    async fn stock(&self, queue: QueueName, address: &Address, max: usize) -> Result<Stock> {
        let answer = self
            .link
            .run(&scripts::PEEK, &queue, |cmd| {
                cmd.arg(address.as_str()).arg(max);
            })
            .await?;
        let mut items = reply::opened(answer, &queue)?;
        let (now, count, next) = (items.integer()?, items.natural()?.unwrap_or(0), items.natural()?);
        let mut names = items.items()?;
        let mut readable = Vec::new();
        while !names.is_empty() {
            let name = names.text()?;
            let settled = name.get(NUMBER..NAME).and_then(|digits| i64::from_str_radix(digits, 16).ok());
            readable.push((settled.unwrap_or(0), name));
        }
        Ok(Stock { queue, now, count, next, readable })
    }

    /// Leases completions of one queue; also how many had to be put aside.
    async fn lease(
        &self,
        queue: &QueueName,
        names: Vec<&str>,
        address: &Address,
        lease: Duration,
    ) -> Result<(Vec<Completion>, u64)> {
        let answer = self
            .link
            .run(&scripts::READ, queue, |cmd| {
                cmd.arg(address.as_str()).arg(millis(lease));
                for name in &names {
                    cmd.arg(*name);
                }
            })
            .await?;
        let mut items = reply::opened(answer, queue)?;
        let aside = items.natural()?.unwrap_or(0);
        let mut found = Vec::new();
        for item in items.items()? {
            match decode(queue, Items::new(item)?) {
                Ok(completion) => found.push(completion),
                Err(error) => tracing::warn!(%queue, %error, "a completion can't be read"),
            }
        }
        Ok((found, aside))
    }

    pub(super) async fn acknowledge(&self, address: &Address, receipts: &[CompletionReceipt]) -> Result<()> {
        let mut by_queue: BTreeMap<QueueName, Vec<&str>> = BTreeMap::new();
        for receipt in receipts {
            let parts = receipt.0.split_once('/');
            if let Some((queue, name)) = parts.and_then(|(queue, name)| Some((queue.parse().ok()?, name)))
                && name.is_ascii()
                && name.len() > NAME
            {
                by_queue.entry(queue).or_default().push(name);
            }
        }
        if by_queue.is_empty() && !receipts.is_empty() {
            // None of ours. Whether there is a broker is asked all the same.
            self.link.command(&redis::cmd("PING"), "acknowledge", Call::Prepares).await?;
        }
        let calls = by_queue.iter().map(|(queue, names)| {
            self.link.run(&scripts::ACKNOWLEDGE, queue, move |cmd| {
                cmd.arg(address.as_str());
                for name in names {
                    cmd.arg(*name);
                }
            })
        });
        for (answer, queue) in try_join_all(calls).await?.into_iter().zip(by_queue.keys()) {
            reply::opened(answer, queue)?;
        }
        Ok(())
    }
}

/// The oldest `max` of all queues, for each queue those that are its own.
fn oldest(stocks: &[Stock], max: usize) -> BTreeMap<&QueueName, Vec<&str>> {
    let until = stocks.iter().map(|stock| stock.now).min().unwrap_or(i64::MAX);
    let all = stocks.iter().flat_map(|stock| {
        stock.readable.iter().map(move |(settled, name)| (*settled, &stock.queue, name.as_str()))
    });
    let mut all: Vec<_> = all.filter(|(settled, ..)| stocks.len() == 1 || *settled <= until).collect();
    all.sort();
    let mut by_queue: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (_, queue, name) in all.into_iter().take(max) {
        by_queue.entry(queue).or_default().push(name);
    }
    by_queue
}

fn decode(queue: &QueueName, mut items: Items) -> Result<Completion> {
    let items = &mut items;
    let name = items.text()?;
    Ok(Completion {
        receipt: CompletionReceipt(format!("{queue}/{name}")),
        queue: queue.clone(),
        job: JobId::new(items.text()?)?,
        settled_at: Timestamp::from_millis(items.integer()?),
        context: items.text()?,
        delivery: items.small()?,
        outcome: reply::outcome(items.items()?)?.ok_or_else(reply::broken)?,
    })
}

/// Waits for a hint about `address`.
async fn told(hints: &mut broadcast::Receiver<Heard>, address: &Address) {
    loop {
        match hints.recv().await {
            Ok(Heard::Completions(other)) if other != *address => {}
            Ok(Heard::Ready(_) | Heard::Due(..)) => {}
            Ok(Heard::Completions(_) | Heard::Gap) | Err(broadcast::error::RecvError::Lagged(_)) => return,
            // The driver is going away; the deadline ends the wait.
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stock(queue: &str, now: i64, settled: &[i64]) -> Stock {
        let readable = settled.iter().map(|at| (*at, format!("{queue}-{at}"))).collect();
        Stock { queue: queue.parse().unwrap(), now, count: settled.len() as u64, next: None, readable }
    }

    #[test]
    fn the_oldest_of_all_queues_come_first() {
        let stocks = [stock("a", 50, &[1, 4, 9]), stock("b", 50, &[2, 3, 20])];
        let names: Vec<_> = oldest(&stocks, 4).into_values().flatten().collect();
        assert_eq!(names, ["a-1", "a-4", "b-2", "b-3"]);
    }

    #[test]
    fn what_was_settled_after_another_queue_was_asked_is_left() {
        let stocks = [stock("a", 10, &[1]), stock("b", 30, &[2, 20])];
        let names: Vec<_> = oldest(&stocks, 4).into_values().flatten().collect();
        assert_eq!(names, ["a-1", "b-2"]);
    }
}
