//! How jobs are claimed: as many as the app can take, from where there are some, with few requests.

use crate::support::{self, Pod, app::App, eventually, job};
use longshore_drivers::{Settle, policy::Via};
use std::time::Duration;
use tokio::time::{Instant, sleep};

const EMAILS: &str = "test.shop.emails";
const IMAGES: &str = "test.shop.images";

#[tokio::test]
async fn never_more_jobs_run_than_allowed() {
    let pod = Pod::start(|policy| policy.concurrency = 3).await;
    for number in 0..12 {
        pod.enqueue(&format!("job-{number}"), "wait");
    }
    for done in 0..12 {
        let expected = 3.min(12 - done);
        eventually("slots filled", || async { pod.app.running() == expected }).await;
        pod.app.let_go(1);
    }
    eventually("all settled", || async { pod.broker.settled() == 12 }).await;
    assert_eq!(pod.app.most(), 3);
}

#[tokio::test]
async fn a_new_job_in_any_of_many_queues_is_claimed_at_once_and_surplus_goes_back() {
    let names: Vec<_> = (0..8).map(|number| format!("q{number}")).collect();
    let pod = Pod::start(|policy| {
        policy.concurrency = 1;
        policy.queues = names.iter().map(|name| support::queue(name)).collect();
    })
    .await;
    eventually("polls wait", || async { pod.broker.claims() >= 8 }).await;
    for name in &names {
        pod.broker.add(&format!("test.shop.{name}"), job(name, "wait"));
    }
    eventually("one runs", || async { pod.app.running() == 1 }).await;
    eventually("no other is held", || async {
        names.iter().filter(|name| pod.broker.is_leased(name)).count() == 1
    })
    .await;
    for done in 1..=8 {
        pod.app.let_go(1);
        eventually("next", || async {
            pod.broker.settles_that(|settle| matches!(settle, Settle::Succeed { .. })) == done
        })
        .await;
    }
    assert_eq!(pod.app.most(), 1);
}

#[tokio::test]
async fn weights_share_what_is_free() {
    let pod = Pod::start(|policy| {
        policy.concurrency = 2;
        policy.queues = vec![support::queue("emails"), support::queue("images")];
        policy.queues[0].weight = 3;
    })
    .await;
    // Both queues are full before the first slot is free.
    pod.broker.away(true);
    for number in 0..60 {
        pod.broker.add(EMAILS, job(&format!("e{number}"), "wait"));
        pod.broker.add(IMAGES, job(&format!("i{number}"), "wait"));
    }
    pod.broker.away(false);
    for done in 0..40 {
        eventually("two run", || async { pod.app.running() == 2 }).await;
        pod.app.let_go(1);
        eventually("one is done", || async { pod.app.seen().len() > done + 2 }).await;
    }
    let emails = pod.app.seen().iter().filter(|seen| seen.header("job-queue") == "emails").count();
    assert!((27..=35).contains(&emails), "{emails} of 42 for a weight of 3 in 4");
}

#[tokio::test]
async fn the_next_job_of_one_of_two_queues_starts_at_once() {
    let pod = Pod::start(|policy| {
        policy.queues = vec![support::queue("emails"), support::queue("images")];
    })
    .await;
    let mut starts = Vec::new();
    for number in 0..24 {
        let began = Instant::now();
        pod.enqueue(&format!("job-{number}"), "ok");
        eventually("it runs", || async { pod.app.seen().len() > number }).await;
        starts.push(began.elapsed());
        // The claim that looks for more has found nothing.
        eventually("it is settled", || async { pod.broker.settled() > number }).await;
    }
    // A queue that rests after each job delays nearly every one; a busy machine delays some.
    starts.sort();
    assert!(starts[5] < Duration::from_millis(50), "{starts:?}");
}

#[tokio::test]
async fn an_idle_sidecar_hardly_asks() {
    let names: Vec<_> = (0..10).map(|number| format!("q{number}")).collect();
    let pod =
        Pod::start(|policy| policy.queues = names.iter().map(|name| support::queue(name)).collect()).await;
    eventually("polls wait", || async { pod.broker.claims() >= 10 }).await;
    sleep(Duration::from_millis(500)).await;
    assert_eq!(pod.broker.claims(), 10, "one long poll for each queue");
}

#[tokio::test]
async fn a_suspended_queue_is_left_alone_and_goes_on_later() {
    let mut pod = Pod::start(|policy| {
        policy.queues = vec![support::queue("emails"), support::queue("images")];
        policy.queues[0].suspended = true;
    })
    .await;
    pod.broker.add(EMAILS, job("suspended", "ok"));
    pod.broker.add(IMAGES, job("other", "ok"));
    pod.settled("other").await;
    assert!(pod.broker.settles("suspended").is_empty());
    pod.change(|policy| policy.queues[0].suspended = false);
    assert_eq!(pod.settled("suspended").await, Settle::Succeed { result: None });
}

#[tokio::test]
async fn nothing_is_claimed_before_the_app_listens_and_after_it_died_until_it_is_back() {
    let pod = Pod::with(App::absent().await, |_| {}).await;
    pod.enqueue("job-1", "ok");
    eventually("not ready", || async { pod.status().await["hold"] == "appNotReady" }).await;
    assert_eq!(pod.broker.claims(), 0);
    pod.app.up().await;
    assert_eq!(pod.settled("job-1").await, Settle::Succeed { result: None });

    pod.app.down();
    eventually("nobody listens", || async { !pod.app.listens().await }).await;
    pod.enqueue("job-2", "ok");
    assert_eq!(pod.settled("job-2").await, Settle::Release { delay: Duration::ZERO });
    eventually("not ready", || async { pod.status().await["hold"] == "appNotReady" }).await;
    pod.app.up().await;
    eventually("done", || async { pod.broker.settles("job-2").contains(&Settle::Succeed { result: None }) })
        .await;
    let last = pod.app.seen().pop().unwrap();
    assert_eq!(last.header("job-attempt"), "1", "what never reached the app is no attempt");
}

#[tokio::test]
async fn a_victim_claims_nothing_until_it_is_spared() {
    let mut pod = Pod::start(|policy| policy.draining = vec!["pod-1".into()]).await;
    pod.enqueue("job-1", "ok");
    eventually("victim", || async { pod.status().await["hold"] == "victim" }).await;
    assert_eq!(pod.broker.claims(), 0);
    pod.change(|policy| policy.draining.clear());
    pod.settled("job-1").await;
}

#[tokio::test]
async fn a_bad_policy_changes_nothing_and_is_shown() {
    let mut pod = Pod::start(|_| {}).await;
    std::fs::write(pod.policy_file(), b"{\"version\": 99}").unwrap();
    eventually("shown", || async {
        pod.status().await["policy"]["error"].as_str().is_some_and(|text| text.contains("99"))
    })
    .await;
    assert!(pod.admin("/metrics").await.1.contains("longshore_sidecar_policy_ok 0"));
    pod.enqueue("job-1", "ok");
    pod.settled("job-1").await;
    pod.change(|policy| policy.concurrency = 7);
    eventually("taken", || async { pod.status().await["concurrency"] == 7 }).await;
    assert!(pod.status().await["policy"]["error"].is_null());
}

#[tokio::test]
async fn a_broker_that_comes_back_is_used_again() {
    let pod = Pod::start(|_| {}).await;
    eventually("asked", || async { pod.broker.claims() > 0 }).await;
    pod.broker.away(true);
    eventually("shown", || async { pod.status().await["brokers"][0]["reachable"] == false }).await;
    assert_eq!(pod.admin("/readyz").await.0, 200, "a broker's outage restarts no pods");
    pod.enqueue("job-1", "ok");
    pod.broker.away(false);
    pod.settled("job-1").await;
    assert_eq!(pod.status().await["brokers"][0]["reachable"], true);
}

#[tokio::test]
async fn an_app_that_is_busy_gets_less() {
    let pod = Pod::start(|policy| policy.concurrency = 1).await;
    pod.enqueue("job-1", "busy");
    pod.settled("job-1").await;
    eventually("paused", || async { pod.status().await["hold"] == "paused" }).await;
}

#[tokio::test]
async fn a_broker_whose_new_files_are_in_newer_pods_only_is_used_as_before() {
    let mut pod = Pod::start(|_| {}).await;
    pod.change(|policy| {
        policy.concurrency = 1;
        policy.brokers[0].via =
            Via::Redis { url_file: "/nowhere/url".to_owned(), ca_file: None, prefix: "shop".to_owned() };
    });
    eventually("the policy is taken", || async { pod.status().await["concurrency"] == 1 }).await;
    pod.enqueue("late", "ok");
    assert!(matches!(pod.settled("late").await, Settle::Succeed { .. }));
}
