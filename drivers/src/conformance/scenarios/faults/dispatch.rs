//! Jobs that go in while the broker fails.

use super::{
    Fault, judge,
    line::PAUSE,
    tally::{Lane, Tally, torment},
    unheard,
};
use crate::conformance::{
    Failed, Fixture, Subject, Verdict, check, check_eq, eventually,
    fixture::{LEASE, job},
    history::{Client, History},
};
use crate::{JobId, Settle};
use futures::future::try_join_all;
use std::{collections::BTreeSet, sync::Arc, time::Duration};

const PRODUCERS: &[Lane] = &[
    Lane { name: "producer 0", changes: true },
    Lane { name: "producer 1", changes: true },
    Lane { name: "producer 2", changes: true },
    Lane { name: "producer 3", changes: true },
];

pub(in crate::conformance::scenarios) async fn dispatch_during_broker_fault(fixture: Fixture) -> Verdict {
    fixture.over("producers", PRODUCERS.len());
    fixture.over("faults", Fault::ALL.len());
    let least = fixture.at_least("failed calls of each producer in each fault", 1_usize);
    let slow = fixture.at_least("calls of each over a slow network", 3_usize);
    let direct = fixture.subject().await?;
    let proxy = fixture.proxy().await?;
    let through = fixture.through(&proxy, &direct).await?;
    let (history, tally) = (Arc::new(History::default()), Tally::of(PRODUCERS, least, slow));
    let tormenting = async {
        let figures = torment(&fixture, &proxy, &tally, || true).await;
        tally.stop();
        figures
    };
    let producing = try_join_all((0..PRODUCERS.len()).map(|number| {
        let client = Client::new(&history, number, through.driver.clone(), through.queue.clone());
        produce(client, number, &tally)
    }));
    let (figures, sent) = tokio::try_join!(tormenting, producing)?;
    let sent: Vec<JobId> = sent.into_iter().flatten().collect();
    // Whoever doesn't know whether a job got in sends it again.
    let again = Client::new(&history, PRODUCERS.len(), through.driver.clone(), through.queue.clone());
    for ids in sent.chunks(100) {
        eventually("what was sent is sent again", || async {
            let answers = match again.enqueue(ids.iter().map(|id| job().with_id(id.clone())).collect()).await
            {
                Ok(answers) => answers.into_iter().collect::<crate::Result<Vec<_>>>(),
                Err(error) => Err(error),
            };
            answers.map_or_else(unheard, |_| Ok(true))
        })
        .await?;
    }
    let runs = drain(&direct, &history).await?;
    check_eq!(runs.len(), sent.len(), "jobs that ran, of those that were sent");
    judge(&direct, &history).await?;
    fixture.measure(format!("{} jobs; failed calls of each producer, or slow ones: {figures}", sent.len()));
    Ok(())
}

async fn produce(client: Client, number: usize, tally: &Tally) -> Result<Vec<JobId>, Failed> {
    let mut sent = Vec::new();
    while !tally.is_over() {
        let id = JobId::new(format!("job-{number}-{}", sent.len()))?;
        let begun = tally.begin();
        let answer = client.enqueue(vec![job().with_id(id.clone())]).await;
        tally.count(number, begun, &answer.and_then(|mut answers| answers.remove(0)))?;
        sent.push(id);
        tokio::time::sleep(PAUSE).await;
    }
    Ok(sent)
}

/// Claims and ends everything that can be claimed.
async fn drain(subject: &Subject, history: &Arc<History>) -> Result<BTreeSet<JobId>, Failed> {
    let client = Client::new(history, 1000, subject.driver.clone(), subject.queue.clone());
    let mut runs = BTreeSet::new();
    loop {
        let jobs = client.claim(100, LEASE, Duration::from_millis(100)).await?;
        if jobs.is_empty() {
            return Ok(runs);
        }
        let settles = jobs.iter().map(|job| (job, Settle::Succeed { result: None }));
        for answer in client.settle(settles.collect()).await? {
            answer?;
        }
        for job in jobs {
            check!(runs.insert(job.id.clone()), "job {} ran twice", job.id);
        }
    }
}
