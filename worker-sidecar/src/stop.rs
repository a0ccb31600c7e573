//! Carries a stop out: feeds the pure machine of [`crate::drain`], writes its lines, and lets others wait for its stages.

use crate::{
    core::Core,
    drain::{Effect, Event, Line, Machine, Stage},
    health::lock,
    in_flight::Abort,
};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until, timeout},
};

/// The two hooks of a pod start in the same second, but one is a process that has to start, on a node that may be busy
/// with many pods that end, and the other a request.
pub(crate) const HOOK_GRACE: Duration = Duration::from_secs(10);
/// Undecided hooks hold claims for one grace in this time. Anybody in the cluster can call them; nobody shall be able to
/// keep a pod from its jobs.
const HOLD_EVERY: Duration = Duration::from_secs(60);
/// How long the last settles may take.
const FLUSH: Duration = Duration::from_secs(10);

/// The state of the stop and everybody who waits for it.
#[derive(Debug)]
pub(crate) struct Stop {
    machine: Mutex<Machine>,
    stage: watch::Sender<Stage>,
    /// Hooks of the app that don't know yet whether the pod ends.
    undecided: watch::Sender<usize>,
    /// When hooks of the app began to hold claims last.
    held_since: Mutex<Option<Instant>>,
    /// Told when they begin and end.
    wake: Arc<Notify>,
    started: Mutex<Option<Instant>>,
    released: AtomicUsize,
}

impl Stop {
    pub(crate) fn new(wake: Arc<Notify>) -> Self {
        Self {
            machine: Mutex::default(),
            stage: watch::Sender::new(Stage::Running),
            undecided: watch::Sender::new(0),
            held_since: Mutex::default(),
            wake,
            started: Mutex::default(),
            released: AtomicUsize::new(0),
        }
    }

    pub(crate) fn stage(&self) -> Stage {
        *self.stage.borrow()
    }

    /// Waits until the stop has come to `stage` or further.
    pub(crate) async fn reached(&self, stage: Stage) {
        // The sender lives as long as `self`.
        let _ = self.stage.subscribe().wait_for(|now| *now >= stage).await;
    }

    fn due(&self) -> Option<Instant> {
        lock(&self.machine).due()
    }

    /// What the preStop hook of the app waits for: the end of running jobs if the pod ends, nothing if it doesn't.
    /// Tells whether the pod ends.
    pub(crate) async fn app_hook(&self, grace: Duration) -> bool {
        let undecided = Undecided::open(self);
        let ends = timeout(grace, self.reached(Stage::Draining)).await.is_ok();
        drop(undecided);
        if ends {
            self.reached(Stage::AppMayStop).await;
        }
        ends
    }

    /// Until when nothing is claimed because a hook of the app does not know yet whether the pod ends: if it does, what
    /// is claimed now would only be in the way.
    pub(crate) fn claims_held_until(&self, now: Instant) -> Option<Instant> {
        let until = (*lock(&self.held_since))? + HOOK_GRACE;
        (*self.undecided.borrow() > 0 && until > now).then_some(until)
    }

    fn hold_claims(&self, now: Instant) {
        let mut since = lock(&self.held_since);
        if since.is_none_or(|since| now.duration_since(since) >= HOLD_EVERY) {
            *since = Some(now);
        }
    }

    /// Whether the app is being stopped on purpose. While a hook of the app is undecided the answer waits for it.
    pub(crate) async fn app_stops(&self) -> bool {
        let (mut stage, mut undecided) = (self.stage.subscribe(), self.undecided.subscribe());
        let decided = async {
            loop {
                if *stage.borrow_and_update() != Stage::Running {
                    return true;
                }
                if *undecided.borrow_and_update() == 0 {
                    return false;
                }
                // Neither sender goes away before `self` does.
                tokio::select! {
                    _ = stage.changed() => {}
                    _ = undecided.changed() => {}
                }
            }
        };
        // Bounded, so that somebody who opens hooks all the time can't keep verdicts away.
        timeout(HOOK_GRACE * 2, decided).await.unwrap_or(false)
    }
}

/// One undecided hook; it counts until it is dropped, also when the kubelet hangs up.
struct Undecided<'a>(&'a Stop);

impl<'a> Undecided<'a> {
    fn open(stop: &'a Stop) -> Self {
        stop.hold_claims(Instant::now());
        stop.undecided.send_modify(|count| *count += 1);
        stop.wake.notify_one();
        Self(stop)
    }
}

impl Drop for Undecided<'_> {
    fn drop(&mut self) {
        self.0.undecided.send_modify(|count| *count -= 1);
        self.0.wake.notify_one();
    }
}

/// Feeds `event` to the machine and does what follows.
pub(crate) fn apply(core: &Core, event: Event) {
    let counts = core.in_flight.counts();
    let patience = core.drain_timeout();
    let stop = &core.stop;
    let now = Instant::now();
    let (effects, stage) = {
        let mut machine = lock(&stop.machine);
        let effects = machine.apply(event, counts.running, now, patience);
        (effects, machine.stage())
    };
    // The stage first: whoever acts on an effect sees the stage that it belongs to.
    stop.stage.send_if_modified(|known| std::mem::replace(known, stage) != stage);
    core.metrics.stage.set(stage as i64);
    for effect in effects {
        match effect {
            Effect::Say(line) => say(core, line, now),
            Effect::ReleaseRest => {
                let released = core.in_flight.abort_all(Abort::Stopping);
                stop.released.store(released, Ordering::Relaxed);
            }
        }
    }
    core.wake.notify_one();
}

fn say(core: &Core, line: Line, now: Instant) {
    let started = *lock(&core.stop.started).get_or_insert(now);
    let counts = core.in_flight.counts();
    let released = core.stop.released.load(Ordering::Relaxed);
    tracing::info!(
        target: "longshore::drain",
        stage = line.text(),
        step = line.step(),
        inFlight = counts.running,
        unsettled = counts.total - counts.running,
        released,
        elapsedMs = u64::try_from(now.duration_since(started).as_millis()).unwrap_or(u64::MAX),
        "{}",
        line.text(),
    );
}

/// Moves the machine when jobs end and when time passes; returns when the stop is complete.
pub(crate) async fn drive(core: Arc<Core>) {
    let mut counts = core.in_flight.watch();
    let mut stage = core.stop.stage.subscribe();
    loop {
        let now = *stage.borrow_and_update();
        counts.mark_unchanged();
        match now {
            Stage::Running => core.stop.reached(Stage::Draining).await,
            Stage::Draining | Stage::AppMayStop => {
                apply(&core, Event::Look);
                let due = core.stop.due();
                tokio::select! {
                    _ = counts.changed() => {}
                    _ = stage.changed() => {}
                    () = async { match due { Some(due) => sleep_until(due).await, None => std::future::pending().await } } => {}
                }
            }
            Stage::Releasing => {
                let mut counts = core.in_flight.watch();
                // Whatever is left after that ends with its lease.
                let _ = timeout(FLUSH, counts.wait_for(|counts| counts.total == 0)).await;
                apply(&core, Event::Flushed);
            }
            Stage::Stopped => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::poll;
    use std::{pin::pin, task::Poll};

    fn stop() -> Stop {
        Stop::new(Arc::default())
    }

    impl Stop {
        fn set(&self, stage: Stage) {
            self.stage.send_replace(stage);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_hook_of_an_app_whose_pod_stays_returns_after_a_short_grace() {
        let stop = stop();
        let began = Instant::now();
        assert!(!stop.app_hook(HOOK_GRACE).await);
        assert_eq!(began.elapsed(), HOOK_GRACE);
    }

    #[tokio::test(start_paused = true)]
    async fn the_hook_of_an_app_whose_pod_ends_waits_for_the_jobs() {
        let stop = stop();
        let mut hook = pin!(stop.app_hook(HOOK_GRACE));
        assert!(poll!(&mut hook).is_pending());
        stop.set(Stage::Draining);
        assert!(timeout(Duration::from_secs(3600), &mut hook).await.is_err());
        stop.set(Stage::AppMayStop);
        assert!(hook.await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_connection_waits_for_the_hook_that_knows_why() {
        let stop = stop();
        assert!(!stop.app_stops().await, "no hook, no stop");
        let mut hook = pin!(stop.app_hook(HOOK_GRACE));
        assert!(poll!(&mut hook).is_pending());
        let mut verdict = pin!(stop.app_stops());
        assert!(poll!(&mut verdict).is_pending());
        stop.set(Stage::Draining);
        assert_eq!(poll!(&mut verdict), Poll::Ready(true));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_connection_counts_when_the_hook_finds_that_the_pod_stays() {
        let stop = stop();
        let (ends, stops) = futures::join!(stop.app_hook(HOOK_GRACE), async {
            tokio::task::yield_now().await;
            stop.app_stops().await
        });
        assert!(!ends && !stops);
    }

    #[tokio::test(start_paused = true)]
    async fn an_undecided_hook_holds_claims_for_one_grace_and_a_crowd_of_them_no_longer() {
        let stop = stop();
        let began = Instant::now();
        {
            let mut hook = pin!(stop.app_hook(HOOK_GRACE));
            assert!(poll!(&mut hook).is_pending());
            assert_eq!(stop.claims_held_until(began), Some(began + HOOK_GRACE));
        }
        assert_eq!(stop.claims_held_until(began), None, "it hung up");
        // Somebody who calls the hook again and again.
        let mut held = Duration::ZERO;
        while began.elapsed() < HOLD_EVERY * 5 {
            let mut hook = pin!(stop.app_hook(HOOK_GRACE));
            assert!(poll!(&mut hook).is_pending());
            let step = Duration::from_millis(500);
            if stop.claims_held_until(Instant::now()).is_some() {
                held += step;
            }
            tokio::time::advance(step).await;
        }
        assert!(held <= HOOK_GRACE * 6, "{held:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_hook_that_hangs_up_decides_nothing_and_delays_nothing() {
        let stop = stop();
        {
            let mut hook = pin!(stop.app_hook(HOOK_GRACE));
            assert!(poll!(&mut hook).is_pending());
        }
        let began = Instant::now();
        assert!(!stop.app_stops().await);
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
}
