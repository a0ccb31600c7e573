//! Who goes first when there are to be fewer pods. Pure.

use super::pods::Seen;

/// Of two pods that are ready, their controller takes the one that costs less.
const VICTIM: i32 = -1;
const UNKNOWN: i32 = 500;
const BUSY: i32 = 1000;

/// The pods to retire when `count` have to go: those with the least to do.
pub(super) fn victims(pods: &[Seen], count: usize) -> Vec<String> {
    let mut ranked: Vec<_> = pods.iter().map(|pod| (pod.ready, cost(pod), &pod.name)).collect();
    // Pods that are not ready go first whatever they cost, so they are the first to be told.
    ranked.sort();
    let mut chosen: Vec<_> = ranked.into_iter().take(count).map(|(_, _, name)| name.clone()).collect();
    chosen.sort();
    chosen
}

/// What the deletion of each pod has to cost so that it is the victims who go; only where it isn't so already.
pub(super) fn costs<'a>(pods: &'a [Seen], victims: &[String]) -> Vec<(&'a str, i32)> {
    let wanted = pods.iter().map(|pod| {
        let retires = victims.contains(&pod.name);
        (pod, if retires { VICTIM } else { cost(pod) })
    });
    wanted
        .filter(|(pod, cost)| pod.deletion_cost != *cost)
        .map(|(pod, cost)| (pod.name.as_str(), cost))
        .collect()
}

/// A pod that can't be asked may be busy: it is a worse victim than an idle one, and a better one than those that are known
/// to work.
fn cost(pod: &Seen) -> i32 {
    match &pod.status {
        None if !pod.ready => 0,
        None => UNKNOWN,
        Some(status) => match status.in_flight.saturating_add(status.unsettled) {
            0 => 0,
            jobs => BUSY.saturating_add(i32::try_from(jobs).unwrap_or(i32::MAX)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::pods::Status;

    fn pod(name: &str, ready: bool, busy: Option<u32>) -> Seen {
        Seen {
            name: name.to_owned(),
            ready,
            deletion_cost: 0,
            trouble: None,
            status: busy.map(|in_flight| Status { in_flight, ..Status::default() }),
        }
    }

    fn pods() -> Vec<Seen> {
        vec![
            pod("busy", true, Some(9)),
            pod("unknown", true, None),
            pod("idle", true, Some(0)),
            pod("light", true, Some(1)),
            pod("starting", false, None),
        ]
    }

    #[test]
    fn the_order_is_starting_idle_unknown_light_busy() {
        let mut before: Vec<String> = Vec::new();
        for next in ["starting", "idle", "unknown", "light", "busy"] {
            let chosen = victims(&pods(), before.len() + 1);
            let new: Vec<_> = chosen.iter().filter(|name| !before.contains(name)).collect();
            assert_eq!(new, [next]);
            before = chosen;
        }
    }

    #[test]
    fn more_victims_than_pods_are_all_pods() {
        assert_eq!(victims(&pods(), 99).len(), 5);
        assert_eq!(victims(&pods(), 0).len(), 0);
    }

    #[test]
    fn unsettled_jobs_keep_a_pod_busy() {
        let mut late = pod("late", true, Some(0));
        late.status.as_mut().unwrap().unsettled = 1;
        assert_eq!(victims(&[late, pod("idle", true, Some(0))], 1), ["idle"]);
    }

    #[test]
    fn only_costs_that_change_are_written() {
        let mut pods = pods();
        pods[0].deletion_cost = 1009;
        let victims = victims(&pods, 2);
        let costs = costs(&pods, &victims);
        assert_eq!(costs, [("unknown", 500), ("idle", -1), ("light", 1001), ("starting", -1)]);
    }

    #[test]
    fn a_pod_that_was_spared_is_no_victim_for_ever() {
        let mut spared = pod("spared", true, Some(3));
        spared.deletion_cost = VICTIM;
        assert_eq!(costs(&[spared], &[]), [("spared", 1003)]);
    }
}
