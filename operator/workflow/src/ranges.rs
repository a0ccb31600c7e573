//! A set of members in little room: those that the broker was asked about.
//!
//! As text it is `40` for the first forty members, else ranges: `0-39,45,50-59`.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// Ranges that are kept. Those beyond are forgotten, which costs asking again.
const MAX_RANGES: usize = 128;

/// A set of members.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Ranges(
    /// First and one past the last; in order, with gaps between them.
    Vec<(u32, u32)>,
);

impl Ranges {
    pub(crate) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    pub(crate) fn contains(&self, number: u32) -> bool {
        self.before(number).is_some_and(|at| number < self.0[at].1)
    }

    pub(crate) fn insert(&mut self, number: u32) {
        if self.contains(number) || number == u32::MAX {
            return;
        }
        let before = self.before(number).filter(|at| self.0[*at].1 == number);
        let next = self.before(number).map_or(0, |at| at + 1);
        let after = self.0.get(next).is_some_and(|(from, _)| *from == number + 1);
        match (before, after) {
            (Some(at), true) => self.0[at].1 = self.0.remove(next).1,
            (Some(at), false) => self.0[at].1 = number + 1,
            (None, true) => self.0[next].0 = number,
            (None, false) => self.0.insert(next, (number, number + 1)),
        }
    }

    pub(crate) fn remove(&mut self, number: u32) {
        let Some(at) = self.before(number).filter(|at| number < self.0[*at].1) else { return };
        let (from, to) = self.0.remove(at);
        let rest = [(from, number), (number + 1, to)];
        self.0.splice(at..at, rest.into_iter().filter(|(from, to)| from < to));
        self.0.truncate(MAX_RANGES);
    }

    /// Takes in what lies between ranges where `has_open` finds none from one number to before another. Nobody asks about
    /// the others, and with them a long batch with few open members takes few ranges.
    pub(crate) fn close_gaps(&mut self, has_open: impl Fn(u32, u32) -> bool) {
        let mut closed: Vec<(u32, u32)> = Vec::new();
        for (from, to) in self.0.drain(..) {
            match closed.last_mut() {
                Some(last) if !has_open(last.1, from) => last.1 = to,
                None if !has_open(0, from) => closed.push((0, to)),
                Some(_) | None => closed.push((from, to)),
            }
        }
        closed.truncate(MAX_RANGES);
        self.0 = closed;
    }

    /// How many they are, if they are the first ones without a gap.
    pub(crate) fn first_part(&self) -> Option<u32> {
        match self.0.as_slice() {
            [(0, to)] => Some(*to),
            _ => None,
        }
    }

    /// The last range that begins at `number` or before.
    fn before(&self, number: u32) -> Option<usize> {
        self.0.partition_point(|(from, _)| *from <= number).checked_sub(1)
    }

    /// One that takes as much room as any can.
    pub(crate) fn longest() -> Self {
        let most = crate::MAX_MEMBERS;
        Self((0..MAX_RANGES).map(|_| (most, most + 2)).collect())
    }

    fn parse(text: &str) -> Option<Self> {
        let mut ranges = Vec::new();
        for part in text.split(',') {
            let (from, last) = part.split_once('-').unwrap_or((part, part));
            let (from, to): (u32, u32) = (from.parse().ok()?, last.parse::<u32>().ok()?.checked_add(1)?);
            if from >= to || ranges.last().is_some_and(|(_, end)| *end >= from) {
                return None;
            }
            ranges.push((from, to));
        }
        Some(Self(ranges))
    }
}

impl Serialize for Ranges {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        if let Some(to) = self.first_part() {
            return out.serialize_u32(to);
        }
        let parts = self.0.iter().map(|(from, to)| match to - from {
            1 => from.to_string(),
            _ => format!("{from}-{}", to - 1),
        });
        out.serialize_str(&parts.collect::<Vec<_>>().join(","))
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Stored {
    First(u32),
    Ranges(String),
}

impl<'de> Deserialize<'de> for Ranges {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        match Stored::deserialize(input)? {
            Stored::First(0) => Ok(Self::default()),
            Stored::First(to) => Ok(Self(vec![(0, to)])),
            Stored::Ranges(text) => {
                Self::parse(&text).ok_or_else(|| D::Error::custom("ranges make no sense"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn ranges(numbers: impl IntoIterator<Item = u32>) -> Ranges {
        let mut ranges = Ranges::default();
        numbers.into_iter().for_each(|number| ranges.insert(number));
        ranges
    }

    fn text(ranges: &Ranges) -> String {
        serde_json::to_string(ranges).unwrap()
    }

    #[test]
    fn a_first_part_is_one_number() {
        assert_eq!(text(&ranges([2, 0, 1])), "3");
        assert_eq!(text(&ranges([0, 1, 5, 8, 7])), "\"0-1,5,7-8\"");
    }

    #[test]
    fn gaps_close_where_nothing_is_open() {
        let mut all = ranges([3, 5, 9]);
        all.close_gaps(|from, to| (from..to).contains(&7));
        assert_eq!(text(&all), "\"0-5,9\"");
        all.close_gaps(|_, _| false);
        assert_eq!(text(&all), "10");
    }

    #[test]
    fn too_many_ranges_are_forgotten_from_the_end() {
        let odd: Vec<u32> = (0..1000).filter(|number| number % 2 == 1).collect();
        let mut all = ranges(odd.iter().copied());
        all.close_gaps(|from, to| (from..to).any(|number| number % 2 == 0));
        assert!(all.contains(255) && !all.contains(257));
        assert!(text(&all).len() <= text(&Ranges::longest()).len());
    }

    #[test]
    fn texts_that_make_no_sense_are_refused() {
        for wrong in ["\"\"", "\"3-1\"", "\"1,2\"", "\"5,1\"", "\"x\"", "\"1-4294967295\"", "-1", "null"] {
            assert!(serde_json::from_str::<Ranges>(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn it_is_a_set(changes in prop::collection::vec((any::<bool>(), 0..40_u32), 0..80)) {
            let (mut set, mut all) = (BTreeSet::new(), Ranges::default());
            for (inserted, number) in changes {
                if inserted {
                    set.insert(number);
                    all.insert(number);
                } else {
                    set.remove(&number);
                    all.remove(number);
                }
                prop_assert_eq!((0..41).filter(|at| all.contains(*at)).collect::<Vec<_>>(), set.iter().copied().collect::<Vec<_>>());
                prop_assert_eq!(&serde_json::from_str::<Ranges>(&text(&all)).unwrap_or_default(), &all);
            }
        }
    }
}
