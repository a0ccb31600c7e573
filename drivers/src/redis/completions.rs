//! Completions of one address, from all queues that have some.
//!
//! Each queue keeps its own, written with the settle; an index names the queues. A read asks each of them which it has,
//! takes the oldest of all, and leases those. What was settled after the first queue was asked is left for the next read:
//! another queue may have had an older one by then. Times are compared by the server's clock: the queues' own differ once
//! that went back.

use super::{
    claims::LONGEST_WAIT,
    core::Core,
    enqueue::index,
    errors::Call,
    hub::{Ear, Heard},
    leases::millis,
    link::{Link, closed},
    reply::{self, Items},
    scripts, slices,
};
use crate::{
    Address, Completion, CompletionPage, CompletionReceipt, ErrorKind, JobId, Limits, QueueName,
    ReadCompletions, Result, Timestamp,
};
use futures::{StreamExt, stream};
use std::{collections::BTreeMap, time::Duration};
use tokio::{sync::broadcast, time::Instant};

/// How often those who wait look by themselves.
const GLANCE: Duration = Duration::from_secs(2);
const LISTENS: Duration = Duration::from_secs(1);
/// How many queues are asked at once.
const AT_ONCE: usize = 16;
/// Where a completion's number and its settle time stand in its name, in hexadecimal digits; the job's id follows.
const NUMBER: usize = 14;
const NAME: usize = 25;

/// What one queue has for an address.
struct Stock {
    queue: QueueName,
    /// When it was asked, by the server's clock.
    asked: i64,
    /// How far its own clock, by which completions are stored, was ahead then.
    ahead: i64,
    /// The queue was deleted.
    is_deleted: bool,
    count: u64,
    next: Option<u64>,
    /// Settle times by the server's clock and names, oldest first.
    readable: Vec<(i64, String)>,
}

/// Completions with their times by the server's clock.
type Found = Vec<(i64, Completion)>;

/// What one read takes of one queue.
struct Share {
    queue: QueueName,
    ahead: i64,
    names: Vec<String>,
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
        let (mut stocks, is_whole) = self.stocks(queues.collect(), address, max).await?;
        let mut left: u64 = stocks.iter().map(|stock| stock.count).sum();
        let next = stocks.iter().filter_map(|stock| stock.next).min().map(Duration::from_millis);
        let mut completions = Vec::new();
        loop {
            let (found, aside, damaged) = self.take(&stocks, address, max, read.lease).await?;
            left = left.saturating_sub(aside);
            completions.extend(found);
            // What can't be leased must not stand before what can.
            if !completions.is_empty() || damaged.is_empty() {
                break;
            }
            stocks.retain(|stock| !damaged.contains(&stock.queue));
        }
        completions.sort_by_key(|(settled, _)| *settled);
        let completions: Vec<_> = completions.into_iter().map(|(_, completion)| completion).collect();
        let caught_up = is_whole && completions.len() as u64 == left;
        Ok((CompletionPage { completions, caught_up }, next))
    }

    /// What each queue has, and whether all could be asked: a damaged one is left out. Those that are gone leave the index.
    async fn stocks(
        &self,
        queues: Vec<QueueName>,
        address: &Address,
        max: usize,
    ) -> Result<(Vec<Stock>, bool)> {
        let count = queues.len();
        let asks: Vec<_> = queues.into_iter().map(|queue| self.stock(queue, address, max)).collect();
        let asked: Vec<_> = stream::iter(asks).buffer_unordered(AT_ONCE).collect().await;
        let stocks = asked.into_iter().filter_map(Result::transpose).collect::<Result<Vec<_>>>()?;
        let is_whole = stocks.len() == count;
        let (gone, stocks): (Vec<_>, Vec<_>) =
            stocks.into_iter().partition(|stock| stock.is_deleted && stock.count == 0);
        let prunes: Vec<_> = gone.into_iter().map(|stock| self.prune(stock.queue, address)).collect();
        stream::iter(prunes).buffer_unordered(AT_ONCE).collect::<Vec<_>>().await;
        Ok((stocks, is_whole))
    }

    /// Takes a queue that is gone out of the index. If that fails, the next read does it.
    async fn prune(&self, queue: QueueName, address: &Address) {
        let index = index(&self.link, address);
        let pruned = self.link.run(&scripts::PRUNE, &queue, |cmd| {
            cmd.arg(address.as_str()).arg(&index);
        });
        if let Err(error) = pruned.await {
            tracing::debug!(%queue, %error, "a queue that is gone stays in the index of completions");
        }
    }

    /// What one queue has; none when that can't be told because its data is damaged.
    async fn stock(&self, queue: QueueName, address: &Address, max: usize) -> Result<Option<Stock>> {
        match self.peek(&queue, address, max).await {
            Ok(stock) => Ok(Some(stock)),
            Err(error) if error.kind == ErrorKind::Fatal => {
                tracing::warn!(%queue, %error, "the completions of a damaged queue are left out");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    async fn peek(&self, queue: &QueueName, address: &Address, max: usize) -> Result<Stock> {
        let answer = self
            .link
            .run(&scripts::PEEK, queue, |cmd| {
                cmd.arg(address.as_str()).arg(max);
            })
            .await?;
        let mut items = reply::opened(answer, queue)?;
        let (asked, ahead, is_deleted) = (items.integer()?, items.integer()?, items.integer()? == 1);
        let (count, next) = (items.natural()?.unwrap_or(0), items.natural()?);
        let mut names = items.items()?;
        let mut readable = Vec::new();
        while !names.is_empty() {
            let name = names.text()?;
            let settled = name.get(NUMBER..NAME).and_then(|digits| i64::from_str_radix(digits, 16).ok());
            readable.push((settled.unwrap_or(0).saturating_sub(ahead), name));
        }
        Ok(Stock { queue: queue.clone(), asked, ahead, is_deleted, count, next, readable })
    }

    /// Leases the oldest: those, each with its time by the server's clock; how many had to be put aside; and the queues that
    /// are damaged.
    async fn take(
        &self,
        stocks: &[Stock],
        address: &Address,
        max: usize,
        lease: Duration,
    ) -> Result<(Found, u64, Vec<QueueName>)> {
        let shares = oldest(stocks, max).into_iter();
        let leases: Vec<_> = shares.map(|share| self.lease(share, address, lease)).collect();
        let leased: Vec<_> = stream::iter(leases).buffered(AT_ONCE).collect().await;
        let (mut completions, mut put_aside, mut damaged) = (Vec::new(), 0, Vec::new());
        for (queue, leased) in leased {
            match leased {
                Ok((found, aside)) => {
                    put_aside += aside;
                    completions.extend(found);
                }
                Err(error) if error.kind == ErrorKind::Fatal => {
                    tracing::warn!(%queue, %error, "the completions of a damaged queue are left out");
                    damaged.push(queue);
                }
                Err(error) => return Err(error),
            }
        }
        Ok((completions, put_aside, damaged))
    }

    async fn lease(
        &self,
        share: Share,
        address: &Address,
        lease: Duration,
    ) -> (QueueName, Result<(Found, u64)>) {
        let leased = self.read_share(&share, address, lease).await;
        (share.queue, leased)
    }

    /// Leases completions of one queue; also how many had to be put aside.
    async fn read_share(&self, share: &Share, address: &Address, lease: Duration) -> Result<(Found, u64)> {
        let queue = &share.queue;
        let answer = self
            .link
            .run(&scripts::READ, queue, |cmd| {
                cmd.arg(address.as_str()).arg(millis(lease));
                for name in &share.names {
                    cmd.arg(name);
                }
            })
            .await?;
        let mut items = reply::opened(answer, queue)?;
        let aside = items.natural()?.unwrap_or(0);
        let mut found = Vec::new();
        for item in items.items()? {
            match decode(queue, Items::new(item)?) {
                Ok(one) => found.push((one.settled_at.as_millis().saturating_sub(share.ahead), one)),
                Err(error) => tracing::warn!(%queue, %error, "a completion can't be read"),
            }
        }
        Ok((found, aside))
    }

    pub(super) async fn acknowledge(&self, address: &Address, receipts: &[CompletionReceipt]) -> Result<()> {
        let mut by_queue: BTreeMap<QueueName, Vec<String>> = BTreeMap::new();
        for receipt in receipts {
            let parts = receipt.0.split_once('/');
            if let Some((queue, name)) = parts.and_then(|(queue, name)| Some((queue.parse().ok()?, name)))
                && name.is_ascii()
                && name.len() > NAME
            {
                by_queue.entry(queue).or_default().push(name.to_owned());
            }
        }
        if by_queue.is_empty() && !receipts.is_empty() {
            // None of ours. Whether there is a broker is asked all the same.
            self.link.command(&redis::cmd("PING"), "acknowledge", Call::Prepares).await?;
        }
        let calls = by_queue.into_iter().map(|(queue, names)| {
            let (link, address) = (self.link.clone(), address.clone());
            async move { forget(&link, &queue, &address, &names).await }
        });
        let calls: Vec<_> = calls.collect();
        // Each of them, whatever becomes of the others.
        let work = async move {
            let forgotten: Vec<Result<()>> = stream::iter(calls).buffered(AT_ONCE).collect().await;
            forgotten.into_iter().collect()
        };
        slices::to_the_end(&self.hub.chores, work).await
    }
}

async fn forget(link: &Link, queue: &QueueName, address: &Address, names: &[String]) -> Result<()> {
    let answer = link.run(&scripts::ACKNOWLEDGE, queue, |cmd| {
        cmd.arg(address.as_str());
        for name in names {
            cmd.arg(name);
        }
    });
    reply::opened(answer.await?, queue).map(drop)
}

/// The oldest `max` of all queues, for each queue those that are its own.
fn oldest(stocks: &[Stock], max: usize) -> Vec<Share> {
    let until = stocks.iter().map(|stock| stock.asked).min().unwrap_or(i64::MAX);
    let mut all: Vec<_> = Vec::new();
    for (at, stock) in stocks.iter().enumerate() {
        let fits = |settled: i64| stocks.len() == 1 || settled <= until;
        let fitting = stock.readable.iter().filter(|(settled, _)| fits(*settled));
        all.extend(fitting.map(|(settled, name)| (*settled, &stock.queue, name, at)));
    }
    all.sort_unstable();
    let mut shares: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for (_, _, name, at) in all.into_iter().take(max) {
        shares.entry(at).or_default().push(name.clone());
    }
    let share = |(at, names): (usize, _)| {
        let Stock { queue, ahead, .. } = stocks.get(at)?;
        Some(Share { queue: queue.clone(), ahead: *ahead, names })
    };
    shares.into_iter().filter_map(share).collect()
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

    fn stock(queue: &str, asked: i64, settled: &[i64]) -> Stock {
        let readable: Vec<_> = settled.iter().map(|at| (*at, format!("{queue}-{at}"))).collect();
        let count = readable.len() as u64;
        let queue = queue.parse().unwrap();
        Stock { queue, asked, ahead: 0, is_deleted: false, count, next: None, readable }
    }

    fn names(stocks: &[Stock]) -> Vec<String> {
        oldest(stocks, 4).into_iter().flat_map(|share| share.names).collect()
    }

    #[test]
    fn the_oldest_of_all_queues_come_first() {
        let stocks = [stock("a", 50, &[1, 4, 9]), stock("b", 50, &[2, 3, 20])];
        assert_eq!(names(&stocks), ["a-1", "a-4", "b-2", "b-3"]);
    }

    #[test]
    fn what_was_settled_after_another_queue_was_asked_is_left() {
        let stocks = [stock("a", 10, &[1]), stock("b", 30, &[2, 20])];
        assert_eq!(names(&stocks), ["a-1", "b-2"]);
    }
}
