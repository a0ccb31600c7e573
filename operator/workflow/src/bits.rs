//! A set of small numbers that takes little room as text: a bitmap in base64, or ranges, whichever is shorter.

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// A set of numbers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Bits {
    bytes: Vec<u8>,
    count: u32,
}

impl Bits {
    /// No number is larger.
    const LIMIT: u32 = 1 << 20;

    pub(crate) fn contains(&self, number: u32) -> bool {
        let (at, bit) = place(number);
        self.bytes.get(at).is_some_and(|byte| byte & bit != 0)
    }

    /// Whether the number is new.
    pub(crate) fn insert(&mut self, number: u32) -> bool {
        if number >= Self::LIMIT || self.contains(number) {
            return false;
        }
        let (at, bit) = place(number);
        if self.bytes.len() <= at {
            self.bytes.resize(at + 1, 0);
        }
        self.bytes[at] |= bit;
        self.count += 1;
        true
    }

    pub(crate) fn len(&self) -> u32 {
        self.count
    }

    fn ranges(&self) -> Vec<(u32, u32)> {
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        let end = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX).saturating_mul(8);
        for number in (0..end).filter(|number| self.contains(*number)) {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == number => *last = number,
                _ => ranges.push((number, number)),
            }
        }
        ranges
    }
}

fn place(number: u32) -> (usize, u8) {
    (number as usize / 8, 1 << (number % 8))
}

impl Serialize for Bits {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        let texts = self
            .ranges()
            .into_iter()
            .map(|(from, to)| if from == to { from.to_string() } else { format!("{from}-{to}") });
        let ranges = texts.collect::<Vec<_>>().join(",");
        let bitmap_length = 1 + self.bytes.len().div_ceil(3) * 4;
        if ranges.len() <= bitmap_length {
            return out.serialize_str(&ranges);
        }
        out.serialize_str(&format!(":{}", STANDARD_NO_PAD.encode(&self.bytes)))
    }
}

impl<'de> Deserialize<'de> for Bits {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let text = String::deserialize(input)?;
        let mut bits = Self::default();
        if let Some(bitmap) = text.strip_prefix(':') {
            let bytes = STANDARD_NO_PAD.decode(bitmap).map_err(D::Error::custom)?;
            for (at, byte) in bytes.iter().enumerate() {
                for bit in (0..8).filter(|bit| byte & (1 << bit) != 0) {
                    bits.insert(u32::try_from(at * 8).unwrap_or(u32::MAX) + bit);
                }
            }
            return Ok(bits);
        }
        for range in text.split(',').filter(|range| !range.is_empty()) {
            let (from, to) = range.split_once('-').unwrap_or((range, range));
            let (from, to): (u32, u32) =
                (from.parse().map_err(D::Error::custom)?, to.parse().map_err(D::Error::custom)?);
            if from > to || to >= Self::LIMIT {
                return Err(D::Error::custom(format!("range {range} makes no sense")));
            }
            for number in from..=to {
                bits.insert(number);
            }
        }
        Ok(bits)
    }
}
