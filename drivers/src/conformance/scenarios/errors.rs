//! Which error an operation answers to which fault, and whether it then did what it said.

use super::{
    calls::{Unanswered, calls},
    faults::{Fault, healthy},
    ground::{Ground, did_nothing, kept_to_the_table},
};
use crate::conformance::{BOUND, Failed, Fixture, Subject, Verdict, eventually, machine::Watch};
use futures::future::join_all;
use std::{net::SocketAddr, time::Duration};
use tokio::net::TcpSocket;

/// Why calls of a handle that was well are not answered, during one of [`Fault::TOTAL`]; `pooled` tells that a pooler stands
/// before the broker.
const fn unanswered(fault: Fault, pooled: bool) -> Unanswered {
    match fault {
        Fault::Killed if pooled => Unanswered::Unclear,
        Fault::Frozen | Fault::Silent | Fault::HalfOpen => Unanswered::Silence,
        Fault::Killed
        | Fault::Refused
        | Fault::AnswersLost
        | Fault::RequestsCut
        | Fault::Restarted
        | Fault::Slow => Unanswered::Broken,
    }
}

pub(super) async fn error_contract_broker_faults(fixture: Fixture) -> Verdict {
    fixture.over("faults", Fault::TOTAL.len() + 1);
    let bound = fixture.at_most("for a call", BOUND);
    let direct = fixture.subject().await?;
    let mut sure = nothing_there(&fixture, &direct, bound).await?;
    let proxy = fixture.proxy().await?;
    let subject = fixture.through(&proxy, &direct).await?;
    let (mut worst, mut rounds) = (Duration::ZERO, Vec::new());
    for fault in Fault::TOTAL {
        let name = format!("{fault:?}").to_lowercase();
        let ground = Ground::lay(&fixture, &direct.driver, &name).await?;
        healthy(&fixture, &subject, fault).await?;
        fault.begin(&fixture, &proxy).await?;
        let watch = Watch::start();
        let told = join_all(calls(&subject.driver, &ground)).await;
        let pauses = watch.pauses();
        fault.end(&fixture, &proxy).await?;
        fixture.over("operations", told.len());
        kept_to_the_table(&name, unanswered(fault, fixture.broker().pooled()), &told, bound, pauses)?;
        healthy(&fixture, &subject, fault).await?;
        sure += did_nothing(&name, &ground, &direct.driver, &told).await?;
        worst = told.iter().map(|story| story.took).max().unwrap_or_default().max(worst);
        rounds.push((name, ground, told));
    }
    // Nor was it done later.
    for (name, ground, told) in &rounds {
        did_nothing(&format!("long after {name}"), ground, &direct.driver, told).await?;
    }
    fixture.measure(format!(
        "every call ended within {worst:.1?}; {sure} changes surely did nothing, and nothing was done"
    ));
    Ok(())
}

/// A handle that worked, at an address where nothing listens any more: nothing can have been sent, and it knows.
async fn nothing_there(fixture: &Fixture, direct: &Subject, bound: Duration) -> Result<usize, Failed> {
    let ground = Ground::lay(fixture, &direct.driver, "gone").await?;
    let proxy = fixture.proxy().await?;
    let address = proxy.address();
    let lost = fixture.through(&proxy, direct).await?.driver;
    lost.probe().await?;
    drop(proxy);
    // Nobody else gets the port meanwhile.
    let mut port = None;
    eventually("the port is free", || {
        port = port.take().or_else(|| reserved(address));
        std::future::ready(Ok(port.is_some()))
    })
    .await?;
    // A look may find another connection broken each time; one that can't find any knows that there is nothing.
    for _ in 0..3 {
        eventually("the connections are gone", || async { Ok(lost.probe().await.is_err()) }).await?;
    }
    let watch = Watch::start();
    let told = join_all(calls(&lost, &ground)).await;
    kept_to_the_table("nothing there", Unanswered::NotSent, &told, bound, watch.pauses())?;
    lost.close().await;
    let sure = did_nothing("nothing there", &ground, &direct.driver, &told).await?;
    drop(port);
    Ok(sure)
}

/// Holds a port without listening at it.
fn reserved(address: SocketAddr) -> Option<TcpSocket> {
    let socket = TcpSocket::new_v4().ok()?;
    socket.set_reuseaddr(true).ok()?;
    socket.bind(address).ok().map(|()| socket)
}
