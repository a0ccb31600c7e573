//! What all calls of one driver share.

use super::{
    claims::{self, Handed, Wish},
    config::RedisConfig,
    enqueue,
    hub::Hub,
    leases,
    link::Link,
};
use crate::{
    Capabilities, Delay, Durability, Enqueued, Extension, IdMemory, Lease, Limits, NewJob, QueueName,
    Receipt, Result, Settlement,
    coalesce::{Bounds, Coalescer},
};
use std::{sync::Arc, time::Duration};

/// How long a close waits for what is under way.
const CLOSES: Duration = Duration::from_secs(10);

/// Requests that calls share: the server works on one while the other is written.
pub(super) const SHARED: Bounds = Bounds { under_way: 2, items: Limits::BATCH, bytes: 4 * 1024 * 1024 };

#[derive(Debug)]
pub(super) struct Core {
    pub(super) link: Arc<Link>,
    pub(super) hub: Arc<Hub>,
    pub(super) capabilities: Capabilities,
    pub(super) claims: Arc<Coalescer<claims::Key, Wish, Handed>>,
    pub(super) enqueues: Arc<Coalescer<QueueName, NewJob, Result<Enqueued>>>,
    pub(super) settles: Arc<Coalescer<QueueName, Settlement, Result<()>>>,
    pub(super) extensions: Arc<Coalescer<(QueueName, u64), Receipt, Result<Extension>>>,
}

impl Core {
    pub(super) fn new(config: RedisConfig) -> Result<Self> {
        let link = Arc::new(Link::new(config)?);
        let hub = Hub::new(link.clone());
        Ok(Self {
            claims: claims::lanes(&link, &hub),
            enqueues: enqueue::lanes(&link),
            settles: leases::settle_lanes(&link),
            extensions: leases::extend_lanes(&link),
            capabilities: capabilities(),
            link,
            hub,
        })
    }

    pub(super) async fn close(&self) {
        self.link.closed.cancel();
        self.hub.chores.close();
        let finish = async {
            tokio::join!(
                self.claims.finish(),
                self.enqueues.finish(),
                self.settles.finish(),
                self.extensions.finish(),
                self.hub.chores.wait()
            )
        };
        // What takes longer ends by itself: every call is bounded.
        let _ = tokio::time::timeout(CLOSES, finish).await;
        self.link.let_go();
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.link.closed.cancel();
    }
}

fn capabilities() -> Capabilities {
    Capabilities {
        id_memory: IdMemory::UntilAcked,
        fencing: true,
        atomic_settle: true,
        lease: Lease::Extendable,
        delay: Some(Delay { max: Limits::MAX_DELAY }),
        pause: true,
        inspect: true,
        cancel: true,
        result_store: true,
        wake: true,
        exact_depth: true,
        fifo: true,
        // Not known before the server was asked.
        durability: Durability::None,
        limits: Limits::default(),
    }
}
