//! Jobs that go all the way while the broker fails, in any order and in a strict one.

use super::{
    line::{Came, Line},
    order::{out_of_order, too_early},
};
use crate::conformance::{Fixture, Verdict, check, fixture::numbered};
use crate::{JobId, NewJob, Ordering, QueueSettings};
use std::{collections::BTreeMap, time::Duration};

pub(in crate::conformance::scenarios) async fn consume_after_broker_recovery(fixture: Fixture) -> Verdict {
    let proxy = fixture.proxy().await?;
    let line = Line::new(&fixture, &proxy, QueueSettings::default(), numbered).await?;
    let Came { jobs, figures } = line.run(&fixture, &proxy).await?;
    fixture.measure(format!("{jobs} jobs; {figures}"));
    Ok(())
}

/// Keys that are open at a time, and the jobs of each: a key that is held up by a lost claim leaves others.
const KEYS: usize = 20;
const OF_KEY: usize = 8;
const DELAY: Duration = Duration::from_millis(200);

/// The number of the key of a job: they take turns.
fn key(index: usize) -> usize {
    index / (KEYS * OF_KEY) * KEYS + index % KEYS
}

fn delay(index: usize) -> Duration {
    if index % 13 == 5 { DELAY } else { Duration::ZERO }
}

fn keyed(index: usize) -> NewJob {
    let job = NewJob { ordering_key: Some(format!("key-{}", key(index))), ..numbered(index) };
    if delay(index).is_zero() { job } else { job.with_delay(delay(index)) }
}

pub(in crate::conformance::scenarios) async fn ordering_fifo_broker_faults(fixture: Fixture) -> Verdict {
    fixture.over("jobs of a key", OF_KEY);
    let early = fixture.at_most("early", Duration::ZERO);
    let proxy = fixture.proxy().await?;
    let settings = QueueSettings { ordering: Ordering::Fifo, ..QueueSettings::default() };
    let line = Line::new(&fixture, &proxy, settings, keyed).await?;
    let Came { jobs, figures } = line.run(&fixture, &proxy).await?;
    let mut keys: BTreeMap<usize, Vec<JobId>> = BTreeMap::new();
    let mut delays = BTreeMap::new();
    for index in 0..jobs {
        let id = JobId::new(format!("job-{index}"))?;
        keys.entry(key(index)).or_default().push(id.clone());
        if !delay(index).is_zero() {
            delays.insert(id, delay(index).saturating_sub(early));
        }
    }
    let (events, keys) = (line.history.events(), keys.into_values().collect::<Vec<_>>());
    let mut findings = out_of_order(&events, &keys);
    findings.extend(too_early(&events, &delays));
    check!(findings.is_empty(), "{} findings: {}", findings.len(), findings.join("; "));
    fixture.measure(format!("{jobs} jobs of {} keys, {} delayed; {figures}", keys.len(), delays.len()));
    Ok(())
}
