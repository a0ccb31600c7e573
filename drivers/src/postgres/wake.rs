//! Who hears of what: waiting calls of this driver, subscribers, and other processes.
//!
//! Other processes hear through NOTIFY, in a small transaction of its own after the change: inside the change it would
//! hold a lock of the whole server while the disk syncs. What came in between goes out together, at most once in 10 ms.
//! Whoever waits polls now and then, so a lost notification costs time, nothing else.

use super::{
    error::Effect,
    pool::{Params, Pool},
};
use crate::{Address, QueueName, Timestamp, Wake};
use futures::{StreamExt, stream};
use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::{Notify, broadcast};
use tokio_postgres::{AsyncMessage, types::Type};

/// Hints that a slow subscriber may have unread; older ones are lost to it.
const HINTS: usize = 1024;
/// Notifications of this driver are this far apart.
const APART: Duration = Duration::from_millis(10);
/// Texts of one notification statement; more than these wait for the next.
const TEXTS: usize = 1000;
/// Waiting calls look by themselves this often: while notifications come, and while none do.
const LOOKS: (Duration, Duration) = (Duration::from_secs(5), Duration::from_millis(600));
/// How long it takes a listener to come back.
const REST: Duration = Duration::from_secs(1);
/// How often a listener sees whether its connection is still there.
const PULSE: Duration = Duration::from_secs(20);
/// After a hint, how long a subscriber's look for due jobs waits for further ones.
const GLANCE: Duration = Duration::from_millis(200);
/// In poll mode, how far back a look goes: what is being committed has an earlier time.
const OVERLAP: i64 = 1000;

type Bells<K> = Mutex<HashMap<K, Arc<Notify>>>;

/// All that can be waited for.
#[derive(Debug)]
pub(super) struct Wakes {
    /// Tells this driver's own notifications from others.
    instance: String,
    queues: Bells<QueueName>,
    addresses: Bells<Address>,
    pub(super) hints: broadcast::Sender<Wake>,
    unsent: Mutex<BTreeSet<String>>,
    stirred: Notify,
    listening: AtomicBool,
    /// How often listening began.
    sessions: AtomicU64,
    listener_runs: AtomicBool,
    watcher_runs: AtomicBool,
    notifier_runs: AtomicBool,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn bell<K: Eq + Hash + Clone>(bells: &Bells<K>, key: &K) -> Arc<Notify> {
    let mut bells = locked(bells);
    if bells.len() > 256 && !bells.contains_key(key) {
        bells.retain(|_, bell| Arc::strong_count(bell) > 1);
    }
    bells.entry(key.clone()).or_default().clone()
}

fn ring<K: Eq + Hash>(bells: &Bells<K>, key: &K) {
    if let Some(bell) = locked(bells).get(key) {
        bell.notify_waiters();
    }
}

fn ring_all<K>(bells: &Bells<K>) {
    locked(bells).values().for_each(|bell| bell.notify_waiters());
}

impl Wakes {
    pub(super) fn new() -> Self {
        let mut instance = uuid::Uuid::new_v4().simple().to_string();
        instance.truncate(12);
        Self {
            instance,
            queues: Mutex::default(),
            addresses: Mutex::default(),
            hints: broadcast::channel(HINTS).0,
            unsent: Mutex::default(),
            stirred: Notify::new(),
            listening: AtomicBool::new(false),
            sessions: AtomicU64::new(0),
            listener_runs: AtomicBool::new(false),
            watcher_runs: AtomicBool::new(false),
            notifier_runs: AtomicBool::new(false),
        }
    }

    pub(super) fn of_queue(&self, queue: &QueueName) -> Arc<Notify> {
        bell(&self.queues, queue)
    }

    pub(super) fn of_address(&self, address: &Address) -> Arc<Notify> {
        bell(&self.addresses, address)
    }

    /// How long a waiting call may rest without a look.
    pub(super) fn rest(&self) -> Duration {
        if self.listening.load(Ordering::Relaxed) { LOOKS.0 } else { LOOKS.1 }
    }

    fn hear_queue(&self, queue: QueueName) {
        ring(&self.queues, &queue);
        // Without subscribers there is nobody to tell.
        let _ = self.hints.send(Wake::Queue { queue });
    }

    fn hear_address(&self, address: Address) {
        ring(&self.addresses, &address);
        let _ = self.hints.send(Wake::Completions { address });
    }

    /// A queue has something that it had not before.
    pub(super) fn tell_queue(&self, queue: &QueueName) {
        self.hear_queue(queue.clone());
        self.send(format!("{}:q:{queue}", self.instance));
    }

    /// These addresses have completions.
    pub(super) fn tell_addresses<'a>(&self, addresses: impl IntoIterator<Item = &'a str>) {
        for address in addresses {
            let Ok(address) = Address::new(address) else { continue };
            self.send(format!("{}:c:{address}", self.instance));
            self.hear_address(address);
        }
    }

    fn send(&self, text: String) {
        locked(&self.unsent).insert(text);
        self.stirred.notify_one();
    }

    /// What another process said.
    fn hear(&self, text: &str) {
        let mut parts = text.splitn(3, ':');
        let (Some(from), Some(kind), Some(name)) = (parts.next(), parts.next(), parts.next()) else { return };
        if from == self.instance {
            return;
        }
        match kind {
            "q" => {
                if let Ok(queue) = name.parse() {
                    self.hear_queue(queue);
                }
            }
            "c" => {
                if let Ok(address) = Address::new(name) {
                    self.hear_address(address);
                }
            }
            _ => {}
        }
    }

    /// Something may have been missed.
    fn hear_everything(&self) {
        ring_all(&self.queues);
        ring_all(&self.addresses);
    }
}

/// Tells other processes, from the first call on.
pub(super) fn start_notifier(pool: &Arc<Pool>, wakes: &Arc<Wakes>) {
    if wakes.notifier_runs.swap(true, Ordering::Relaxed) {
        return;
    }
    let (pool, wakes) = (pool.clone(), wakes.clone());
    let closed = pool.closed.clone();
    tokio::spawn(closed.run_until_cancelled_owned(async move {
        loop {
            wakes.stirred.notified().await;
            let texts: Vec<String> = {
                let mut unsent = locked(&wakes.unsent);
                let rest = unsent.iter().nth(TEXTS).cloned();
                let later = rest.map(|first| unsent.split_off(&first)).unwrap_or_default();
                std::mem::replace(&mut *unsent, later).into_iter().collect()
            };
            if texts.is_empty() {
                continue;
            }
            let params: Params<'_> = &[(&pool.config.schema, Type::TEXT), (&texts, Type::TEXT_ARRAY)];
            let sent = pool.query(Effect::Read, "SELECT pg_notify($1, t) FROM unnest($2) AS t", params).await;
            if let Err(error) = sent {
                tracing::debug!(%error, "others are not notified; they poll");
            }
            tokio::time::sleep(APART).await;
            if !locked(&wakes.unsent).is_empty() {
                wakes.stirred.notify_one();
            }
        }
    }));
}

/// Listens, from the first time on that somebody waits.
pub(super) fn start_listener(pool: &Arc<Pool>, wakes: &Arc<Wakes>) {
    if !pool.config.listen || wakes.listener_runs.swap(true, Ordering::Relaxed) {
        return;
    }
    let (pool, wakes) = (pool.clone(), wakes.clone());
    let closed = pool.closed.clone();
    tokio::spawn(closed.run_until_cancelled_owned(async move {
        loop {
            let ended = listen(&pool, &wakes).await;
            wakes.listening.store(false, Ordering::Relaxed);
            wakes.hear_everything();
            if let Err(error) = ended {
                tracing::debug!(%error, "nobody listens for new jobs; calls that wait poll");
            }
            tokio::time::sleep(REST).await;
        }
    }));
}

/// Listens on one connection until it ends.
async fn listen(pool: &Pool, wakes: &Wakes) -> crate::Result<()> {
    let (client, mut connection) = pool.connect().await?;
    let mut messages = stream::poll_fn(move |context| connection.poll_message(context));
    let carry = async {
        while let Some(message) = messages.next().await {
            match message {
                Ok(AsyncMessage::Notification(heard)) => wakes.hear(heard.payload()),
                Ok(_) => {}
                Err(error) => return Err(super::error::of_connect(&error)),
            }
        }
        Ok(())
    };
    let ask = async {
        let listen = format!("LISTEN {}", super::schema::quoted(&pool.config.schema));
        client.batch_execute(&listen).await.map_err(|error| super::error::of_connect(&error))?;
        wakes.sessions.fetch_add(1, Ordering::Relaxed);
        wakes.listening.store(true, Ordering::Relaxed);
        // Whoever waited until now may have missed something.
        wakes.hear_everything();
        loop {
            tokio::time::sleep(PULSE).await;
            let alive = tokio::time::timeout(PULSE, client.batch_execute("")).await;
            match alive {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(super::error::of_connect(&error)),
                Err(_) => return Err(crate::Error::unavailable("the listening connection is silent")),
            }
        }
    };
    tokio::select! {
        ended = carry => ended,
        ended = ask => ended,
    }
}

/// Looks for jobs that become due, as long as somebody subscribes; in poll mode for everything.
pub(super) fn start_watcher(pool: &Arc<Pool>, wakes: &Arc<Wakes>, since: i64) {
    if wakes.watcher_runs.swap(true, Ordering::Relaxed) {
        return;
    }
    let (pool, wakes) = (pool.clone(), wakes.clone());
    let closed = pool.closed.clone();
    tokio::spawn(closed.run_until_cancelled_owned(async move {
        let mut since = since;
        let mut hints = wakes.hints.subscribe();
        let mut session = 0;
        // This task's own receiver counts.
        while wakes.hints.receiver_count() > 1 {
            // Notifications tell everything only if they came all the time since the last look.
            let same = wakes.sessions.load(Ordering::Relaxed) == session;
            let all = !same || !wakes.listening.load(Ordering::Relaxed);
            session = wakes.sessions.load(Ordering::Relaxed);
            let next = match news(&pool, &wakes, since, all).await {
                Ok((now, next)) => {
                    since = now;
                    next.map(|next| next.since(Timestamp::from_millis(now)))
                }
                Err(error) => {
                    tracing::debug!(%error, "subscribers hear nothing for now");
                    None
                }
            };
            // What was just told is no news.
            hints = hints.resubscribe();
            let rest = wakes.rest();
            let sleep = next.map_or(rest, |next| next.clamp(Duration::from_millis(5), rest));
            // A delayed job is told of when it comes, so that it is known when it will be due.
            tokio::select! {
                () = tokio::time::sleep(sleep) => {}
                _ = hints.recv(), if !all => tokio::time::sleep(GLANCE).await,
            }
        }
        wakes.watcher_runs.store(false, Ordering::Relaxed);
    }));
}

/// Tells subscribers what is new since `since`; the present instant, and when a job is due next.
async fn news(
    pool: &Arc<Pool>,
    wakes: &Wakes,
    since: i64,
    all: bool,
) -> crate::Result<(i64, Option<Timestamp>)> {
    let from = if all { since.saturating_sub(OVERLAP) } else { since };
    let rows = pool.call(Effect::Read, "news", &[(&from, Type::INT8), (&all, Type::BOOL)]).await?;
    let (mut now, mut next) = (since, None);
    for row in rows {
        let failed = |error: tokio_postgres::Error| super::error::of_statement(&error, Effect::Read);
        if let Some(at) = row.try_get::<_, Option<i64>>(0).map_err(failed)? {
            now = at;
            next = row.try_get::<_, Option<i64>>(1).map_err(failed)?.map(Timestamp::from_millis);
        } else if let Some(queue) = row.try_get::<_, Option<&str>>(2).map_err(failed)? {
            let _ = queue.parse().map(|queue| wakes.hints.send(Wake::Queue { queue }));
        } else if let Some(address) = row.try_get::<_, Option<&str>>(3).map_err(failed)? {
            let _ = Address::new(address).map(|address| wakes.hints.send(Wake::Completions { address }));
        }
    }
    Ok((now, next))
}

/// The instant from which on a new subscriber hears of everything.
pub(super) async fn present(pool: &Arc<Pool>) -> crate::Result<i64> {
    let rows = pool.call(Effect::Read, "news", &[(&i64::MAX, Type::INT8), (&false, Type::BOOL)]).await?;
    let now = rows.iter().find_map(|row| row.try_get::<_, Option<i64>>(0).ok().flatten());
    now.ok_or_else(|| crate::Error::unavailable("PostgreSQL told no time"))
}
