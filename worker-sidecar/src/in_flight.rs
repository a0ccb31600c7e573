//! The jobs that this sidecar holds: one entry from the claim to the end of the settle.

use crate::{
    budget::Share,
    lease::{self, Term},
    outcome::Answer,
    plan::{Lane, LaneKey},
    sync::{Mutex, lock},
};
use longshore_drivers::{Claimed, Error, ErrorKind, Limits, Receipt, Result, Settle};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use tokio::{
    sync::{Notify, oneshot, watch},
    time::Instant,
};

/// Why a run ends from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Abort {
    /// Somebody else has the job.
    Lost,
    /// Somebody asked the broker to cancel it.
    Cancelled,
    /// The sidecar stops.
    Stopping,
}

/// Where an entry stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The app works on it and the sidecar keeps its lease.
    Running,
    /// The app works on it and keeps its lease itself.
    Pulled,
    /// The app is done with it.
    Settling,
}

/// How the app says that a job ended.
#[derive(Debug)]
pub(crate) enum Said {
    /// In the form of an answer to a push.
    Answer(Answer),
    /// In the form of a settle, as to a broker.
    Settle(Settle),
}

/// What the app says about a job through the local API.
#[derive(Debug)]
pub(crate) struct Completion {
    /// How it ended.
    pub(crate) said: Box<Said>,
    /// Told when the broker took it.
    pub(crate) reply: oneshot::Sender<Settled>,
    /// The memory that its result takes.
    pub(crate) share: Option<Share>,
}

/// How a settle ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settled {
    /// The broker took it.
    Done,
    /// The broker keeps no result of that size, and took in its place that the job is dead.
    Buried,
    /// The lease was lost before.
    Lost,
    /// A request that may have been carried out was followed by a refusal: most likely by our own success, but nobody
    /// knows.
    Unknown,
    /// The broker refused it or was away too long; the lease ends by itself.
    Abandoned,
}

impl Settled {
    /// The word that it is counted under; `asked` is the one for what was asked for.
    pub(crate) const fn word(self, asked: &'static str) -> &'static str {
        match self {
            Self::Done => asked,
            Self::Buried => "dead",
            Self::Lost => "lost",
            Self::Unknown => "unknown",
            Self::Abandoned => "abandoned",
        }
    }

    /// What the app is told.
    pub(crate) fn answer(self, receipt: &Receipt) -> Result<()> {
        let message = match self {
            Self::Done | Self::Buried => return Ok(()),
            Self::Lost => return Err(Error::stale(receipt)),
            Self::Unknown => "the broker may have taken the settle: its first answer was lost",
            Self::Abandoned => "the broker did not take the settle; the job may run again",
        };
        Err(Error::new(ErrorKind::Ambiguous, message))
    }
}

/// Numbers about all entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Counts {
    /// Entries that the app works on.
    pub(crate) running: usize,
    /// All entries.
    pub(crate) total: usize,
    /// Bytes they keep in memory.
    pub(crate) bytes: usize,
}

impl Counts {
    fn add(&mut self, entry: &Entry) {
        self.total += 1;
        self.running += usize::from(entry.phase != Phase::Settling);
        self.bytes += entry.bytes;
    }

    fn remove(&mut self, entry: &Entry) {
        self.total -= 1;
        self.running -= usize::from(entry.phase != Phase::Settling);
        self.bytes -= entry.bytes;
    }
}

struct Entry {
    lane: Arc<Lane>,
    receipt: Receipt,
    bytes: usize,
    phase: Phase,
    term: Term,
    abort: Option<oneshot::Sender<Abort>>,
    completion: Option<oneshot::Sender<Completion>>,
}

impl Entry {
    /// Whether the sidecar keeps the lease: while the app works on it, and as long as its settle takes.
    fn is_ours(&self) -> bool {
        matches!(self.phase, Phase::Running | Phase::Settling)
    }
}

#[derive(Default)]
struct Inner {
    last: u64,
    entries: BTreeMap<u64, Entry>,
    counts: Counts,
}

/// All entries.
#[derive(Default)]
pub(crate) struct InFlight {
    inner: Mutex<Inner>,
    counts: watch::Sender<Counts>,
    /// Told when an entry appears that has to be extended.
    pub(crate) leases: Notify,
    /// Told when a slot is free again.
    pub(crate) freed: Arc<Notify>,
}

impl InFlight {
    pub(crate) fn new(freed: Arc<Notify>) -> Self {
        Self { freed, ..Self::default() }
    }

    /// Makes an entry for `job`; it goes away with the ticket.
    pub(crate) fn admit(
        self: &Arc<Self>,
        lane: &Arc<Lane>,
        job: &Claimed,
        phase: Phase,
        term: Term,
    ) -> Ticket {
        let (abort, aborted) = oneshot::channel();
        let (completion, completed) = oneshot::channel();
        let entry = Entry {
            lane: lane.clone(),
            receipt: job.receipt.clone(),
            bytes: job.payload.len(),
            phase,
            term,
            abort: Some(abort),
            completion: Some(completion),
        };
        let id = self.change(|inner| {
            inner.last += 1;
            inner.counts.add(&entry);
            inner.entries.insert(inner.last, entry);
            inner.last
        });
        self.leases.notify_one();
        Ticket { id, in_flight: self.clone(), aborted, completed, share: None }
    }

    /// Changes entries and keeps the numbers in line.
    fn change<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let answer = {
            let mut inner = lock(&self.inner);
            let answer = change(&mut inner);
            // Under the lock: outside of it an older number could overtake a newer one, and stand.
            self.counts.send_replace(inner.counts);
            answer
        };
        self.freed.notify_one();
        answer
    }

    pub(crate) fn counts(&self) -> Counts {
        lock(&self.inner).counts
    }

    /// Follows the numbers.
    pub(crate) fn watch(&self) -> watch::Receiver<Counts> {
        self.counts.subscribe()
    }

    /// The queue whose leases are due next, but for those in `busy`.
    pub(crate) fn next_extension(&self, busy: &BTreeSet<LaneKey>) -> Option<(Arc<Lane>, Instant)> {
        let inner = lock(&self.inner);
        let due = inner.entries.values().filter(|entry| entry.is_ours());
        due.filter(|entry| !busy.contains(&entry.lane.key))
            .min_by_key(|entry| entry.term.extend_at)
            .map(|entry| (entry.lane.clone(), entry.term.extend_at))
    }

    /// All leases of a queue, as they are extended together.
    pub(crate) fn leases_of(&self, key: &LaneKey) -> Vec<(u64, Receipt)> {
        let inner = lock(&self.inner);
        let mut leases: Vec<_> =
            inner.entries.iter().filter(|(_, entry)| entry.is_ours() && entry.lane.key == *key).collect();
        leases.sort_by_key(|(_, entry)| entry.term.extend_at);
        leases.truncate(Limits::BATCH);
        leases.into_iter().map(|(id, entry)| (*id, entry.receipt.clone())).collect()
    }

    /// Notes when a lease is to be extended next and, after a success, when it ends.
    pub(crate) fn extended(&self, id: u64, extend_at: Instant, lease_until: Option<Instant>) {
        if let Some(entry) = lock(&self.inner).entries.get_mut(&id) {
            entry.term.extend_at = extend_at;
            entry.term.until = lease_until.unwrap_or(entry.term.until);
        }
    }

    /// When the lease of an entry ends, as far as known.
    pub(crate) fn lease_until(&self, id: u64) -> Option<Instant> {
        lock(&self.inner).entries.get(&id).map(|entry| entry.term.until)
    }

    /// Ends the run of one entry.
    pub(crate) fn abort(&self, id: u64, why: Abort) {
        let abort = lock(&self.inner).entries.get_mut(&id).and_then(|entry| entry.abort.take());
        if let Some(abort) = abort {
            let _ = abort.send(why);
        }
    }

    /// Ends all runs and tells how many.
    pub(crate) fn abort_all(&self, why: Abort) -> usize {
        let running: Vec<_> = {
            let inner = lock(&self.inner);
            let running = inner.entries.iter().filter(|(_, entry)| entry.phase != Phase::Settling);
            running.map(|(id, _)| *id).collect()
        };
        for id in &running {
            self.abort(*id, why);
        }
        running.len()
    }

    /// The entry and the queue of a job that the app works on.
    pub(crate) fn find(&self, receipt: &Receipt) -> Option<(u64, Arc<Lane>)> {
        let inner = lock(&self.inner);
        let mut running = inner.entries.iter().filter(|(_, entry)| entry.phase != Phase::Settling);
        let (id, entry) = running.find(|(_, entry)| entry.receipt == *receipt)?;
        Some((*id, entry.lane.clone()))
    }

    /// Whether this receipt is one of ours, whatever became of its job.
    pub(crate) fn knows(&self, receipt: &Receipt) -> bool {
        lock(&self.inner).entries.values().any(|entry| entry.receipt == *receipt)
    }

    /// Hands what the app says about a job to the task that holds it; tells whether there is one.
    pub(crate) fn complete(&self, receipt: &Receipt, completion: Completion) -> bool {
        let sender = {
            let mut inner = lock(&self.inner);
            let mut running = inner.entries.values_mut().filter(|entry| entry.phase != Phase::Settling);
            running.find(|entry| entry.receipt == *receipt).and_then(|entry| entry.completion.take())
        };
        sender.is_some_and(|sender| sender.send(completion).is_ok())
    }

    fn update(&self, id: u64, update: impl FnOnce(&mut Entry)) {
        self.change(|inner| {
            if let Some(entry) = inner.entries.get_mut(&id) {
                inner.counts.remove(entry);
                update(entry);
                inner.counts.add(entry);
            }
        });
    }

    fn remove(&self, id: u64) {
        self.change(|inner| {
            if let Some(entry) = inner.entries.remove(&id) {
                inner.counts.remove(&entry);
            }
        });
    }
}

/// One entry, held by whoever runs the job. Dropping it removes the entry.
pub(crate) struct Ticket {
    id: u64,
    in_flight: Arc<InFlight>,
    /// Why the run has to end.
    pub(crate) aborted: oneshot::Receiver<Abort>,
    /// What the app said through the local API.
    pub(crate) completed: oneshot::Receiver<Completion>,
    share: Option<Share>,
}

impl Ticket {
    /// The app is done with it: its slot is free, and `bytes` stay in memory until it is settled.
    pub(crate) fn settling(&self, bytes: usize) {
        let now = Instant::now();
        self.in_flight.update(self.id, |entry| {
            // Most settles take milliseconds: an extension that is due just now would only race with it.
            let soon = now + lease::soon(entry.lane.queue.lease);
            entry.term.extend_at = entry.term.extend_at.max(soon);
            entry.phase = Phase::Settling;
            entry.bytes = bytes;
        });
        // The lease of a job that the app pulled was not ours until now.
        self.in_flight.leases.notify_one();
    }

    /// Keeps the share of memory that the result takes for as long as the entry stands.
    pub(crate) fn keep(&mut self, share: Option<Share>) {
        self.share = share;
    }

    /// The app goes on with it by itself: the payload is no longer in memory.
    pub(crate) fn detached(&self) {
        self.in_flight.update(self.id, |entry| entry.bytes = 0);
    }

    /// When the lease ends, as far as known.
    pub(crate) fn lease_until(&self) -> Instant {
        self.in_flight.lease_until(self.id).unwrap_or_else(Instant::now)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.in_flight.remove(self.id);
    }
}
