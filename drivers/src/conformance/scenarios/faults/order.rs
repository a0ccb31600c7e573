//! Whether the jobs of each key were done in their order, told from a history.

use crate::conformance::history::{Did, Event, Heard};
use crate::{JobId, Timestamp};
use std::{collections::BTreeMap, time::Duration};

/// More findings than this say nothing new.
const SHOWN: usize = 20;

/// What matters of one job.
#[derive(Debug, Default)]
struct Course {
    /// When each claim was answered, and when its lease began by the broker's clock.
    handed: Vec<(Duration, Timestamp)>,
    /// When the call began that ended it, where the answer was heard.
    ended: Option<Duration>,
    /// When calls began that may have ended it.
    maybe: Vec<Duration>,
    /// When the first call began that may have put it in.
    sent: Option<Duration>,
}

impl Course {
    fn add(&mut self, event: &Event) {
        match &event.did {
            Did::Enqueue { heard: Heard::Done | Heard::Nothing, .. } => {
                self.sent = Some(self.sent.map_or(event.start, |first| first.min(event.start)));
            }
            Did::Claim { from, .. } => self.handed.push((event.end, *from)),
            Did::Settle { heard: Heard::Done, ends: true, .. } => self.ended = Some(event.start),
            Did::Settle { heard: Heard::Nothing, ends: true, .. } => self.maybe.push(event.start),
            _ => {}
        }
    }

    /// The earliest moment at which it can have been over.
    fn over(&self) -> Option<Duration> {
        self.ended.or_else(|| self.maybe.iter().min().copied())
    }
}

fn courses(events: &[Event]) -> BTreeMap<&JobId, Course> {
    let mut courses: BTreeMap<&JobId, Course> = BTreeMap::new();
    for event in events {
        courses.entry(&event.job).or_default().add(event);
    }
    courses
}

/// What can't have happened in a Fifo queue whose keys hold these jobs, each in the order in which they were enqueued; at most
/// 20 of it.
pub(super) fn out_of_order(events: &[Event], keys: &[Vec<JobId>]) -> Vec<String> {
    let (courses, none) = (courses(events), Course::default());
    let of = |id: &JobId| courses.get(id).unwrap_or(&none);
    let pairs = keys.iter().flat_map(|jobs| jobs.iter().zip(jobs.iter().skip(1)));
    let found = pairs.filter_map(|(first, second)| {
        let (before, after) = (of(first), of(second));
        let (answered, _) = after.handed.iter().min_by_key(|(answered, _)| *answered)?;
        let leased = after.handed.iter().map(|(_, from)| from).min()?;
        if before.over().is_none_or(|over| over >= *answered) {
            return Some(format!("{second} was handed out at {answered:?}, and {first} was not over"));
        }
        let later = before.handed.iter().find(|(_, from)| from > leased)?;
        Some(format!("{first} was handed out at {:?} after {second} had been", later.0))
    });
    found.take(SHOWN).collect()
}

/// Jobs that were handed out before their delay was over; at most 20.
pub(super) fn too_early(events: &[Event], delays: &BTreeMap<JobId, Duration>) -> Vec<String> {
    let courses = courses(events);
    let found = delays.iter().filter_map(|(id, delay)| {
        let course = courses.get(id)?;
        let sent = course.sent?;
        let (answered, _) = course.handed.iter().min_by_key(|(answered, _)| *answered)?;
        let took = answered.saturating_sub(sent);
        (took < *delay).then(|| format!("{id} came {took:?} after it was sent, delayed by {delay:?}"))
    });
    found.take(SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Receipt;

    #[derive(Default)]
    struct Told(Vec<Event>);

    impl Told {
        fn event(mut self, job: &str, start: u64, end: u64, did: Did) -> Self {
            let (start, end) = (Duration::from_millis(start), Duration::from_millis(end));
            self.0.push(Event { job: JobId::new(job).unwrap(), client: 0, start, end, did });
            self
        }

        fn enqueue(self, job: &str, start: u64, heard: Heard) -> Self {
            self.event(job, start, start + 1, Did::Enqueue { heard, created: false })
        }

        /// Answered at `end`; the lease began at the same moment of the broker's clock.
        fn claim(self, job: &str, end: u64) -> Self {
            let from = Timestamp::from_millis(i64::try_from(end).unwrap());
            let did = Did::Claim { receipt: Receipt(end.to_string()), from, until: from };
            self.event(job, end.saturating_sub(5), end, did)
        }

        fn settle(self, job: &str, start: u64, heard: Heard, ends: bool) -> Self {
            let did = Did::Settle { receipt: Receipt(String::new()), heard, ends };
            self.event(job, start, start + 5, did)
        }

        fn found(&self) -> Vec<String> {
            let job = |name| JobId::new(name).unwrap();
            out_of_order(&self.0, &[vec![job("a"), job("b"), job("c")], vec![job("x")]])
        }

        fn is_bad(&self, because: &str) {
            let found = self.found();
            assert!(found.len() == 1 && found[0].contains(because), "{found:?}");
        }
    }

    use Heard::{Done, Nothing, Refused};

    #[test]
    fn one_after_the_other_is_in_order() {
        let told = Told::default().claim("a", 10).settle("a", 12, Done, true).claim("b", 14);
        let told = told.settle("b", 20, Nothing, true).claim("c", 30).claim("x", 11);
        assert_eq!(told.found(), Vec::<String>::new());
        // Nobody got the second one yet.
        assert!(Told::default().claim("a", 10).found().is_empty());
    }

    #[test]
    fn whoever_passes_is_found() {
        Told::default().claim("a", 10).claim("b", 14).is_bad("b was handed out");
        let late = Told::default().claim("a", 10).claim("b", 14).settle("a", 15, Done, true);
        late.is_bad("a was not over");
        // A settle that doesn't end it frees nobody, nor does one that was refused.
        let retried = Told::default().claim("a", 10).settle("a", 12, Done, false).claim("b", 14);
        retried.is_bad("a was not over");
        let refused = Told::default().claim("a", 10).settle("a", 12, Refused, true).claim("b", 14);
        refused.is_bad("a was not over");
        // What was surely done later was not done before.
        let told = Told::default().claim("a", 10).settle("a", 12, Nothing, true).claim("b", 14);
        told.settle("a", 16, Done, true).is_bad("a was not over");
        // The first of a key that nobody was handed at all.
        Told::default().claim("b", 14).is_bad("a was not over");
    }

    #[test]
    fn whoever_comes_back_after_the_next_is_found() {
        let told = Told::default().claim("a", 10).settle("a", 12, Done, true).claim("b", 14);
        told.claim("a", 15).is_bad("after b had been");
    }

    #[test]
    fn what_is_early_is_found() {
        let delays = BTreeMap::from([(JobId::new("a").unwrap(), Duration::from_millis(100))]);
        let sent =
            || Told::default().enqueue("a", 1, Refused).enqueue("a", 10, Nothing).enqueue("a", 50, Done);
        assert!(too_early(&sent().claim("a", 110).0, &delays).is_empty());
        assert_eq!(too_early(&sent().claim("a", 109).0, &delays).len(), 1);
        assert!(too_early(&sent().0, &delays).is_empty());
    }
}
