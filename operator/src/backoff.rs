//! How long to wait after repeated failures of one object.

use std::{collections::HashMap, sync::Mutex, time::Duration};

/// Consecutive failures by object.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: Mutex<HashMap<String, u32>>,
}

impl Backoff {
    const KNOWN: usize = 10_000;
    const FIRST: Duration = Duration::from_millis(250);
    const LONGEST: Duration = Duration::from_secs(60);

    /// Counts a failure of `key` and tells how long to wait.
    pub(crate) fn failed(&self, key: &str) -> Duration {
        let mut failures = self.failures.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // Objects that went while they failed are never heard of again.
        if failures.len() >= Self::KNOWN && !failures.contains_key(key) {
            failures.clear();
        }
        let count = failures.entry(key.to_owned()).or_insert(0);
        *count = count.saturating_add(1);
        delay(*count)
    }

    /// Forgets the failures of `key`.
    pub(crate) fn succeeded(&self, key: &str) {
        self.failures.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(key);
    }
}

fn delay(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(10);
    (Backoff::FIRST * (1 << doublings)).min(Backoff::LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_a_minute_and_start_anew_after_a_success() {
        let backoff = Backoff::default();
        let millis: Vec<_> = (0..10).map(|_| backoff.failed("a").as_millis()).collect();
        assert_eq!(millis, [250, 500, 1000, 2000, 4000, 8000, 16000, 32000, 60000, 60000]);
        backoff.succeeded("a");
        assert_eq!(backoff.failed("a"), Backoff::FIRST);
    }
}
