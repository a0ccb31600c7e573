//! The place of a job in a workflow, and its text in job ids.

/// A callback.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Callback {
    /// After success.
    Then,
    /// After failure or cancellation.
    Catch,
    /// At the end, whatever way.
    Finally,
}

impl Callback {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Then, Self::Catch, Self::Finally];

    /// Its name: `then`, `catch`, `finally`.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Then => "then",
            Self::Catch => "catch",
            Self::Finally => "finally",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|callback| callback.text() == text)
    }

    pub(crate) const fn index(self) -> usize {
        match self {
            Self::Then => 0,
            Self::Catch => 1,
            Self::Finally => 2,
        }
    }
}

/// The place of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// A step's job (member 0), or a member of its batch.
    Member {
        /// The step, from 0.
        step: u16,
        /// The member, from 0.
        member: u32,
    },
    /// A callback of a batch.
    StepCallback {
        /// The step, from 0.
        step: u16,
        /// Which.
        callback: Callback,
    },
    /// A callback of the workflow.
    Callback(Callback),
}

impl Target {
    /// The place as text, with its round: `0.s3.m17`, `0.s3.then`, `0.finally`.
    pub fn encode(&self, round: u32) -> String {
        match self {
            Self::Member { step, member } => format!("{round}.s{step}.m{member}"),
            Self::StepCallback { step, callback } => format!("{round}.s{step}.{}", callback.text()),
            Self::Callback(callback) => format!("{round}.{}", callback.text()),
        }
    }

    /// Round and place of a text that [`Target::encode`] wrote.
    pub fn decode(text: &str) -> Option<(u32, Self)> {
        let mut parts = text.split('.');
        let round = number(parts.next()?)?;
        let first = parts.next()?;
        let second = parts.next();
        if parts.next().is_some() {
            return None;
        }
        let Some(second) = second else {
            return Some((round, Self::Callback(Callback::parse(first)?)));
        };
        let step = u16::try_from(number(first.strip_prefix('s')?)?).ok()?;
        let target = match second.strip_prefix('m').and_then(number) {
            Some(member) => Self::Member { step, member },
            None => Self::StepCallback { step, callback: Callback::parse(second)? },
        };
        Some((round, target))
    }
}

/// A number without signs and leading zeros, so that there is one text for each.
fn number(text: &str) -> Option<u32> {
    let plain = text == "0" || (!text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit()));
    plain.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_survive_their_text() {
        let mut targets: Vec<_> = Callback::ALL.map(Target::Callback).to_vec();
        for step in [0, 7, u16::MAX] {
            targets.extend(Callback::ALL.map(|callback| Target::StepCallback { step, callback }));
            targets.extend([0, 1, u32::MAX].map(|member| Target::Member { step, member }));
        }
        for target in targets {
            assert_eq!(Target::decode(&target.encode(3)), Some((3, target)));
        }
    }

    #[test]
    fn other_texts_are_no_places() {
        for text in [
            "",
            "0",
            "0.",
            "x.then",
            "0.s1",
            "0.s1.m",
            "0.s01.m1",
            "0.s1.m+1",
            "0.s1.m1.x",
            "0.other",
            "-1.then",
        ] {
            assert_eq!(Target::decode(text), None, "{text:?}");
        }
    }
}
