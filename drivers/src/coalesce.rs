//! Concurrent calls of one kind share requests.
//!
//! While as many requests of a lane are under way as may be, further calls for it gather; the next request takes as many of
//! them as fit. A lone call finds none under way and leaves at once: what few callers wait for is never made slower for the
//! sake of many.

use crate::{
    Error, ErrorKind, Result,
    sync::{Mutex, MutexGuard, spawn},
};
use futures::future::BoxFuture;
use std::{
    collections::{HashMap, VecDeque},
    fmt,
    hash::Hash,
    sync::{Arc, PoisonError},
};
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

/// Who hears what came of a call.
pub(crate) type Reply<A> = oneshot::Sender<Result<A>>;
/// Carries the calls of one request out and answers each.
type Carry<K, C, A> = dyn Fn(K, Vec<(C, Reply<A>)>) -> BoxFuture<'static, ()> + Send + Sync;

/// How many requests of a lane are under way, and what fits into one of them; a single call always does.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) under_way: usize,
    pub(crate) items: usize,
    pub(crate) bytes: usize,
}

/// What a call adds to a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) items: usize,
    pub(crate) bytes: usize,
}

impl Size {
    /// That of a call for one item.
    #[cfg(any(feature = "http-client", feature = "redis"))]
    pub(crate) const fn item(bytes: usize) -> Self {
        Self { items: 1, bytes }
    }
}

struct Waiting<C, A> {
    call: C,
    reply: Reply<A>,
}

struct Lane<C, A> {
    waiting: VecDeque<Waiting<C, A>>,
    under_way: usize,
}

type Lanes<K, C, A> = HashMap<K, Lane<C, A>>;

/// The calls of one kind; those with the same key can share a request.
pub(crate) struct Coalescer<K, C, A> {
    /// Only keys with requests under way are in here.
    lanes: Mutex<Lanes<K, C, A>>,
    bounds: Bounds,
    size: fn(&C) -> Size,
    carry: Box<Carry<K, C, A>>,
    senders: TaskTracker,
}

impl<K, C, A> fmt::Debug for Coalescer<K, C, A> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Coalescer").field("bounds", &self.bounds).finish_non_exhaustive()
    }
}

impl<K, C, A> Coalescer<K, C, A> {
    fn lock(&self) -> MutexGuard<'_, Lanes<K, C, A>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K, C, A> Coalescer<K, C, A>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    C: Send + 'static,
    A: Send + 'static,
{
    pub(crate) fn new(
        bounds: Bounds,
        size: fn(&C) -> Size,
        carry: impl Fn(K, Vec<(C, Reply<A>)>) -> BoxFuture<'static, ()> + Send + Sync + 'static,
    ) -> Arc<Self> {
        let (lanes, carry, senders) = (Mutex::default(), Box::new(carry), TaskTracker::new());
        Arc::new(Self { lanes, bounds, size, carry, senders })
    }

    /// The same where a request has one answer for each of its calls, in their order.
    #[cfg(any(feature = "http-client", feature = "redis"))]
    pub(crate) fn of_items<F>(
        bounds: Bounds,
        size: fn(&C) -> Size,
        work: impl Fn(K, Vec<C>) -> F + Send + Sync + 'static,
    ) -> Arc<Self>
    where
        F: Future<Output = Result<Vec<A>>> + Send + 'static,
    {
        Self::new(bounds, size, move |key, taken| {
            let (calls, replies): (Vec<_>, Vec<_>) = taken.into_iter().unzip();
            let answers = work(key, calls);
            Box::pin(async move { hand_out(replies, answers.await) })
        })
    }

    /// Has one call carried out. Dropping it before a request took it takes it back; afterwards it is done all the same.
    pub(crate) async fn call(self: &Arc<Self>, key: K, call: C) -> Result<A> {
        let (reply, answer) = oneshot::channel();
        let leaves = {
            let mut lanes = self.lock();
            let lane =
                lanes.entry(key.clone()).or_insert_with(|| Lane { waiting: VecDeque::new(), under_way: 0 });
            lane.waiting.push_back(Waiting { call, reply });
            let leaves = lane.under_way < self.bounds.under_way;
            lane.under_way += usize::from(leaves);
            leaves
        };
        if leaves {
            let sender = Sender { coalescer: self.clone(), key, is_over: false };
            // A task of its own: the first caller may go away while others wait for their answers.
            spawn(self.senders.track_future(sender.run()));
        }
        answer
            .await
            .unwrap_or_else(|_| Err(Error::new(ErrorKind::Ambiguous, "the request's sender ended early")))
    }

    /// Waits until nothing is under way. Whoever comes later is still answered.
    #[cfg(any(feature = "http-client", feature = "redis"))]
    pub(crate) async fn finish(&self) {
        self.senders.close();
        self.senders.wait().await;
    }
}

/// Each call gets its answer, or what went wrong with all of them.
#[cfg(any(feature = "http-client", feature = "redis"))]
fn hand_out<A>(replies: Vec<Reply<A>>, answers: Result<Vec<A>>) {
    let answers = answers.and_then(|answers| {
        let fits = answers.len() == replies.len();
        fits.then_some(answers)
            .ok_or_else(|| Error::new(ErrorKind::Fatal, "the broker answered another number of items"))
    });
    match answers {
        Ok(answers) => {
            replies.into_iter().zip(answers).for_each(|(reply, answer)| drop(reply.send(Ok(answer))));
        }
        Err(error) => replies.into_iter().for_each(|reply| drop(reply.send(Err(error.clone())))),
    }
}

/// One request after the other, until nobody waits. It gives its place in the lane back whichever way it ends, or others
/// would wait forever.
struct Sender<K: Eq + Hash, C, A> {
    coalescer: Arc<Coalescer<K, C, A>>,
    key: K,
    /// It gave it back already.
    is_over: bool,
}

impl<K, C, A> Sender<K, C, A>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    C: Send + 'static,
    A: Send + 'static,
{
    async fn run(mut self) {
        while let Some(taken) = self.take() {
            (self.coalescer.carry)(self.key.clone(), taken).await;
        }
    }

    /// The next request's calls; none when nobody waits.
    fn take(&mut self) -> Option<Vec<(C, Reply<A>)>> {
        let bounds = self.coalescer.bounds;
        let mut lanes = self.coalescer.lock();
        let lane = lanes.get_mut(&self.key)?;
        let (mut taken, mut items, mut bytes) = (Vec::new(), 0_usize, 0_usize);
        while let Some(next) = lane.waiting.pop_front() {
            // Whoever gave up before a request took it doesn't want it any more.
            if next.reply.is_closed() {
                continue;
            }
            let size = (self.coalescer.size)(&next.call);
            items = items.saturating_add(size.items);
            bytes = bytes.saturating_add(size.bytes);
            if !taken.is_empty() && (items > bounds.items || bytes > bounds.bytes) {
                lane.waiting.push_front(next);
                break;
            }
            taken.push((next.call, next.reply));
        }
        if taken.is_empty() {
            // Under the same lock: whoever comes next must not count on this sender.
            self.is_over = true;
            leave(&mut lanes, &self.key);
            return None;
        }
        Some(taken)
    }
}

fn leave<K: Eq + Hash, C, A>(lanes: &mut Lanes<K, C, A>, key: &K) {
    if let Some(lane) = lanes.get_mut(key) {
        lane.under_way = lane.under_way.saturating_sub(1);
        if lane.under_way == 0 {
            lanes.remove(key);
        }
    }
}

impl<K: Eq + Hash, C, A> Drop for Sender<K, C, A> {
    fn drop(&mut self) {
        // Only after a panic; those who still wait are told that their sender is gone.
        if !self.is_over {
            leave(&mut self.coalescer.lock(), &self.key);
        }
    }
}

#[cfg(test)]
#[cfg(feature = "models")]
mod models;

#[cfg(test)]
#[cfg(not(feature = "models"))]
mod tests {
    use super::*;
    use std::time::Duration;

    type Numbers = Coalescer<u8, usize, (usize, usize)>;

    const BOUNDS: Bounds = Bounds { under_way: 2, items: 4, bytes: 1000 };

    /// Answers each item with itself and the number of items in its request.
    fn slow(bounds: Bounds, size: fn(&usize) -> Size) -> Arc<Numbers> {
        Coalescer::of_items(bounds, size, |_, items: Vec<usize>| async move {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let count = items.len();
            Ok(items.into_iter().map(|item| (item, count)).collect())
        })
    }

    async fn requests(coalescer: &Arc<Numbers>, items: std::ops::Range<usize>) -> Vec<usize> {
        let calls = items.clone().map(|item| coalescer.call(1, item));
        let answers: Vec<_> = futures::future::try_join_all(calls).await.unwrap();
        assert!(answers.iter().map(|(item, _)| *item).eq(items), "{answers:?}");
        answers.into_iter().map(|(_, count)| count).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn calls_that_come_meanwhile_share_a_request() {
        let coalescer = slow(Bounds { items: 100, ..BOUNDS }, |_| Size::item(1));
        let counts = requests(&coalescer, 0..10).await;
        assert!(counts.iter().any(|count| *count >= 8), "{counts:?}");
        assert!(coalescer.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_takes_no_more_than_fits_but_a_single_call_always() {
        let counts = requests(&slow(BOUNDS, |_| Size::item(1)), 0..20).await;
        assert!(counts.iter().all(|count| *count <= 4) && counts.contains(&4), "{counts:?}");
        let counts = requests(&slow(BOUNDS, |_| Size::item(400)), 0..20).await;
        assert!(counts.iter().all(|count| *count <= 2) && counts.contains(&2), "{counts:?}");
        let counts = requests(&slow(BOUNDS, |_| Size { items: 7, bytes: 5000 }), 0..5).await;
        assert!(counts.iter().all(|count| *count == 1), "{counts:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_was_dropped_keeps_nobody_waiting() {
        let coalescer = slow(BOUNDS, |_| Size::item(1));
        let dropped = tokio::time::timeout(Duration::from_millis(1), coalescer.call(1, 1)).await;
        assert!(dropped.is_err());
        assert_eq!(coalescer.call(1, 2).await.unwrap().0, 2);
        coalescer.finish().await;
        assert!(coalescer.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiting_call_that_was_dropped_is_not_carried() {
        let coalescer = slow(Bounds { under_way: 1, ..BOUNDS }, |_| Size::item(1));
        let first = coalescer.call(1, 1);
        let dropped = tokio::time::timeout(Duration::from_millis(1), coalescer.call(1, 2));
        let (first, dropped) = tokio::join!(first, dropped);
        assert!(first.is_ok() && dropped.is_err());
        assert_eq!(coalescer.call(1, 3).await.unwrap(), (3, 1), "two shared the request");
    }

    #[tokio::test(start_paused = true)]
    async fn calls_with_different_keys_share_nothing() {
        let coalescer = slow(BOUNDS, |_| Size::item(1));
        let calls = (0..4_u8).map(|key| coalescer.call(key, usize::from(key)));
        let answers = futures::future::try_join_all(calls).await.unwrap();
        assert!(answers.iter().all(|(_, count)| *count == 1), "{answers:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_closes_waits_for_all_that_wait() {
        let coalescer = slow(Bounds { under_way: 1, items: 1, ..BOUNDS }, |_| Size::item(1));
        let calls: Vec<_> = (0..5)
            .map(|item| {
                let coalescer = coalescer.clone();
                tokio::spawn(async move { coalescer.call(1, item).await })
            })
            .collect();
        tokio::task::yield_now().await;
        coalescer.finish().await;
        for call in calls {
            assert!(call.is_finished(), "somebody still waits");
            call.await.unwrap().unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_panics_tells_its_callers_and_stops_nobody_else() {
        let coalescer = Coalescer::of_items(
            BOUNDS,
            |_| Size::item(1),
            |_: u8, items: Vec<usize>| async move {
                assert!(!items.contains(&7), "told to");
                Ok(items)
            },
        );
        let error = coalescer.call(1, 7).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Ambiguous);
        assert_eq!(coalescer.call(1, 8).await.unwrap(), 8);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_with_another_number_of_items_is_nobodys() {
        let coalescer = Coalescer::of_items(
            BOUNDS,
            |_| Size::item(1),
            |_: u8, _: Vec<usize>| async { Ok(vec![1, 2, 3]) },
        );
        assert_eq!(coalescer.call(1, 1).await.unwrap_err().kind, ErrorKind::Fatal);
    }
}
