//! When to look at something next: one lower bound per key, the nearest one found at once.

use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
};

/// Milliseconds since the Unix epoch, per key. A bound may be too early, never too late.
#[derive(Debug)]
pub(super) struct Deadlines<K> {
    by_time: BTreeSet<(i64, K)>,
    by_key: HashMap<K, i64>,
}

impl<K> Default for Deadlines<K> {
    fn default() -> Self {
        Self { by_time: BTreeSet::new(), by_key: HashMap::new() }
    }
}

impl<K: Clone + Ord + Hash> Deadlines<K> {
    /// Looks at `key` no later than `at`.
    pub(super) fn lower(&mut self, key: &K, at: i64) {
        if self.by_key.get(key).is_none_or(|known| at < *known) {
            self.set(key, Some(at));
        }
    }

    /// Looks at `key` at `at`, or not at all.
    pub(super) fn set(&mut self, key: &K, at: Option<i64>) {
        if let Some(known) = self.by_key.remove(key) {
            self.by_time.remove(&(known, key.clone()));
        }
        if let Some(at) = at {
            self.by_key.insert(key.clone(), at);
            self.by_time.insert((at, key.clone()));
        }
    }

    /// The bound of `key`.
    pub(super) fn get(&self, key: &K) -> Option<i64> {
        self.by_key.get(key).copied()
    }

    /// The nearest bound.
    pub(super) fn next(&self) -> Option<i64> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// The keys whose time has come, earliest first.
    pub(super) fn due(&self, now: i64) -> Vec<K> {
        self.by_time.iter().take_while(|(at, _)| *at <= now).map(|(_, key)| key.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_bound_of_a_key_counts() {
        let mut deadlines = Deadlines::default();
        deadlines.lower(&"a", 30);
        deadlines.lower(&"b", 20);
        deadlines.lower(&"a", 10);
        deadlines.lower(&"a", 40);
        assert_eq!(deadlines.next(), Some(10));
        assert_eq!(deadlines.due(20), ["a", "b"]);
        deadlines.set(&"a", None);
        assert_eq!(deadlines.due(100), ["b"]);
        deadlines.set(&"b", Some(50));
        assert_eq!(deadlines.next(), Some(50));
    }
}
