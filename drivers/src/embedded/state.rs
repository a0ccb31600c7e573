//! What the writer keeps in memory beside the database: queues, exact counts, deadlines. It moves in step with the
//! transactions: [`State::keep`] after a commit, [`State::undo`] after a rollback.

mod load;

use super::{
    deadlines::Deadlines,
    ordering::Key,
    storage::{self, STATES},
};
use crate::{Address, JobState, Ordering, Owner, QueueName, QueueSettings, Timestamp, Wake};
use std::{
    collections::{BTreeSet, HashMap},
    hash::{BuildHasher, RandomState},
    time::Duration,
};

pub(super) type QueueId = i64;

/// Added to the end of a job whose retention has not begun, because its completion was not acknowledged or it was not
/// unpinned: such jobs stand behind all others, and among themselves in the order of their ends.
pub(super) const PINNED: i64 = 1 << 62;

/// Retention is coarse, so that a steady stream of old jobs goes in few transactions.
const SWEEP_GRAIN: i64 = 1000;

#[derive(Debug, Clone)]
pub(super) struct Queue {
    pub(super) name: QueueName,
    pub(super) owner: Owner,
    pub(super) settings: QueueSettings,
    pub(super) deleting: bool,
    counts: [u64; STATES],
    /// Jobs in a state that this code doesn't know.
    unknown: u64,
    service_time_ms: Option<f64>,
}

impl Queue {
    pub(super) fn new(name: QueueName, owner: Owner, settings: QueueSettings) -> Self {
        Self {
            name,
            owner,
            settings,
            deleting: false,
            counts: [0; STATES],
            unknown: 0,
            service_time_ms: None,
        }
    }

    pub(super) fn count(&self, state: JobState) -> u64 {
        self.counts[slot(state)]
    }

    pub(super) fn unknown(&self) -> u64 {
        self.unknown
    }

    /// Whether a claimer can be given something.
    pub(super) fn is_claimable(&self) -> bool {
        !self.settings.paused && !self.deleting && self.count(JobState::Ready) > 0
    }

    /// Whether jobs of one key are handed out one after the other.
    pub(super) fn is_fifo(&self) -> bool {
        self.settings.ordering == Ordering::Fifo
    }

    /// Jobs that a producer's limit counts.
    pub(super) fn waiting(&self) -> u64 {
        let waiting = [JobState::Ready, JobState::Scheduled, JobState::Retrying, JobState::Blocked];
        waiting.into_iter().map(|state| self.count(state)).sum()
    }

    pub(super) fn service_time_ms(&self) -> Option<f64> {
        self.service_time_ms
    }

    pub(super) fn retention(&self, state: JobState) -> Duration {
        match state {
            JobState::Dead => self.settings.retain_dead,
            _ => self.settings.retain_completed,
        }
    }
}

fn slot(state: JobState) -> usize {
    usize::try_from(storage::code(state)).expect("codes are small and not negative")
}

#[derive(Debug, Default)]
pub(super) struct State {
    queues: HashMap<QueueId, Queue>,
    by_name: HashMap<QueueName, QueueId>,
    /// Completions that exist, per address.
    completions: HashMap<Address, u64>,
    next_seq: i64,
    /// When jobs of a queue become due or lose their lease.
    pub(super) due: Deadlines<QueueId>,
    /// When jobs of a queue can be forgotten.
    pub(super) sweeps: Deadlines<QueueId>,
    /// When the lines of a queue are to be looked at.
    pub(super) walks: Deadlines<QueueId>,
    /// The line at which the walk through a queue goes on.
    pub(super) walked: HashMap<QueueId, Key>,
    /// When deleted queues can be taken apart further.
    pub(super) removals: Deadlines<QueueId>,
    /// When completions can be handed out (again).
    pub(super) readable: Deadlines<Address>,
    seal: RandomState,
    claims: u64,
    changes: Changes,
    /// What the transaction did before the part of it that runs now.
    outer: Option<Changes>,
    #[cfg(test)]
    pub(super) commits: super::tests::Commits,
}

/// What a transaction, or a part of it, has changed so far.
#[derive(Debug, Default)]
struct Changes {
    before: Before,
    hints: Hints,
}

/// How things were when the transaction began, as far as it touched them.
#[derive(Debug, Default)]
struct Before {
    queues: HashMap<QueueId, Option<Queue>>,
    completions: HashMap<Address, u64>,
}

/// What a transaction has to tell subscribers, once each.
#[derive(Debug, Default)]
struct Hints {
    queues: BTreeSet<QueueId>,
    addresses: BTreeSet<Address>,
}

impl State {
    /// The id of the queue `name`.
    pub(super) fn find(&self, name: &QueueName) -> Option<QueueId> {
        self.by_name.get(name).copied()
    }

    pub(super) fn queue(&self, id: QueueId) -> Option<&Queue> {
        self.queues.get(&id)
    }

    /// The queue `id`, about to be changed.
    pub(super) fn change(&mut self, id: QueueId) -> Option<&mut Queue> {
        let queue = self.queues.get_mut(&id)?;
        self.changes.before.queues.entry(id).or_insert_with(|| Some(queue.clone()));
        Some(queue)
    }

    pub(super) fn add_queue(&mut self, id: QueueId, queue: Queue) {
        self.by_name.insert(queue.name.clone(), id);
        self.queues.insert(id, queue);
        self.changes.before.queues.insert(id, None);
    }

    /// Takes the queue's name away; its jobs are still there.
    pub(super) fn condemn(&mut self, id: QueueId) {
        if let Some(queue) = self.change(id) {
            queue.deleting = true;
            let name = queue.name.clone();
            self.by_name.remove(&name);
            self.removals.lower(&id, 0);
        }
    }

    /// Forgets a condemned queue whose jobs are gone.
    pub(super) fn remove_queue(&mut self, id: QueueId) {
        self.change(id);
        self.queues.remove(&id);
        self.walks.set(&id, None);
        self.walked.remove(&id);
    }

    /// A job of queue `id` came (`from` nowhere), went (`to` nowhere) or changed its state.
    pub(super) fn moved(&mut self, id: QueueId, from: Option<JobState>, to: Option<JobState>) {
        let Some(queue) = self.change(id) else {
            return;
        };
        if let Some(from) = from {
            let count = &mut queue.counts[slot(from)];
            *count = count.saturating_sub(1);
        }
        if let Some(to) = to {
            queue.counts[slot(to)] += 1;
        }
        if to == Some(JobState::Ready) {
            self.changes.hints.queues.insert(id);
        }
    }

    /// A job took this long from its claim to its settle.
    pub(super) fn served(&mut self, id: QueueId, took: Duration) {
        /// How much one job weighs: the average follows the last hundred or so.
        const WEIGHT: f64 = 0.02;
        if let Some(queue) = self.change(id) {
            let took = took.as_secs_f64() * 1000.0;
            let average = queue.service_time_ms.unwrap_or(took);
            queue.service_time_ms = Some(average + WEIGHT * (took - average));
        }
    }

    /// Jobs of queue `id` may be forgotten at `at`.
    pub(super) fn sweep_at(&mut self, id: QueueId, at: i64) {
        let grain = at.saturating_add(SWEEP_GRAIN - 1) / SWEEP_GRAIN * SWEEP_GRAIN;
        self.sweeps.lower(&id, grain);
    }

    pub(super) fn next_seq(&mut self) -> i64 {
        let seq = self.next_seq;
        self.next_seq += 1;
        seq
    }

    /// The proof of one claim: never the same twice, and nobody can guess it.
    pub(super) fn token(&mut self, seq: i64) -> i64 {
        self.claims += 1;
        self.seal.hash_one((seq, self.claims)).cast_signed()
    }

    /// How many completions of `address` exist.
    pub(super) fn completions(&self, address: &Address) -> u64 {
        self.completions.get(address).copied().unwrap_or(0)
    }

    /// Whether anybody has not acknowledged something.
    pub(super) fn has_completions(&self) -> bool {
        !self.completions.is_empty()
    }

    pub(super) fn completion_added(&mut self, address: &Address, now: Timestamp) {
        let count = self.completions(address);
        self.changes.before.completions.entry(address.clone()).or_insert(count);
        self.completions.insert(address.clone(), count + 1);
        self.readable.lower(address, now.as_millis());
        self.changes.hints.addresses.insert(address.clone());
    }

    pub(super) fn completion_removed(&mut self, address: &Address) {
        let count = self.completions(address);
        self.changes.before.completions.entry(address.clone()).or_insert(count);
        if count > 1 {
            self.completions.insert(address.clone(), count - 1);
        } else {
            self.completions.remove(address);
            self.readable.set(address, None);
        }
    }

    /// The transaction was committed: answers what subscribers should hear.
    pub(super) fn keep(&mut self) -> Vec<Wake> {
        self.changes.before.queues.clear();
        self.changes.before.completions.clear();
        let Hints { queues, addresses } = std::mem::take(&mut self.changes.hints);
        let queues = queues
            .into_iter()
            .filter_map(|id| self.queues.get(&id))
            .filter(|queue| !queue.deleting)
            .map(|queue| Wake::Queue { queue: queue.name.clone() });
        let addresses = addresses.into_iter().map(|address| Wake::Completions { address });
        queues.chain(addresses).collect()
    }

    /// A part of the transaction begins that may be undone alone. Parts stand behind each other, not in each other.
    pub(super) fn begin_part(&mut self) {
        self.outer = Some(std::mem::take(&mut self.changes));
    }

    /// The part belongs to the transaction now.
    pub(super) fn keep_part(&mut self) {
        let Some(outer) = self.outer.take() else {
            return;
        };
        let Changes { before, hints } = std::mem::replace(&mut self.changes, outer);
        for (id, queue) in before.queues {
            self.changes.before.queues.entry(id).or_insert(queue);
        }
        for (address, count) in before.completions {
            self.changes.before.completions.entry(address).or_insert(count);
        }
        self.changes.hints.queues.extend(hints.queues);
        self.changes.hints.addresses.extend(hints.addresses);
    }

    /// The part was rolled back, the transaction goes on.
    pub(super) fn undo_part(&mut self) {
        let outer = self.outer.take().unwrap_or_default();
        self.undo_changes();
        self.changes = outer;
    }

    /// The transaction was rolled back.
    pub(super) fn undo(&mut self) {
        if self.outer.is_some() {
            self.undo_part();
        }
        self.undo_changes();
    }

    /// Puts back what was changed. Deadlines stay: they may be too early, not too late.
    fn undo_changes(&mut self) {
        let Changes { before, hints: _ } = std::mem::take(&mut self.changes);
        let Before { queues, completions } = before;
        for (id, before) in queues {
            match before {
                Some(queue) => {
                    self.queues.insert(id, queue);
                }
                None => {
                    self.queues.remove(&id);
                }
            }
            // Whatever deadline the transaction took away has to be found again.
            self.due.lower(&id, 0);
            self.sweeps.lower(&id, 0);
            if self.queues.get(&id).is_some_and(Queue::is_fifo) {
                self.walked.remove(&id);
                self.walks.lower(&id, 0);
            }
            if self.queues.get(&id).is_some_and(|queue| queue.deleting) {
                self.removals.lower(&id, 0);
            }
        }
        for (address, count) in completions {
            self.readable.lower(&address, 0);
            if count > 0 {
                self.completions.insert(address, count);
            } else {
                self.completions.remove(&address);
            }
        }
        self.by_name = self
            .queues
            .iter()
            .filter(|(_, queue)| !queue.deleting)
            .map(|(id, queue)| (queue.name.clone(), *id))
            .collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_queue() -> (State, QueueName) {
        let name: QueueName = "q".parse().unwrap();
        let owner = Owner { installation: "i".into(), uid: "u".into() };
        let mut state = State::default();
        state.add_queue(1, Queue::new(name.clone(), owner, QueueSettings::default()));
        state.keep();
        (state, name)
    }

    #[test]
    fn a_rollback_brings_counts_names_and_completions_back() {
        let (mut state, name) = with_queue();
        let address = Address::new("a").unwrap();
        state.moved(1, None, Some(JobState::Ready));
        assert_eq!(state.keep(), [Wake::Queue { queue: name.clone() }]);

        state.moved(1, Some(JobState::Ready), Some(JobState::Active));
        state.completion_added(&address, Timestamp::from_millis(5));
        state.condemn(1);
        assert_eq!(state.find(&name), None);
        state.undo();
        assert_eq!(state.find(&name), Some(1));
        assert_eq!(state.queue(1).unwrap().count(JobState::Ready), 1);
        assert_eq!(state.queue(1).unwrap().count(JobState::Active), 0);
        assert_eq!(state.completions(&address), 0);
        assert!(state.keep().is_empty());
    }

    #[test]
    fn a_part_is_undone_without_the_rest_of_its_transaction() {
        let (mut state, name) = with_queue();
        let ready = |state: &State| state.queue(1).unwrap().count(JobState::Ready);
        state.moved(1, None, Some(JobState::Ready));
        state.begin_part();
        state.moved(1, None, Some(JobState::Ready));
        state.condemn(1);
        state.undo_part();
        assert_eq!((ready(&state), state.find(&name)), (1, Some(1)));
        state.begin_part();
        state.moved(1, None, Some(JobState::Ready));
        state.keep_part();
        assert_eq!(ready(&state), 2);
        // Kept parts go with their transaction.
        state.undo();
        assert_eq!(ready(&state), 0);
        state.begin_part();
        state.moved(1, None, Some(JobState::Ready));
        state.undo();
        assert_eq!(ready(&state), 0);
        assert!(state.keep().is_empty());
    }

    #[test]
    fn the_service_time_follows_slowly() {
        let (mut state, _) = with_queue();
        state.served(1, Duration::from_millis(100));
        state.served(1, Duration::from_millis(200));
        let average = state.queue(1).unwrap().service_time_ms().unwrap();
        assert!((average - 102.0).abs() < 0.001, "{average}");
    }
}
