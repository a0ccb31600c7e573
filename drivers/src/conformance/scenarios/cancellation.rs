//! Calls that are dropped before, while and after they reach the broker.

use crate::conformance::{
    Fixture, Subject, Verdict, check, check_eq,
    fixture::{LEASE, SOON, job},
    is_kind,
    machine::{Watch, late},
};
use crate::{Claim, DriverExt, ErrorKind, JobId, Settle};
use futures::poll;
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

pub(super) async fn dispatch_context_cancellation_precanceled(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    let kept = subject.enqueue(job()).await?;
    for number in 0..fixture.over("calls of each kind", 20_u32) {
        let id = JobId::new(format!("never-{number}"))?;
        drop(subject.driver.enqueue_one(&subject.queue, job().with_id(id)));
        let claim = Claim { max: 10, wait: Duration::ZERO, lease: LEASE, worker: String::new() };
        drop(subject.driver.claim(&subject.queue, claim));
    }
    let claimed = subject.claim(100).await?;
    let ids: Vec<_> = claimed.iter().map(|job| job.id.clone()).collect();
    check_eq!(ids, [kept], "jobs, of which only one was sent");
    check_eq!(claimed[0].delivery, 1, "its delivery");
    drop(subject.driver.settle_one(&subject.queue, &claimed[0].receipt, Settle::Succeed { result: None }));
    // Nothing has been settled, so the receipt still holds.
    subject.succeed(&claimed[0]).await
}

pub(super) async fn dispatch_context_cancellation_midflight(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    let mut known = BTreeSet::new();
    let dropped = fixture.over("dropped calls", 60_u64);
    for number in 0..dropped {
        let id = JobId::new(format!("dropped-{number}"))?;
        let mut send = subject.driver.enqueue_one(&subject.queue, job().with_id(id.clone()));
        // From surely on its way to surely done.
        let answered = if number % 2 == 0 {
            poll!(&mut send).is_ready()
        } else {
            let patience = if number > 50 { SOON } else { Duration::from_micros(number * 100) };
            tokio::time::timeout(patience, &mut send).await.is_ok()
        };
        drop(send);
        if answered {
            known.insert(id);
        }
    }
    let mut found = BTreeSet::new();
    loop {
        let jobs = subject.claim_for(100, SOON, Duration::from_millis(300)).await?;
        if jobs.is_empty() {
            break;
        }
        for claimed in jobs {
            check_eq!(claimed.payload, job().payload, "the payload of a job whose enqueue was dropped");
            subject.succeed(&claimed).await?;
            check!(found.insert(claimed.id), "a job was handed out twice");
        }
    }
    check!(known.len() >= 5, "{} enqueues were answered, the patient ones at least should be", known.len());
    check!(found.is_superset(&known), "an acknowledged job is missing");
    fixture.measure(format!(
        "{} of {dropped} dropped enqueues were made, {} answered",
        found.len(),
        known.len()
    ));
    Ok(())
}

pub(super) async fn dispatch_context_cancellation_deadline_exceeded(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    let wait = Duration::from_millis(250);
    let watch = Watch::start();
    let none = subject.claim_for(1, LEASE, wait).await?;
    let late = fixture.in_time("the end of a wait", watch, wait, late());
    check!(none.is_empty(), "an empty queue gave {none:?}");
    late.map(drop)?;
    // Claims that are dropped while they wait: every job is settled by somebody in the end.
    let producer = subject.beside(&fixture).await?;
    for round in 0..fixture.over("dropped waits", 20_u64) {
        let patience = Duration::from_millis(round % 5 * 3);
        let (lease, since) = (Duration::from_secs(1), Instant::now());
        let claim = subject.claim_for(1, lease, SOON);
        let (got, sent) = tokio::join!(tokio::time::timeout(patience, claim), producer.enqueue(job()));
        let id = sent?;
        let claimed = match got {
            Ok(jobs) => jobs?.pop(),
            Err(_) => None,
        };
        let claimed = match claimed {
            Some(claimed) => claimed,
            None => subject.next().await?,
        };
        check_eq!(claimed.id, id, "the job after a dropped claim");
        check_eq!(claimed.attempt, 1, "its attempt");
        let settle = Settle::Succeed { result: None };
        let settled = subject.driver.settle_one(&subject.queue, &claimed.receipt, settle).await;
        if !is_kind(&settled, ErrorKind::StaleReceipt) {
            settled?;
            continue;
        }
        // The machine stood still for longer than the lease: the job comes again.
        check!(since.elapsed() >= lease, "a lease of {lease:?} was lost after {:?}", since.elapsed());
        let again = subject.next().await?;
        check_eq!((&again.id, again.attempt), (&id, 1), "the job after its lease, and its attempt");
        subject.succeed(&again).await?;
    }
    Ok(())
}

pub(super) async fn dispatch_context_cancellation_followup_health(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    let aside = fixture.undeclared("aside").await?;
    let aside = Subject { driver: subject.driver.clone(), ..aside };
    aside.declare(crate::QueueSettings::default()).await?;
    let dropped = fixture.over("dropped calls of each kind", 300_u32);
    for _ in 0..dropped {
        let mut claim = Box::pin(aside.claim_for(1, Duration::from_millis(100), SOON));
        let mut send = Box::pin(aside.enqueue(job()));
        let mut look = Box::pin(aside.stats());
        let _ = (poll!(&mut claim), poll!(&mut send), poll!(&mut look));
    }
    // The same handle, with nothing left of its connections, threads and places in lines?
    let since = Watch::start();
    let jobs = fixture.over("jobs after them", 20_u32);
    for _ in 0..jobs {
        let id = subject.enqueue(job().with_notify(fixture.notify("well")?)).await?;
        let claimed = subject.next().await?;
        check_eq!(claimed.id, id, "the job");
        subject.driver.extend_one(&subject.queue, &claimed.receipt, LEASE).await?;
        subject.succeed(&claimed).await?;
        check_eq!(subject.next_completion(&fixture.address("well")?).await?.job, id, "the completion");
        subject.stats().await?;
    }
    let bound = fixture.at_most("for all of them", SOON);
    let took = since.elapsed();
    check!(took < bound + since.pauses(), "{jobs} jobs took {took:.1?} after calls were dropped");
    fixture.measure(format!("{jobs} jobs in {took:.1?} after {} dropped calls", 3 * dropped));
    Ok(())
}
