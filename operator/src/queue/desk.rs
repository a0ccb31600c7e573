//! What a controller of Queues works with.

use super::patience::Patience;
use crate::{
    connections::{BrokerKey, within},
    context::Context,
};
use kube::{ResourceExt, runtime::reflector::Store};
use longshore_crds::Queue;
use longshore_drivers::{Error, ErrorKind};
use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// What a controller of Queues works with.
pub(super) struct Desk {
    pub(super) context: Arc<Context>,
    queues: Store<Queue>,
    patience: Patience,
    written: Mutex<HashMap<String, Instant>>,
}

impl Desk {
    pub(super) fn new(context: Arc<Context>, queues: Store<Queue>) -> Self {
        Self { context, queues, patience: Patience::default(), written: Mutex::default() }
    }

    /// Calls a broker, unless it was silent a moment ago.
    pub(super) async fn ask<T>(
        &self,
        broker: &BrokerKey,
        limit: Duration,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        if !self.patience.may_ask(broker, Instant::now()) {
            return Err(Error::new(
                ErrorKind::Timeout,
                format!("the broker did not answer within {limit:?}"),
            ));
        }
        let answer = within(limit, call).await;
        match &answer {
            Err(error) if error.kind == ErrorKind::Timeout => {
                self.patience.was_silent(broker, Instant::now());
            }
            _ => self.patience.answered(broker),
        }
        answer
    }

    /// How long ago the status of `queue` was written.
    pub(super) fn since_written(&self, queue: &Queue, now: Instant) -> Option<Duration> {
        let at = self.lock().get(&queue.uid()?).copied();
        at.map(|at| now.saturating_duration_since(at))
    }

    /// The status of `queue` was written.
    pub(super) fn written(&self, queue: &Queue, now: Instant) {
        let uid = queue.uid().unwrap_or_default();
        let mut written = self.lock();
        if written.insert(uid.clone(), now).is_none() {
            // Queues that were deleted leave without a word.
            let there: HashSet<_> = self.queues.state().iter().filter_map(|queue| queue.uid()).collect();
            written.retain(|known, _| *known == uid || there.contains(known));
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
