//! The order of a stop. Pure: events come in with the time and the number of running jobs, what to say and do comes out.
//!
//! ```text
//! Running ── hook, SIGTERM ──▶ Draining ── nothing runs, time is up ──▶ AppMayStop ── SIGTERM ──▶ Releasing ──▶ Stopped
//! ```
//!
//! In a pod that terminates the kubelet fires the hook first and sends SIGTERM after the app is gone. A SIGTERM without a
//! hook (plain containers) or right behind it (only the sidecar is restarted) finds a living app: then running jobs get
//! the same time to end. When the app is gone its connections are closed, so nothing runs and nothing waits.

use std::time::Duration;
use tokio::time::Instant;

/// How far a stop has come. The order of the variants is the order of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Stage {
    /// No stop.
    #[default]
    Running,
    /// Nothing is claimed; running jobs get time to end.
    Draining,
    /// Nothing runs, or the time is up: the waiting hooks of the app return. Late answers still settle.
    AppMayStop,
    /// The app is gone. What did not finish is released.
    Releasing,
    /// Everything is settled, or the time for that is up.
    Stopped,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The sidecar's own preStop hook fired.
    Requested,
    /// SIGTERM.
    Terminated,
    /// After a SIGTERM the app was found to be gone.
    AppGone,
    /// The number of running jobs changed, or time passed.
    Look,
    /// Everything is settled, or the time for that is up.
    Flushed,
}

/// What follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Write this line to the log. The lines of one stop come in the order of their [`Line`].
    Say(Line),
    /// Abort what still runs and release it.
    ReleaseRest,
}

/// The stages as they stand in the log. Each line comes at most once, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Line {
    /// The drain began.
    DrainStarted,
    /// From here on no claimed job is started.
    StoppedClaiming,
    /// No job runs. Missing when the time was up before.
    NothingInFlight,
    /// The waiting hooks return.
    AppMayStop,
    /// SIGTERM, and the app is gone or out of time.
    AppGone,
    /// What did not finish was given back.
    Released,
    /// The end.
    Exit,
}

impl Line {
    /// The text of the line.
    pub const fn text(self) -> &'static str {
        match self {
            Self::DrainStarted => "drain started",
            Self::StoppedClaiming => "stopped claiming",
            Self::NothingInFlight => "in flight 0",
            Self::AppMayStop => "app may stop",
            Self::AppGone => "app gone / sigterm",
            Self::Released => "released",
            Self::Exit => "exit",
        }
    }

    /// The number of the line, from 1.
    pub const fn step(self) -> u8 {
        self as u8 + 1
    }
}

/// The state of a stop.
#[derive(Debug, Clone, Default)]
pub struct Machine {
    stage: Stage,
    until: Option<Instant>,
    terminated: bool,
}

impl Machine {
    /// How far it is.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// When [`Event::Look`] is due because time passed.
    pub fn due(&self) -> Option<Instant> {
        self.until.filter(|_| self.stage == Stage::Draining)
    }

    /// Moves on. `running` counts jobs that the app works on, `patience` is how long they get.
    pub fn apply(&mut self, event: Event, running: usize, now: Instant, patience: Duration) -> Vec<Effect> {
        let mut effects = Vec::new();
        match (self.stage, event) {
            (Stage::Running, Event::Requested | Event::Terminated) => {
                self.terminated = event == Event::Terminated;
                self.until = now.checked_add(patience);
                self.stage = Stage::Draining;
                effects.extend([Effect::Say(Line::DrainStarted), Effect::Say(Line::StoppedClaiming)]);
            }
            // The second SIGTERM means it.
            (Stage::Draining, Event::Terminated | Event::AppGone) if self.terminated => {
                self.stop_waiting(&mut effects);
            }
            (Stage::Draining | Stage::AppMayStop, Event::Terminated) => self.terminated = true,
            (Stage::Releasing, Event::Flushed) => {
                self.stage = Stage::Stopped;
                effects.extend([Effect::Say(Line::Released), Effect::Say(Line::Exit)]);
            }
            (_, Event::Requested | Event::Terminated | Event::AppGone | Event::Look | Event::Flushed) => {}
        }
        self.settle(running, now, &mut effects);
        effects
    }

    fn stop_waiting(&mut self, effects: &mut Vec<Effect>) {
        self.stage = Stage::AppMayStop;
        effects.push(Effect::Say(Line::AppMayStop));
    }

    /// The moves that need no event of their own.
    fn settle(&mut self, running: usize, now: Instant, effects: &mut Vec<Effect>) {
        if self.stage == Stage::Draining {
            if running == 0 {
                effects.push(Effect::Say(Line::NothingInFlight));
                self.stop_waiting(effects);
            } else if self.until.is_none_or(|until| now >= until) {
                self.stop_waiting(effects);
            }
        }
        if self.stage == Stage::AppMayStop && self.terminated {
            self.stage = Stage::Releasing;
            effects.extend([Effect::Say(Line::AppGone), Effect::ReleaseRest]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(600);

    struct Run {
        machine: Machine,
        start: Instant,
        lines: Vec<&'static str>,
        releases: usize,
    }

    impl Run {
        fn new() -> Self {
            Self { machine: Machine::default(), start: Instant::now(), lines: Vec::new(), releases: 0 }
        }

        fn at(&mut self, seconds: u64, event: Event, running: usize) -> Stage {
            let now = self.start + Duration::from_secs(seconds);
            for effect in self.machine.apply(event, running, now, PATIENCE) {
                match effect {
                    Effect::Say(line) => self.lines.push(line.text()),
                    Effect::ReleaseRest => self.releases += 1,
                }
            }
            self.machine.stage()
        }
    }

    #[test]
    fn a_pod_that_ends_in_time_goes_through_every_stage() {
        let mut run = Run::new();
        assert_eq!(run.at(0, Event::Requested, 2), Stage::Draining);
        assert_eq!(run.at(5, Event::Look, 1), Stage::Draining);
        assert_eq!(run.at(9, Event::Look, 0), Stage::AppMayStop);
        assert_eq!(run.at(12, Event::Terminated, 0), Stage::Releasing);
        assert_eq!(run.at(12, Event::Flushed, 0), Stage::Stopped);
        let all = [
            "drain started",
            "stopped claiming",
            "in flight 0",
            "app may stop",
            "app gone / sigterm",
            "released",
            "exit",
        ];
        assert_eq!(run.lines, all);
        assert_eq!(run.releases, 1);
    }

    #[test]
    fn an_idle_pod_lets_the_app_stop_at_once() {
        let mut run = Run::new();
        assert_eq!(run.at(0, Event::Requested, 0), Stage::AppMayStop);
    }

    #[test]
    fn a_job_that_takes_too_long_lets_the_app_stop_and_is_released_after_it() {
        let mut run = Run::new();
        run.at(0, Event::Requested, 1);
        assert_eq!(run.machine.due(), Some(run.start + PATIENCE));
        assert_eq!(run.at(599, Event::Look, 1), Stage::Draining);
        assert_eq!(run.at(600, Event::Look, 1), Stage::AppMayStop);
        assert_eq!(run.releases, 0, "the app still has it");
        assert_eq!(run.at(630, Event::Terminated, 1), Stage::Releasing);
        assert_eq!(run.releases, 1);
        assert!(!run.lines.contains(&"in flight 0"));
    }

    #[test]
    fn sigterm_without_a_hook_drains_by_itself() {
        let mut run = Run::new();
        assert_eq!(run.at(0, Event::Terminated, 1), Stage::Draining);
        assert_eq!(run.at(3, Event::Look, 0), Stage::Releasing);
    }

    #[test]
    fn sigterm_behind_the_hook_waits_for_what_a_living_app_does() {
        let mut run = Run::new();
        run.at(0, Event::Requested, 1);
        assert_eq!(run.at(0, Event::Terminated, 1), Stage::Draining);
        assert_eq!(run.at(600, Event::Look, 1), Stage::Releasing);
    }

    #[test]
    fn nobody_waits_for_an_app_that_is_gone() {
        let mut run = Run::new();
        run.at(0, Event::Requested, 1);
        assert_eq!(run.at(1, Event::AppGone, 1), Stage::Draining, "a crash is no stop");
        run.at(2, Event::Terminated, 1);
        assert_eq!(run.at(2, Event::AppGone, 1), Stage::Releasing);
    }

    #[test]
    fn the_second_sigterm_ends_the_wait() {
        let mut run = Run::new();
        run.at(0, Event::Terminated, 1);
        assert_eq!(run.at(1, Event::Terminated, 1), Stage::Releasing);
    }

    #[test]
    fn repeated_hooks_and_early_signals_change_nothing() {
        let mut run = Run::new();
        assert_eq!(run.at(0, Event::AppGone, 1), Stage::Running);
        assert_eq!(run.at(0, Event::Flushed, 1), Stage::Running);
        run.at(0, Event::Requested, 1);
        assert_eq!(run.at(1, Event::Requested, 1), Stage::Draining);
        assert_eq!(run.machine.due(), Some(run.start + PATIENCE), "a second hook gives no more time");
    }

    #[test]
    fn whatever_happens_lines_come_once_and_in_order() {
        let events = [Event::Requested, Event::Terminated, Event::AppGone, Event::Look, Event::Flushed];
        for path in 0..events.len().pow(6) {
            let mut run = Run::new();
            let mut lines = Vec::new();
            let mut rest = path;
            for step in 0..6_usize {
                let now = run.start + Duration::from_secs(150 * step as u64);
                let before = run.machine.stage();
                for effect in run.machine.apply(events[rest % 5], (path / 7 + step) % 2, now, PATIENCE) {
                    if let Effect::Say(line) = effect {
                        lines.push(line);
                    }
                }
                assert!(run.machine.stage() >= before);
                rest /= 5;
            }
            assert!(lines.windows(2).all(|pair| pair[0] < pair[1]), "{path}: {lines:?}");
            run.lines.clear();
        }
    }
}
