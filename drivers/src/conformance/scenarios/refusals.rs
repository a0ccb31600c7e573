//! What a backend without a capability must refuse, so that nothing is weakened in silence. Where there is nothing to
//! refuse, what it is like without.

use crate::conformance::{Fixture, Verdict, check, fixture::job, is_kind};
use crate::{DriverExt, ErrorKind, JobId, JobState, ListJobs, Ordering, QueueSettings};
use std::time::Duration;

pub(in crate::conformance) async fn delay(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    let delayed = job().with_delay(Duration::from_secs(1));
    let answer = subject.driver.enqueue_one(&subject.queue, delayed).await;
    check!(is_kind(&answer, ErrorKind::Unsupported), "a delayed job: {answer:?}");
    Ok(())
}

pub(in crate::conformance) async fn pause(fixture: Fixture) -> Verdict {
    refused_settings(fixture, QueueSettings { paused: true, ..QueueSettings::default() }).await
}

pub(in crate::conformance) async fn fifo(fixture: Fixture) -> Verdict {
    refused_settings(fixture, QueueSettings { ordering: Ordering::Fifo, ..QueueSettings::default() }).await
}

async fn refused_settings(fixture: Fixture, settings: QueueSettings) -> Verdict {
    let subject = fixture.undeclared("jobs").await?;
    let owner = crate::conformance::Subject::owner();
    let declaration = crate::Declaration { owner, settings, adopt: false };
    let answer = subject.driver.declare(&subject.queue, declaration).await;
    check!(is_kind(&answer, ErrorKind::Unsupported), "settings that it can't keep: {answer:?}");
    Ok(())
}

pub(in crate::conformance) async fn inspect(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    let id = subject.enqueue(job()).await?;
    let inspect = subject.driver.inspect(&subject.queue, &id).await;
    check!(is_kind(&inspect, ErrorKind::Unsupported), "a look at a job: {inspect:?}");
    let list = ListJobs { state: JobState::Ready, limit: 1, after: None };
    let list = subject.driver.list(&subject.queue, list).await;
    check!(is_kind(&list, ErrorKind::Unsupported), "a list of jobs: {list:?}");
    Ok(())
}

pub(in crate::conformance) async fn cancel(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    let id = subject.enqueue(job()).await?;
    let answer = subject.driver.cancel(&subject.queue, vec![id]).await;
    check!(is_kind(&answer, ErrorKind::Unsupported), "a cancellation: {answer:?}");
    Ok(())
}

pub(in crate::conformance) async fn results(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    let answer = subject.driver.results(&subject.queue, vec![JobId::generate()]).await;
    check!(is_kind(&answer, ErrorKind::Unsupported), "a result: {answer:?}");
    Ok(())
}

pub(in crate::conformance) async fn wake(fixture: Fixture) -> Verdict {
    let answer = fixture.driver().await?.wake().await.map(drop);
    check!(is_kind(&answer, ErrorKind::Unsupported), "a subscription: {answer:?}");
    Ok(())
}

/// A broker without a process of its own doesn't pretend to have failed.
pub(in crate::conformance) async fn process(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    let broker = fixture.broker();
    for answer in [broker.freeze().await, broker.thaw().await, broker.kill().await] {
        check!(is_kind(&answer, ErrorKind::Unsupported), "a failure of a process: {answer:?}");
    }
    subject.enqueue(job()).await?;
    Ok(())
}

/// A broker without a network before it has no way to it that could break.
pub(in crate::conformance) async fn network(fixture: Fixture) -> Verdict {
    let address = fixture.broker().address();
    check!(address.is_none(), "it has no network, and can be reached at {address:?}");
    let through = fixture.broker().handle_at(([127, 0, 0, 1], 1).into()).await;
    check!(is_kind(&through, ErrorKind::Unsupported), "a way to it through a proxy: {through:?}");
    process(fixture).await
}

/// What isn't durable is gone after a restart, all of it, and is told as gone.
pub(in crate::conformance) async fn durable(fixture: Fixture) -> Verdict {
    let before = fixture.subject().await?;
    let id = before.enqueue(job()).await?;
    fixture.restart().await?;
    let after = before.beside(&fixture).await?;
    let stats = after.driver.stats(&after.queue).await;
    check!(is_kind(&stats, ErrorKind::NotFound), "a queue from before the restart: {stats:?}");
    after.declare(QueueSettings::default()).await?;
    // The id is as good as new.
    let again = after.enqueue(job().with_id(id.clone())).await?;
    check!(again == id, "the id from before the restart became {again}");
    Ok(())
}
