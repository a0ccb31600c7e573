//! Who goes when there are to be fewer pods, and when. Pure.
//!
//! Pods that are to go are told to claim nothing more. The number is lowered only by those that have nothing left to do,
//! unless the user asked for fewer pods: then it is lowered at once, and what runs has the drain timeout to end.

use super::pods::{Seen, Status};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// Of two pods that are ready, their controller takes the one that costs less.
const RETIRED: i32 = -1;
/// What a pod costs about which nothing was said.
const STAYS: i32 = 0;
/// Told, and still at work. That it is another number than before makes the kubelet look at the pod, and with it at the
/// policy that names it, at once.
const TOLD: i32 = 1;
/// How bad a victim a pod is.
const UNKNOWN: u32 = 500;
const BUSY: u32 = 1000;
/// A file from a ConfigMap is in all pods after this long.
const POLICY_ARRIVES: Duration = Duration::from_secs(90);

/// What is to become of the number of pods.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shrink {
    /// Pods that are asked for now.
    pub(super) current: u32,
    /// What the decision asks for.
    pub(super) desired: u32,
    /// The most that the user allows: whatever is above goes, busy or not.
    pub(super) allowed: u32,
    /// Nobody has anything to do, as far as the brokers know.
    pub(super) idle: bool,
    pub(super) drain_timeout: Duration,
}

/// Who goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Retirement {
    /// Pods that shall claim nothing more.
    pub(super) told: Vec<String>,
    /// Those of them that go now.
    pub(super) leaving: Vec<String>,
    /// The pods to ask for now.
    pub(super) replicas: u32,
}

impl Retirement {
    /// The number stays, and so do those that were told, as long as there are to be fewer pods.
    pub(super) fn unchanged(shrink: Shrink, told: &Told) -> Self {
        let told = if shrink.desired < shrink.current { told.names() } else { Vec::new() };
        Self { told, leaving: Vec::new(), replicas: shrink.desired.max(shrink.current.min(shrink.allowed)) }
    }
}

/// Since when pods have been told to claim nothing more.
#[derive(Debug, Clone, Default)]
pub(super) struct Told(BTreeMap<String, Instant>);

impl Told {
    /// Those who are told now; the others may claim again.
    pub(super) fn keep(&mut self, told: &[String], now: Instant) {
        self.0.retain(|name, _| told.contains(name));
        for name in told {
            self.0.entry(name.clone()).or_insert(now);
        }
    }

    fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    fn has(&self, pod: &str) -> bool {
        self.0.contains_key(pod)
    }

    fn since(&self, pod: &str, now: Instant) -> Option<Duration> {
        self.0.get(pod).map(|at| now.saturating_duration_since(*at))
    }
}

/// Decides who goes, from what all pods just said.
pub(super) fn retire(pods: &[Seen], shrink: Shrink, told: &Told, now: Instant) -> Retirement {
    let Shrink { current, desired, allowed, .. } = shrink;
    let leaving = current.saturating_sub(desired) as usize;
    if leaving == 0 {
        return Retirement { replicas: desired, ..Retirement::default() };
    }
    // Their controller takes what isn't ready first, whatever it costs. Who was told before stays so, or the jobs of one
    // after the other would run out in vain; but who has nothing to do is a better one.
    let mut ranked: Vec<_> = pods.iter().collect();
    ranked.sort_by_key(|pod| (pod.ready, !is_done(pod), !told.has(&pod.name), rank(pod), &pod.name));
    // Pods that were not even made are the first not to be there.
    let unmade = (current as usize).saturating_sub(pods.len()).min(leaving);
    ranked.truncate(leaving - unmade);
    let free = ranked.iter().take_while(|pod| is_free(pod, shrink, told, now)).count();
    let willing = current.saturating_sub(u32::try_from(unmade + free).unwrap_or(u32::MAX));
    let replicas = willing.min(allowed).max(desired);
    let going = (current.saturating_sub(replicas) as usize).saturating_sub(unmade);
    let names = |pods: &[&Seen]| {
        let mut names: Vec<_> = pods.iter().map(|pod| pod.name.clone()).collect();
        names.sort();
        names
    };
    Retirement { leaving: names(&ranked[..going.min(ranked.len())]), told: names(&ranked), replicas }
}

/// Whether nothing is cut off when the pod goes.
fn is_free(pod: &Seen, shrink: Shrink, told: &Told, now: Instant) -> bool {
    match &pod.status {
        // While there is work, an idle pod that doesn't know yet may take some the next moment.
        Some(status) => jobs(status) == 0 && (shrink.idle || status.victim != Some(false)),
        None if shrink.idle || !pod.ready => true,
        // Nobody can ask it. It has had all the time that running jobs have anyway.
        None => {
            told.since(&pod.name, now).is_some_and(|since| since >= shrink.drain_timeout + POLICY_ARRIVES)
        }
    }
}

/// What the deletion of each pod has to cost so that it is those who are to leave that go; only where it isn't so already.
pub(super) fn costs(pods: &[Seen], retirement: &Retirement) -> Vec<(String, i32)> {
    let wanted = pods.iter().map(|pod| {
        let cost = if retirement.leaving.contains(&pod.name) {
            RETIRED
        } else if retirement.told.contains(&pod.name) {
            TOLD
        } else if matches!(pod.deletion_cost, RETIRED | TOLD) {
            STAYS
        } else {
            pod.deletion_cost
        };
        (pod, cost)
    });
    wanted
        .filter(|(pod, cost)| pod.deletion_cost != *cost)
        .map(|(pod, cost)| (pod.name.clone(), cost))
        .collect()
}

/// A pod that can't be asked may be busy: it is a worse victim than an idle one, and a better one than those that are known
/// to work.
fn rank(pod: &Seen) -> u32 {
    match &pod.status {
        None if !pod.ready => 0,
        None => UNKNOWN,
        Some(status) => match jobs(status) {
            0 => 0,
            jobs => BUSY.saturating_add(jobs),
        },
    }
}

/// Whether it is known to have nothing to do.
fn is_done(pod: &Seen) -> bool {
    rank(pod) == 0
}

fn jobs(status: &Status) -> u32 {
    status.in_flight.saturating_add(status.unsettled)
}

/// The jobs that run in these pods, if all of them that can have any told.
pub(super) fn running(pods: &[Seen]) -> Option<u64> {
    let each = pods.iter().map(|pod| match &pod.status {
        Some(status) => Some(u64::from(jobs(status))),
        None if !pod.ready => Some(0),
        None => None,
    });
    each.sum()
}

#[cfg(test)]
#[path = "victims_tests.rs"]
mod tests;
