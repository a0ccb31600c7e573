use super::*;

fn pod(name: &str, ready: bool, busy: Option<u32>) -> Seen {
    Seen {
        name: name.to_owned(),
        ready,
        deletion_cost: 0,
        trouble: None,
        status: busy.map(|in_flight| Status { in_flight, victim: Some(false), ..Status::default() }),
    }
}

fn told(mut pod: Seen) -> Seen {
    pod.status.as_mut().unwrap().victim = Some(true);
    pod
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

fn shrink(current: u32, desired: u32) -> Shrink {
    Shrink { current, desired, allowed: 20, idle: false, drain_timeout: Duration::from_secs(600) }
}

fn decide(pods: &[Seen], shrink: Shrink) -> Retirement {
    retire(pods, shrink, &Told::default(), Instant::now())
}

#[test]
fn the_order_is_starting_idle_unknown_light_busy() {
    let mut before: Vec<String> = Vec::new();
    for (next, desired) in ["starting", "idle", "unknown", "light", "busy"].into_iter().zip([4, 3, 2, 1, 0]) {
        let chosen = decide(&pods(), shrink(5, desired)).told;
        let new: Vec<_> = chosen.iter().filter(|name| !before.contains(name)).collect();
        assert_eq!(new, [next]);
        before = chosen;
    }
}

#[test]
fn a_busy_pod_goes_only_when_its_jobs_have_ended() {
    // Three pods with four long jobs each: two pods would do.
    let busy = [pod("a", true, Some(4)), pod("b", true, Some(4)), pod("c", true, Some(4))];
    let first = decide(&busy, shrink(3, 2));
    assert_eq!(
        (first.replicas, first.told.as_slice(), first.leaving.len()),
        (3, ["a".to_owned()].as_slice(), 0)
    );
    let done = [told(pod("a", true, Some(0))), pod("b", true, Some(4)), pod("c", true, Some(4))];
    let then = decide(&done, shrink(3, 2));
    assert_eq!((then.replicas, then.leaving), (2, vec!["a".to_owned()]));
    let late = [told(pod("a", true, Some(0))), pod("b", true, Some(4)), pod("c", true, Some(4))];
    let mut late = late.to_vec();
    late[0].status.as_mut().unwrap().unsettled = 1;
    assert_eq!(decide(&late, shrink(3, 2)).replicas, 3, "what isn't settled is not over");
}

#[test]
fn idle_pods_go_while_busy_ones_stay() {
    let mut ten: Vec<_> = (0..10).map(|at| pod(&format!("pod-{at}"), true, Some(1))).collect();
    assert_eq!(decide(&ten, shrink(10, 5)).replicas, 10);
    for pod in &mut ten[2..5] {
        pod.status = Some(Status { victim: Some(true), ..Status::default() });
    }
    let retirement = decide(&ten, shrink(10, 5));
    assert_eq!(
        (retirement.replicas, retirement.leaving),
        (7, ["pod-2", "pod-3", "pod-4"].map(String::from).to_vec())
    );
    assert_eq!(retirement.told.len(), 5);
}

#[test]
fn while_there_is_work_an_idle_pod_goes_only_once_it_knows() {
    let idle = |pod: Seen| decide(&[pod], shrink(1, 0)).replicas;
    assert_eq!(idle(pod("a", true, Some(0))), 1);
    assert_eq!(idle(told(pod("a", true, Some(0)))), 0);
    let mut old = pod("a", true, Some(0));
    old.status.as_mut().unwrap().victim = None;
    assert_eq!(idle(old), 0, "a sidecar that doesn't speak of it");
    let nothing_to_do = Shrink { idle: true, ..shrink(1, 0) };
    assert_eq!(decide(&[pod("a", true, Some(0))], nothing_to_do).replicas, 0);
    assert_eq!(decide(&[pod("a", true, None)], nothing_to_do).replicas, 0);
}

#[test]
fn without_work_all_go_at_once() {
    let idle: Vec<_> = (0..5).map(|at| pod(&format!("pod-{at}"), at != 3, (at != 4).then_some(0))).collect();
    let retirement = decide(&idle, Shrink { idle: true, ..shrink(5, 0) });
    assert_eq!((retirement.replicas, retirement.leaving.len()), (0, 5));
}

#[test]
fn what_the_user_allows_holds_at_once() {
    let busy: Vec<_> = (1..=4).map(|jobs| pod(&format!("with-{jobs}"), true, Some(jobs))).collect();
    let pinned = decide(&busy, Shrink { allowed: 1, ..shrink(4, 1) });
    assert_eq!(
        (pinned.replicas, pinned.leaving),
        (1, ["with-1", "with-2", "with-3"].map(String::from).to_vec())
    );
    // Work asks for one, the maximum allows three: only the fourth may be cut off.
    let lowered = decide(&busy, Shrink { allowed: 3, ..shrink(4, 1) });
    assert_eq!((lowered.replicas, lowered.leaving), (3, vec!["with-1".to_owned()]));
    assert_eq!(lowered.told.len(), 3);
}

#[test]
fn pods_that_were_never_made_go_first() {
    let busy = [pod("a", true, Some(4)), pod("b", true, Some(4))];
    let retirement = decide(&busy, shrink(9, 2));
    assert_eq!((retirement.replicas, retirement.told.len()), (2, 0));
    assert_eq!(decide(&busy, shrink(9, 1)).replicas, 2);
    assert_eq!(decide(&[], shrink(3, 0)).replicas, 0);
}

#[test]
fn what_is_not_ready_and_works_holds_the_others_up() {
    // Its controller would take it first.
    let pods = [pod("sick", false, Some(2)), told(pod("idle", true, Some(0)))];
    let retirement = decide(&pods, shrink(2, 1));
    assert_eq!((retirement.replicas, retirement.told), (2, vec!["sick".to_owned()]));
}

#[test]
fn a_pod_that_cannot_be_asked_goes_when_its_jobs_had_their_time() {
    let now = Instant::now();
    let silent = [pod("a", true, None), pod("b", true, None)];
    let mut known = Told::default();
    let first = retire(&silent, shrink(2, 1), &known, now);
    assert_eq!((first.replicas, first.told.as_slice()), (2, ["a".to_owned()].as_slice()));
    known.keep(&first.told, now);
    let at = |seconds: u64, known: &Told| {
        retire(&silent, shrink(2, 1), known, now + Duration::from_secs(seconds)).replicas
    };
    assert_eq!((at(600, &known), at(690, &known)), (2, 1));
    known.keep(&[], now);
    assert_eq!(at(9999, &known), 2, "who may claim again starts anew");
}

#[test]
fn who_was_told_stays_so_unless_another_has_nothing_to_do() {
    let now = Instant::now();
    let mut known = Told::default();
    known.keep(&["b".to_owned()], now);
    let told = |jobs: u32| {
        let pods = [pod("a", true, Some(jobs)), told(pod("b", true, Some(4)))];
        retire(&pods, shrink(2, 1), &known, now).told
    };
    assert_eq!(told(3), ["b"]);
    assert_eq!(told(0), ["a"]);
    assert_eq!(Retirement::unchanged(shrink(2, 1), &known).told, ["b"]);
    assert_eq!(Retirement::unchanged(shrink(2, 2), &known).told.len(), 0);
}

#[test]
fn only_costs_that_change_are_written() {
    let mut pods = pods();
    pods[3].deletion_cost = TOLD;
    let retirement = Retirement {
        told: ["idle", "light", "starting"].map(String::from).to_vec(),
        leaving: vec!["starting".to_owned()],
        replicas: 4,
    };
    let cost = |name: &str, cost: i32| (name.to_owned(), cost);
    assert_eq!(costs(&pods, &retirement), [cost("idle", TOLD), cost("starting", RETIRED)]);
    let mut spared = pod("spared", true, Some(3));
    spared.deletion_cost = RETIRED;
    assert_eq!(costs(&[spared], &Retirement::default()), [cost("spared", STAYS)]);
}

#[test]
fn what_runs_is_known_when_all_told_that_can_have_jobs() {
    assert_eq!(running(&[]), Some(0));
    assert_eq!(running(&[pod("a", true, Some(3)), pod("b", false, None)]), Some(3));
    assert_eq!(running(&pods()), None);
}
