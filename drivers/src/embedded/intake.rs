//! The bounded channel to the writer's thread. The thread takes all that waits at once: that is the group of a commit.

use super::command::{Operation, Request};
use crate::{
    Error, Result,
    sync::{Condvar, Mutex, MutexGuard},
};
use std::{
    collections::VecDeque,
    sync::PoisonError,
    time::{Duration, Instant},
};
use tokio::sync::{Semaphore, oneshot};

/// The model checker looks at something small.
const MODELLED: bool = cfg!(all(test, feature = "models"));
/// Commands in one group.
const GROUP_COMMANDS: usize = if MODELLED { 3 } else { 512 };
/// Items (jobs, receipts …) in one group, so that neighbours of many big batches don't wait for all of them.
const GROUP_ITEMS: usize = 4096;
/// What may wait: a command takes one permit, and one more for each such number of payload bytes.
const PERMITS: usize = if MODELLED { 2 } else { 2048 };
const BYTES_PER_PERMIT: usize = 64 * 1024;

#[derive(Debug)]
pub(super) struct Intake {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
    room: Semaphore,
}

#[derive(Debug, Default)]
struct Waiting {
    requests: VecDeque<(Request, usize)>,
    closed: bool,
}

/// What the thread took.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) requests: Vec<Request>,
    /// Nobody may ask any more, and nothing waits behind this group.
    pub(super) last: bool,
}

impl Intake {
    pub(super) fn new() -> Self {
        Self { waiting: Mutex::default(), arrived: Condvar::new(), room: Semaphore::new(PERMITS) }
    }

    /// Hands `operation` over as soon as there is room; the answer comes through the receiver.
    pub(super) async fn send(
        &self,
        operation: Operation,
    ) -> Result<oneshot::Receiver<Result<super::command::Answer>>> {
        let cost = (1 + operation.bytes() / BYTES_PER_PERMIT).min(PERMITS);
        let permits = u32::try_from(cost).unwrap_or(u32::MAX);
        let room = self.room.acquire_many(permits).await.map_err(|_| closed())?;
        let (reply, answer) = oneshot::channel();
        if !self.push(Request { operation, reply }, cost) {
            return Err(closed());
        }
        room.forget();
        Ok(answer)
    }

    /// Hands over what must not wait and expects no answer.
    pub(super) fn post(&self, operation: Operation) {
        let (reply, _) = oneshot::channel();
        self.push(Request { operation, reply }, 0);
    }

    /// Refuses all that comes from now on; what waits is still served.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.room.close();
        self.arrived.notify_all();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Drops all that waits; whoever asked hears that nobody is there.
    pub(super) fn abandon(&self) {
        self.close();
        self.lock().requests.clear();
    }

    /// Takes the next group, waiting for it until `deadline`.
    pub(super) fn take(&self, deadline: Instant) -> Group {
        let mut waiting = self.lock();
        while waiting.requests.is_empty() && !waiting.closed {
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                break;
            }
            waiting = self.arrived.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let mut requests = Vec::new();
        let (mut items, mut freed) = (0, 0);
        while requests.len() < GROUP_COMMANDS && items < GROUP_ITEMS {
            let Some((request, cost)) = waiting.requests.pop_front() else {
                break;
            };
            items += request.operation.items();
            freed += cost;
            requests.push(request);
        }
        let last = waiting.closed && waiting.requests.is_empty();
        drop(waiting);
        self.room.add_permits(freed);
        Group { requests, last }
    }

    fn push(&self, request: Request, cost: usize) -> bool {
        let mut waiting = self.lock();
        if waiting.closed {
            return false;
        }
        let first = waiting.requests.is_empty();
        waiting.requests.push_back((request, cost));
        drop(waiting);
        if first {
            self.arrived.notify_one();
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing panics while it holds the lock; and if something did, the queue would still be whole.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn closed() -> Error {
    Error::unavailable("the broker is closed")
}
