//! Where the job of each member of a step stands, in little room.
//!
//! As text it is either runs (`1200f3n40o`) or, where that is longer, a base64 of numbers to the base 5: 100,000 members
//! in any pattern take about 41 KB. Where all succeeded, one bit each says whether they answered.

use crate::MAX_MEMBERS;
use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// Where the job of a member stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Member {
    /// Not known to be in the broker.
    Waiting,
    /// In the broker.
    Out,
    /// Ended otherwise than well.
    Failed,
    /// Ended well, without a result.
    Silent,
    /// Ended well, with a result.
    Answered,
}

impl Member {
    const ALL: [Self; 5] = [Self::Waiting, Self::Out, Self::Failed, Self::Silent, Self::Answered];
    const LETTERS: [u8; 5] = *b"wofna";

    /// Whether its job left the broker.
    pub(crate) const fn is_settled(self) -> bool {
        match self {
            Self::Waiting | Self::Out => false,
            Self::Failed | Self::Silent | Self::Answered => true,
        }
    }

    /// Whether its job ended well.
    pub(crate) const fn has_succeeded(self) -> bool {
        match self {
            Self::Waiting | Self::Out | Self::Failed => false,
            Self::Silent | Self::Answered => true,
        }
    }
}

/// All members of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Roster {
    /// A [`Member`] each, as its number: such a list is copied and compared fast.
    codes: Vec<u8>,
    /// How many there are of each.
    counts: [u32; 5],
    /// The first that waits, or the end. Kept so that finding what to dispatch takes no walk over all.
    first_waiting: usize,
}

impl Roster {
    /// So many members, which all wait. At most [`MAX_MEMBERS`].
    pub(crate) fn new(count: u32) -> Self {
        let count = count.min(MAX_MEMBERS);
        Self { codes: vec![0; count as usize], counts: [count, 0, 0, 0, 0], first_waiting: 0 }
    }

    pub(crate) fn total(&self) -> u32 {
        self.counts.iter().sum()
    }

    pub(crate) fn count(&self, member: Member) -> u32 {
        self.counts[member as usize]
    }

    pub(crate) fn succeeded(&self) -> u32 {
        self.count(Member::Silent) + self.count(Member::Answered)
    }

    pub(crate) fn settled(&self) -> u32 {
        self.succeeded() + self.count(Member::Failed)
    }

    /// Where a member stands; `None` for a number beyond the end.
    pub(crate) fn get(&self, number: u32) -> Option<Member> {
        let code = *self.codes.get(number as usize)?;
        Member::ALL.get(usize::from(code)).copied()
    }

    /// Puts a member somewhere else. Nothing happens beyond the end.
    pub(crate) fn set(&mut self, number: u32, member: Member) {
        let Some(old) = self.get(number) else { return };
        let at = number as usize;
        self.codes[at] = member as u8;
        self.counts[old as usize] -= 1;
        self.counts[member as usize] += 1;
        if member == Member::Waiting {
            self.first_waiting = self.first_waiting.min(at);
        } else if at == self.first_waiting {
            self.first_waiting = self.waiting_from(at);
        }
    }

    fn waiting_from(&self, at: usize) -> usize {
        let waiting = Member::Waiting as u8;
        self.codes[at..].iter().position(|code| *code == waiting).map_or(self.codes.len(), |found| at + found)
    }

    /// The numbers of all that stand there, in order.
    pub(crate) fn all(&self, member: Member) -> impl Iterator<Item = u32> + '_ {
        let from = if member == Member::Waiting { self.first_waiting } else { 0 };
        let (code, none) = (member as u8, self.count(member) == 0);
        let rest = if none { &[] } else { &self.codes[from..] };
        (0_u32..).zip(rest).filter(move |(_, at)| **at == code).map(move |(number, _)| number + narrow(from))
    }

    /// Whether one of them from `from` to before `to` stands there. Fast, unlike a look at each of [`Roster::all`].
    pub(crate) fn any_in(&self, member: Member, from: u32, to: u32) -> bool {
        let to = (to as usize).min(self.codes.len());
        self.codes.get(from as usize..to).is_some_and(|codes| codes.contains(&(member as u8)))
    }

    fn runs(&self, limit: usize) -> Option<String> {
        let mut text = String::new();
        for run in self.codes.chunk_by(|one, other| one == other) {
            text.push_str(&run.len().to_string());
            text.push(char::from(Member::LETTERS[usize::from(run[0])]));
            if text.len() > limit {
                return None;
            }
        }
        Some(text)
    }

    fn packed(&self) -> String {
        let words = self.codes.chunks(PER_WORD);
        let bytes: Vec<u8> = words
            .flat_map(|word| {
                word.iter().rev().fold(0_u32, |value, code| value * 5 + u32::from(*code)).to_le_bytes()
            })
            .collect();
        format!(":{}:{}", self.codes.len(), STANDARD_NO_PAD.encode(bytes))
    }

    /// One bit for each, if all succeeded: whether it answered.
    fn bits(&self) -> Option<String> {
        if self.succeeded() != self.total() {
            return None;
        }
        let answered = |code: &u8| u8::from(*code == Member::Answered as u8);
        let bytes: Vec<u8> = self
            .codes
            .chunks(8)
            .map(|eight| eight.iter().rev().fold(0, |bits, code| bits << 1 | answered(code)))
            .collect();
        Some(format!("={}:{}", self.codes.len(), STANDARD_NO_PAD.encode(bytes)))
    }

    fn text(&self) -> String {
        let limit = Self::worst_case_bytes(self.total());
        let others = || self.bits().unwrap_or_else(|| self.packed());
        match self.runs(limit) {
            Some(runs) if runs.len() <= Self::SHORT => runs,
            Some(runs) => Some(others()).filter(|other| other.len() < runs.len()).unwrap_or(runs),
            None => others(),
        }
    }

    /// Bytes that are not worth saving.
    pub(crate) const SHORT: usize = 16;

    /// Bytes of its text.
    pub(crate) fn text_bytes(&self) -> usize {
        self.text().len()
    }

    /// Bytes that the text of so many takes at most.
    pub(crate) const fn worst_case_bytes(count: u32) -> usize {
        // The number, its two colons, and the bits that a group of base64 does not fill.
        (count as usize).div_ceil(PER_WORD) * 16 / 3 + 16
    }

    pub(crate) fn answered(&self) -> u32 {
        self.count(Member::Answered)
    }

    /// Takes all for such that ended well without a result.
    pub(crate) fn all_silent(&mut self) {
        *self = Self::of(vec![Member::Silent as u8; self.codes.len()]);
    }

    /// Takes all for such that ended well with a result.
    pub(crate) fn all_answered(&mut self) {
        *self = Self::of(vec![Member::Answered as u8; self.codes.len()]);
    }

    fn of(codes: Vec<u8>) -> Self {
        let mut roster = Self { codes, counts: [0; 5], first_waiting: 0 };
        for code in &roster.codes {
            roster.counts[usize::from(*code)] += 1;
        }
        roster.first_waiting = roster.waiting_from(0);
        roster
    }
}

/// Numbers to the base 5 in 32 bits.
const PER_WORD: usize = 13;

/// No roster is longer than a `u32` can count.
fn narrow(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

impl Serialize for Roster {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_str(&self.text())
    }
}

impl<'de> Deserialize<'de> for Roster {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let text = String::deserialize(input)?;
        let codes = match (text.strip_prefix(':'), text.strip_prefix('=')) {
            (Some(packed), _) => unpack(packed),
            (None, Some(bits)) => read_bits(bits),
            (None, None) => unroll(&text),
        };
        codes.map(Self::of).ok_or_else(|| D::Error::custom("members make no sense"))
    }
}

fn unroll(text: &str) -> Option<Vec<u8>> {
    let mut codes = Vec::new();
    for run in text.split_inclusive(|letter: char| !letter.is_ascii_digit()) {
        let letter = *run.as_bytes().last()?;
        let code = (0_u8..).zip(Member::LETTERS).find(|(_, known)| *known == letter)?.0;
        let count: usize = run.get(..run.len() - 1)?.parse().ok()?;
        if codes.len().checked_add(count)? > MAX_MEMBERS as usize {
            return None;
        }
        codes.resize(codes.len() + count, code);
    }
    Some(codes)
}

fn unpack(text: &str) -> Option<Vec<u8>> {
    let (count, packed) = text.split_once(':')?;
    let count: usize = count.parse().ok()?;
    let bytes = STANDARD_NO_PAD.decode(packed).ok()?;
    if count > MAX_MEMBERS as usize || bytes.len() != count.div_ceil(PER_WORD) * 4 {
        return None;
    }
    let mut codes = Vec::with_capacity(count);
    for word in bytes.chunks_exact(4) {
        let mut value = u32::from_le_bytes(word.try_into().ok()?);
        for _ in 0..PER_WORD.min(count - codes.len()) {
            codes.push(u8::try_from(value % 5).ok()?);
            value /= 5;
        }
        if value != 0 {
            return None;
        }
    }
    Some(codes)
}

fn read_bits(text: &str) -> Option<Vec<u8>> {
    let (count, packed) = text.split_once(':')?;
    let count: usize = count.parse().ok()?;
    let bytes = STANDARD_NO_PAD.decode(packed).ok()?;
    if count > MAX_MEMBERS as usize || bytes.len() != count.div_ceil(8) {
        return None;
    }
    let bit = |at: usize| bytes[at / 8] >> (at % 8) & 1;
    let code = |at| if bit(at) == 1 { Member::Answered as u8 } else { Member::Silent as u8 };
    let beyond = (count..bytes.len() * 8).all(|at| bit(at) == 0);
    beyond.then(|| (0..count).map(code).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roster(members: impl IntoIterator<Item = Member>) -> Roster {
        Roster::of(members.into_iter().map(|member| member as u8).collect())
    }

    fn text(roster: &Roster) -> String {
        serde_json::to_value(roster).unwrap().as_str().unwrap().to_owned()
    }

    fn read(text: &str) -> Option<Roster> {
        serde_json::from_value(text.into()).ok()
    }

    #[test]
    fn long_runs_take_few_letters() {
        let mut all = vec![Member::Silent; 99_998];
        all.extend([Member::Failed, Member::Out]);
        assert_eq!(text(&roster(all)), "99998n1f1o");
        assert_eq!(text(&Roster::new(0)), "");
    }

    #[test]
    fn every_length_and_pattern_survives_its_text() {
        for length in (0..60).chain([1000, 1001]) {
            for step in 1..5 {
                let all = roster((0..length).map(|at| Member::ALL[at * step % 5]));
                assert_eq!(read(&text(&all)), Some(all));
            }
        }
    }

    #[test]
    fn the_worst_pattern_of_the_largest_batch_is_small() {
        let all = roster((0..MAX_MEMBERS as usize).map(|at| Member::ALL[at * 7 % 5]));
        assert!(text(&all).len() < 42 * 1024, "{}", text(&all).len());
        assert_eq!(read(&text(&all)), Some(all));
    }

    #[test]
    fn those_that_all_ended_well_take_a_bit_each() {
        let member = |at: u32| if at % 7 * (at % 11) % 7 < 3 { Member::Silent } else { Member::Answered };
        for count in (20..60).chain([MAX_MEMBERS]) {
            let all = roster((0..count).map(member));
            assert!(text(&all).len() < 40 + count as usize / 8 * 4 / 3, "{}", text(&all));
            assert_eq!(read(&text(&all)), Some(all));
        }
    }

    #[test]
    fn no_text_is_longer_than_was_estimated() {
        for count in (0..200_u32).chain([4_999, 5_000, MAX_MEMBERS]) {
            let all = roster((0..count).map(|at| Member::ALL[at as usize * 7 % 5]));
            assert!(all.text_bytes() <= Roster::worst_case_bytes(count), "{count}: {}", all.text_bytes());
        }
    }

    #[test]
    fn texts_that_make_no_sense_are_refused() {
        for wrong in [
            "3",
            "x",
            "3x",
            "w",
            "-1w",
            "+3w",
            "99999999999999999999w",
            "100001w",
            "é",
            ":",
            ":1:",
            ":1:AAAA",
            ":1://///w",
            ":2:Gf////",
            ":99999999:AAAAAA",
            "=",
            "=1:",
            "=1:Ag",
            "=9:AA",
            "=99999999:AA",
        ] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_first_that_waits_is_found_after_every_change() {
        let mut all = Roster::new(4);
        for (number, member, waiting) in [
            (1, Member::Out, vec![0, 2, 3]),
            (0, Member::Out, vec![2, 3]),
            (3, Member::Failed, vec![2]),
            (2, Member::Silent, vec![]),
            (1, Member::Waiting, vec![1]),
            (9, Member::Out, vec![1]),
        ] {
            all.set(number, member);
            assert_eq!(all.all(Member::Waiting).collect::<Vec<_>>(), waiting);
            assert_eq!(all.total(), 4);
            assert_eq!(all.any_in(Member::Waiting, 1, 3), waiting.iter().any(|at| (1..3).contains(at)));
            assert_eq!(all.any_in(Member::Waiting, 0, 9), !waiting.is_empty());
            assert!(!all.any_in(Member::Waiting, 3, 1) && !all.any_in(Member::Waiting, 4, 9));
        }
        assert_eq!(read(&text(&all)), Some(all));
    }
}
