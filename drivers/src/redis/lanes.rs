//! Concurrent calls for one item share a request.
//!
//! Two requests of a lane may be under way: the server works on one while the other is written. What comes meanwhile
//! gathers, and the next request takes all of it. A lone call finds no request under way and leaves at once.

use crate::{Error, ErrorKind, Limits, Result};
use futures::future::BoxFuture;
use std::{
    collections::{HashMap, VecDeque},
    fmt,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

/// Requests of one lane under way.
const UNDER_WAY: usize = 2;
/// Bytes in one request, apart from the first item.
const BYTES: usize = 4 * 1024 * 1024;

/// Carries out the calls of one lane: one answer for each item, in their order.
type Work<K, I, O> = Arc<dyn Fn(K, Vec<I>) -> BoxFuture<'static, Result<Vec<O>>> + Send + Sync>;

/// The items of a request, and who hears of each.
type Taken<I, O> = (Vec<I>, Vec<oneshot::Sender<Result<O>>>);

struct Waiting<I, O> {
    item: I,
    reply: oneshot::Sender<Result<O>>,
}

struct Lane<I, O> {
    waiting: VecDeque<Waiting<I, O>>,
    under_way: usize,
}

/// The lanes of one kind of call; items with the same key can share a request.
pub(super) struct Lanes<K, I, O> {
    by_key: Mutex<HashMap<K, Lane<I, O>>>,
    work: Work<K, I, O>,
    bytes: fn(&I) -> usize,
    senders: TaskTracker,
}

impl<K, I, O> fmt::Debug for Lanes<K, I, O> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Lanes").finish_non_exhaustive()
    }
}

impl<K, I, O> Lanes<K, I, O>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    I: Send + 'static,
    O: Send + 'static,
{
    pub(super) fn new(work: Work<K, I, O>, bytes: fn(&I) -> usize) -> Arc<Self> {
        Arc::new(Self { by_key: Mutex::default(), work, bytes, senders: TaskTracker::new() })
    }

    /// Dropping it before the item left takes it back; afterwards it is done all the same.
    pub(super) async fn call(self: &Arc<Self>, key: &K, item: I) -> Result<O> {
        let (reply, answer) = oneshot::channel();
        let may_send = {
            let mut lanes = self.lock();
            let lane =
                lanes.entry(key.clone()).or_insert_with(|| Lane { waiting: VecDeque::new(), under_way: 0 });
            lane.waiting.push_back(Waiting { item, reply });
            let may_send = lane.under_way < UNDER_WAY;
            lane.under_way += usize::from(may_send);
            may_send
        };
        if may_send {
            let sender = Sender { lanes: self.clone(), key: key.clone(), is_over: false };
            // A task of its own: the first caller may go away while others wait for their answers.
            self.senders.spawn(async move { sender.run().await });
        }
        answer
            .await
            .unwrap_or_else(|_| Err(Error::new(ErrorKind::Ambiguous, "the request's sender ended early")))
    }

    /// Waits until nothing is under way. Whoever comes later is still answered.
    pub(super) async fn finish(&self) {
        self.senders.close();
        self.senders.wait().await;
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, Lane<I, O>>> {
        self.by_key.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One request after the other, until nobody waits. It gives its place in the lane back whichever way it ends.
struct Sender<K: Eq + Hash, I, O> {
    lanes: Arc<Lanes<K, I, O>>,
    key: K,
    /// It left the lane already.
    is_over: bool,
}

impl<K, I, O> Sender<K, I, O>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    I: Send + 'static,
    O: Send + 'static,
{
    async fn run(mut self) {
        while let Some((items, replies)) = self.take() {
            let count = items.len();
            match (self.lanes.work)(self.key.clone(), items).await {
                Ok(answers) if answers.len() == count => {
                    replies.into_iter().zip(answers).for_each(|(reply, answer)| drop(reply.send(Ok(answer))));
                }
                Ok(_) => {
                    let error = Error::new(ErrorKind::Fatal, "the broker answered another number of items");
                    replies.into_iter().for_each(|reply| drop(reply.send(Err(error.clone()))));
                }
                Err(error) => replies.into_iter().for_each(|reply| drop(reply.send(Err(error.clone())))),
            }
        }
    }

    /// The next request; none when nobody waits.
    fn take(&mut self) -> Option<Taken<I, O>> {
        let mut lanes = self.lanes.lock();
        let lane = lanes.get_mut(&self.key)?;
        let (mut items, mut replies, mut bytes) = (Vec::new(), Vec::new(), 0);
        while let Some(next) = lane.waiting.pop_front() {
            // Whoever gave up before the item left doesn't want it any more.
            if next.reply.is_closed() {
                continue;
            }
            bytes += (self.lanes.bytes)(&next.item);
            items.push(next.item);
            replies.push(next.reply);
            if items.len() == Limits::BATCH || bytes >= BYTES {
                break;
            }
        }
        if items.is_empty() {
            // Under the same lock: whoever comes next must not count on this sender.
            self.is_over = true;
            leave(&mut lanes, &self.key);
            return None;
        }
        Some((items, replies))
    }
}

fn leave<K: Eq + Hash, I, O>(lanes: &mut HashMap<K, Lane<I, O>>, key: &K) {
    if let Some(lane) = lanes.get_mut(key) {
        lane.under_way -= 1;
        if lane.under_way == 0 {
            lanes.remove(key);
        }
    }
}

impl<K: Eq + Hash, I, O> Drop for Sender<K, I, O> {
    fn drop(&mut self) {
        if !self.is_over {
            leave(&mut self.lanes.by_key.lock().unwrap_or_else(PoisonError::into_inner), &self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    type Numbers = Lanes<u8, usize, (usize, usize)>;

    /// Answers each item with itself and the number of items in its request.
    fn slow() -> Arc<Numbers> {
        let work: Work<u8, usize, (usize, usize)> = Arc::new(|_, items: Vec<usize>| {
            Box::pin(async move {
                tokio::time::sleep(Duration::from_millis(10)).await;
                let count = items.len();
                Ok(items.into_iter().map(|item| (item, count)).collect())
            })
        });
        Lanes::new(work, |_| 1)
    }

    #[tokio::test(start_paused = true)]
    async fn calls_that_come_meanwhile_share_a_request() {
        let lanes = slow();
        let calls = (0..10).map(|item| lanes.call(&1, item));
        let answers: Vec<_> = futures::future::try_join_all(calls).await.unwrap();
        assert!(answers.iter().enumerate().all(|(item, answer)| answer.0 == item), "{answers:?}");
        assert!(answers.iter().any(|answer| answer.1 >= 8), "{answers:?}");
        assert!(lanes.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_was_dropped_keeps_nobody_waiting() {
        let lanes = slow();
        let dropped = tokio::time::timeout(Duration::from_millis(1), lanes.call(&1, 1)).await;
        assert!(dropped.is_err());
        assert_eq!(lanes.call(&1, 2).await.unwrap().0, 2);
        lanes.finish().await;
        assert!(lanes.lock().is_empty());
    }
}
