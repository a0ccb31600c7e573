//! What is stored of a job, as `lua/prelude.lua` packs it (`FIXED` and `CHANGES`): what a claim needs of it.

use super::reply::broken;
use crate::{Failure, Result, Timestamp};
use bytes::Bytes;

/// A job as it is stored.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) job_type: String,
    pub(super) content_type: String,
    pub(super) attempts: u32,
    pub(super) deliveries: u32,
    pub(super) enqueued_at: Timestamp,
    pub(super) due_at: Timestamp,
    pub(super) key: String,
    pub(super) failure: Option<Failure>,
    /// The payload, where it stands with the job.
    pub(super) payload: Option<Bytes>,
}

impl Stored {
    /// Reads what a script answered: what never changes, and what does.
    ///
    /// # Errors
    /// `Fatal` when it makes no sense.
    pub(super) fn read(fixed: &Bytes, changes: &[u8]) -> Result<Self> {
        let mut rest = Rest { bytes: fixed, at: 0 };
        let _number = rest.number(7)?;
        let enqueued_at = rest.time()?;
        let _first_due_at = rest.time()?;
        let _notifies = rest.number(1)?;
        let _payload_bytes = rest.small()?;
        let _has_extras = rest.number(1)?;
        let follows = rest.number(1)? == 1;
        let key = rest.text(4)?;
        let job_type = rest.text(4)?;
        let content_type = rest.text(4)?;
        let payload = follows.then(|| fixed.slice(rest.at..));
        let mut rest = Rest { bytes: changes, at: 0 };
        // State, number, time.
        rest.take(1 + 7 + 7)?;
        let due_at = rest.time()?;
        let attempts = rest.small()?;
        let _lost = rest.small()?;
        let deliveries = rest.small()?;
        let _notifies = rest.number(1)?;
        let _key = rest.text(4)?;
        let _claimed_at = rest.time()?;
        let _worker = rest.text(2)?;
        let _finished_at = rest.time()?;
        let reason = rest.text(2)?;
        let message = rest.text(2)?;
        let failure = reason.strip_prefix('+').map(|reason| Failure::new(reason, message));
        Ok(Self { job_type, content_type, attempts, deliveries, enqueued_at, due_at, key, failure, payload })
    }
}

/// What was not read yet.
struct Rest<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Rest<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(count).ok_or_else(broken)?;
        let taken = self.bytes.get(self.at..end).ok_or_else(broken)?;
        self.at = end;
        Ok(taken)
    }

    /// A number of `width` bytes, the highest first.
    fn number(&mut self, width: usize) -> Result<u64> {
        Ok(self.take(width)?.iter().fold(0, |number, byte| (number << 8) | u64::from(*byte)))
    }

    fn small(&mut self) -> Result<u32> {
        u32::try_from(self.number(4)?).map_err(|_| broken())
    }

    fn time(&mut self) -> Result<Timestamp> {
        let millis = i64::try_from(self.number(6)?).map_err(|_| broken())?;
        Ok(Timestamp::from_millis(millis))
    }

    /// Text behind its length of `width` bytes.
    fn text(&mut self, width: usize) -> Result<String> {
        let length = usize::try_from(self.number(width)?).map_err(|_| broken())?;
        Ok(String::from_utf8_lossy(self.take(length)?).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(width: usize, text: &str) -> Vec<u8> {
        let length = (text.len() as u64).to_be_bytes();
        [&length[8 - width..], text.as_bytes()].concat()
    }

    fn number(width: usize, number: u64) -> Vec<u8> {
        number.to_be_bytes()[8 - width..].to_vec()
    }

    /// What never changes, as the scripts pack it, by hand.
    fn fixed(payload: Option<&[u8]>) -> Bytes {
        let follows = u64::from(payload.is_some());
        let numbers = [number(7, 9), number(6, 1_700_000_000_000), number(6, 1), number(1, 0), number(4, 5)];
        let flags = [number(1, 0), number(1, follows)];
        let texts = [text(4, "key"), text(4, "mail"), text(4, "text/plain")];
        let payload = payload.unwrap_or_default();
        [numbers.concat(), flags.concat(), texts.concat(), payload.to_vec()].concat().into()
    }

    /// What changes, up to where it is of interest.
    fn changes() -> Vec<u8> {
        let times = [b"A".to_vec(), number(7, 9), number(7, 1_800_000_000_000), number(6, 1_700_000_000_001)];
        let counts = [number(4, 2), number(4, 1), number(4, 3), number(1, 0)];
        let held = [text(4, "key"), number(6, 1), text(2, "worker"), number(6, 0)];
        [times.concat(), counts.concat(), held.concat(), text(2, "+Boom"), text(2, "it broke")].concat()
    }

    #[test]
    fn a_job_is_read_as_it_was_packed() {
        let read = Stored::read(&fixed(Some(b"hello")), &changes()).unwrap();
        assert_eq!(read.job_type, "mail");
        assert_eq!(read.content_type, "text/plain");
        assert_eq!((read.attempts, read.deliveries), (2, 3));
        assert_eq!(read.enqueued_at.as_millis(), 1_700_000_000_000);
        assert_eq!(read.due_at.as_millis(), 1_700_000_000_001);
        assert_eq!(read.key, "key");
        assert_eq!(read.failure, Some(Failure::new("Boom", "it broke")));
        assert_eq!(read.payload.as_deref(), Some(&b"hello"[..]));
        let payload = |payload| Stored::read(&fixed(payload), &changes()).unwrap().payload;
        assert_eq!(payload(None), None);
        assert_eq!(payload(Some(b"")).as_deref(), Some(&b""[..]));
    }

    #[test]
    fn what_was_cut_off_is_an_error() {
        let (fixed, changes) = (fixed(None), changes());
        for end in 0..fixed.len() {
            assert!(Stored::read(&fixed.slice(..end), &changes).is_err(), "{end}");
        }
        for end in 0..changes.len() {
            assert!(Stored::read(&fixed, &changes[..end]).is_err(), "{end}");
        }
    }
}
