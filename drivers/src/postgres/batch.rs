//! Calls that share statements ([`crate::coalesce`]).
//!
//! A transaction of somebody else may hold what one item needs. Items that met one go on by themselves, call by call and
//! in smaller and smaller parts, so that they keep up nobody who shares their statements.

use super::{error, pool::LOCKS};
use crate::{
    Result,
    coalesce::{Bounds, Coalescer, Reply, Size},
};
use futures::future::BoxFuture;
use std::{
    collections::VecDeque,
    fmt::{self, Debug},
    hash::Hash,
    sync::Arc,
    time::Duration,
};
use tokio::{sync::Semaphore, time::Instant};

/// Statements that calls share: of a kind and queue one commits while the next one works.
const SHARED: Bounds = Bounds { under_way: 2, items: 1000, bytes: 8 * 1024 * 1024 };
/// Statements of items that met others' transactions, at once.
const DETOURS: usize = 4;
/// How many parts a call falls into of which nothing could be done.
const PARTS: usize = 8;
/// How long such an item rests.
const REST: Duration = Duration::from_millis(20);

type Answers<A> = Vec<Result<A>>;
/// What came of a statement; `None` for items that somebody else's transaction is in the way of: nothing was done of them.
pub(super) type Met<A> = Result<Vec<Option<Result<A>>>>;
/// Gives the items back, so that they can be tried again.
type Work<K, I, A> = dyn Fn(K, Vec<I>) -> BoxFuture<'static, (Vec<I>, Met<A>)> + Send + Sync;
type Splits<K> = dyn Fn(&K) -> bool + Send + Sync;
type Orphans<K, A> = dyn Fn(K, Vec<Result<A>>) + Send + Sync;

/// The items of one call, and their bytes.
struct Call<I> {
    items: Vec<I>,
    bytes: usize,
}

/// Calls of one kind.
pub(super) struct Batcher<K, I, A>(Arc<Coalescer<K, Call<I>, Answers<A>>>);

impl<K, I, A> Debug for Batcher<K, I, A> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Batcher")
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
        let statements = Arc::new(Statements {
            work: Box::new(work),
            splits: Box::new(splits),
            detours: Semaphore::new(DETOURS),
            orphans: Box::new(orphans),
        });
        let size = |call: &Call<I>| Size { items: call.items.len(), bytes: call.bytes };
        Self(Coalescer::new(SHARED, size, move |key, calls| Box::pin(statements.clone().carry(key, calls))))
    }

    /// Carries one call out. Dropping it before its statement left takes it back.
    pub(super) async fn submit(&self, key: K, items: Vec<I>, bytes: usize) -> Result<Answers<A>> {
        self.0.call(key, Call { items, bytes }).await
    }
}

/// How statements of one kind are carried out.
struct Statements<K, I, A> {
    work: Box<Work<K, I, A>>,
    /// Whether a call's items may be carried out in another order than the one that they have.
    splits: Box<Splits<K>>,
    detours: Semaphore,
    orphans: Box<Orphans<K, A>>,
}

impl<K, I, A> Statements<K, I, A>
where
    K: Clone + Send + Sync + 'static,
    I: Send + 'static,
    A: Send + 'static,
{
    /// Carries the items of all calls out in one statement.
    async fn carry(self: Arc<Self>, key: K, calls: Vec<(Call<I>, Reply<Answers<A>>)>) {
        let mut items = Vec::with_capacity(calls.iter().map(|(call, _)| call.items.len()).sum());
        let mut callers = Vec::with_capacity(calls.len());
        for (call, reply) in calls {
            callers.push((call.items.len(), reply));
            items.extend(call.items);
        }
        match (self.work)(key.clone(), items).await {
            (items, Ok(answers)) => self.hand_out(&key, callers, items, answers),
            (_, Err(error)) => {
                callers.into_iter().for_each(|(_, reply)| drop(reply.send(Err(error.clone()))));
            }
        }
    }

    fn hand_out(
        self: Arc<Self>,
        key: &K,
        callers: Vec<(usize, Reply<Answers<A>>)>,
        items: Vec<I>,
        answers: Vec<Option<Result<A>>>,
    ) {
        let (mut items, mut answers) = (items.into_iter(), answers.into_iter());
        for (count, reply) in callers {
            let detour = Detour {
                statements: self.clone(),
                key: key.clone(),
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
}

/// A call that has items which met somebody else's transaction.
struct Detour<K, I, A> {
    statements: Arc<Statements<K, I, A>>,
    key: K,
    answers: Vec<Option<Result<A>>>,
    reply: Reply<Answers<A>>,
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
            if left.len() == count && count > 1 && (self.statements.splits)(&self.key) {
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
            let _turn = self.statements.detours.acquire().await;
            (self.statements.work)(self.key.clone(), items).await
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
            (self.statements.orphans)(self.key, orphans);
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
