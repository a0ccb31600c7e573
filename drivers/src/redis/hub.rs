//! The connection that listens: who waits is woken by name, and hints for those who watch everything.
//!
//! A claim that found nothing leaves its number in the queue's line; a script that makes a job ready takes the first number
//! out and publishes it on the channel of its driver. So one job wakes one claim, however many wait. Numbers of drivers that
//! are gone are passed over by the script; a number that nobody has any more is passed on from here.

use super::{link::Link, scripts};
use crate::{Address, QueueName};
use futures::StreamExt;
use redis::aio::PubSubStream;
use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};
use tokio::{
    sync::{Notify, broadcast, watch},
    time::Instant,
};
use tokio_util::task::TaskTracker;

/// Hints that a slow subscriber may have unread; older ones are lost to it.
const HINTS: usize = 4096;
/// How often a quiet connection is asked whether it is still there.
const PULSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What is heard on the channel for all.
#[derive(Debug, Clone)]
pub(super) enum Heard {
    /// A queue has a ready job.
    Ready(QueueName),
    /// A queue will have one after this time.
    Due(QueueName, Duration),
    /// An address has a completion.
    Completions(Address),
    /// Something may have been missed.
    Gap,
}

/// What is listened to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ear {
    Nothing,
    /// Numbers of this driver's claims.
    Own,
    /// Also the hints for all.
    All,
}

#[derive(Debug)]
struct Sleeper {
    queue: QueueName,
    wake: Arc<Notify>,
}

pub(super) struct Hub {
    link: Arc<Link>,
    /// Names this driver in lines and channels.
    pub(super) driver: String,
    sleepers: Mutex<(u64, BTreeMap<u64, Sleeper>)>,
    hints: broadcast::Sender<Heard>,
    wanted: watch::Sender<Ear>,
    heard: watch::Sender<Ear>,
    /// What is done in the background for those who went away.
    pub(super) chores: TaskTracker,
}

impl fmt::Debug for Hub {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Hub").field("driver", &self.driver).finish_non_exhaustive()
    }
}

impl Hub {
    pub(super) fn new(link: Arc<Link>) -> Arc<Self> {
        Arc::new(Self {
            link,
            driver: uuid::Uuid::new_v4().simple().to_string(),
            sleepers: Mutex::default(),
            hints: broadcast::channel(HINTS).0,
            wanted: watch::channel(Ear::Nothing).0,
            heard: watch::channel(Ear::Nothing).0,
            chores: TaskTracker::new(),
        })
    }

    fn sleepers(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, Sleeper>)> {
        self.sleepers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<Heard> {
        self.hints.subscribe()
    }

    /// Whether it listens, after `patience` at most. From the first call on it keeps trying by itself.
    pub(super) async fn listen(self: &Arc<Self>, ear: Ear, patience: Duration) -> bool {
        let mut starts = false;
        self.wanted.send_if_modified(|wanted| {
            starts = *wanted == Ear::Nothing;
            let more = *wanted < ear;
            *wanted = ear.max(*wanted);
            more
        });
        if starts {
            tokio::spawn(run(Arc::downgrade(self), self.link.clone(), self.wanted.subscribe()));
        }
        let mut heard = self.heard.subscribe();
        let waiting = heard.wait_for(|heard| *heard >= ear);
        matches!(tokio::time::timeout(patience, waiting).await, Ok(Ok(_)))
    }

    /// A place to wait for jobs of `queue`.
    pub(super) fn sleeper(self: &Arc<Self>, queue: &QueueName) -> Place {
        let wake = Arc::new(Notify::new());
        let mut sleepers = self.sleepers();
        sleepers.0 += 1;
        let number = sleepers.0;
        sleepers.1.insert(number, Sleeper { queue: queue.clone(), wake: wake.clone() });
        Place { hub: self.clone(), queue: queue.clone(), number, wake, in_line: false }
    }

    /// The one sleeper of a queue who looks at the clock for all of them here.
    fn first(&self, queue: &QueueName) -> Option<(u64, Arc<Notify>)> {
        let sleepers = self.sleepers();
        sleepers
            .1
            .iter()
            .find(|(_, sleeper)| sleeper.queue == *queue)
            .map(|(number, sleeper)| (*number, sleeper.wake.clone()))
    }

    fn wake_all(&self) {
        self.sleepers().1.values().for_each(|sleeper| sleeper.wake.notify_one());
        let _ = self.hints.send(Heard::Gap);
    }

    /// A message on this driver's channel: the number of a claim, and its queue.
    fn called(self: &Arc<Self>, message: &str) {
        let Some((number, queue)) = message.split_once(' ') else { return };
        let (Ok(number), Ok(queue)) = (number.parse::<u64>(), queue.parse::<QueueName>()) else { return };
        let sleeper = self.sleepers().1.get(&number).map(|sleeper| sleeper.wake.clone());
        match sleeper {
            Some(wake) => wake.notify_one(),
            None => self.pass_on(queue, number),
        }
    }

    /// Leaves the line, and has the next one called if there is still something.
    fn pass_on(self: &Arc<Self>, queue: QueueName, number: u64) {
        let hub = self.clone();
        if tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        self.chores.spawn(async move {
            let passed = hub
                .link
                .run_late(&scripts::PASS, &queue, |cmd| {
                    cmd.arg(&hub.driver).arg(number);
                })
                .await;
            if let Err(error) = passed {
                tracing::debug!(%queue, %error, "a wake-up was not passed on; others look by themselves");
            }
        });
    }

    fn hear(&self, message: &str) {
        let mut words = message.split(' ');
        let heard = match (words.next(), words.next(), words.next()) {
            (Some("q"), Some(queue), None) => queue.parse().ok().map(Heard::Ready),
            (Some("c"), Some(address), None) => Address::new(address).ok().map(Heard::Completions),
            (Some("d"), Some(queue), Some(millis)) => {
                let due = queue.parse().ok().zip(millis.parse().ok());
                due.map(|(queue, millis)| Heard::Due(queue, Duration::from_millis(millis)))
            }
            _ => None,
        };
        if let Some(heard) = heard {
            // Without subscribers there is nobody to tell.
            let _ = self.hints.send(heard);
        }
    }
}

/// Where one claim waits. Dropping it leaves the line.
#[derive(Debug)]
pub(super) struct Place {
    hub: Arc<Hub>,
    queue: QueueName,
    pub(super) number: u64,
    pub(super) wake: Arc<Notify>,
    /// Whether its number may stand in the queue's line.
    pub(super) in_line: bool,
}

impl Place {
    /// Whether it looks at the clock for the others here.
    pub(super) fn is_first(&self) -> bool {
        self.hub.first(&self.queue).is_some_and(|(number, _)| number == self.number)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let was_first = self.is_first();
        self.hub.sleepers().1.remove(&self.number);
        if was_first && let Some((_, wake)) = self.hub.first(&self.queue) {
            wake.notify_one();
        }
        if self.in_line {
            self.hub.pass_on(self.queue.clone(), self.number);
        }
    }
}

/// Listens until the driver is closed or gone.
async fn run(hub: Weak<Hub>, link: Arc<Link>, mut wanted: watch::Receiver<Ear>) {
    let mut pause = Duration::from_millis(50);
    let closed = link.closed.clone();
    loop {
        let since = Instant::now();
        let listening = listen(&hub, &link, &mut wanted);
        tokio::select! {
            ended = listening => tracing::debug!(error = %ended, "the connection that listens ended"),
            () = closed.cancelled() => return,
        }
        match hub.upgrade() {
            Some(hub) => hub.heard.send_replace(Ear::Nothing),
            None => return,
        };
        if since.elapsed() > LONGEST_PAUSE {
            pause = Duration::from_millis(50);
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
            () = closed.cancelled() => return,
        }
    }
}

/// Listens until the connection breaks, and says why.
async fn listen(hub: &Weak<Hub>, link: &Arc<Link>, wanted: &mut watch::Receiver<Ear>) -> String {
    let connect = tokio::time::timeout(super::link::CONNECTS, link.client.get_async_pubsub()).await;
    let (mut sink, mut stream) = match connect {
        Ok(Ok(connection)) => connection.split(),
        Ok(Err(error)) => return error.category().to_owned(),
        Err(_) => return "not in time".to_owned(),
    };
    let Some(own) = hub.upgrade().map(|hub| format!("{}:w:{}", link.prefix, hub.driver)) else {
        return "nobody listens".to_owned();
    };
    let mut subscribed = Ear::Nothing;
    let mut pulse = tokio::time::interval(PULSE);
    loop {
        let ear = *wanted.borrow_and_update();
        if subscribed < ear {
            let all = format!("{}:wake", link.prefix);
            let channels = if ear == Ear::All { vec![own.clone(), all] } else { vec![own.clone()] };
            match tokio::time::timeout(super::link::ANSWERS, sink.subscribe(channels)).await {
                Ok(Ok(())) => subscribed = ear,
                Ok(Err(error)) => return error.category().to_owned(),
                Err(_) => return "no answer in time".to_owned(),
            }
            let Some(hub) = hub.upgrade() else { return "nobody listens".to_owned() };
            hub.heard.send_replace(ear);
            // Whatever happened before was not heard.
            hub.wake_all();
        }
        tokio::select! {
            more = next(hub, &mut stream, &own) => if !more { return "it was closed".to_owned() },
            changed = wanted.changed() => if changed.is_err() { return "nobody listens".to_owned() },
            _ = pulse.tick() => {
                let alive = tokio::time::timeout(super::link::ANSWERS, sink.ping::<redis::Value>()).await;
                if !matches!(alive, Ok(Ok(_))) {
                    return "it doesn't answer".to_owned();
                }
            }
        }
    }
}

/// Takes one message; false when there will be no more.
async fn next(hub: &Weak<Hub>, stream: &mut PubSubStream, own: &str) -> bool {
    let Some(message) = stream.next().await else { return false };
    let Some(hub) = hub.upgrade() else { return false };
    let text = String::from_utf8_lossy(message.get_payload_bytes());
    if message.get_channel_name() == own {
        hub.called(&text);
    } else {
        hub.hear(&text);
    }
    true
}
