//! What a machine that stands still now and then does to the clock of a scenario.
//!
//! A test process may be paused for seconds. A bound on how late something comes grows by the pauses that were measured
//! ([`Watch`]); that something doesn't come too early shows only in a [`Window`] that was still open when the answer was
//! there.

use super::{Failed, Fixture, Verdict};
use std::{
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// Later than its time by this much is too late, on any machine that also compiles something and was not standing still.
/// `LONGSHORE_LATE_MS` allows more on a slow one.
pub(super) fn late() -> Duration {
    let named = std::env::var("LONGSHORE_LATE_MS").ok();
    named.and_then(|named| named.parse().ok()).map_or(Duration::from_secs(2), Duration::from_millis)
}

/// How long the thread that measures sleeps at a time.
const NAP: Duration = Duration::from_millis(20);

/// By how much a thread that does nothing but sleep woke too late.
#[derive(Debug)]
struct Lag {
    total: Duration,
    /// When it should wake next.
    due: Instant,
}

impl Lag {
    fn wakes(&mut self, now: Instant) {
        self.total += now.saturating_duration_since(self.due);
        self.due = now + NAP;
    }

    /// All of it until `now`, with that of a sleep that is not over.
    fn until(&self, now: Instant) -> Duration {
        self.total + now.saturating_duration_since(self.due)
    }
}

/// The machine's pauses since this process asked first.
fn pauses() -> Duration {
    static LAG: OnceLock<Arc<Mutex<Lag>>> = OnceLock::new();
    let lag = LAG.get_or_init(|| {
        let lag = Arc::new(Mutex::new(Lag { total: Duration::ZERO, due: Instant::now() + NAP }));
        let measured = lag.clone();
        std::thread::spawn(move || measure(&measured));
        lag
    });
    lag.lock().unwrap_or_else(PoisonError::into_inner).until(Instant::now())
}

#[expect(clippy::disallowed_methods, reason = "it is a thread of its own, whose sleep is what it measures")]
fn measure(lag: &Mutex<Lag>) {
    loop {
        std::thread::sleep(NAP);
        lag.lock().unwrap_or_else(PoisonError::into_inner).wakes(Instant::now());
    }
}

/// Time that passes, and how much of it the machine stood still.
#[derive(Debug, Clone, Copy)]
pub(super) struct Watch {
    since: Instant,
    before: Duration,
}

impl Watch {
    pub(super) fn start() -> Self {
        let before = pauses();
        Self { since: Instant::now(), before }
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.since.elapsed()
    }

    /// How long the machine stood still meanwhile: by that much everything may be later.
    pub(super) fn pauses(&self) -> Duration {
        pauses().saturating_sub(self.before)
    }
}

/// The first window and three longer ones.
const TRIES: u32 = 4;
/// Each is so many times as long as the one before.
const LONGER: u32 = 4;

/// A span in which something must not happen: a delay, a lease.
#[derive(Debug, Clone)]
pub(super) struct Window {
    length: Duration,
    missed: Arc<AtomicBool>,
}

impl Window {
    fn new(length: Duration) -> Self {
        Self { length, missed: Arc::default() }
    }

    /// How long it is.
    pub(super) fn length(&self) -> Duration {
        self.length
    }

    /// The same where no window may be longer than `most`.
    pub(super) fn at_most(&self, most: Duration) -> Self {
        Self { length: self.length.min(most), ..self.clone() }
    }

    /// Begins it. To be called before the call that makes the broker begin it.
    pub(super) fn open(&self) -> Open<'_> {
        Open { window: self, since: Instant::now() }
    }
}

/// A window that has begun.
#[derive(Debug, Clone, Copy)]
pub(super) struct Open<'a> {
    window: &'a Window,
    since: Instant,
}

impl Open<'_> {
    /// Judges what was seen while the window was open: wrong is wrong at once. To be called when the answer is there; if
    /// the window is over by then, nothing was shown, and [`windowed`] tries again with a longer one.
    pub(super) fn judge(&self, right: bool, wrong: impl FnOnce() -> String) -> Verdict {
        let took = self.since.elapsed();
        if took >= self.window.length {
            self.window.missed.store(true, Ordering::Relaxed);
            return Err(Failed(format!("a window of {:?} was looked into for {took:?}", self.window.length)));
        }
        if right { Ok(()) } else { Err(Failed(wrong())) }
    }
}

/// Makes the attempt with a window of `first`, and with longer ones as long as the machine is too slow for them. Each has
/// names of its own.
pub(super) async fn windowed<F>(
    fixture: &Fixture,
    first: Duration,
    attempt: impl Fn(Fixture, Window) -> F,
) -> Verdict
where
    F: Future<Output = Verdict>,
{
    let (mut window, mut number) = (Window::new(first), 1);
    loop {
        let verdict = attempt(fixture.attempt(number), window.clone()).await;
        if number == TRIES || !window.missed.load(Ordering::Relaxed) {
            return verdict;
        }
        (window, number) = (Window::new(window.length * LONGER), number + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::by_name;
    use std::sync::atomic::AtomicU32;

    const FIRST: Duration = Duration::from_secs(1000);

    async fn fixture() -> Fixture {
        Fixture::new(by_name("memory").unwrap().start().await.unwrap(), "machine")
    }

    /// A window that is over as soon as it has begun.
    fn over(window: &Window) -> Open<'_> {
        Open { window, since: Instant::now().checked_sub(window.length()).unwrap() }
    }

    #[tokio::test]
    async fn what_is_wrong_inside_a_window_fails_at_once() {
        let (fixture, tries) = (fixture().await, AtomicU32::new(0));
        let verdict = windowed(&fixture, FIRST, |_, window| {
            tries.fetch_add(1, Ordering::Relaxed);
            async move { window.open().judge(false, || "too early".into()) }
        });
        assert_eq!(verdict.await.unwrap_err().0, "too early");
        assert_eq!(tries.into_inner(), 1);
    }

    #[tokio::test]
    async fn a_window_that_was_over_is_tried_again_longer() {
        let (fixture, lengths) = (fixture().await, Mutex::new(Vec::new()));
        let verdict = windowed(&fixture, Duration::from_millis(1), |_, window| {
            let mut lengths = lengths.lock().unwrap();
            lengths.push(window.length().as_millis());
            let missed = lengths.len() < 3;
            async move {
                // What was seen in one that is over says nothing, whichever way.
                if missed { over(&window).judge(false, || "early".into()) } else { Ok(()) }
            }
        });
        verdict.await.unwrap();
        assert_eq!(lengths.into_inner().unwrap(), [1, 4, 16]);
    }

    #[tokio::test]
    async fn a_machine_that_keeps_no_window_proves_nothing() {
        let (fixture, tries) = (fixture().await, AtomicU32::new(0));
        let verdict = windowed(&fixture, Duration::from_millis(1), |_, window| {
            tries.fetch_add(1, Ordering::Relaxed);
            async move { over(&window).judge(true, String::new) }
        });
        verdict.await.unwrap_err();
        assert_eq!(tries.into_inner(), TRIES);
    }

    #[tokio::test]
    async fn other_failures_are_not_tried_again() {
        let (fixture, tries) = (fixture().await, AtomicU32::new(0));
        let verdict = windowed(&fixture, FIRST, |_, _| {
            tries.fetch_add(1, Ordering::Relaxed);
            async move { Err(Failed("lost".into())) }
        });
        assert_eq!(verdict.await.unwrap_err().0, "lost");
        assert_eq!(tries.into_inner(), 1);
    }

    #[test]
    fn pauses_are_what_a_sleep_took_too_long() {
        let start = Instant::now();
        let mut lag = Lag { total: Duration::ZERO, due: start + NAP };
        assert_eq!(lag.until(start), Duration::ZERO);
        lag.wakes(start + NAP);
        assert_eq!(lag.total, Duration::ZERO);
        let second = Duration::from_secs(1);
        // It is known before the sleep is over, and counts once.
        assert_eq!(lag.until(start + NAP * 2 + second), second);
        lag.wakes(start + NAP * 2 + second);
        assert_eq!(lag.until(start + NAP * 2 + second), second);
    }

    #[test]
    fn a_watch_counts_the_pauses_of_its_own_time() {
        let watch = Watch::start();
        assert!(watch.pauses() <= watch.elapsed() + NAP * 10, "{watch:?}");
    }
}
