//! How free slots are shared among queues. Pure.

use std::collections::BTreeMap;

/// Smooth weighted round robin: over any stretch of picks each queue gets its share, and no queue gets its share in one
/// lump (weights 3 and 1 give `a a b a`, not `a a a b`).
#[derive(Debug, Default)]
pub struct Weights {
    /// What each queue is owed. It survives from one share to the next, so that shares of one slot are fair too.
    owed: BTreeMap<String, i64>,
}

impl Weights {
    /// Picks who gets the next slot among `candidates` (name and weight).
    fn pick(&mut self, candidates: &[(&str, u32)]) -> Option<usize> {
        let total: i64 = candidates.iter().map(|&(_, weight)| i64::from(weight.max(1))).sum();
        let mut best: Option<(usize, i64)> = None;
        for (index, &(name, weight)) in candidates.iter().enumerate() {
            let owed = self.owed.entry(name.to_owned()).or_default();
            *owed += i64::from(weight.max(1));
            if best.is_none_or(|(_, most)| *owed > most) {
                best = Some((index, *owed));
            }
        }
        let (index, _) = best?;
        if let Some(owed) = self.owed.get_mut(candidates[index].0) {
            *owed -= total;
        }
        Some(index)
    }

    /// Shares `slots` among `candidates`; the answer has one number for each.
    pub fn share(&mut self, slots: u32, candidates: &[(&str, u32)]) -> Vec<u32> {
        let mut shares = vec![0; candidates.len()];
        for _ in 0..slots {
            if let Some(index) = self.pick(candidates) {
                shares[index] += 1;
            }
        }
        shares
    }

    /// Forgets queues that are gone.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.owed.retain(|name, _| keep(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_follow_the_weights() {
        let mut weights = Weights::default();
        let candidates = [("a", 3), ("b", 1), ("c", 0)];
        assert_eq!(weights.share(50, &candidates), [30, 10, 10]);
    }

    #[test]
    fn single_slots_are_fair_and_smooth() {
        let mut weights = Weights::default();
        let candidates = [("a", 3), ("b", 1)];
        let order: String = (0..8)
            .map(|_| match weights.share(1, &candidates)[..] {
                [1, 0] => 'a',
                _ => 'b',
            })
            .collect();
        assert_eq!(order, "aabaaaba");
    }

    #[test]
    fn a_queue_that_was_away_does_not_catch_up() {
        let mut weights = Weights::default();
        weights.share(1000, &[("a", 1)]);
        let shares = weights.share(10, &[("a", 1), ("b", 1)]);
        assert_eq!(shares, [5, 5]);
    }

    #[test]
    fn nobody_gets_what_nobody_wants() {
        assert!(Weights::default().share(3, &[]).is_empty());
        assert_eq!(Weights::default().share(0, &[("a", 1)]), [0]);
    }
}
