//! Which claims to send now. Pure; the reasons are told in [`crate::claim`].

use crate::weights::Weights;

/// One claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// Up to this many, if there are any.
    Now(u32),
    /// Up to this many, waiting for the first.
    Wait(u32),
}

impl Ask {
    /// Up to how many.
    pub const fn max(self) -> u32 {
        match self {
            Self::Now(max) | Self::Wait(max) => max,
        }
    }
}

/// Whether a queue is left alone for a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// No.
    None,
    /// It takes no part in rounds: it was empty when it was asked without waiting.
    FromRounds,
    /// Asking it makes no sense yet: a claim failed, or long polls return empty too soon.
    Whole,
}

/// What is known about one queue.
#[derive(Debug, Clone)]
pub struct Look<'a> {
    /// Its name.
    pub name: &'a str,
    /// The name of its broker.
    pub broker: &'a str,
    /// Its weight.
    pub weight: u32,
    /// Claim nothing.
    pub suspended: bool,
    /// The last claim brought all that it asked for.
    pub hot: bool,
    /// A claim is under way.
    pub outstanding: Option<Ask>,
    /// Whether it is left alone for a moment.
    pub rest: Rest,
}

/// The claims to send.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// The index of the queue and what to ask it for.
    pub asks: Vec<(usize, Ask)>,
    /// Whether it makes sense to look again when a queue has rested.
    pub again: bool,
}

/// Decides what to claim when `free` slots are free.
pub fn round(free: u32, queues: &[Look<'_>], weights: &mut Weights) -> Round {
    let promised: u32 = queues
        .iter()
        .map(|queue| match queue.outstanding {
            Some(Ask::Now(max)) => max,
            Some(Ask::Wait(_)) | None => 0,
        })
        .sum();
    let slots = free.saturating_sub(promised);
    if slots == 0 {
        return Round::default();
    }
    let idle =
        |queue: &Look<'_>| !queue.suspended && queue.rest != Rest::Whole && queue.outstanding.is_none();
    let alone = queues.iter().filter(|queue| !queue.suspended).count() == 1;
    let candidates = || queues.iter().enumerate().filter(|(_, queue)| idle(queue));
    let asks = if alone {
        candidates().map(|(index, _)| (index, Ask::Wait(slots))).collect()
    } else if queues.iter().any(|queue| !queue.suspended && queue.hot) {
        // One round at a time on each broker: with overlapping ones whoever answers first would take it all.
        let busy = |broker: &str| {
            let now =
                |queue: &Look<'_>| queue.broker == broker && matches!(queue.outstanding, Some(Ask::Now(_)));
            queues.iter().any(now)
        };
        let waiting: Vec<_> =
            candidates().filter(|(_, queue)| queue.rest == Rest::None && !busy(queue.broker)).collect();
        let shares: Vec<_> = waiting.iter().map(|(_, queue)| (queue.name, queue.weight)).collect();
        let shares = weights.share(slots, &shares);
        let asked = waiting.iter().zip(shares).filter(|(_, share)| *share > 0);
        asked.map(|((index, _), share)| (*index, Ask::Now(share))).collect()
    } else {
        // A queue that was found empty waits for its next job like any other: nobody else needs the requests.
        candidates().map(|(index, _)| (index, Ask::Wait(1))).collect()
    };
    Round { asks, again: true }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(name: &str, weight: u32) -> Look<'_> {
        Look {
            name,
            broker: "default",
            weight,
            suspended: false,
            hot: false,
            outstanding: None,
            rest: Rest::None,
        }
    }

    fn asks(free: u32, queues: &[Look<'_>]) -> Vec<(usize, Ask)> {
        round(free, queues, &mut Weights::default()).asks
    }

    #[test]
    fn a_single_queue_waits_with_all_slots() {
        assert_eq!(asks(10, &[queue("a", 1)]), [(0, Ask::Wait(10))]);
        let mut suspended = queue("b", 1);
        suspended.suspended = true;
        assert_eq!(asks(10, &[queue("a", 1), suspended]), [(0, Ask::Wait(10))]);
    }

    #[test]
    fn idle_queues_wait_side_by_side_for_one_job_each() {
        let queues = [queue("a", 3), queue("b", 1), queue("c", 1)];
        assert_eq!(asks(1, &queues), [(0, Ask::Wait(1)), (1, Ask::Wait(1)), (2, Ask::Wait(1))]);
    }

    #[test]
    fn hot_queues_share_the_slots_by_weight() {
        let mut queues = [queue("a", 3), queue("b", 1)];
        queues.iter_mut().for_each(|queue| queue.hot = true);
        assert_eq!(asks(8, &queues), [(0, Ask::Now(6)), (1, Ask::Now(2))]);
    }

    #[test]
    fn a_waiting_poll_keeps_nothing_from_a_hot_queue() {
        let mut queues = [queue("a", 1), queue("b", 9)];
        queues[0].hot = true;
        queues[1].outstanding = Some(Ask::Wait(1));
        assert_eq!(asks(10, &queues), [(0, Ask::Now(10))]);
    }

    #[test]
    fn promised_slots_are_not_given_twice() {
        let mut queues = [queue("a", 1), queue("b", 1)];
        queues[0].hot = true;
        queues[0].outstanding = Some(Ask::Now(10));
        queues[1].broker = "other";
        assert_eq!(asks(10, &queues), []);
        assert_eq!(asks(12, &queues), [(1, Ask::Now(2))]);
    }

    #[test]
    fn a_round_waits_for_the_round_before_on_its_broker() {
        let mut queues = [queue("a", 1), queue("b", 1)];
        queues[0].hot = true;
        queues[0].outstanding = Some(Ask::Now(1));
        assert_eq!(asks(10, &queues), []);
    }

    #[test]
    fn nobody_asks_without_slots_and_nobody_asks_the_suspended_or_resting() {
        assert_eq!(round(0, &[queue("a", 1)], &mut Weights::default()), Round::default());
        let mut queues = [queue("a", 1), queue("b", 1), queue("c", 1)];
        queues[0].suspended = true;
        queues[1].rest = Rest::Whole;
        assert_eq!(asks(5, &queues), [(2, Ask::Wait(1))]);
    }

    #[test]
    fn an_empty_queue_waits_for_its_next_job_at_once_when_no_other_is_hot() {
        let mut queues = [queue("a", 1), queue("b", 1)];
        queues[0].rest = Rest::FromRounds;
        assert_eq!(asks(5, &queues), [(0, Ask::Wait(1)), (1, Ask::Wait(1))]);
        queues[1].suspended = true;
        assert_eq!(asks(5, &queues), [(0, Ask::Wait(5))]);
    }

    #[test]
    fn an_empty_queue_takes_part_once_it_has_rested() {
        let mut queues = [queue("a", 1), queue("b", 1)];
        queues[0].hot = true;
        queues[1].rest = Rest::FromRounds;
        assert_eq!(asks(2, &queues), [(0, Ask::Now(2))]);
        queues[1].rest = Rest::None;
        assert_eq!(asks(2, &queues), [(0, Ask::Now(1)), (1, Ask::Now(1))]);
    }
}
