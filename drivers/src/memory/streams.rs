//! Completions in plain maps.

use crate::{
    Address, Completion, CompletionPage, CompletionReceipt, JobId, Limits, Notify, Outcome, QueueName,
    ReadCompletions, Timestamp,
};
use std::collections::{BTreeMap, HashMap};

/// A job, for as long as the broker runs.
pub(super) type JobKey = (QueueName, u64);

#[derive(Debug, Default)]
pub(super) struct Streams {
    by_address: BTreeMap<Address, BTreeMap<u64, Kept>>,
    /// Completions of each job that wait.
    of_job: HashMap<JobKey, usize>,
    /// The last completion of each id that waits, and what it says.
    of_id: HashMap<(QueueName, JobId), (u64, Outcome)>,
    last: u64,
}

#[derive(Debug)]
struct Kept {
    completion: Completion,
    job: JobKey,
    leased_until: Timestamp,
}

impl Streams {
    pub(super) fn add(&mut self, notify: &Notify, job: JobKey, id: &JobId, outcome: Outcome, now: Timestamp) {
        self.last += 1;
        let completion = Completion {
            receipt: CompletionReceipt(self.last.to_string()),
            queue: job.0.clone(),
            job: id.clone(),
            outcome,
            settled_at: now,
            context: notify.context.clone(),
            delivery: 0,
        };
        self.of_id.insert((job.0.clone(), id.clone()), (self.last, completion.outcome.clone()));
        *self.of_job.entry(job.clone()).or_default() += 1;
        let kept = Kept { completion, job, leased_until: Timestamp::default() };
        self.by_address.entry(notify.address.clone()).or_default().insert(self.last, kept);
    }

    pub(super) fn read(
        &mut self,
        address: &Address,
        read: &ReadCompletions,
        now: Timestamp,
    ) -> CompletionPage {
        let Some(kept) = self.by_address.get_mut(address) else {
            return CompletionPage { completions: Vec::new(), caught_up: true };
        };
        let max = (read.max as usize).min(Limits::BATCH);
        let readable = kept.values_mut().filter(|kept| kept.leased_until <= now).take(max);
        let completions: Vec<_> = readable
            .map(|kept| {
                kept.leased_until = now.after(read.lease);
                kept.completion.delivery += 1;
                kept.completion.clone()
            })
            .collect();
        let caught_up = completions.len() == kept.len();
        CompletionPage { completions, caught_up }
    }

    /// Forgets a completion; the job whose last one it was.
    pub(super) fn acknowledge(&mut self, address: &Address, receipt: &CompletionReceipt) -> Option<JobKey> {
        let kept = self.by_address.get_mut(address)?;
        let number = receipt.0.parse().ok()?;
        let Kept { completion, job, .. } = kept.remove(&number)?;
        let id = (completion.queue, completion.job);
        if self.of_id.get(&id).is_some_and(|(last, _)| *last == number) {
            self.of_id.remove(&id);
        }
        if kept.is_empty() {
            self.by_address.remove(address);
        }
        let left = self.of_job.get_mut(&job)?;
        *left -= 1;
        if *left > 0 {
            return None;
        }
        self.of_job.remove(&job);
        Some(job)
    }

    /// How a job ended whose completion was not acknowledged yet.
    pub(super) fn left(&self, queue: &QueueName, id: &JobId) -> Option<&Outcome> {
        self.of_id.get(&(queue.clone(), id.clone())).map(|(_, outcome)| outcome)
    }

    /// Whether a completion of this job was not acknowledged yet.
    pub(super) fn waits(&self, job: &JobKey) -> bool {
        self.of_job.contains_key(job)
    }

    /// When the first completion that is leased now can be read again.
    pub(super) fn next_lease_end(&self, now: Timestamp) -> Option<i64> {
        let kept = self.by_address.values().flat_map(BTreeMap::values);
        kept.map(|kept| kept.leased_until).filter(|until| *until > now).min().map(Timestamp::as_millis)
    }
}
