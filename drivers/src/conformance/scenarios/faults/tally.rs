//! Which calls went through and which failed, lane by lane and fault by fault.
//!
//! A lane is an operation, or a caller: whatever has to be hit. A fault lasts until every lane was.

use super::{Fault, LATER};
use crate::ErrorKind;
use crate::conformance::{Failed, Fixture, Verdict, check, eventually, machine::Watch, proxy::Proxy};
use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// So many calls of each lane have to go through before a fault begins.
const WELL: usize = 8;
/// A restart is short, and a driver may outlast it: so many of them may be needed until every lane was hit.
const ROUNDS: usize = 20;
/// What explains that a call over a slow network was given up: handles wait for an answer for 1.5 s.
const PAUSED: Duration = Duration::from_millis(500);

/// Calls of one kind, or of one caller.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lane {
    pub(super) name: &'static str,
    /// A call may change something, so that its caller can be left not knowing.
    pub(super) changes: bool,
}

/// What became of the calls of one lane.
#[derive(Debug, Clone, Copy, Default)]
struct Count {
    done: usize,
    failed: usize,
    /// Of those that failed, what may have been done.
    unknown: usize,
    quickest: Option<Duration>,
}

/// The present spell, of a fault or of good weather.
#[derive(Debug)]
struct Spell {
    /// Odd while a fault is on.
    number: usize,
    /// It is known to be felt.
    bites: bool,
    counts: Vec<Count>,
}

/// A call that is under way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Begun {
    spell: usize,
    pub(super) since: Instant,
}

/// The calls of all lanes.
#[derive(Debug)]
pub(super) struct Tally {
    lanes: &'static [Lane],
    least: usize,
    least_slow: usize,
    spell: Mutex<Spell>,
    over: AtomicBool,
}

impl Tally {
    /// Nothing has been called yet. Each lane of a fault has `least` failed calls in the end, or `least_slow` that went through
    /// where nothing fails.
    pub(super) fn of(lanes: &'static [Lane], least: usize, least_slow: usize) -> Self {
        let spell =
            Mutex::new(Spell { number: 0, bites: false, counts: vec![Count::default(); lanes.len()] });
        Self { lanes, least, least_slow, spell, over: AtomicBool::new(false) }
    }

    fn spell(&self) -> MutexGuard<'_, Spell> {
        self.spell.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call begins.
    pub(super) fn begin(&self) -> Begun {
        Begun { spell: self.spell().number, since: Instant::now() }
    }

    /// The call ended. It went through in the spell in which it began; it failed of the fault that is on now if it began
    /// after the one before was over.
    pub(super) fn count<T>(&self, lane: usize, begun: Begun, answer: &crate::Result<T>) -> Verdict {
        let mut spell = self.spell();
        let (now, in_fault) = (spell.number, spell.number % 2 == 1);
        let count = &mut spell.counts[lane];
        match answer {
            Ok(_) if begun.spell == now => {
                let took = begun.since.elapsed();
                count.done += 1;
                count.quickest = Some(count.quickest.map_or(took, |quickest| quickest.min(took)));
            }
            Ok(_) => {}
            Err(error) if matches!(error.kind, ErrorKind::Unavailable | ErrorKind::Ambiguous) => {
                let felt = in_fault && begun.spell + 1 >= now;
                count.failed += usize::from(felt);
                count.unknown += usize::from(felt && error.kind == ErrorKind::Ambiguous);
                spell.bites |= in_fault;
            }
            Err(error) => {
                let lane = self.lanes[lane].name;
                return Err(Failed(format!("{lane}: a call during a fault was answered {error:?}")));
            }
        }
        Ok(())
    }

    /// Another spell begins: a fault, or the end of one.
    fn turn(&self, bites: bool) {
        let mut spell = self.spell();
        (spell.number, spell.bites) = (spell.number + 1, bites);
        spell.counts.fill(Count::default());
    }

    /// Whether something is broken now, and felt.
    pub(super) fn bites(&self) -> bool {
        self.spell().bites
    }

    /// Whether everybody may stop.
    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    pub(super) fn stop(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// Waits until `holds` for each lane in this spell.
    async fn all(&self, what: &str, holds: impl Fn(&Count) -> bool) -> Verdict {
        let waited = eventually(what, || async { Ok(self.spell().counts.iter().all(&holds)) }).await;
        waited.map_err(|Failed(why)| Failed(format!("{why}; {}", self.missing(&holds))))
    }

    /// Whether a fault that comes again has come often enough. One that is half open is more than one that is closed: a call
    /// goes there, and its caller never knows.
    fn is_hit(&self, fault: Fault, lane: Lane, count: &Count) -> bool {
        let unknown = fault != Fault::HalfOpen || !lane.changes || count.unknown >= self.least;
        count.failed >= self.least && unknown
    }

    /// What was seen of the lanes for which it doesn't hold.
    fn missing(&self, holds: impl Fn(&Count) -> bool) -> String {
        let spell = self.spell();
        let lanes = self.lanes.iter().zip(&spell.counts).filter(|(_, count)| !holds(count));
        lanes.map(|(lane, count)| format!("{}: {count:?}", lane.name)).collect::<Vec<_>>().join("; ")
    }
}

/// One fault after the other, each once every lane was well and `ready`, until every lane felt it. Answers what was counted,
/// for people.
pub(super) async fn torment(
    fixture: &Fixture,
    proxy: &Proxy,
    tally: &Tally,
    ready: impl Fn() -> bool,
) -> Result<String, Failed> {
    let mut figures = Vec::new();
    for fault in Fault::ALL {
        let counts = match fault {
            Fault::Restarted | Fault::HalfOpen => again(fault, fixture, proxy, tally, &ready).await?,
            _ => suffer(fault, fixture, proxy, tally, &ready).await?,
        };
        let counts = counts.iter().map(|count| if fault == Fault::Slow { count.done } else { count.failed });
        let counts: Vec<_> = counts.map(|count| count.to_string()).collect();
        figures.push(format!("{fault:?} {}", counts.join("/")));
    }
    well(tally, "in the end", &ready).await?;
    Ok(figures.join(", "))
}

async fn well(tally: &Tally, when: &str, ready: impl Fn() -> bool) -> Verdict {
    tally.all(&format!("calls go well {when}"), |count| count.done >= WELL).await?;
    eventually(&format!("something is at hand for each call {when}"), || async { Ok(ready()) }).await
}

/// A fault that lasts until it is ended.
async fn suffer(
    fault: Fault,
    fixture: &Fixture,
    proxy: &Proxy,
    tally: &Tally,
    ready: impl Fn() -> bool,
) -> Result<Vec<Count>, Failed> {
    well(tally, &format!("before {fault:?}"), ready).await?;
    let held = proxy.held();
    fault.begin(fixture, proxy).await?;
    tally.turn(true);
    let watch = Watch::start();
    let felt = if fault == Fault::Slow {
        let carried = |count: &Count| count.done >= tally.least_slow;
        tally.all("calls go through a slow network", carried).await
    } else {
        let failed = |count: &Count| count.failed >= tally.least;
        tally.all(&format!("calls fail during {fault:?}"), failed).await
    };
    let counts = tally.spell().counts.clone();
    fault.end(fixture, proxy).await?;
    tally.turn(false);
    felt?;
    match fault {
        Fault::Slow => slow_and_well(tally.lanes, &counts, watch.pauses())?,
        Fault::HalfOpen => check!(proxy.held() > held, "no answer was held back, so nothing was half open"),
        _ => {}
    }
    Ok(counts)
}

/// Every call was late, and none failed but of the machine's own pauses.
fn slow_and_well(lanes: &[Lane], counts: &[Count], pauses: Duration) -> Verdict {
    for (Lane { name: lane, .. }, count) in lanes.iter().zip(counts) {
        let failed = count.failed;
        check!(failed == 0 || pauses > PAUSED, "{lane}: {failed} calls over a slow network failed");
        let late = count.quickest.is_some_and(|quickest| quickest >= LATER * 2);
        check!(late, "{lane}: a network that is {LATER:?} slower each way: {count:?}");
    }
    Ok(())
}

/// The same fault again, until calls of each lane were hit as they should be.
async fn again(
    fault: Fault,
    fixture: &Fixture,
    proxy: &Proxy,
    tally: &Tally,
    ready: impl Fn() -> bool,
) -> Result<Vec<Count>, Failed> {
    let mut sum = vec![Count::default(); tally.lanes.len()];
    for _ in 0..ROUNDS {
        let counts = match fault {
            Fault::Restarted => restart(fixture, proxy, tally, &ready).await?,
            _ => suffer(fault, fixture, proxy, tally, &ready).await?,
        };
        for (sum, count) in sum.iter_mut().zip(counts) {
            sum.failed += count.failed;
            sum.unknown += count.unknown;
        }
        if tally.lanes.iter().zip(&sum).all(|(lane, count)| tally.is_hit(fault, *lane, count)) {
            return Ok(sum);
        }
    }
    let missing = tally.lanes.iter().zip(&sum).filter(|(lane, count)| !tally.is_hit(fault, **lane, count));
    Err(Failed(format!("{fault:?} hit not all in {ROUNDS} rounds: {:?}", missing.collect::<Vec<_>>())))
}

/// A restart in good order.
async fn restart(
    fixture: &Fixture,
    proxy: &Proxy,
    tally: &Tally,
    ready: impl Fn() -> bool,
) -> Result<Vec<Count>, Failed> {
    let fault = Fault::Restarted;
    well(tally, &format!("before {fault:?}"), ready).await?;
    // What is at hand is kept until it is down: there has to be something to try then.
    tally.turn(false);
    fault.begin(fixture, proxy).await?;
    fault.end(fixture, proxy).await?;
    // Whoever was under way meanwhile is told so.
    let answered = |count: &Count| count.done + count.failed > 0;
    tally.all("calls are answered after a restart", answered).await?;
    let counts = tally.spell().counts.clone();
    tally.turn(false);
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    const LANES: &[Lane] = &[Lane { name: "one", changes: true }, Lane { name: "other", changes: false }];

    fn tally() -> Tally {
        Tally::of(LANES, 1, 1)
    }

    fn failed(tally: &Tally) -> Vec<usize> {
        tally.spell().counts.iter().map(|count| count.failed).collect()
    }

    fn refused() -> crate::Result<()> {
        Err(Error::unavailable("it is away"))
    }

    #[test]
    fn a_failure_belongs_to_the_fault_in_which_it_was_told() {
        let tally = tally();
        let before = tally.begin();
        tally.turn(true);
        let within = tally.begin();
        tally.count(0, before, &refused()).unwrap();
        tally.count(0, within, &refused()).unwrap();
        assert_eq!(failed(&tally), [2, 0]);
        tally.turn(true);
        tally.turn(true);
        // Those are of the fault before.
        tally.count(1, within, &refused()).unwrap();
        assert_eq!(failed(&tally), [0, 0]);
        assert!(tally.missing(|count| count.failed > 0).starts_with("one: "), "{tally:?}");
    }

    #[test]
    fn what_fails_in_good_weather_is_no_fault() {
        let tally = tally();
        tally.count(0, tally.begin(), &refused()).unwrap();
        assert_eq!(failed(&tally), [0, 0]);
    }

    #[test]
    fn only_what_began_in_a_spell_goes_through_in_it() {
        let tally = tally();
        let before = tally.begin();
        tally.turn(true);
        tally.count(0, before, &Ok(())).unwrap();
        assert_eq!(tally.spell().counts[0].done, 0);
        tally.count(0, tally.begin(), &Ok(())).unwrap();
        assert_eq!(tally.spell().counts[0].done, 1);
    }

    #[test]
    fn an_answer_that_no_fault_explains_fails() {
        let answer: crate::Result<()> = Err(Error::new(ErrorKind::Conflict, "no"));
        let tally = tally();
        let said = tally.count(1, tally.begin(), &answer).unwrap_err().0;
        assert!(said.starts_with("other: "), "{said}");
    }

    #[test]
    fn a_network_that_is_not_slow_and_one_that_loses_are_found() {
        let count = |failed, millis| Count {
            done: 3,
            failed,
            unknown: 0,
            quickest: Some(Duration::from_millis(millis)),
        };
        let judge = |counts: &[Count], pauses| slow_and_well(&LANES[..1], counts, pauses);
        judge(&[count(0, 50)], Duration::ZERO).unwrap();
        judge(&[count(0, 49)], Duration::ZERO).unwrap_err();
        judge(&[Count::default()], Duration::ZERO).unwrap_err();
        judge(&[count(1, 50)], Duration::ZERO).unwrap_err();
        judge(&[count(1, 50)], PAUSED * 2).unwrap();
    }

    #[test]
    fn half_open_is_when_a_change_is_not_known_to_be_made() {
        let tally = tally();
        let (closed, open) =
            (Count { failed: 1, ..Count::default() }, Count { failed: 1, unknown: 1, ..Count::default() });
        let hit = |fault, lane: usize, count| tally.is_hit(fault, LANES[lane], count);
        assert!(!hit(Fault::HalfOpen, 0, &closed) && hit(Fault::HalfOpen, 0, &open));
        assert!(hit(Fault::HalfOpen, 1, &closed) && hit(Fault::Restarted, 0, &closed));
        assert!(!hit(Fault::Restarted, 0, &Count::default()));
    }
}
