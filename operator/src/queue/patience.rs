//! Brokers that take connections and never answer: their Queues must not hold up those of the others.

use crate::connections::BrokerKey;
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// A silent broker is asked again this often, for one Queue at a time.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// The silent brokers, and when each was asked last.
#[derive(Debug, Default)]
pub(super) struct Patience(Mutex<HashMap<BrokerKey, Instant>>);

impl Patience {
    /// Whether to ask the broker now. A yes counts as asking.
    pub(super) fn may_ask(&self, broker: &BrokerKey, now: Instant) -> bool {
        match self.silent().get_mut(broker) {
            Some(asked) if now.saturating_duration_since(*asked) < ASK_AGAIN => false,
            Some(asked) => {
                *asked = now;
                true
            }
            None => true,
        }
    }

    /// The broker said something, were it an error.
    pub(super) fn answered(&self, broker: &BrokerKey) {
        self.silent().remove(broker);
    }

    /// The broker said nothing.
    pub(super) fn was_silent(&self, broker: &BrokerKey, now: Instant) {
        self.silent().insert(broker.clone(), now);
    }

    fn silent(&self) -> MutexGuard<'_, HashMap<BrokerKey, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_broker_is_asked_by_one_queue_at_a_time() {
        let key = |name: &str| ("shop".to_owned(), name.to_owned());
        let (hung, fine) = (key("hung"), key("fine"));
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let patience = Patience::default();
        assert!(patience.may_ask(&hung, start) && patience.may_ask(&hung, start));
        patience.was_silent(&hung, start);
        assert!(!patience.may_ask(&hung, at(4)));
        assert!(patience.may_ask(&fine, at(4)), "the others are not held up");
        let allowed = (0..20).filter(|_| patience.may_ask(&hung, at(5))).count();
        assert_eq!(allowed, 1);
        patience.answered(&hung);
        assert!(patience.may_ask(&hung, at(5)) && patience.may_ask(&hung, at(5)));
    }
}
