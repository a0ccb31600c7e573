//! Calls that share statements.
//!
//! While two statements of a kind are under way for a queue, further calls gather; the next statement takes them all. A
//! lone call finds none under way and leaves at once.
//!
//! A transaction of somebody else may hold what one item needs. Items that met one go on by themselves, call by call and
//! in smaller and smaller parts, so that they keep up nobody who shares their statements.

use super::{error, pool::LOCKS};
use crate::{Error, ErrorKind, Result};
use futures::future::BoxFuture;
use std::{
    collections::{HashMap, VecDeque},
    fmt::{self, Debug},
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Semaphore, oneshot},
    time::Instant,
};

/// Statements of one kind and queue that are under way at once: one commits while the next one works.
const FLYING: usize = 2;
/// Items of one statement.
const ITEMS: usize = 1000;
/// Bytes of one statement, unless a single call has more.
const BYTES: usize = 8 * 1024 * 1024;
/// Statements of items that met others' transactions, at once.
const DETOURS: usize = 4;
/// How many parts a call falls into of which nothing could be done.
const PARTS: usize = 8;
/// How long such an item rests.
const REST: Duration = Duration::from_millis(20);

type Answers<A> = Result<Vec<Result<A>>>;
/// What came of a statement; `None` for items that somebody else's transaction is in the way of: nothing was done of them.
pub(super) type Met<A> = Result<Vec<Option<Result<A>>>>;
/// Gives the items back, so that they can be tried again.
type Work<K, I, A> = dyn Fn(K, Vec<I>) -> BoxFuture<'static, (Vec<I>, Met<A>)> + Send + Sync;
type Splits<K> = dyn Fn(&K) -> bool + Send + Sync;
type Orphans<K, A> = dyn Fn(K, Vec<Result<A>>) + Send + Sync;

struct Waiting<I, A> {
    items: Vec<I>,
    bytes: usize,
    reply: oneshot::Sender<Answers<A>>,
}

struct Lane<I, A> {
    waiting: VecDeque<Waiting<I, A>>,
    flying: usize,
}

type Lanes<K, I, A> = HashMap<K, Lane<I, A>>;

/// Calls of one kind.
pub(super) struct Batcher<K, I, A>(Arc<Inner<K, I, A>>);

struct Inner<K, I, A> {
    /// Only keys with statements under way are in here.
    lanes: Mutex<Lanes<K, I, A>>,
    work: Box<Work<K, I, A>>,
    /// Whether a call's items may be carried out in another order than the one that they have.
    splits: Box<Splits<K>>,
    detours: Semaphore,
    orphans: Box<Orphans<K, A>>,
}

impl<K, I, A> Debug for Batcher<K, I, A> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Batcher")
    }
}

impl<K, I, A> Inner<K, I, A> {
    fn lock(&self) -> MutexGuard<'_, Lanes<K, I, A>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K, I, A> Batcher<K, I, A>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    I: Send + 'static,
    A: Send + 'static,
{
    /// Calls that `work` carries out. What came for callers that went away is given to `orphans`.
    pub(super) fn new(
        work: impl Fn(K, Vec<I>) -> BoxFuture<'static, (Vec<I>, Met<A>)> + Send + Sync + 'static,
        splits: impl Fn(&K) -> bool + Send + Sync + 'static,
        orphans: impl Fn(K, Vec<Result<A>>) + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(Inner {
            lanes: Mutex::default(),
            work: Box::new(work),
            splits: Box::new(splits),
            detours: Semaphore::new(DETOURS),
            orphans: Box::new(orphans),
        }))
    }

    /// Carries one call out. Dropping it before its statement left takes it back.
    pub(super) async fn submit(&self, key: K, items: Vec<I>, bytes: usize) -> Answers<A> {
        let (reply, answer) = oneshot::channel();
        let leaves = {
            let mut lanes = self.0.lock();
            let lane =
                lanes.entry(key.clone()).or_insert_with(|| Lane { waiting: VecDeque::new(), flying: 0 });
            lane.waiting.push_back(Waiting { items, bytes, reply });
            let leaves = lane.flying < FLYING;
            lane.flying += usize::from(leaves);
            leaves
        };
        if leaves {
            // A task of its own: this caller may go away while others wait for their answers.
            tokio::spawn(Sender { inner: self.0.clone(), key, seated: true }.run());
        }
        let ended = |_| Err(Error::new(ErrorKind::Ambiguous, "the statement's sender ended early"));
        answer.await.unwrap_or_else(ended)
    }
}

/// Whoever sends for one lane. It is taken off the lane whichever way it ends, or others would wait forever.
struct Sender<K: Eq + Hash, I, A> {
    inner: Arc<Inner<K, I, A>>,
    key: K,
    /// It counts as under way.
    seated: bool,
}

impl<K, I, A> Sender<K, I, A>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    I: Send + 'static,
    A: Send + 'static,
{
    async fn run(mut self) {
        while let Some(batch) = self.take() {
            let mut items = Vec::with_capacity(batch.iter().map(|waiting| waiting.items.len()).sum());
            let mut callers = Vec::with_capacity(batch.len());
            for waiting in batch {
                callers.push((waiting.items.len(), waiting.reply));
                items.extend(waiting.items);
            }
            match (self.inner.work)(self.key.clone(), items).await {
                (items, Ok(answers)) => self.hand_out(callers, items, answers),
                (_, Err(error)) => {
                    callers.into_iter().for_each(|(_, reply)| drop(reply.send(Err(error.clone()))));
                }
            }
        }
    }

    fn hand_out(
        &self,
        callers: Vec<(usize, oneshot::Sender<Answers<A>>)>,
        items: Vec<I>,
        answers: Vec<Option<Result<A>>>,
    ) {
        let (mut items, mut answers) = (items.into_iter(), answers.into_iter());
        for (count, reply) in callers {
            let detour = Detour {
                inner: self.inner.clone(),
                key: self.key.clone(),
                answers: answers.by_ref().take(count).collect(),
                reply,
            };
            let left = items.by_ref().take(count).enumerate();
            let left: Vec<(usize, I)> = left.filter(|(at, _)| detour.is_open(*at)).collect();
            if left.is_empty() {
                detour.end();
            } else {
                // A task of its own: others go on.
                tokio::spawn(detour.run(left));
            }
        }
    }

    /// The next statement's calls.
    fn take(&mut self) -> Option<Vec<Waiting<I, A>>> {
        let mut lanes = self.inner.lock();
        let lane = lanes.get_mut(&self.key)?;
        // Whoever gave up before its statement left doesn't want it any more.
        lane.waiting.retain(|waiting| !waiting.reply.is_closed());
        let (mut items, mut bytes, mut count) = (0, 0, 0);
        for waiting in &lane.waiting {
            items += waiting.items.len();
            bytes += waiting.bytes;
            if count > 0 && (items > ITEMS || bytes > BYTES) {
                break;
            }
            count += 1;
        }
        if count == 0 {
            // Given back under the lock, so that whoever comes next finds the seat free.
            leave(&mut lanes, &self.key);
            self.seated = false;
            return None;
        }
        Some(lane.waiting.drain(..count).collect())
    }
}

fn leave<K: Eq + Hash, I, A>(lanes: &mut Lanes<K, I, A>, key: &K) {
    if let Some(lane) = lanes.get_mut(key) {
        lane.flying = lane.flying.saturating_sub(1);
        if lane.flying == 0 {
            lanes.remove(key);
        }
    }
}

impl<K: Eq + Hash, I, A> Drop for Sender<K, I, A> {
    fn drop(&mut self) {
        // Only after a panic; those who still wait are told that their sender is gone.
        if self.seated {
            leave(&mut self.inner.lock(), &self.key);
        }
    }
}

/// A call that has items which met somebody else's transaction.
struct Detour<K, I, A> {
    inner: Arc<Inner<K, I, A>>,
    key: K,
    answers: Vec<Option<Result<A>>>,
    reply: oneshot::Sender<Answers<A>>,
}

impl<K: Clone, I, A> Detour<K, I, A> {
    fn is_open(&self, at: usize) -> bool {
        self.answers.get(at).is_some_and(Option::is_none)
    }

    /// Tries items until each has its answer, or it took too long.
    async fn run(mut self, left: Vec<(usize, I)>) {
        let deadline = Instant::now() + LOCKS;
        let mut parts = VecDeque::from([left]);
        while let Some(part) = parts.pop_front() {
            if Instant::now() >= deadline || self.reply.is_closed() {
                break;
            }
            let count = part.len();
            let left = self.attempt(part).await;
            if left.len() == count && count > 1 && (self.inner.splits)(&self.key) {
                parts.extend(split(left));
            } else if !left.is_empty() {
                parts.push_back(left);
                tokio::time::sleep(REST).await;
            }
        }
        self.end();
    }

    /// Tries items once; those of which nothing was done.
    async fn attempt(&mut self, part: Vec<(usize, I)>) -> Vec<(usize, I)> {
        let (places, items): (Vec<usize>, Vec<I>) = part.into_iter().unzip();
        let (items, met) = {
            // It is never closed.
            let _turn = self.inner.detours.acquire().await;
            (self.inner.work)(self.key.clone(), items).await
        };
        match met {
            Ok(answers) => {
                for (place, answer) in places.iter().zip(answers) {
                    self.answers[*place] = answer;
                }
            }
            Err(error) => places.iter().for_each(|place| self.answers[*place] = Some(Err(error.clone()))),
        }
        places.into_iter().zip(items).filter(|(place, _)| self.is_open(*place)).collect()
    }

    fn end(self) {
        let answers = self.answers.into_iter().map(|answer| answer.unwrap_or_else(|| Err(error::held())));
        if let Err(Ok(orphans)) = self.reply.send(Ok(answers.collect())) {
            (self.inner.orphans)(self.key, orphans);
        }
    }
}

/// A few parts, in order.
fn split<T>(mut items: Vec<T>) -> Vec<Vec<T>> {
    let size = items.len().div_ceil(PARTS).max(1);
    let mut parts = Vec::with_capacity(PARTS);
    while !items.is_empty() {
        let rest = items.split_off(size.min(items.len()));
        parts.push(std::mem::replace(&mut items, rest));
    }
    parts
}
