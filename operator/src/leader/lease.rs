//! When to take, keep or give up the lease. Pure: records and the clock are arguments.
//!
//! Times are of this machine's monotonic clock only. What another machine wrote into a record is compared for equality
//! and never with a clock: clocks differ, and a leader whose clock is behind must not look expired.

use k8s_openapi::{
    api::coordination::v1::LeaseSpec, apimachinery::pkg::apis::meta::v1::MicroTime, jiff::Timestamp,
};
use std::time::{Duration, Instant};

/// A record may ask for more than our duration, as after an upgrade that raised it, but not to be waited for forever.
const LONGEST: Duration = Duration::from_secs(60);

/// How long things take; the values of client-go.
#[derive(Debug, Clone)]
pub(super) struct Config {
    /// How long a record has to stay unchanged before somebody else may take over.
    pub(super) duration: Duration,
    /// How long after the start of its last renewal a leader may act. The difference to `duration` is what a slow clock
    /// and an effect that was just begun may cost.
    pub(super) renew_deadline: Duration,
    /// Between two looks of a candidate and two renewals of a leader.
    pub(super) retry: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }
}

impl Config {
    /// `retry`, a fifth longer or shorter: candidates don't come all at once. `roll` is a random number.
    pub(super) fn retry_after(&self, roll: u8) -> Duration {
        self.retry * (800 + u32::from(roll) * 400 / 255) / 1000
    }
}

/// One stretch of leadership by one process. Names of pods come back when a container restarts, so the name alone
/// doesn't tell a process from its predecessor; the moment at which it took the lease does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Term {
    pub(super) holder: String,
    pub(super) transitions: i32,
    pub(super) acquired: Option<Timestamp>,
}

/// What a lease says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    /// Nobody's after a release.
    pub(super) term: Option<Term>,
    pub(super) renewed: Option<Timestamp>,
    pub(super) duration: Option<Duration>,
}

impl Record {
    pub(super) fn of(spec: &LeaseSpec) -> Self {
        let holder = spec.holder_identity.clone().filter(|holder| !holder.is_empty());
        let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        Self {
            term: holder.map(|holder| Term {
                holder,
                transitions: spec.lease_transitions.unwrap_or_default(),
                acquired: spec.acquire_time.as_ref().map(|time| time.0),
            }),
            renewed: spec.renew_time.as_ref().map(|time| time.0),
            duration: seconds.map(Duration::from_secs),
        }
    }

    fn lifetime(&self, config: &Config) -> Duration {
        self.duration.map_or(config.duration, |asked| config.duration.max(asked.min(LONGEST)))
    }
}

/// A record and since when this process has seen exactly it.
#[derive(Debug, Clone)]
pub(super) struct Observed {
    pub(super) record: Record,
    pub(super) since: Instant,
}

impl Observed {
    /// `record` was read, and `now` is not earlier than the answer: age is counted from the first sight of a value.
    pub(super) fn next(previous: Option<Self>, record: Record, now: Instant) -> Self {
        match previous {
            Some(same) if same.record == record => same,
            _ => Self { record, since: now },
        }
    }
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    /// Nobody holds the lease, or its holder was silent for too long: take it.
    Acquire,
    /// It is ours: renew it.
    Renew,
    /// Nothing to do before this moment unless the record changes.
    WaitUntil(Instant),
    /// We led and may not any more.
    StepDown,
}

/// What to do about `observed`, where `me` is the term that this process began or tried to begin, and `last_renew` is
/// when the last renewal that succeeded was begun, if this process leads.
pub(super) fn decide(
    me: Option<&Term>,
    observed: Option<&Observed>,
    last_renew: Option<Instant>,
    now: Instant,
    config: &Config,
) -> Decision {
    let held = observed.and_then(|seen| seen.record.term.as_ref().map(|term| (seen, term)));
    let ours = held.is_some_and(|(_, term)| Some(term) == me);
    match (last_renew, held) {
        (Some(last), _) if now >= last + config.renew_deadline => Decision::StepDown,
        (Some(last), _) if ours => {
            let due = last + config.retry;
            if now >= due { Decision::Renew } else { Decision::WaitUntil(due) }
        }
        // Taken, cleared or deleted: others may have led since, so what this process remembers may be outdated.
        (Some(_), _) => Decision::StepDown,
        (None, None) => Decision::Acquire,
        // It was written after all, though the answer to the write was lost.
        (None, Some(_)) if ours => Decision::Renew,
        (None, Some((seen, _))) => {
            let expires = seen.since + seen.record.lifetime(config);
            if now >= expires { Decision::Acquire } else { Decision::WaitUntil(expires) }
        }
    }
}

/// The spec with which `identity` takes over from `previous`. `now` is a wall clock, for people and to make the term
/// unlike any other.
pub(super) fn acquired(previous: &LeaseSpec, identity: &str, now: Timestamp, config: &Config) -> LeaseSpec {
    // What is stored has microseconds; more would not come back as it was written.
    let now = Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now);
    let transitions = match Record::of(previous) {
        Record { term: None, renewed: None, .. } => 0,
        _ => previous.lease_transitions.unwrap_or_default().saturating_add(1),
    };
    LeaseSpec {
        holder_identity: Some(identity.to_owned()),
        lease_duration_seconds: Some(whole_seconds(config.duration)),
        acquire_time: Some(MicroTime(now)),
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(transitions),
        ..previous.clone()
    }
}

/// The spec that renews `previous`.
pub(super) fn renewed(previous: &LeaseSpec, now: Timestamp, config: &Config) -> LeaseSpec {
    LeaseSpec {
        lease_duration_seconds: Some(whole_seconds(config.duration)),
        renew_time: Some(MicroTime(now)),
        ..previous.clone()
    }
}

/// The spec that gives `previous` back.
pub(super) fn released(previous: &LeaseSpec, now: Timestamp) -> LeaseSpec {
    LeaseSpec { holder_identity: None, renew_time: Some(MicroTime(now)), ..previous.clone() }
}

fn whole_seconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis().div_ceil(1000)).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    fn at(micros: i64) -> Timestamp {
        Timestamp::from_microsecond(micros).expect("small")
    }

    fn term(holder: &str, acquired: i64) -> Term {
        Term { holder: holder.to_owned(), transitions: 1, acquired: Some(at(acquired)) }
    }

    fn record(term: Option<Term>, renewed: i64) -> Record {
        Record { term, renewed: Some(at(renewed)), duration: Some(seconds(15)) }
    }

    /// A candidate's decision `age` after it first saw `record`.
    fn candidate(me: Option<&Term>, record: Option<Record>, age: Duration) -> (Decision, Instant) {
        let since = Instant::now();
        let observed = record.map(|record| Observed { record, since });
        let step = decide(me, observed.as_ref(), None, since + age, &Config::default());
        (step, since)
    }

    /// A leader's decision `age` after the start of its last renewal.
    fn leader(me: &Term, record: Option<Record>, age: Duration) -> (Decision, Instant) {
        let last = Instant::now();
        let observed = record.map(|record| Observed { record, since: last });
        let step = decide(Some(me), observed.as_ref(), Some(last), last + age, &Config::default());
        (step, last)
    }

    #[test]
    fn a_candidate_takes_what_nobody_holds() {
        assert_eq!(candidate(None, None, seconds(0)).0, Decision::Acquire);
        assert_eq!(candidate(None, Some(record(None, 5)), seconds(0)).0, Decision::Acquire);
    }

    #[test]
    fn a_candidate_waits_until_the_holder_was_silent_for_the_whole_duration() {
        let held = || Some(record(Some(term("other", 1)), 2));
        for age in [seconds(0), seconds(10), Duration::from_millis(14_999)] {
            let (step, since) = candidate(None, held(), age);
            assert_eq!(step, Decision::WaitUntil(since + seconds(15)), "{age:?}");
        }
        assert_eq!(candidate(None, held(), seconds(15)).0, Decision::Acquire);
    }

    #[test]
    fn a_predecessor_of_the_same_name_is_somebody_else() {
        let predecessor = record(Some(term("me", 1)), 2);
        let (step, since) = candidate(None, Some(predecessor.clone()), seconds(1));
        assert_eq!(step, Decision::WaitUntil(since + seconds(15)));
        let (step, _) = leader(&term("me", 7), Some(predecessor), seconds(1));
        assert_eq!(step, Decision::StepDown);
    }

    #[test]
    fn a_lease_that_was_written_though_the_answer_was_lost_is_ours() {
        let me = term("me", 7);
        let step = candidate(Some(&me), Some(record(Some(me.clone()), 7)), seconds(0)).0;
        assert_eq!(step, Decision::Renew);
    }

    #[test]
    fn a_leader_renews_when_it_is_time_and_steps_down_at_the_deadline() {
        let me = term("me", 7);
        let ours = || Some(record(Some(me.clone()), 7));
        let (step, last) = leader(&me, ours(), Duration::from_millis(1_999));
        assert_eq!(step, Decision::WaitUntil(last + seconds(2)));
        assert_eq!(leader(&me, ours(), seconds(2)).0, Decision::Renew);
        assert_eq!(leader(&me, ours(), Duration::from_millis(9_999)).0, Decision::Renew);
        assert_eq!(leader(&me, ours(), seconds(10)).0, Decision::StepDown);
        // A process that was stopped wakes much later.
        assert_eq!(leader(&me, ours(), seconds(3600)).0, Decision::StepDown);
    }

    #[test]
    fn a_leader_steps_down_from_a_lease_that_is_not_its_own_any_more() {
        let me = term("me", 7);
        let others = [None, Some(record(None, 7)), Some(record(Some(term("other", 8)), 8))];
        for record in others {
            assert_eq!(leader(&me, record.clone(), seconds(0)).0, Decision::StepDown, "{record:?}");
        }
    }

    #[test]
    fn a_longer_duration_in_the_record_counts_up_to_a_bound_and_a_shorter_one_does_not() {
        for (asked, waits) in [(Some(1), 15), (Some(30), 30), (Some(u64::MAX / 2), 60), (None, 15)] {
            let held = Record { duration: asked.map(seconds), ..record(Some(term("other", 1)), 2) };
            let (step, since) = candidate(None, Some(held), seconds(0));
            assert_eq!(step, Decision::WaitUntil(since + seconds(waits)), "{asked:?}");
        }
    }

    #[test]
    fn age_counts_from_the_first_sight_of_a_value_whatever_its_times_say() {
        let start = Instant::now();
        // Renewed by a clock that is years ahead, then by one that is behind.
        let (ahead, behind) = (
            record(Some(term("other", 1)), i64::from(i32::MAX) * 1_000_000),
            record(Some(term("other", 1)), 0),
        );
        let seen = Observed::next(None, ahead.clone(), start);
        let seen = Observed::next(Some(seen), ahead, start + seconds(9));
        assert_eq!(seen.since, start);
        let seen = Observed::next(Some(seen), behind, start + seconds(10));
        assert_eq!(seen.since, start + seconds(10));
    }

    #[test]
    fn a_lease_goes_from_hand_to_hand() {
        let config = Config::default();
        let first = acquired(&LeaseSpec::default(), "a", at(1), &config);
        assert_eq!(first.lease_transitions, Some(0));
        assert_eq!(first.lease_duration_seconds, Some(15));
        let kept = renewed(&first, at(2), &config);
        assert_eq!(Record::of(&kept).term, Record::of(&first).term);
        assert_ne!(Record::of(&kept), Record::of(&first));
        let free = released(&kept, at(3));
        assert_eq!(Record::of(&free).term, None);
        let second = acquired(&free, "a", at(4), &config);
        assert_eq!(second.lease_transitions, Some(1));
        assert_ne!(Record::of(&second).term, Record::of(&first).term);
        assert_eq!(acquired(&second, "b", at(5), &config).lease_transitions, Some(2));
    }

    #[test]
    fn a_term_comes_back_from_the_api_as_it_was_written() {
        let nanos = Timestamp::from_nanosecond(1_700_000_000_123_456_789).expect("a valid time");
        let spec = acquired(&LeaseSpec::default(), "a", nanos, &Config::default());
        let stored = serde_json::to_value(&spec).expect("a spec is JSON");
        let back: LeaseSpec = serde_json::from_value(stored).expect("what was written can be read");
        assert_eq!(Record::of(&back).term, Record::of(&spec).term);
    }

    #[test]
    fn garbage_in_a_record_is_read_as_nothing() {
        let spec = LeaseSpec {
            holder_identity: Some(String::new()),
            lease_duration_seconds: Some(-5),
            lease_transitions: Some(i32::MAX),
            ..LeaseSpec::default()
        };
        assert_eq!(Record::of(&spec), Record { term: None, renewed: None, duration: None });
        let renewed = LeaseSpec { renew_time: Some(MicroTime(at(1))), ..spec };
        let taken = acquired(&renewed, "a", at(2), &Config::default());
        assert_eq!(taken.lease_transitions, Some(i32::MAX));
    }

    #[test]
    fn jitter_stays_within_a_fifth() {
        let config = Config::default();
        assert_eq!(config.retry_after(0), Duration::from_millis(1_600));
        assert_eq!(config.retry_after(255), Duration::from_millis(2_400));
    }
}
