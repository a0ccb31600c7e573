//! How many pods a Worker should have. Pure.
//!
//! Work is measured in the time that one slot needs for it. So many pods are wanted that all slots together get through
//! what waits and what runs within the target; never fewer than what runs needs right now, never more than there are
//! slots' worth of jobs.

use std::time::Duration;

/// Before a job's service time was measured it is assumed to be this part of the target: enough for a jump from zero that
/// fits a real backlog. The first finished jobs correct it, and there is never more than one slot for each job.
const ASSUMED_PART: u32 = 10;
/// Pods are retired only when they were not wanted for this long.
pub(super) const SETTLE_BEFORE_DOWN: Duration = Duration::from_secs(10);
/// A job that is due within this time is work: a pod takes about as long to start.
pub(super) const DUE_SOON: Duration = Duration::from_secs(5);

/// What one queue demands of this Worker.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Demand {
    /// Jobs that can be started; `None` when nobody knows.
    pub(super) ready: Option<u64>,
    /// Jobs that run; `None` when nobody knows.
    pub(super) active: Option<u64>,
    /// Jobs that wait behind others of their key; `None` when nobody knows. They start when those are over, not before, so
    /// that no pod could do anything about them.
    pub(super) blocked: Option<u64>,
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
    /// Jobs at once in one pod.
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
    /// The most pods that were wanted within the last [`SETTLE_BEFORE_DOWN`].
    pub(super) recent_high: u32,
    /// A pod of the newest template was ready once.
    pub(super) proven: bool,
    /// Jobs that run in this Worker's pods, as their sidecars say; `None` when not all of them told.
    pub(super) running: Option<u64>,
    /// A queue of this Worker isn't there. What it would demand is not known.
    pub(super) incomplete: bool,
}

/// Why the number is what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Basis {
    /// `spec.replicas` says so.
    Pinned,
    /// Some depth is not known.
    Unknown,
    /// A queue isn't there: no fewer pods.
    Incomplete,
    /// The newest template has never been ready.
    Unproven,
    /// The work says so.
    Work,
    /// There is nothing to do.
    Idle,
}

/// How many pods, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Decision {
    pub(super) desired: u32,
    pub(super) basis: Basis,
    /// Why, for people.
    pub(super) why: String,
    /// There is something to do, or soon will be.
    pub(super) busy: bool,
    /// What the work alone asks for, before damping.
    pub(super) wanted: u32,
}

impl Decision {
    /// The same with more pods for now: those have yet to finish.
    pub(super) fn held(mut self, replicas: u32) -> Self {
        let more = replicas.saturating_sub(self.desired);
        if more > 0 {
            self.why = format!("{} ({more} more until they have finished)", self.why);
            self.desired = replicas;
        }
        self
    }

    /// The decision in one line.
    pub(super) fn message(&self) -> String {
        format!("desired {}: {}", self.desired, self.why)
    }
}

/// Decides.
pub(super) fn decide(inputs: &Inputs) -> Decision {
    let load = Load::of(inputs);
    let busy = load.busy(inputs);
    let wanted = load.wanted(inputs);
    let made = |desired, basis, why| Decision { desired, basis, why, busy, wanted };
    if let Some(pinned) = inputs.pinned {
        return made(pinned, Basis::Pinned, "spec.replicas pins it".to_owned());
    }
    if load.unknown {
        // What the user allows holds even while nobody knows the depth; nothing else moves.
        let held = inputs.current.clamp(inputs.min, inputs.most());
        let desired = held.min(inputs.provable(held));
        return made(desired, Basis::Unknown, "the depth of a queue is not known".to_owned());
    }
    let why = load.tell(inputs);
    if inputs.incomplete && wanted <= inputs.current {
        let held = inputs.current.clamp(inputs.min, inputs.most());
        let desired = held.min(inputs.provable(held));
        return made(desired, Basis::Incomplete, "a queue is missing, so there may be more to do".to_owned());
    }
    if wanted > inputs.current {
        let provable = inputs.provable(wanted);
        if provable < wanted {
            return made(
                provable,
                Basis::Unproven,
                format!("no pod of this template was ready yet; then {wanted}: {why}"),
            );
        }
        return made(wanted, Basis::Work, why);
    }
    if busy {
        return made(inputs.damped(wanted), Basis::Work, why);
    }
    // The idle timeout is a damping of its own.
    let over = inputs.idle_for >= inputs.idle_timeout;
    let desired = if over { wanted } else { inputs.damped(wanted) };
    made(desired, Basis::Idle, "nothing to do".to_owned())
}

impl Inputs {
    /// The most that the user allows.
    pub(super) fn most(&self) -> u32 {
        self.max.max(self.min)
    }

    /// How far up it may go: a template that was never ready gets one pod to prove itself.
    fn provable(&self, wanted: u32) -> u32 {
        if self.proven { wanted } else { wanted.min(self.current.max(1)) }
    }

    /// Not lower than what was wanted a moment ago.
    fn damped(&self, wanted: u32) -> u32 {
        wanted.max(self.recent_high).min(self.current).clamp(self.min, self.most())
    }

    fn slots(&self) -> u64 {
        u64::from(self.concurrency.max(1))
    }
}

/// All queues together, this Worker's part of them.
#[derive(Debug, Default)]
struct Load {
    ready: u64,
    active: u64,
    blocked: u64,
    /// Milliseconds of one slot that it all takes.
    work: u128,
    due_soon: bool,
    unknown: bool,
    /// The slowest queue that has something to do.
    service_time: Option<Duration>,
}

impl Load {
    fn of(inputs: &Inputs) -> Self {
        let mut load = Self::default();
        // What runs beyond the slots of this Worker runs elsewhere, or in pods that are on their way out.
        let mut slots = u64::from(inputs.current).saturating_mul(inputs.slots());
        let all_active =
            inputs.demands.iter().filter_map(|demand| demand.active).fold(0, u64::saturating_add);
        // Not more than the brokers count: what was claimed after they counted is among what they count as waiting.
        let own = inputs.running.map(|running| running.min(all_active));
        for demand in &inputs.demands {
            let (Some(ready), Some(active), Some(blocked)) = (demand.ready, demand.active, demand.blocked)
            else {
                load.unknown = true;
                continue;
            };
            // Sidecars know what runs here; a share of what runs anywhere is a guess.
            let active = match own {
                Some(own) => proportion(active, own, all_active).min(own - load.active),
                None => demand.part(active).min(slots),
            };
            slots = slots.saturating_sub(active);
            let ready = if demand.suspended { 0 } else { demand.part(ready) };
            let service = demand.service_time.unwrap_or(inputs.target / ASSUMED_PART);
            let blocked = if demand.suspended { 0 } else { demand.part(blocked) };
            // What runs takes its slot for as long as it runs, but not beyond the time that is planned for.
            let work =
                slot_millis(ready, service).saturating_add(slot_millis(active, service.min(inputs.target)));
            // Jobs behind others are work too, of as many slots as there are lines to work off in time.
            let lines = slot_millis(ready.saturating_add(active), inputs.target);
            let behind = slot_millis(blocked, service).min(lines.saturating_sub(work));
            load.work = load.work.saturating_add(work).saturating_add(behind);
            load.ready = load.ready.saturating_add(ready);
            load.active = load.active.saturating_add(active);
            load.blocked = load.blocked.saturating_add(blocked);
            load.due_soon |= !demand.suspended && demand.due_in.is_some_and(|wait| wait <= DUE_SOON);
            if ready + active > 0 {
                load.service_time = load.service_time.max(demand.service_time);
            }
        }
        load
    }

    /// Jobs behind others wake no pod, because they can't start. Where there is one, it stays for them.
    fn busy(&self, inputs: &Inputs) -> bool {
        let line = self.blocked > 0 && inputs.current > 0;
        self.ready > 0 || self.active > 0 || self.due_soon || line
    }

    /// What the work asks for, within what the user allows.
    fn wanted(&self, inputs: &Inputs) -> u32 {
        let warm = inputs.current > 0 && inputs.idle_for < inputs.idle_timeout;
        let pods = self.pods(inputs).max(u32::from(self.busy(inputs) || warm));
        pods.clamp(inputs.min, inputs.most())
    }

    fn pods(&self, inputs: &Inputs) -> u32 {
        let slots = inputs.slots();
        let running = self.active.div_ceil(slots);
        let useful = self.ready.saturating_add(self.active).div_ceil(slots);
        let per_pod = inputs.target.as_millis().max(1) * u128::from(slots);
        let in_time = u64::try_from(self.work.div_ceil(per_pod)).unwrap_or(u64::MAX);
        u32::try_from(in_time.min(useful).max(running)).unwrap_or(u32::MAX)
    }

    fn tell(&self, inputs: &Inputs) -> String {
        let pace = self.service_time.map_or_else(String::new, |time| match time.as_secs_f64() {
            seconds if seconds < 0.01 => format!(", {:.1} ms a job", seconds * 1000.0),
            seconds => format!(", {seconds:.2} s a job"),
        });
        let target = inputs.target.as_secs_f64();
        let behind =
            if self.blocked == 0 { String::new() } else { format!(", {} behind others", self.blocked) };
        format!("{} waiting, {} running{behind}{pace}, target {target} s", self.ready, self.active)
    }
}

impl Demand {
    fn part(&self, count: u64) -> u64 {
        let part = (u128::from(count) * u128::from(self.share)).div_ceil(1000);
        u64::try_from(part).unwrap_or(u64::MAX)
    }
}

/// The part of `count` that is `of` in `all`, rounded up.
fn proportion(of: u64, count: u64, all: u64) -> u64 {
    let part = (u128::from(of) * u128::from(count)).checked_div(u128::from(all)).unwrap_or(0);
    let rounded = part + u128::from(part * u128::from(all) < u128::from(of) * u128::from(count));
    u64::try_from(rounded).unwrap_or(u64::MAX)
}

fn slot_millis(jobs: u64, each: Duration) -> u128 {
    u128::from(jobs).saturating_mul(each.as_millis().max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Beyond what a row says: concurrency 10, 0 to 20 pods, target 30 s, idle timeout 60 s, idle for 0 s, nothing higher
    /// was wanted before, the template is proven, one queue of which this Worker is the only one.
    const TABLE: &str = "
        # what happens                                         | given                                                  | desired
        nothing to do and no pod                               |                                                        | 0 Idle
        one job wakes one pod                                  | ready=1                                                | 1 Work
        a backlog jumps from zero in one step                  | ready=3000 service=1000                                | 10 Work
        a backlog beyond the maximum                           | ready=100000 service=1000                              | 20 Work
        a backlog that one pod does in time                    | ready=300 service=1000                                 | 1 Work
        one job more than one pod does in time                 | ready=301 service=1000                                 | 2 Work
        a shorter target takes more pods                       | ready=3000 service=1000 target=15                      | 20 Work
        less concurrency takes more pods                       | ready=3000 service=100 concurrency=1                   | 10 Work
        slow jobs get a slot each and no more                  | ready=5 service=3600000                                | 1 Work
        slow jobs in two pods                                  | ready=15 service=3600000                               | 2 Work
        very fast jobs                                         | ready=100000 service=0.1                               | 1 Work
        not measured yet                                       | ready=300                                              | 3 Work
        not measured yet, many                                 | ready=100000                                           | 20 Work
        a backlog beyond all bounds                            | ready=18446744073709551615 service=1e15                | 20 Work
        what runs keeps its pods                               | active=25 current=3 service=1                          | 3 Work
        long jobs that run leave no room for what waits        | ready=10 active=20 current=2 service=3600000           | 3 Work
        short jobs that run make room for what waits           | ready=10 active=10 current=1 service=100               | 1 Work
        what runs in pods on their way out is not ours         | active=30                                              | 0 Idle
        what runs beyond our slots is not ours                 | active=30 current=1 service=1                          | 1 Work
        what runs in our own pods, whatever the share          | active=10 share=500 own=10 current=10 service=3600000  | 1 Work
        what runs in another Worker's pods                     | active=10 share=500 own=0 current=1 idle=60            | 0 Idle
        what runs here keeps its pods, whatever the share      | active=25 share=1 own=25 current=3 service=1           | 3 Work
        what was claimed after the brokers counted waits still  | ready=10 own=10 current=1 service=3600000              | 1 Work
        what two queues run here                               | active=9 + active=9 own=18 current=2 service=1         | 2 Work
        what waits is shared, what runs is ours                | ready=20 active=30 share=500 own=10 current=1 service=3600000 | 2 Work
        a queue is missing: no fewer pods                      | current=7 idle=9999 incomplete                         | 7 Incomplete
        a queue is missing: more pods for the others           | ready=3000 service=1000 current=2 incomplete           | 10 Work
        a queue is missing: a lower maximum holds              | current=30 incomplete                                  | 20 Incomplete
        a queue is missing: a pin holds                        | current=7 pinned=1 incomplete                          | 1 Pinned
        half of the queue                                      | ready=3000 service=1000 share=500                      | 5 Work
        a small part of one job is a job                       | ready=1 share=1                                        | 1 Work
        a Worker without capacity has no part                  | ready=1000 share=0                                     | 0 Idle
        two queues add up                                      | ready=1500 service=1000 + ready=1500 service=1000      | 10 Work
        each queue at its own pace                             | ready=3000 service=100 + ready=300 service=1000        | 2 Work
        suspended: what waits starts nothing                   | ready=500 suspended                                    | 0 Idle
        suspended: what runs goes on                           | ready=500 active=15 suspended current=2 service=1      | 2 Work
        suspended: due jobs start nothing                      | due=1 suspended                                        | 0 Idle
        one suspended, one not                                 | ready=500 suspended + ready=1                          | 1 Work
        unknown freezes                                        | unknown current=7                                      | 7 Unknown
        unknown at zero stays at zero                          | unknown                                                | 0 Unknown
        unknown freezes idle pods for good                     | unknown current=7 idle=9999                            | 7 Unknown
        one unknown queue is enough                            | ready=10000 current=3 + unknown                        | 3 Unknown
        unknown still keeps to the minimum                     | unknown min=2                                          | 2 Unknown
        unknown still keeps to the maximum                     | unknown current=30                                     | 20 Unknown
        unknown and unproven                                   | unknown min=2 unproven                                 | 1 Unknown
        pinned                                                 | ready=10000 current=20 pinned=2                        | 2 Pinned
        pinned beyond the maximum                              | pinned=50                                              | 50 Pinned
        pinned at zero with work                               | ready=10000 pinned=0                                   | 0 Pinned
        pinned while nobody knows the depth                    | unknown pinned=4 current=1                             | 4 Pinned
        pinned with a template that was never ready            | pinned=4 unproven                                      | 4 Pinned
        never ready: one pod from zero                         | ready=10000 unproven                                   | 1 Unproven
        never ready: no more than there are                    | ready=10000 unproven current=4                         | 4 Unproven
        never ready: one is enough                             | ready=1 unproven                                       | 1 Work
        never ready: the minimum waits too                     | min=3 unproven                                         | 1 Unproven
        never ready: down is free                              | ready=1 unproven current=4                             | 1 Work
        never ready and idle                                   | unproven                                               | 0 Idle
        less work, but a moment ago there was more             | ready=1 current=5 high=5                               | 5 Work
        less work, and a moment ago a little more              | ready=1 current=5 high=3                               | 3 Work
        less work for a while                                  | ready=1 current=5                                      | 1 Work
        what was wanted before never raises                    | ready=1 current=2 high=9                               | 2 Work
        more work does not wait                                | ready=3000 service=1000 current=2 high=2               | 10 Work
        a lower maximum does not wait                          | ready=99999 current=20 high=20 max=4                   | 4 Work
        no work, but a moment ago there was                    | current=5 high=5                                       | 5 Idle
        no work for a while: one pod stays warm                | current=5 idle=20                                      | 1 Idle
        no work for the idle timeout: N to zero                | current=5 idle=60 high=5                               | 0 Idle
        the last pod waits for the idle timeout                | current=1 idle=59.9                                    | 1 Idle
        the last pod goes                                      | current=1 idle=60                                      | 0 Idle
        no idle timeout at all                                 | current=3 high=3 timeout=0                             | 0 Idle
        idle down to the minimum                               | current=5 min=2 idle=60                                | 2 Idle
        the minimum holds without work                         | min=2                                                  | 2 Work
        the minimum holds with little work                     | ready=1 min=2 current=2                                | 2 Work
        a minimum above the maximum wins                       | min=5 max=3                                            | 5 Work
        due soon keeps the last pod                            | due=2 current=1 idle=600                               | 1 Work
        due soon wakes a pod                                   | due=4                                                  | 1 Work
        due later does not                                     | due=3600 current=1 idle=600                            | 0 Idle
        due later is no work yet                               | due=6                                                  | 0 Idle
        one long line is one job after the other               | ready=1 blocked=100000 service=3600000                 | 1 Work
        one long line that runs                                | active=1 blocked=100000 current=1 service=3600000      | 1 Work
        a line behind a slot that is free for nobody           | active=1 blocked=100000 own=1 current=1 concurrency=1 service=3600000 | 1 Work
        many lines: one slot for each                          | ready=30 blocked=100000 service=3600000                | 3 Work
        many lines of short jobs: in time, however they stand  | ready=1000 blocked=99000 service=100 max=100           | 34 Work
        one long line beside many short jobs of another queue  | ready=1 blocked=99999 service=100 + ready=3000 service=10 | 1 Work
        as many pods as lines, whatever stands in them         | ready=5 active=5 blocked=18446744073709551615 concurrency=1 current=5 service=3600000 | 10 Work
        lines that became fewer                                | active=2 blocked=50 concurrency=1 current=10 service=3600000 | 2 Work
        a line behind a retry keeps the last pod               | blocked=5 current=1 idle=9999                          | 1 Work
        a line behind a retry keeps no more than one           | blocked=5000 current=4 idle=9999                       | 1 Work
        a line behind a retry wakes no pod                     | blocked=5                                              | 0 Idle
        a line behind a retry that is due wakes one            | blocked=5000 due=2                                     | 1 Work
        a line in a suspended queue starts nothing             | blocked=5 suspended current=1 idle=60                  | 0 Idle
        a line that another Worker's pods work off             | blocked=5 share=0 current=1 idle=60                    | 0 Idle
        nobody knows how long the lines are                    | unknown-lines current=7 idle=9999                      | 7 Unknown
    ";

    const NOTHING: Demand = Demand {
        ready: Some(0),
        active: Some(0),
        blocked: Some(0),
        service_time: None,
        due_in: None,
        suspended: false,
        share: 1000,
    };

    fn inputs(given: &str) -> Inputs {
        let mut it = Inputs {
            demands: vec![NOTHING],
            concurrency: 10,
            current: 0,
            min: 0,
            max: 20,
            pinned: None,
            target: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(60),
            idle_for: Duration::ZERO,
            recent_high: 0,
            proven: true,
            running: None,
            incomplete: false,
        };
        for word in given.split_whitespace() {
            let (key, value) = word.split_once('=').unwrap_or((word, "0"));
            let float: f64 = value.parse().unwrap();
            let seconds = if key == "service" { float / 1000.0 } else { float };
            let seconds = Duration::try_from_secs_f64(seconds).unwrap_or_default();
            let whole = || value.parse::<u64>().unwrap();
            let small = || value.parse::<u32>().unwrap();
            let last = it.demands.last_mut().unwrap();
            match key {
                "+" => it.demands.push(NOTHING),
                "ready" => last.ready = Some(whole()),
                "active" => last.active = Some(whole()),
                "blocked" => last.blocked = Some(whole()),
                "unknown" => last.ready = None,
                "unknown-lines" => last.blocked = None,
                "suspended" => last.suspended = true,
                "share" => last.share = whole(),
                "service" => last.service_time = Some(seconds),
                "due" => last.due_in = Some(seconds),
                "concurrency" => it.concurrency = small(),
                "current" => it.current = small(),
                "min" => it.min = small(),
                "max" => it.max = small(),
                "high" => it.recent_high = small(),
                "pinned" => it.pinned = Some(small()),
                "target" => it.target = seconds,
                "timeout" => it.idle_timeout = seconds,
                "idle" => it.idle_for = seconds,
                "unproven" => it.proven = false,
                "own" => it.running = Some(whole()),
                "incomplete" => it.incomplete = true,
                other => panic!("{other}"),
            }
        }
        it
    }

    #[test]
    fn the_table_holds() {
        let rows = TABLE.lines().map(str::trim);
        let rows: Vec<_> = rows.filter(|row| !row.is_empty() && !row.starts_with('#')).collect();
        assert!(rows.len() >= 60, "{} rows were read", rows.len());
        for row in rows {
            let [name, given, expected] = row.split('|').map(str::trim).collect::<Vec<_>>()[..] else {
                panic!("{row}");
            };
            let decision = decide(&inputs(given));
            let got = format!("{} {:?}", decision.desired, decision.basis);
            assert_eq!(got, expected, "{name}: {decision:?}");
        }
    }

    #[test]
    fn the_message_says_what_it_depends_on() {
        let message = |given: &str| decide(&inputs(given)).message();
        assert_eq!(
            message("ready=120 service=210 active=4 current=1"),
            "desired 1: 120 waiting, 4 running, 0.21 s a job, target 30 s"
        );
        let quick = message("ready=1 current=1 service=2.5");
        assert_eq!(quick, "desired 1: 1 waiting, 0 running, 2.5 ms a job, target 30 s");
        assert_eq!(message("pinned=4"), "desired 4: spec.replicas pins it");
        assert_eq!(message("unknown current=2"), "desired 2: the depth of a queue is not known");
        assert_eq!(message("current=1"), "desired 1: nothing to do");
        let unproven = message("unproven ready=3000 service=1000");
        assert!(
            unproven.starts_with("desired 1: no pod of this template was ready yet; then 10:"),
            "{unproven}"
        );
    }

    #[test]
    fn pods_that_have_yet_to_finish_are_told_of() {
        let decision = decide(&inputs("active=12 own=12 current=3 service=3600000"));
        let held = decision.clone().held(3);
        assert_eq!((decision.desired, held.desired), (2, 3));
        assert!(held.message().ends_with("(1 more until they have finished)"), "{}", held.message());
        assert_eq!(decision.clone().held(2), decision);
    }

    #[test]
    fn less_work_never_wants_more_pods() {
        for service in [None, Some(1.0), Some(700.0), Some(1e6)] {
            let mut before = 0;
            for ready in 0..2000 {
                let mut it = inputs("current=3 active=7 max=1000");
                it.demands[0].ready = Some(ready);
                it.demands[0].service_time = service.map(|millis| Duration::from_secs_f64(millis / 1000.0));
                let wanted = decide(&it).wanted;
                assert!(wanted >= before, "{ready} waiting want {wanted}, one less wanted {before}");
                before = wanted;
            }
        }
    }

    #[test]
    fn jobs_behind_others_ask_for_no_more_slots_than_there_are_lines() {
        for (ready, active) in [(0, 0), (1, 0), (0, 1), (3, 4), (500, 20)] {
            for current in [0, 1, 3] {
                let mut it = inputs("max=1000 service=100 concurrency=2 idle=600");
                (it.demands[0].ready, it.demands[0].active, it.current) =
                    (Some(ready), Some(active), current);
                let without = decide(&it).wanted;
                it.demands[0].blocked = Some(1_000_000);
                let with = decide(&it).wanted;
                // What runs beyond the slots of this Worker runs elsewhere.
                let here = active.min(u64::from(current) * 2);
                let lines = u32::try_from((ready + here).div_ceil(2)).unwrap();
                assert_eq!(with, lines.max(without).max(current.min(1)), "{ready} {active} {current}");
            }
        }
    }
}
