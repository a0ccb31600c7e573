//! A broker that remembers ids for as long as its contract says, and not any longer.

use crate::world::{failed, settled, succeeded};
use longshore_workflow::{Event, Millis, Outcome, Target};
use std::collections::{BTreeMap, BTreeSet};

/// What becomes of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Succeeds,
    Fails,
    /// Succeeds, whoever asks it to stop.
    Stubborn,
    /// Never ends by itself.
    Hangs,
    /// The broker takes it and loses it, once, before it ran.
    Forgotten,
    /// The broker refuses it.
    Refused,
}

/// How a job ends that has this fate.
pub(crate) fn outcome(fate: Fate) -> Outcome {
    match fate {
        Fate::Fails => failed(),
        Fate::Succeeds | Fate::Stubborn | Fate::Hangs | Fate::Forgotten | Fate::Refused => succeeded(),
    }
}

/// What the broker says to a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    Created,
    Duplicate(Option<Outcome>),
    Refused,
}

/// A broker that keeps the record of a job until its completion was acknowledged and it was unpinned: from then on it
/// takes the same id for a new job, which runs again.
#[derive(Debug, Clone, Default)]
pub(crate) struct Broker {
    /// The records of jobs, with their outcome.
    pub(crate) jobs: BTreeMap<Target, Option<Outcome>>,
    /// How often a job was started.
    pub(crate) started: BTreeMap<Target, u32>,
    /// Completions that nobody acknowledged.
    pub(crate) completions: Vec<Event>,
    acknowledged: BTreeSet<Target>,
    unpinned: BTreeSet<Target>,
    /// Jobs that it lost before they ran.
    lost: BTreeSet<Target>,
}

impl Broker {
    pub(crate) fn enqueue(&mut self, target: Target, fate: Fate) -> Answer {
        if let Some(known) = self.jobs.get(&target) {
            return Answer::Duplicate(known.clone());
        }
        match fate {
            Fate::Refused => return Answer::Refused,
            Fate::Forgotten if self.lost.insert(target) => return Answer::Created,
            Fate::Succeeds | Fate::Fails | Fate::Stubborn | Fate::Hangs | Fate::Forgotten => {}
        }
        self.jobs.insert(target, None);
        *self.started.entry(target).or_default() += 1;
        Answer::Created
    }

    pub(crate) fn cancel(&mut self, target: Target, fate: Fate, now: Millis) {
        if self.jobs.get(&target) == Some(&None) && fate != Fate::Stubborn {
            self.settle(target, Outcome::Cancelled, now);
        }
    }

    pub(crate) fn settle(&mut self, target: Target, outcome: Outcome, now: Millis) {
        self.jobs.insert(target, Some(outcome.clone()));
        self.completions.push(settled(target, outcome, now));
    }

    /// Somebody has its completion for good.
    pub(crate) fn acknowledge(&mut self, target: Target) {
        self.completions.retain(|event| !matches!(event, Event::Settled { target: of, .. } if *of == target));
        if self.jobs.get(&target).is_some_and(Option::is_some) {
            self.acknowledged.insert(target);
        }
    }

    /// Nobody needs these records any more. Unknown ones are fine.
    pub(crate) fn unpin(&mut self, targets: impl IntoIterator<Item = Target>) {
        self.unpinned.extend(targets.into_iter().filter(|target| self.jobs.contains_key(target)));
    }

    /// Forgets what nothing keeps.
    pub(crate) fn forget(&mut self) {
        let gone: Vec<_> = self.acknowledged.intersection(&self.unpinned).copied().collect();
        for target in gone {
            self.jobs.remove(&target);
            self.acknowledged.remove(&target);
            self.unpinned.remove(&target);
        }
    }

    /// The jobs that have not ended.
    pub(crate) fn running(&self) -> Vec<Target> {
        let open = self.jobs.iter().filter(|(_, outcome)| outcome.is_none());
        open.map(|(target, _)| *target).collect()
    }

    /// The jobs that can end by themselves.
    pub(crate) fn runnable(&self, fate: impl Fn(&Target) -> Fate) -> Vec<Target> {
        self.running().into_iter().filter(|target| fate(target) != Fate::Hangs).collect()
    }
}
