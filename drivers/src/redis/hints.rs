//! The stream of hints for those who watch all queues.
//!
//! Scripts publish what they made ready and when something else will be due. Time passes in a queue only where somebody
//! looks, so the stream looks when that time has come; and at all queues now and then, for what was missed.

use super::{
    admin,
    core::Core,
    errors::Call,
    hub::{Ear, Heard},
    link::closed,
    reply::Items,
};
use crate::{Error, QueueName, Result, Wake, WakeStream};
use futures::{StreamExt, stream};
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::{sync::broadcast, time::Instant};

/// How often all queues are looked at.
const ROUND: Duration = Duration::from_secs(30);
/// How many of them at once.
const AT_ONCE: usize = 16;
const LISTENS: Duration = Duration::from_secs(5);

struct Watch {
    core: Arc<Core>,
    heard: broadcast::Receiver<Heard>,
    due: HashMap<QueueName, Instant>,
    round: Instant,
}

pub(super) async fn stream(core: &Arc<Core>) -> Result<WakeStream> {
    if core.link.closed.is_cancelled() {
        return Err(closed());
    }
    // Whoever can't be reached says why: that somebody listens already proves nothing.
    core.link.command(&redis::cmd("PING"), "wake", Call::Reads).await?;
    let heard = core.hub.subscribe();
    if !core.hub.listen(Ear::All, LISTENS).await {
        return Err(Error::unavailable("the Redis server did not answer to SUBSCRIBE; try again"));
    }
    let watch = Watch { core: core.clone(), heard, due: HashMap::new(), round: Instant::now() };
    Ok(stream::unfold(watch, |mut watch| async move {
        let wake = watch.next().await?;
        Some((Ok(wake), watch))
    })
    .boxed())
}

impl Watch {
    async fn next(&mut self) -> Option<Wake> {
        loop {
            let look = self.due.values().copied().min().map_or(self.round, |due| due.min(self.round));
            let closed = self.core.link.closed.clone();
            tokio::select! {
                heard = self.heard.recv() => match heard {
                    Ok(Heard::Ready(queue)) => return Some(Wake::Queue { queue }),
                    Ok(Heard::Completions(address)) => return Some(Wake::Completions { address }),
                    Ok(Heard::Due(queue, after)) => {
                        let at = Instant::now() + after;
                        let due = self.due.entry(queue).or_insert(at);
                        *due = at.min(*due);
                    }
                    Ok(Heard::Gap) | Err(broadcast::error::RecvError::Lagged(_)) => self.round = Instant::now(),
                    Err(broadcast::error::RecvError::Closed) => return None,
                },
                () = tokio::time::sleep_until(look) => self.look().await,
                () = closed.cancelled() => return None,
            }
        }
    }

    /// Looks at the queues whose time has come. What they have ready is heard of like everything else.
    async fn look(&mut self) {
        let now = Instant::now();
        let queues = if self.round <= now {
            self.round = now + ROUND;
            self.due.clear();
            self.all().await
        } else {
            self.due.extract_if(|_, due| *due <= now).map(|(queue, _)| queue).collect()
        };
        let core = &self.core;
        let looks = queues.into_iter().map(|queue| async move {
            let next = admin::stats(&core.link, &queue).await.ok().and_then(|(_, next)| next);
            (queue, next)
        });
        let looked: Vec<_> = stream::iter(looks).buffer_unordered(AT_ONCE).collect().await;
        for (queue, next) in looked {
            if let Some(next) = next {
                self.due.insert(queue, Instant::now() + next);
            }
        }
    }

    async fn all(&self) -> Vec<QueueName> {
        let mut cmd = redis::cmd("SMEMBERS");
        cmd.arg(admin::queues(&self.core.link));
        let names = self.core.link.command(&cmd, "wake", Call::Reads).await.and_then(Items::new);
        let names = names.into_iter().flatten();
        names
            .filter_map(|name| match name {
                redis::Value::BulkString(name) => String::from_utf8(name).ok()?.parse().ok(),
                _ => None,
            })
            .collect()
    }
}
