//! Who stands behind whom: in a queue whose ordering is Fifo, jobs with the same key run one after the other.

use crate::Ordering;
use std::collections::{BTreeSet, HashMap};

/// The lines of one queue, one per ordering key. Jobs that aren't over stand in them.
#[derive(Debug)]
pub(super) struct Lines {
    ordering: Ordering,
    by_key: HashMap<Option<String>, Line>,
}

#[derive(Debug)]
struct Line {
    /// Whose turn it is: it waits for its time, is ready, or runs.
    first: u64,
    behind: BTreeSet<u64>,
}

impl Lines {
    pub(super) fn new(ordering: Ordering) -> Self {
        Self { ordering, by_key: HashMap::new() }
    }

    /// A job stands in line from now on. One that comes back stands before those that were enqueued later, but not
    /// before the one whose turn it is.
    pub(super) fn enter(&mut self, key: Option<&str>, number: u64) {
        if self.ordering != Ordering::Fifo {
            return;
        }
        let line = self.by_key.entry(key.map(str::to_owned));
        let line = line.or_insert_with(|| Line { first: number, behind: BTreeSet::new() });
        if line.first != number {
            line.behind.insert(number);
        }
    }

    /// Whether a job has to wait for another one.
    pub(super) fn blocks(&self, key: Option<&str>, number: u64) -> bool {
        let line = self.by_key.get(&key.map(str::to_owned));
        line.is_some_and(|line| line.behind.contains(&number))
    }

    /// A job is over. Answers whose turn it is now, if that was this job's.
    pub(super) fn leave(&mut self, key: Option<&str>, number: u64) -> Option<u64> {
        let key = key.map(str::to_owned);
        let line = self.by_key.get_mut(&key)?;
        if line.first != number {
            line.behind.remove(&number);
            return None;
        }
        let next = line.behind.pop_first();
        match next {
            Some(next) => line.first = next,
            None => drop(self.by_key.remove(&key)),
        }
        next
    }
}
