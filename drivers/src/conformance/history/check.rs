//! What a history must not hold.

use super::{Did, Event, Fate, Heard};
use crate::{JobId, Receipt, Timestamp};
use std::{collections::BTreeMap, time::Duration};

/// More findings than this say nothing new.
const SHOWN: usize = 20;

pub(super) fn check(events: &[Event], fates: &BTreeMap<JobId, Fate>) -> Vec<String> {
    let mut jobs: BTreeMap<&JobId, Story<'_>> = BTreeMap::new();
    for event in events {
        jobs.entry(&event.job).or_default().add(event);
    }
    let findings = jobs.iter_mut().flat_map(|(id, story)| {
        story.claims.sort_by_key(|claim| claim.from);
        let fate = fates.get(*id).copied().unwrap_or(Fate::Unknown);
        story.findings(fate).into_iter().map(move |finding| format!("job {id}: {finding}"))
    });
    findings.take(SHOWN).collect()
}

/// What happened to one job.
#[derive(Debug, Default)]
struct Story<'a> {
    enqueues: Vec<Enqueue>,
    claims: Vec<Claim<'a>>,
    extensions: Vec<Extension<'a>>,
    settles: Vec<Settle<'a>>,
}

#[derive(Debug)]
struct Enqueue {
    start: Duration,
    heard: Heard,
    created: bool,
}

#[derive(Debug)]
struct Claim<'a> {
    start: Duration,
    end: Duration,
    receipt: &'a Receipt,
    from: Timestamp,
    until: Timestamp,
}

#[derive(Debug)]
struct Extension<'a> {
    start: Duration,
    receipt: &'a Receipt,
    until: Timestamp,
}

#[derive(Debug)]
struct Settle<'a> {
    start: Duration,
    end: Duration,
    receipt: &'a Receipt,
    heard: Heard,
    ends: bool,
}

impl<'a> Story<'a> {
    fn add(&mut self, event: &'a Event) {
        let (start, end) = (event.start, event.end);
        match &event.did {
            Did::Enqueue { heard, created } => {
                self.enqueues.push(Enqueue { start, heard: *heard, created: *created });
            }
            Did::Claim { receipt, from, until } => {
                self.claims.push(Claim { start, end, receipt, from: *from, until: *until });
            }
            Did::Extend { receipt, heard: Heard::Done, until: Some(until) } => {
                self.extensions.push(Extension { start, receipt, until: *until });
            }
            // It promises nothing.
            Did::Extend { .. } => {}
            Did::Settle { receipt, heard, ends } => {
                self.settles.push(Settle { start, end, receipt, heard: *heard, ends: *ends });
            }
        }
    }

    fn findings(&self, fate: Fate) -> Vec<String> {
        let mut found = Vec::new();
        found.extend(self.invented());
        found.extend(self.doubled());
        found.extend(self.overlapping());
        found.extend(self.stale());
        found.extend(self.raised());
        found.extend(self.lost(fate));
        found
    }

    /// Handed out, and nobody had put it in before.
    fn invented(&self) -> Option<String> {
        let first = self.claims.iter().map(|claim| claim.end).min()?;
        let sent =
            self.enqueues.iter().any(|enqueue| enqueue.heard != Heard::Refused && enqueue.start < first);
        (!sent).then(|| format!("it was handed out at {first:?}, and nobody had enqueued it"))
    }

    /// New twice.
    fn doubled(&self) -> Option<String> {
        let created = self.enqueues.iter().filter(|enqueue| enqueue.created).count();
        (created > 1).then(|| format!("it was new {created} times"))
    }

    /// Two leases at one time, by the broker's clock.
    fn overlapping(&self) -> Vec<String> {
        let pairs = self.claims.iter().zip(self.claims.iter().skip(1));
        let overlaps = pairs.filter_map(|(first, second)| {
            let given_back = self.settles.iter().any(|settle| {
                settle.receipt == first.receipt
                    && settle.heard != Heard::Refused
                    && settle.start <= second.end
            });
            let extended = self.extensions.iter().filter(|extension| extension.receipt == first.receipt);
            let until = extended.map(|extension| extension.until).fold(first.until, Ord::max);
            (!given_back && second.from < until).then(|| {
                let early = until.since(second.from);
                format!("{} took it {early:?} before the lease of {} ended", second.receipt, first.receipt)
            })
        });
        overlaps.collect()
    }

    /// A receipt was good although somebody else had got the job since, or was good twice, or was nobody's.
    fn stale(&self) -> Vec<String> {
        let settled = self.settles.iter().filter(|settle| settle.heard == Heard::Done);
        let settled = settled.map(|settle| ("settled", settle.receipt, settle.start));
        let extended =
            self.extensions.iter().map(|extension| ("extended", extension.receipt, extension.start));
        let mut found: Vec<_> = settled
            .chain(extended)
            .filter_map(|(what, receipt, start)| {
                let Some(claim) = self.claims.iter().find(|claim| claim.receipt == receipt) else {
                    return Some(format!("it was {what} with {receipt}, which nobody had got"));
                };
                let since = self.claims.iter().find(|other| other.from > claim.from && other.end < start)?;
                Some(format!("it was {what} with {receipt} after {} had been handed out", since.receipt))
            })
            .collect();
        for claim in &self.claims {
            let good = |settle: &&Settle<'_>| settle.receipt == claim.receipt && settle.heard == Heard::Done;
            let times = self.settles.iter().filter(good).count();
            if times > 1 {
                found.push(format!("{} settled it {times} times", claim.receipt));
            }
        }
        found
    }

    /// The end that a client knows of.
    fn end(&self) -> Option<&Settle<'a>> {
        self.settles.iter().find(|settle| settle.ends && settle.heard == Heard::Done)
    }

    /// Handed out or ended again after its end.
    fn raised(&self) -> Vec<String> {
        let Some(end) = self.end() else { return Vec::new() };
        let mut found = Vec::new();
        let ends = self.settles.iter().filter(|settle| settle.ends && settle.heard == Heard::Done).count();
        if ends > 1 {
            found.push(format!("it ended {ends} times"));
        }
        if let Some(claim) = self.claims.iter().find(|claim| claim.start > end.end) {
            found.push(format!("{} was handed out after {} had ended it", claim.receipt, end.receipt));
        }
        found
    }

    /// Not where it has to be.
    fn lost(&self, fate: Fate) -> Option<String> {
        let heard = |what| self.enqueues.iter().any(|enqueue| enqueue.heard == what);
        let may_have_ended = self.settles.iter().any(|settle| settle.ends && settle.heard == Heard::Nothing);
        match fate {
            Fate::Unknown if heard(Heard::Done) => Some("it was acknowledged, and it is gone".to_owned()),
            Fate::Unknown if !self.claims.is_empty() => Some("it was handed out, and it is gone".to_owned()),
            Fate::Waits if self.end().is_some() => Some("it ended, and it is still there".to_owned()),
            Fate::Ended if self.end().is_none() && !may_have_ended => {
                Some("it is over, and nobody ended it".to_owned())
            }
            Fate::Waits | Fate::Ended if !heard(Heard::Done) && !heard(Heard::Nothing) => {
                Some("every enqueue was refused, and it is there".to_owned())
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A history under construction: each event takes the time from one moment to the next.
    #[derive(Default)]
    struct Told {
        events: Vec<Event>,
        clock: u64,
    }

    impl Told {
        fn event(mut self, did: Did) -> Self {
            let start = Duration::from_millis(self.clock);
            self.clock += 10;
            let (end, job) = (Duration::from_millis(self.clock), JobId::new("one").unwrap());
            self.clock += 10;
            self.events.push(Event { job, client: 0, start, end, did });
            self
        }

        fn enqueue(self, heard: Heard) -> Self {
            self.event(Did::Enqueue { heard, created: heard == Heard::Done })
        }

        fn known(self) -> Self {
            self.event(Did::Enqueue { heard: Heard::Done, created: false })
        }

        fn claim(self, receipt: &str, from: i64, until: i64) -> Self {
            let (from, until) = (Timestamp::from_millis(from), Timestamp::from_millis(until));
            self.event(Did::Claim { receipt: Receipt(receipt.into()), from, until })
        }

        fn extend(self, receipt: &str, heard: Heard, until: i64) -> Self {
            let until = (heard == Heard::Done).then(|| Timestamp::from_millis(until));
            self.event(Did::Extend { receipt: Receipt(receipt.into()), heard, until })
        }

        fn settle(self, receipt: &str, heard: Heard, ends: bool) -> Self {
            self.event(Did::Settle { receipt: Receipt(receipt.into()), heard, ends })
        }

        /// The last event began before the one before it had ended.
        fn meanwhile(mut self) -> Self {
            let at = self.events.len() - 2;
            let start = self.events[at].start;
            self.events[at + 1].start = start;
            self
        }

        fn found(&self, fate: Fate) -> Vec<String> {
            check(&self.events, &BTreeMap::from([(JobId::new("one").unwrap(), fate)]))
        }

        fn is_good(&self, fate: Fate) {
            assert_eq!(self.found(fate), Vec::<String>::new());
        }

        fn is_bad(&self, fate: Fate, because: &str) {
            let found = self.found(fate);
            assert!(found.len() == 1 && found[0].contains(because), "{found:?}");
        }
    }

    use Heard::{Done, Nothing, Refused};

    fn told() -> Told {
        Told::default()
    }

    #[test]
    fn a_job_that_ends_once_is_good() {
        told().enqueue(Done).claim("a", 0, 100).settle("a", Done, true).is_good(Fate::Ended);
        told().enqueue(Done).is_good(Fate::Waits);
        let again = told().enqueue(Done).claim("a", 0, 100).settle("a", Done, false);
        again.claim("b", 20, 120).settle("b", Done, true).known().is_good(Fate::Ended);
    }

    #[test]
    fn what_nobody_knows_may_or_may_not_be() {
        told().enqueue(Nothing).is_good(Fate::Unknown);
        told().enqueue(Nothing).is_good(Fate::Waits);
        told().enqueue(Refused).is_good(Fate::Unknown);
        told().enqueue(Nothing).known().claim("a", 0, 9).is_good(Fate::Waits);
        let ambiguous = || told().enqueue(Done).claim("a", 0, 100).settle("a", Nothing, true);
        ambiguous().is_good(Fate::Ended);
        ambiguous().is_good(Fate::Waits);
        ambiguous().settle("a", Refused, true).is_good(Fate::Ended);
        ambiguous().claim("b", 100, 200).settle("b", Done, true).is_good(Fate::Ended);
        // A retry that nobody heard of gives the job back.
        let retried = told().enqueue(Done).claim("a", 0, 100).settle("a", Nothing, false);
        retried.claim("b", 30, 130).is_good(Fate::Waits);
    }

    #[test]
    fn a_lost_job_is_found() {
        told().enqueue(Done).is_bad(Fate::Unknown, "it is gone");
        told().enqueue(Nothing).claim("a", 0, 9).is_bad(Fate::Unknown, "it is gone");
        told().enqueue(Done).is_bad(Fate::Ended, "nobody ended it");
        let ended = told().enqueue(Done).claim("a", 0, 100).settle("a", Done, true);
        ended.is_bad(Fate::Waits, "still there");
        told().enqueue(Refused).is_bad(Fate::Waits, "every enqueue was refused");
    }

    #[test]
    fn a_job_from_nowhere_is_found() {
        let nowhere = told().claim("a", 0, 100).enqueue(Done);
        nowhere.is_bad(Fate::Waits, "nobody had enqueued it");
        let refused = told().enqueue(Refused).claim("a", 0, 100);
        assert!(refused.found(Fate::Waits).iter().any(|found| found.contains("nobody had enqueued it")));
        told().enqueue(Done).enqueue(Done).is_bad(Fate::Waits, "new 2 times");
    }

    #[test]
    fn two_leases_at_once_are_found() {
        let claimed = || told().enqueue(Done).claim("a", 0, 100);
        claimed().claim("b", 100, 200).is_good(Fate::Waits);
        claimed().claim("b", 99, 200).is_bad(Fate::Waits, "1ms before the lease of a ended");
        let extended = || claimed().extend("a", Done, 300);
        extended().claim("b", 299, 400).is_bad(Fate::Waits, "before the lease of a ended");
        extended().claim("b", 300, 400).is_good(Fate::Waits);
        claimed().extend("a", Nothing, 300).claim("b", 100, 200).is_good(Fate::Waits);
        let refused = claimed().settle("a", Refused, false);
        refused.claim("b", 50, 150).is_bad(Fate::Waits, "before the lease of a ended");
        // The settle that would explain it came later.
        let late = claimed().claim("b", 50, 150).settle("a", Refused, false);
        late.is_bad(Fate::Waits, "before the lease of a ended");
        // It was on its way when the job was handed out.
        let meanwhile = claimed().settle("a", Done, false).claim("b", 50, 150).meanwhile();
        meanwhile.is_good(Fate::Waits);
    }

    #[test]
    fn a_stale_receipt_that_was_good_is_found() {
        let twice = || told().enqueue(Done).claim("a", 0, 100).claim("b", 100, 200);
        twice().settle("a", Refused, true).settle("b", Done, true).is_good(Fate::Ended);
        twice().settle("a", Done, false).is_bad(Fate::Waits, "settled with a after b");
        assert!(
            twice().extend("a", Done, 300).found(Fate::Waits).iter().any(|found| found.contains("extended"))
        );
        let once = told().enqueue(Done).claim("a", 0, 100);
        once.settle("x", Done, false).is_bad(Fate::Waits, "which nobody had got");
        let once = told().enqueue(Done).claim("a", 0, 100);
        once.settle("a", Done, false).settle("a", Done, false).is_bad(Fate::Waits, "settled it 2 times");
    }

    #[test]
    fn a_job_that_runs_after_its_end_is_found() {
        let ended = || told().enqueue(Done).claim("a", 0, 100).settle("a", Done, true);
        ended().claim("b", 40, 140).is_bad(Fate::Ended, "handed out after a had ended it");
        let twice = ended().claim("b", 40, 140).settle("b", Done, true);
        assert!(twice.found(Fate::Ended).iter().any(|found| found.contains("ended 2 times")));
    }
}
