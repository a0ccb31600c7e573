//! The jobs that this sidecar holds: one entry from the claim to the end of the settle.

use crate::{
    health::lock,
    outcome::Answer,
    plan::{Lane, LaneKey},
};
use longshore_drivers::{Claimed, Limits, Receipt};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
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
    /// The app settled it by itself.
    Settled,
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

/// What the app says about a job through the local API.
#[derive(Debug)]
pub(crate) struct Completion {
    /// How it ended, in the form of an answer to a push.
    pub(crate) answer: Answer,
    /// Told when the broker took it.
    pub(crate) reply: oneshot::Sender<Settled>,
}

/// How a settle ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settled {
    /// The broker took it.
    Done,
    /// The lease was lost before.
    Lost,
    /// The broker refused it or was away too long; the lease ends by itself.
    Abandoned,
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
    extend_at: Instant,
    lease_until: Instant,
    abort: Option<oneshot::Sender<Abort>>,
    completion: Option<oneshot::Sender<Completion>>,
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
    pub(crate) fn admit(self: &Arc<Self>, lane: &Arc<Lane>, job: &Claimed, phase: Phase) -> Ticket {
        let (abort, aborted) = oneshot::channel();
        let (completion, completed) = oneshot::channel();
        let now = Instant::now();
        let entry = Entry {
            lane: lane.clone(),
            receipt: job.receipt.clone(),
            bytes: job.payload.len(),
            phase,
            extend_at: now + lane.queue.lease / 3,
            lease_until: now + lane.queue.lease,
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
        Ticket { id, in_flight: self.clone(), aborted, completed }
    }

    /// Changes entries and keeps the numbers in line.
    fn change<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let (answer, counts) = {
            let mut inner = lock(&self.inner);
            (change(&mut inner), inner.counts)
        };
        self.counts.send_replace(counts);
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
        let due = inner.entries.values().filter(|entry| entry.phase == Phase::Running);
        due.filter(|entry| !busy.contains(&entry.lane.key))
            .min_by_key(|entry| entry.extend_at)
            .map(|entry| (entry.lane.clone(), entry.extend_at))
    }

    /// All leases of a queue, as they are extended together.
    pub(crate) fn leases_of(&self, key: &LaneKey) -> Vec<(u64, Receipt)> {
        let inner = lock(&self.inner);
        let mut leases: Vec<_> = inner
            .entries
            .iter()
            .filter(|(_, entry)| entry.phase == Phase::Running && entry.lane.key == *key)
            .collect();
        leases.sort_by_key(|(_, entry)| entry.extend_at);
        leases.truncate(Limits::BATCH);
        leases.into_iter().map(|(id, entry)| (*id, entry.receipt.clone())).collect()
    }

    /// Notes when a lease is to be extended next and, after a success, when it ends.
    pub(crate) fn extended(&self, id: u64, extend_at: Instant, lease_until: Option<Instant>) {
        if let Some(entry) = lock(&self.inner).entries.get_mut(&id) {
            entry.extend_at = extend_at;
            entry.lease_until = lease_until.unwrap_or(entry.lease_until);
        }
    }

    /// When the lease of an entry ends, as far as known.
    pub(crate) fn lease_until(&self, id: u64) -> Option<Instant> {
        lock(&self.inner).entries.get(&id).map(|entry| entry.lease_until)
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

    /// Hands what the app says about a job to the task that holds it; gives it back when there is none.
    pub(crate) fn complete(&self, receipt: &Receipt, completion: Completion) -> Result<(), Completion> {
        let sender = {
            let mut inner = lock(&self.inner);
            let mut running = inner.entries.values_mut().filter(|entry| entry.phase != Phase::Settling);
            running.find(|entry| entry.receipt == *receipt).and_then(|entry| entry.completion.take())
        };
        match sender {
            Some(sender) => sender.send(completion),
            None => Err(completion),
        }
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
}

impl Ticket {
    /// The app is done with it: its slot is free, and `bytes` stay in memory until it is settled.
    pub(crate) fn settling(&self, bytes: usize) {
        self.in_flight.update(self.id, |entry| {
            entry.phase = Phase::Settling;
            entry.bytes = bytes;
        });
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
