//! How much of the concurrency is used while the app shows that it can't keep up. Pure.
//!
//! 429 and 503 lower the limit by a third, answers of a working app raise it again, slowly. An app that refuses whatever
//! it gets (no slot left to give up, or ten faults of the deployment in a row) is left alone for growing pauses, so that a
//! bad deployment turns over a few jobs a minute and not the whole queue.

use crate::outcome::Signal;
use std::time::Duration;
use tokio::time::Instant;

/// Faults in a row from which on the sidecar only probes.
const FAULTS: u32 = 10;
/// Answers that came within this time after a cut saw the app as it was before.
const CUT_EVERY: Duration = Duration::from_secs(1);
/// The shortest pause after a throttle, however soon the app says that it can go on.
const SHORTEST_THROTTLE: Duration = Duration::from_secs(1);
/// The longest pause after a throttle.
const LONGEST_THROTTLE: Duration = Duration::from_secs(5);
/// The longest pause between probes.
const LONGEST_PROBE: Duration = Duration::from_secs(30);

/// What the app's answers so far mean for claims.
#[derive(Debug, Clone, Default)]
pub struct Throttle {
    /// The limit; none while the app keeps up.
    limit: Option<u32>,
    successes: u32,
    cut_at: Option<Instant>,
    faults: u32,
    paused_until: Option<Instant>,
}

impl Throttle {
    /// Learns from one answer. `concurrency` is what the policy allows.
    pub fn learn(&mut self, signal: Signal, concurrency: u32, now: Instant) {
        match signal {
            Signal::Works => self.worked(concurrency),
            Signal::Throttled(delay) => self.throttled(delay, concurrency, now),
            Signal::Unroutable(_) | Signal::Unauthorized(_) => self.fault(now),
            Signal::Unreachable | Signal::Silent => {}
        }
    }

    /// Whether the app's answers keep jobs from it now.
    pub fn is_active(&self, concurrency: u32, now: Instant) -> bool {
        self.limit(concurrency) < concurrency || self.paused_until(now).is_some()
    }

    /// How many jobs may run at once.
    pub fn limit(&self, concurrency: u32) -> u32 {
        let probing = if self.faults >= FAULTS { 1 } else { u32::MAX };
        self.limit.unwrap_or(u32::MAX).min(probing).min(concurrency)
    }

    /// Until when nothing is claimed.
    pub fn paused_until(&self, now: Instant) -> Option<Instant> {
        self.paused_until.filter(|&until| until > now)
    }

    fn worked(&mut self, concurrency: u32) {
        self.faults = 0;
        let Some(limit) = self.limit else { return };
        self.successes += 1;
        if self.successes >= limit {
            self.successes = 0;
            self.limit = (limit + 1 < concurrency).then_some(limit + 1);
        }
    }

    fn throttled(&mut self, delay: Duration, concurrency: u32, now: Instant) {
        self.faults = 0;
        if self.cut_at.is_some_and(|at| now.duration_since(at) < CUT_EVERY) {
            return;
        }
        let limit = self.limit(concurrency);
        if limit <= 1 {
            self.paused_until = now.checked_add(delay.clamp(SHORTEST_THROTTLE, LONGEST_THROTTLE));
        }
        self.cut_at = Some(now);
        self.successes = 0;
        self.limit = Some((limit * 2 / 3).max(1));
    }

    fn fault(&mut self, now: Instant) {
        self.faults = self.faults.saturating_add(1);
        if self.faults >= FAULTS {
            let doublings = (self.faults - FAULTS).min(5);
            let pause = Duration::from_secs(1 << doublings).min(LONGEST_PROBE);
            self.paused_until = now.checked_add(pause);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THROTTLED: Signal = Signal::Throttled(Duration::from_secs(1));

    #[test]
    fn one_burst_of_throttles_is_one_cut() {
        let (mut throttle, now) = (Throttle::default(), Instant::now());
        for _ in 0..20 {
            throttle.learn(THROTTLED, 12, now);
        }
        assert_eq!(throttle.limit(12), 8);
        assert_eq!(throttle.paused_until(now), None);
    }

    #[test]
    fn the_last_slot_pauses_instead() {
        let (mut throttle, now) = (Throttle::default(), Instant::now());
        throttle.learn(Signal::Throttled(Duration::from_secs(60)), 1, now);
        assert_eq!(throttle.limit(1), 1);
        assert_eq!(throttle.paused_until(now), Some(now + LONGEST_THROTTLE));
        assert_eq!(throttle.paused_until(now + LONGEST_THROTTLE), None);
    }

    #[test]
    fn an_app_that_can_go_on_at_once_gets_a_pause_all_the_same() {
        let (mut throttle, now) = (Throttle::default(), Instant::now());
        throttle.learn(Signal::Throttled(Duration::ZERO), 1, now);
        assert_eq!(throttle.paused_until(now), Some(now + SHORTEST_THROTTLE));
        assert!(throttle.is_active(1, now) && !throttle.is_active(1, now + SHORTEST_THROTTLE));
    }

    #[test]
    fn a_working_app_gets_everything_back() {
        let (mut throttle, mut now) = (Throttle::default(), Instant::now());
        for _ in 0..20 {
            throttle.learn(THROTTLED, 10, now);
            now += CUT_EVERY;
        }
        assert_eq!(throttle.limit(10), 1);
        let mut answers = 0;
        while throttle.limit(10) < 10 {
            throttle.learn(Signal::Works, 10, now);
            answers += 1;
        }
        assert_eq!(answers, (1..=9).sum::<u32>());
    }

    #[test]
    fn ten_faults_in_a_row_leave_single_probes_with_growing_pauses() {
        let (mut throttle, now) = (Throttle::default(), Instant::now());
        for _ in 0..9 {
            throttle.learn(Signal::Unroutable(404), 10, now);
        }
        assert_eq!((throttle.limit(10), throttle.paused_until(now)), (10, None));
        let mut pauses = Vec::new();
        for _ in 0..7 {
            throttle.learn(Signal::Unauthorized(401), 10, now);
            pauses.push(throttle.paused_until(now).unwrap().duration_since(now).as_secs());
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(throttle.limit(10), 1);
        throttle.learn(Signal::Works, 10, now);
        assert_eq!(throttle.limit(10), 10);
    }

    #[test]
    fn lost_connections_say_nothing_about_capacity() {
        let (mut throttle, now) = (Throttle::default(), Instant::now());
        throttle.learn(Signal::Silent, 10, now);
        throttle.learn(Signal::Unreachable, 10, now);
        assert_eq!((throttle.limit(10), throttle.paused_until(now)), (10, None));
    }
}
