//! Jobs that were given back without anybody having worked on them.
//!
//! A release that makes a job wait gets longer with every one before it, and how many there were is told by the job's
//! deliveries. A job that only found no slot free, or an app that was not there, counts as delivered too; it must not be
//! the worse for it.

use longshore_drivers::JobId;
use std::collections::{HashMap, VecDeque};

/// Jobs that are remembered at once; the oldest are forgotten first.
const MOST: usize = 4096;

/// How often each job was given back by this sidecar. Bounded, so for a short time only.
#[derive(Debug, Default)]
pub(crate) struct Bounces {
    counts: HashMap<JobId, u32>,
    order: VecDeque<JobId>,
}

impl Bounces {
    pub(crate) fn note(&mut self, id: &JobId) {
        if let Some(count) = self.counts.get_mut(id) {
            *count = count.saturating_add(1);
            return;
        }
        if self.order.len() >= MOST
            && let Some(oldest) = self.order.pop_front()
        {
            self.counts.remove(&oldest);
        }
        self.counts.insert(id.clone(), 1);
        self.order.push_back(id.clone());
    }

    pub(crate) fn of(&self, id: &JobId) -> u32 {
        self.counts.get(id).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: usize) -> JobId {
        JobId::new(format!("job-{number}")).unwrap()
    }

    #[test]
    fn bounces_are_counted_and_the_oldest_forgotten() {
        let mut bounces = Bounces::default();
        bounces.note(&id(0));
        bounces.note(&id(0));
        assert_eq!((bounces.of(&id(0)), bounces.of(&id(1))), (2, 0));
        for number in 1..=MOST {
            bounces.note(&id(number));
        }
        assert_eq!((bounces.of(&id(0)), bounces.of(&id(MOST))), (0, 1));
        assert_eq!(bounces.counts.len(), MOST);
    }
}
