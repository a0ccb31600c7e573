//! How many pods a Worker should have. Pure.
//!
//! The backlog is turned into pods by the time it takes: `ready × service time ÷ (concurrency × target)`. Jobs that run
//! need their slots now; nothing is started that would have nothing to do.

use std::time::Duration;

/// Before a job's service time was measured it is assumed to be this share of the target: enough for a jump from zero
/// that fits a real backlog, bounded by one slot a job.
const ASSUMED_SHARE: u32 = 10;
/// A lower demand has to last this long before pods are retired.
pub(super) const SETTLE_BEFORE_DOWN: Duration = Duration::from_secs(10);
/// Jobs due within this time keep a Worker from going to zero.
const DUE_SOON: Duration = Duration::from_secs(5);

/// What one queue demands of this Worker.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Demand {
    /// Jobs that can be started; `None` when nobody knows.
    pub(super) ready: Option<u64>,
    /// Jobs that run; `None` when nobody knows.
    pub(super) active: Option<u64>,
    /// How long one takes, once measured.
    pub(super) service_time: Option<Duration>,
    /// How soon the next waiting job is due.
    pub(super) due_in: Option<Duration>,
    /// Only what runs counts.
    pub(super) suspended: bool,
    /// This Worker's part of the queue, in thousandths: its capacity beside that of the queue's other Workers.
    pub(super) share: u64,
}

/// Everything the decision depends on.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Inputs {
    pub(super) demands: Vec<Demand>,
    pub(super) concurrency: u32,
    /// Pods that are asked for now.
    pub(super) current: u32,
    pub(super) min: u32,
    pub(super) max: u32,
    pub(super) pinned: Option<u32>,
    pub(super) target: Duration,
    pub(super) idle_timeout: Duration,
    /// For how long there has been nothing to do.
    pub(super) idle_for: Duration,
    /// For how long fewer pods than now would have done.
    pub(super) lower_for: Duration,
    /// A pod of the newest template was ready once.
    pub(super) proven: bool,
}

/// Why the number is what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Basis {
    /// `spec.replicas` says so.
    Pinned,
    /// Some depth is not known.
    Unknown,
    /// The work says so.
    Work,
    /// The newest template has never been ready.
    Unproven,
    /// There is nothing to do.
    Idle,
}

/// How many pods, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Decision {
    pub(super) desired: u32,
    pub(super) basis: Basis,
    pub(super) message: String,
    /// There is something to do, or soon will be.
    pub(super) busy: bool,
    /// What the work alone asks for, before damping.
    pub(super) wanted: u32,
}

/// Decides.
pub(super) fn decide(inputs: &Inputs) -> Decision {
    let load = load(inputs);
    let wanted = load.pods(inputs).clamp(inputs.min, inputs.max.max(inputs.min));
    let busy = load.ready > 0 || load.active > 0 || load.due_soon;
    let made = |desired, basis, message: String| Decision { desired, basis, message, busy, wanted };
    if let Some(pinned) = inputs.pinned {
        return made(pinned, Basis::Pinned, format!("spec.replicas pins {pinned}"));
    }
    if load.unknown {
        return made(
            inputs.current,
            Basis::Unknown,
            format!("staying at {}: a queue's depth is not known", inputs.current),
        );
    }
    let told = load.tell(inputs);
    if wanted > inputs.current {
        // A template that was never ready gets one pod to prove itself.
        if !inputs.proven && wanted > inputs.current.max(1) {
            let desired = inputs.current.max(1);
            return made(
                desired,
                Basis::Unproven,
                format!("{desired} until a pod of this template was ready: {told}"),
            );
        }
        return made(wanted, Basis::Work, format!("{wanted}: {told}"));
    }
    if busy {
        let held = wanted < inputs.current && inputs.lower_for < SETTLE_BEFORE_DOWN;
        let desired = if held { inputs.current } else { wanted.max(1) };
        return made(desired, Basis::Work, format!("{desired}: {told}"));
    }
    let desired =
        if inputs.idle_for >= inputs.idle_timeout { inputs.min } else { inputs.current.max(inputs.min) };
    made(desired, Basis::Idle, format!("{desired}: nothing to do"))
}

struct Load {
    ready: u64,
    active: u64,
    /// Milliseconds of one slot that the backlog takes.
    work: u128,
    due_soon: bool,
    unknown: bool,
    measured: Option<Duration>,
}

fn load(inputs: &Inputs) -> Load {
    let mut load = Load { ready: 0, active: 0, work: 0, due_soon: false, unknown: false, measured: None };
    for demand in &inputs.demands {
        let (Some(ready), Some(active)) = (demand.ready, demand.active) else {
            load.unknown = true;
            continue;
        };
        let part = |count: u64| (u128::from(count) * u128::from(demand.share)).div_ceil(1000);
        load.active += u64::try_from(part(active)).unwrap_or(u64::MAX);
        if demand.suspended {
            continue;
        }
        let ready = part(ready);
        let service = demand.service_time.unwrap_or(inputs.target / ASSUMED_SHARE);
        load.measured = load.measured.or(demand.service_time);
        load.ready += u64::try_from(ready).unwrap_or(u64::MAX);
        load.work += ready.saturating_mul(service.as_millis().max(1));
        load.due_soon |= demand.due_in.is_some_and(|wait| wait <= DUE_SOON);
    }
    load
}

impl Load {
    fn pods(&self, inputs: &Inputs) -> u32 {
        let slots = u128::from(inputs.concurrency.max(1));
        let running = u128::from(self.active).div_ceil(slots);
        let backlog = self.work.div_ceil(inputs.target.as_millis().max(1) * slots);
        // More pods than one slot for each job would have nothing to do.
        let useful = (u128::from(self.ready) + u128::from(self.active)).div_ceil(slots);
        let pods = (running.max(1) + backlog).min(useful).max(running).max(u128::from(self.due_soon));
        u32::try_from(pods).unwrap_or(u32::MAX)
    }

    fn tell(&self, inputs: &Inputs) -> String {
        let pace =
            self.measured.map_or_else(String::new, |time| format!(", {:.2} s a job", time.as_secs_f64()));
        format!("{} waiting, {} running{pace}, target {} s", self.ready, self.active, inputs.target.as_secs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demand(ready: u64, active: u64) -> Demand {
        Demand {
            ready: Some(ready),
            active: Some(active),
            service_time: None,
            due_in: None,
            suspended: false,
            share: 1000,
        }
    }

    fn inputs(ready: u64, active: u64) -> Inputs {
        Inputs {
            demands: vec![demand(ready, active)],
            concurrency: 10,
            current: 0,
            min: 0,
            max: 20,
            pinned: None,
            target: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(60),
            idle_for: Duration::ZERO,
            lower_for: Duration::ZERO,
            proven: true,
        }
    }

    fn desired(change: impl FnOnce(&mut Inputs), ready: u64, active: u64) -> (u32, Basis) {
        let mut inputs = inputs(ready, active);
        change(&mut inputs);
        let decision = decide(&inputs);
        (decision.desired, decision.basis)
    }

    #[test]
    fn one_job_wakes_one_pod() {
        assert_eq!(desired(|_| {}, 1, 0), (1, Basis::Work));
    }

    #[test]
    fn a_backlog_jumps_from_zero_in_one_step() {
        let second = |it: &mut Inputs| it.demands[0].service_time = Some(Duration::from_secs(1));
        // 3000 s of work, 10 slots a pod, 30 s: ten pods, beside the one that any work gets.
        assert_eq!(desired(second, 3000, 0), (11, Basis::Work));
        assert_eq!(desired(second, 100_000, 0), (20, Basis::Work));
    }

    #[test]
    fn no_pod_without_a_job_for_it() {
        let slow = |it: &mut Inputs| it.demands[0].service_time = Some(Duration::from_secs(3600));
        assert_eq!(desired(slow, 5, 0), (1, Basis::Work));
        assert_eq!(desired(slow, 15, 0), (2, Basis::Work));
    }

    #[test]
    fn a_queue_is_shared_with_its_other_workers() {
        let half = |it: &mut Inputs| {
            it.demands[0].service_time = Some(Duration::from_secs(1));
            it.demands[0].share = 500;
        };
        assert_eq!(desired(half, 3000, 0), (6, Basis::Work));
    }

    #[test]
    fn suspended_queues_count_only_what_runs() {
        assert_eq!(desired(|it| it.demands[0].suspended = true, 500, 0), (0, Basis::Idle));
        let running = |it: &mut Inputs| {
            it.demands[0].suspended = true;
            it.current = 2;
        };
        assert_eq!(desired(running, 500, 15), (2, Basis::Work));
    }

    #[test]
    fn unknown_depths_freeze_the_size() {
        let unknown = |it: &mut Inputs| {
            it.demands[0].ready = None;
            it.current = 7;
        };
        assert_eq!(desired(unknown, 0, 0), (7, Basis::Unknown));
        let one_known = |it: &mut Inputs| {
            it.demands.push(Demand { ready: None, ..demand(0, 0) });
            it.current = 3;
        };
        assert_eq!(desired(one_known, 10_000, 0), (3, Basis::Unknown));
    }

    #[test]
    fn a_pin_wins_over_everything() {
        assert_eq!(desired(|it| it.pinned = Some(2), 10_000, 50), (2, Basis::Pinned));
        let unknown = |it: &mut Inputs| {
            it.demands[0].ready = None;
            it.pinned = Some(0);
        };
        assert_eq!(desired(unknown, 0, 0), (0, Basis::Pinned));
    }

    #[test]
    fn a_template_that_was_never_ready_gets_one_pod() {
        assert_eq!(desired(|it| it.proven = false, 10_000, 0), (1, Basis::Unproven));
        let more = |it: &mut Inputs| {
            it.proven = false;
            it.current = 4;
        };
        assert_eq!(desired(more, 10_000, 0), (4, Basis::Unproven));
    }

    #[test]
    fn fewer_pods_only_after_the_demand_stayed_low() {
        let soon = |it: &mut Inputs| it.current = 5;
        assert_eq!(desired(soon, 3, 2), (5, Basis::Work));
        let later = |it: &mut Inputs| {
            it.current = 5;
            it.lower_for = SETTLE_BEFORE_DOWN;
        };
        assert_eq!(desired(later, 3, 2), (1, Basis::Work));
    }

    #[test]
    fn idle_pods_go_after_the_idle_timeout() {
        let current = |it: &mut Inputs| it.current = 3;
        assert_eq!(desired(current, 0, 0), (3, Basis::Idle));
        let idle = |it: &mut Inputs| {
            it.current = 3;
            it.idle_for = it.idle_timeout;
        };
        assert_eq!(desired(idle, 0, 0), (0, Basis::Idle));
        let kept = |it: &mut Inputs| {
            idle(it);
            it.min = 2;
        };
        assert_eq!(desired(kept, 0, 0), (2, Basis::Idle));
    }

    #[test]
    fn a_job_that_is_due_soon_keeps_a_pod() {
        let due = |it: &mut Inputs| {
            it.demands[0].due_in = Some(Duration::from_secs(2));
            it.current = 1;
            it.idle_for = Duration::from_secs(600);
        };
        assert_eq!(desired(due, 0, 0), (1, Basis::Work));
        let far = |it: &mut Inputs| {
            due(it);
            it.demands[0].due_in = Some(Duration::from_secs(3600));
        };
        assert_eq!(desired(far, 0, 0), (0, Basis::Idle));
    }

    #[test]
    fn the_minimum_holds_without_work() {
        assert_eq!(desired(|it| it.min = 2, 0, 0), (2, Basis::Work));
    }
}
