//! Concurrent single enqueues share requests.
//!
//! While a request for a queue is under way, jobs for it gather; the next request takes them all. A lone job finds no
//! request under way and leaves at once.

use super::{batch, enqueue, transport::Transport};
use crate::{
    Enqueued, Error, ErrorKind, NewJob, QueueName, Result,
    sync::{Mutex, MutexGuard, spawn},
};
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, PoisonError},
};
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

/// The answer to one caller: outer and inner error as everywhere in the contract.
type Reply = Result<Result<Enqueued>>;

/// Who carries jobs to the broker.
pub(super) trait Carrier: Send + Sync + 'static {
    fn carry(
        &self,
        queue: &QueueName,
        jobs: Vec<NewJob>,
    ) -> impl Future<Output = Result<Vec<Result<Enqueued>>>> + Send;
}

impl Carrier for Transport {
    async fn carry(&self, queue: &QueueName, jobs: Vec<NewJob>) -> Result<Vec<Result<Enqueued>>> {
        enqueue(self, queue, jobs).await
    }
}

#[derive(Debug)]
struct Waiting {
    job: NewJob,
    reply: oneshot::Sender<Reply>,
}

#[derive(Debug, Default)]
pub(super) struct Coalescer {
    /// Only queues with a request under way are in here.
    lanes: Mutex<HashMap<QueueName, VecDeque<Waiting>>>,
    senders: TaskTracker,
}

impl Coalescer {
    pub(super) async fn enqueue(
        self: &Arc<Self>,
        carrier: &Arc<impl Carrier>,
        queue: &QueueName,
        job: NewJob,
    ) -> Reply {
        let (reply, answer) = oneshot::channel();
        let waiting = Waiting { job, reply };
        let is_alone = {
            let mut lanes = self.lock();
            if let Some(lane) = lanes.get_mut(queue) {
                lane.push_back(waiting);
                false
            } else {
                lanes.insert(queue.clone(), VecDeque::from([waiting]));
                true
            }
        };
        if is_alone {
            let lane = Lane { coalescer: self.clone(), queue: queue.clone(), is_over: false };
            let carrier = carrier.clone();
            // A task of its own: the first caller may go away while others wait for their answers.
            spawn(self.senders.track_future(async move { lane.run(&*carrier).await }));
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

    fn lock(&self) -> MutexGuard<'_, HashMap<QueueName, VecDeque<Waiting>>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sender of one queue. It leaves the map whichever way it ends, or its queue would wait forever.
struct Lane {
    coalescer: Arc<Coalescer>,
    queue: QueueName,
    /// It left already; what is in the map now belongs to another sender.
    is_over: bool,
}

impl Lane {
    async fn run(mut self, carrier: &impl Carrier) {
        while let Some(batch) = self.take() {
            let (jobs, replies): (Vec<_>, Vec<_>) =
                batch.into_iter().map(|waiting| (waiting.job, waiting.reply)).unzip();
            match carrier.carry(&self.queue, jobs).await {
                Ok(answers) => {
                    replies.into_iter().zip(answers).for_each(|(reply, answer)| drop(reply.send(Ok(answer))))
                }
                Err(error) => replies.into_iter().for_each(|reply| drop(reply.send(Err(error.clone())))),
            }
        }
    }

    /// The next request's jobs; none, and the queue is free, when nobody waits.
    fn take(&mut self) -> Option<Vec<Waiting>> {
        let mut lanes = self.coalescer.lock();
        let lane = lanes.get_mut(&self.queue)?;
        // Whoever gave up before the job left doesn't want it any more.
        lane.retain(|waiting| !waiting.reply.is_closed());
        if lane.is_empty() {
            lanes.remove(&self.queue);
            self.is_over = true;
            return None;
        }
        let count = batch::fitting(lane.iter(), |waiting: &Waiting| batch::job_bytes(&waiting.job));
        Some(lane.drain(..count).collect())
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        if !self.is_over {
            self.coalescer.lock().remove(&self.queue);
        }
    }
}
