//! The numbers of a scenario: what it holds a broker to, and what it makes it go through.
//!
//! A scenario hands the number that it is about to assert to [`Bounds`] and asserts what it gets back, so that the
//! published guarantee and the assertion are one number. A bound is the same in every run; what a run measured isn't one.

use serde::{Deserialize, Serialize};
use std::{
    borrow::Cow,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// In what a number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Unit {
    /// Things.
    #[serde(rename = "count")]
    Count,
    /// Milliseconds.
    #[serde(rename = "ms")]
    Millis,
    /// Bytes.
    #[serde(rename = "bytes")]
    Bytes,
}

/// How a number is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Holds {
    /// It is never more.
    AtMost,
    /// It is never less.
    AtLeast,
    /// It is what the broker was put through meanwhile.
    Over,
}

/// One number of a scenario. Its `Display` is for people: `≤ 2 s late`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Bound {
    /// Of what it is: `late`, `jobs`, `of payload`.
    pub name: Cow<'static, str>,
    /// How it is meant.
    pub holds: Holds,
    /// The number, in `unit`.
    pub bound: u64,
    /// In what it counts.
    pub unit: Unit,
}

/// What a bound can be a number of.
pub trait Amount: Copy {
    /// The number and its unit.
    fn number(self) -> (u64, Unit);
}

/// A size, to be told from a count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bytes(pub usize);

impl Amount for Bytes {
    fn number(self) -> (u64, Unit) {
        (self.0 as u64, Unit::Bytes)
    }
}

impl Amount for Duration {
    fn number(self) -> (u64, Unit) {
        (u64::try_from(self.as_millis()).unwrap_or(u64::MAX), Unit::Millis)
    }
}

impl Amount for usize {
    fn number(self) -> (u64, Unit) {
        (self as u64, Unit::Count)
    }
}

impl Amount for u64 {
    fn number(self) -> (u64, Unit) {
        (self, Unit::Count)
    }
}

impl Amount for u32 {
    fn number(self) -> (u64, Unit) {
        (u64::from(self), Unit::Count)
    }
}

/// The bounds that a scenario has named so far, in that order. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Bounds(Arc<Mutex<Vec<Bound>>>);

impl Bounds {
    /// Answers `bound`, which is to be asserted: never more than that of `name`.
    pub fn at_most<A: Amount>(&self, name: &'static str, bound: A) -> A {
        self.keep(name, Holds::AtMost, bound)
    }

    /// Answers `bound`, which is to be asserted: never less than that of `name`.
    pub fn at_least<A: Amount>(&self, name: &'static str, bound: A) -> A {
        self.keep(name, Holds::AtLeast, bound)
    }

    /// Answers `amount`, which is what the broker is to go through.
    pub fn over<A: Amount>(&self, name: &'static str, amount: A) -> A {
        self.keep(name, Holds::Over, amount)
    }

    /// What was named, each once.
    pub fn all(&self) -> Vec<Bound> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn keep<A: Amount>(&self, name: &'static str, holds: Holds, amount: A) -> A {
        let (bound, unit) = amount.number();
        let bound = Bound { name: name.into(), holds, bound, unit };
        let mut bounds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !bounds.contains(&bound) {
            bounds.push(bound);
        }
        amount
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, holds, bound, unit } = self;
        match holds {
            Holds::AtMost if *bound == 0 => return write!(out, "never {name}"),
            Holds::AtMost => out.write_str("≤ ")?,
            Holds::AtLeast => out.write_str("≥ ")?,
            Holds::Over => {}
        }
        write!(out, "{} {name}", unit.show(*bound))
    }
}

impl Unit {
    /// `number` for people, as short as it is exact.
    fn show(self, number: u64) -> String {
        let whole = |unit: u64| number > 0 && number.is_multiple_of(unit);
        match self {
            Self::Count => thousands(number),
            Self::Millis if whole(86_400_000) => format!("{} days", thousands(number / 86_400_000)),
            Self::Millis if whole(1000) => format!("{} s", thousands(number / 1000)),
            Self::Millis if number > 1000 && whole(100) => {
                format!("{}.{} s", number / 1000, number / 100 % 10)
            }
            Self::Millis => format!("{} ms", thousands(number)),
            Self::Bytes if whole(1 << 20) => format!("{} MiB", thousands(number >> 20)),
            Self::Bytes if whole(1 << 10) => format!("{} KiB", thousands(number >> 10)),
            Self::Bytes => format!("{} bytes", thousands(number)),
        }
    }
}

fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_told_as_short_as_they_are_exact() {
        let bounds = Bounds::default();
        bounds.at_most("early", Duration::ZERO);
        bounds.at_most("late", Duration::from_secs(2));
        bounds.over("lease", Duration::from_millis(1500));
        bounds.over("lease", Duration::from_millis(1250));
        bounds.over("delay", Duration::from_secs(366 * 24 * 3600));
        bounds.at_most("of payload", Bytes(1 << 20));
        bounds.at_most("of headers", Bytes(8 << 10));
        bounds.at_most("of id", Bytes(1025));
        bounds.over("jobs", 1_234_567_usize);
        bounds.at_least("faults", 6_u32);
        let told: Vec<_> = bounds.all().iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "never early",
                "≤ 2 s late",
                "1.5 s lease",
                "1,250 ms lease",
                "366 days delay",
                "≤ 1 MiB of payload",
                "≤ 8 KiB of headers",
                "≤ 1,025 bytes of id",
                "1,234,567 jobs",
                "≥ 6 faults",
            ]
        );
    }

    #[test]
    fn what_is_named_twice_stands_once_and_is_answered_each_time() {
        let bounds = Bounds::default();
        for _ in 0..2 {
            assert_eq!(bounds.at_most("late", Duration::from_secs(2)), Duration::from_secs(2));
        }
        assert_eq!(bounds.all().len(), 1);
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let bound = Bound { name: "late".into(), holds: Holds::AtMost, bound: 2000, unit: Unit::Millis };
        let text = serde_json::to_string(&bound).unwrap();
        assert_eq!(text, r#"{"name":"late","holds":"atMost","bound":2000,"unit":"ms"}"#);
        assert_eq!(serde_json::from_str::<Bound>(&text).unwrap(), bound);
    }
}
