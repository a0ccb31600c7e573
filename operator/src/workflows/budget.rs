//! How often a status may be written: it is small and rare, or etcd suffers. Pure.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Bytes of status that one object may write in a second, transitions aside.
const BYTES_PER_SECOND: usize = 16 * 1024;
/// Status writes of all objects together in a second.
const WRITES_PER_SECOND: u32 = 100;
/// Writes that may come at once after a rest.
const BURST: u32 = 200;

/// How long an object's next write waits, by what it wrote last: a status of 32 KiB is written every 2 s. A transition, of
/// which there are few, never waits.
pub(super) fn wait(last: Option<(Instant, usize)>, transition: bool, now: Instant) -> Option<Duration> {
    let (at, bytes) = last.filter(|_| !transition)?;
    let pause = Duration::from_micros((bytes as u64).saturating_mul(1_000_000) / BYTES_PER_SECOND as u64);
    pause.checked_sub(now.saturating_duration_since(at)).filter(|wait| !wait.is_zero())
}

/// Tokens for the writes of all objects. Transitions may use the last of them, other writes leave half for those.
#[derive(Debug)]
pub(crate) struct Bucket(Mutex<(f64, Instant)>);

impl Default for Bucket {
    fn default() -> Self {
        Self(Mutex::new((f64::from(BURST), Instant::now())))
    }
}

impl Bucket {
    /// Takes a token, or tells how long to wait for one.
    pub(super) fn take(&self, transition: bool, now: Instant) -> Option<Duration> {
        let mut bucket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (tokens, since) = *bucket;
        let grown = now.saturating_duration_since(since).as_secs_f64() * f64::from(WRITES_PER_SECOND);
        let tokens = (tokens + grown).min(f64::from(BURST));
        let least = if transition { 1.0 } else { f64::from(BURST) / 2.0 };
        if tokens >= least {
            *bucket = (tokens - 1.0, now.max(since));
            return None;
        }
        *bucket = (tokens, now.max(since));
        Some(Duration::from_secs_f64((least - tokens) / f64::from(WRITES_PER_SECOND)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_writes_its_bytes_per_second_and_no_more() {
        let now = Instant::now();
        let after = |bytes, passed| wait(Some((now, bytes)), false, now + Duration::from_millis(passed));
        assert_eq!(wait(None, false, now), None);
        assert_eq!(after(1024, 100), None, "a small status is written at once");
        assert_eq!(after(32 * 1024, 500), Some(Duration::from_millis(1500)));
        assert_eq!(after(32 * 1024, 2000), None);
        assert_eq!(wait(Some((now, 64 * 1024)), true, now), None, "a transition never waits");
    }

    #[test]
    fn transitions_come_first_when_all_write_at_once() {
        let (bucket, now) = (Bucket::default(), Instant::now());
        let taken = (0..BURST).filter(|_| bucket.take(false, now).is_none()).count();
        assert_eq!(taken, 101, "half of it is left");
        let transitions = (0..BURST).filter(|_| bucket.take(true, now).is_none()).count();
        assert_eq!(transitions, 99);
        let wait = bucket.take(true, now).unwrap();
        assert!(bucket.take(true, now + wait).is_none(), "and after {wait:?} there is another one");
    }
}
