//! What a backend without a capability must refuse, so that nothing is weakened in silence. Where there is nothing to
//! refuse, what it is like without.

use crate::conformance::{Fixture, Verdict, check, fixture::job, is_kind};
use crate::{DriverExt, ErrorKind, JobId, JobState, ListJobs, Ordering, QueueSettings, Result};
use std::{fmt::Debug, time::Duration};

/// A refusal that can be told from others, and says in words what is missing: the capability as the wire spells it.
fn refused<T: Debug>(answer: &Result<T>, capability: &str, what: &str) -> Verdict {
    check!(is_kind(answer, ErrorKind::Unsupported), "{what}: {answer:?}");
    let names = answer.as_ref().is_err_and(|error| error.message.contains(capability));
    check!(names, "the refusal of {what} doesn't name {capability}: {answer:?}");
    Ok(())
}

pub(in crate::conformance) async fn delay(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    let delayed = job().with_delay(Duration::from_secs(1));
    let answer = subject.driver.enqueue_one(&subject.queue, delayed).await;
    refused(&answer, "delay", "a delayed job")
}

pub(in crate::conformance) async fn pause(fixture: Fixture) -> Verdict {
    refused_settings(fixture, "pause", QueueSettings { paused: true, ..QueueSettings::default() }).await
}

pub(in crate::conformance) async fn fifo(fixture: Fixture) -> Verdict {
    let settings = QueueSettings { ordering: Ordering::Fifo, ..QueueSettings::default() };
    refused_settings(fixture, "fifo", settings).await
}

async fn refused_settings(fixture: Fixture, capability: &str, settings: QueueSettings) -> Verdict {
    let subject = fixture.undeclared("jobs").await?;
    let owner = crate::conformance::Subject::owner();
    let declaration = crate::Declaration { owner, settings, adopt: false };
    let answer = subject.driver.declare(&subject.queue, declaration).await;
    refused(&answer, capability, "settings that it can't keep")
}

pub(in crate::conformance) async fn inspect(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    let id = subject.enqueue(job()).await?;
    let inspect = subject.driver.inspect(&subject.queue, &id).await;
    refused(&inspect, "inspect", "a look at a job")?;
    let list = ListJobs { state: JobState::Ready, limit: 1, after: None };
    let list = subject.driver.list(&subject.queue, list).await;
    refused(&list, "inspect", "a list of jobs")?;
    let redrive = subject.driver.redrive(&subject.queue, vec![id]).await;
    refused(&redrive, "inspect", "a redrive")?;
    let purge = subject.driver.purge(&subject.queue, JobState::Ready, 1).await;
    refused(&purge, "inspect", "a purge")
}

pub(in crate::conformance) async fn cancel(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    let id = subject.enqueue(job()).await?;
    let answer = subject.driver.cancel(&subject.queue, vec![id]).await;
    refused(&answer, "cancel", "a cancellation")
}

pub(in crate::conformance) async fn results(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    let answer = subject.driver.results(&subject.queue, vec![JobId::generate()]).await;
    refused(&answer, "resultStore", "a result")
}

pub(in crate::conformance) async fn wake(fixture: Fixture) -> Verdict {
    let answer = fixture.driver().await?.wake().await.map(drop);
    refused(&answer, "wake", "a subscription")
}

/// A broker without a process of its own doesn't pretend to have failed.
pub(in crate::conformance) async fn process(fixture: Fixture) -> Verdict {
    let subject = fixture.subject().await?;
    let broker = fixture.broker();
    for answer in [broker.freeze().await, broker.thaw().await, broker.kill().await] {
        refused(&answer, "process", "a failure of a process")?;
    }
    subject.enqueue(job()).await?;
    Ok(())
}

/// A broker without a network before it has no way to it that could break.
pub(in crate::conformance) async fn network(fixture: Fixture) -> Verdict {
    let address = fixture.broker().address();
    check!(address.is_none(), "it has no network, and can be reached at {address:?}");
    let through = fixture.broker().handle_at(([127, 0, 0, 1], 1).into()).await;
    refused(&through, "network", "a way to it through a proxy")?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::{Broker, Failed, Run, needs};
    use crate::{
        Address, Capabilities, Claim, Claimed, CompletionPage, CompletionReceipt, Declaration, Declared,
        Driver, DynDriver, Enqueued, Error, Extension, JobPage, JobRecord, NewJob, Owner, Payload, Probe,
        QueueName, QueueStats, ReadCompletions, Receipt, Settlement, WakeStream, memory::Memory,
    };
    use async_trait::async_trait;
    use std::sync::Arc;

    /// A broker that can do next to nothing, and what it says when it is asked to.
    #[derive(Debug, Clone)]
    struct Weak {
        memory: Arc<Memory>,
        says: fn(&str) -> Error,
    }

    impl Weak {
        fn cannot<T>(&self, capability: &str) -> Result<T> {
            Err((self.says)(capability))
        }
    }

    #[async_trait]
    impl Broker for Weak {
        async fn handle(&self) -> Result<DynDriver> {
            Ok(Arc::new(self.clone()))
        }

        async fn restart(&self) -> Result<()> {
            self.cannot("durability")
        }

        async fn stop(&self) {}
    }

    #[async_trait]
    impl Driver for Weak {
        fn capabilities(&self) -> &Capabilities {
            self.memory.capabilities()
        }

        async fn probe(&self) -> Result<Probe> {
            self.memory.probe().await
        }

        async fn declare(&self, queue: &QueueName, declaration: Declaration) -> Result<Declared> {
            match declaration.settings {
                QueueSettings { paused: true, .. } => self.cannot("pause"),
                QueueSettings { ordering: Ordering::Fifo, .. } => self.cannot("fifo"),
                _ => self.memory.declare(queue, declaration).await,
            }
        }

        async fn delete_queue(&self, queue: &QueueName, owner: &Owner) -> Result<()> {
            self.memory.delete_queue(queue, owner).await
        }

        async fn enqueue(&self, queue: &QueueName, jobs: Vec<NewJob>) -> Result<Vec<Result<Enqueued>>> {
            if jobs.iter().any(|job| !job.delay.is_zero()) {
                return Ok(jobs.iter().map(|_| self.cannot("delay")).collect());
            }
            self.memory.enqueue(queue, jobs).await
        }

        async fn claim(&self, queue: &QueueName, claim: Claim) -> Result<Vec<Claimed>> {
            self.memory.claim(queue, claim).await
        }

        async fn extend(
            &self,
            queue: &QueueName,
            receipts: Vec<Receipt>,
            lease: Duration,
        ) -> Result<Vec<Result<Extension>>> {
            self.memory.extend(queue, receipts, lease).await
        }

        async fn settle(&self, queue: &QueueName, settlements: Vec<Settlement>) -> Result<Vec<Result<()>>> {
            self.memory.settle(queue, settlements).await
        }

        async fn stats(&self, queue: &QueueName) -> Result<QueueStats> {
            self.memory.stats(queue).await
        }

        async fn wake(&self) -> Result<WakeStream> {
            self.cannot("wake")
        }

        async fn completions(&self, address: &Address, read: ReadCompletions) -> Result<CompletionPage> {
            self.memory.completions(address, read).await
        }

        async fn acknowledge(&self, address: &Address, receipts: Vec<CompletionReceipt>) -> Result<()> {
            self.memory.acknowledge(address, receipts).await
        }

        async fn unpin(&self, queue: &QueueName, ids: Vec<JobId>) -> Result<()> {
            self.memory.unpin(queue, ids).await
        }

        async fn results(&self, _: &QueueName, _: Vec<JobId>) -> Result<Vec<Option<Payload>>> {
            self.cannot("resultStore")
        }

        async fn inspect(&self, _: &QueueName, _: &JobId) -> Result<Option<JobRecord>> {
            self.cannot("inspect")
        }

        async fn list(&self, _: &QueueName, _: ListJobs) -> Result<JobPage> {
            self.cannot("inspect")
        }

        async fn cancel(&self, _: &QueueName, _: Vec<JobId>) -> Result<Vec<Result<JobState>>> {
            self.cannot("cancel")
        }

        async fn redrive(&self, _: &QueueName, _: Vec<JobId>) -> Result<Vec<Result<()>>> {
            self.cannot("inspect")
        }

        async fn purge(&self, _: &QueueName, _: JobState, _: u32) -> Result<u64> {
            self.cannot("inspect")
        }

        async fn close(&self) {
            self.memory.close().await;
        }
    }

    async fn run(twin: Run, says: fn(&str) -> Error) -> Verdict {
        let broker = Weak { memory: Arc::new(Memory::new()), says };
        twin(Fixture::new(Arc::new(broker), "weak")).await
    }

    #[tokio::test]
    async fn a_refusal_has_its_kind_and_names_what_is_missing() {
        let needs = [
            &needs::DELAY,
            &needs::PAUSE,
            &needs::FIFO,
            &needs::INSPECT,
            &needs::CANCEL,
            &needs::RESULTS,
            &needs::WAKE,
        ];
        for need in needs {
            let twin = need.refused.unwrap();
            let named = |capability: &str| Error::new(ErrorKind::Unsupported, format!("{capability}: no"));
            run(twin, named).await.unwrap();
            let Failed(unnamed) =
                run(twin, |_| Error::new(ErrorKind::Unsupported, "not here")).await.unwrap_err();
            assert!(unnamed.contains(need.name), "{unnamed}");
            run(twin, |capability| Error::invalid(format!("{capability}: no"))).await.unwrap_err();
        }
    }
}
