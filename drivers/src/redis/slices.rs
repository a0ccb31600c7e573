//! Batches that are too large for one request.

use super::reply::broken;
use crate::{Error, ErrorKind, Result};
use tokio_util::task::TaskTracker;

/// Bytes in one request, apart from the first item.
const BYTES: usize = 4 * 1024 * 1024;

/// How many items from the front fit one request: one at least, if there is one.
fn fitting<T>(items: &[T], bytes: &impl Fn(&T) -> usize) -> usize {
    let mut sum = 0;
    let fits = items.iter().take_while(|item| {
        let size = bytes(item);
        let fits = sum == 0 || sum + size <= BYTES;
        sum += size.max(1);
        fits
    });
    fits.count()
}

/// The items of each request.
pub(super) fn cut<T>(items: &[T], bytes: impl Fn(&T) -> usize) -> Vec<&[T]> {
    let (mut requests, mut rest) = (Vec::new(), items);
    while !rest.is_empty() {
        let (now, later) = rest.split_at(fitting(rest, &bytes));
        requests.push(now);
        rest = later;
    }
    requests
}

/// The answers to a batch whose requests are sent one after the other.
///
/// An error of the first request is the whole call's: nothing else was sent. Afterwards something was done, so an error is
/// that of each item in its request, and those behind it are not sent.
#[derive(Debug)]
pub(super) struct Answers<A> {
    items: Vec<Result<A>>,
    failed: Option<Error>,
}

impl<A> Answers<A> {
    pub(super) fn new() -> Self {
        Self { items: Vec::new(), failed: None }
    }

    /// Whether the next request, of `count` items, is to be sent; if not, it is answered.
    pub(super) fn go_on(&mut self, count: usize) -> bool {
        if let Some(error) = &self.failed {
            self.items.extend((0..count).map(|_| Err(error.clone())));
        }
        self.failed.is_none()
    }

    /// What came back for a request of `count` items.
    pub(super) fn take(&mut self, count: usize, sent: Result<Vec<Result<A>>>) -> Result<()> {
        match sent.and_then(|done| if done.len() == count { Ok(done) } else { Err(broken()) }) {
            Ok(done) => self.items.extend(done),
            Err(error) if self.items.is_empty() => return Err(error),
            Err(error) => {
                self.items.extend((0..count).map(|_| Err(error.clone())));
                self.failed = Some(unsent(error));
            }
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Vec<Result<A>> {
        self.items
    }
}

/// What those are told whose request was not sent because of this error.
fn unsent(error: Error) -> Error {
    match error.kind {
        ErrorKind::Ambiguous => {
            Error::unavailable(format!("not sent, an earlier part of the batch failed: {error}"))
        }
        _ => error,
    }
}

/// Whether they take several requests.
pub(super) fn are_many<T>(items: &[T], bytes: impl Fn(&T) -> usize) -> bool {
    fitting(items, &bytes) < items.len()
}

/// Does it to its end also when the caller goes away, so that it is not left half done.
pub(super) async fn to_the_end<T: Send + 'static>(
    tasks: &TaskTracker,
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let ended = |_| Err(Error::new(ErrorKind::Ambiguous, "the request's sender ended early"));
    tasks.spawn(work).await.unwrap_or_else(ended)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;

    /// Answers each item with itself until the request that fails, of nine items in three requests.
    fn send(fails: usize, kind: ErrorKind) -> (Result<Vec<Result<u8>>>, Vec<usize>) {
        let items: Vec<u8> = (0..9).collect();
        let (mut answers, mut sent) = (Answers::new(), Vec::new());
        for now in cut(&items, |_| MIB + MIB / 3) {
            if answers.go_on(now.len()) {
                sent.push(now.len());
                let fine = || now.iter().map(|item| Ok(*item)).collect();
                let answer = if sent.len() == fails { Err(Error::new(kind, "gone")) } else { Ok(fine()) };
                if let Err(error) = answers.take(now.len(), answer) {
                    return (Err(error), sent);
                }
            }
        }
        (Ok(answers.finish()), sent)
    }

    #[test]
    fn each_item_is_answered_in_its_place() {
        let (answers, sent) = send(0, ErrorKind::Fatal);
        assert_eq!(
            answers.unwrap().into_iter().map(Result::unwrap).collect::<Vec<_>>(),
            (0..9).collect::<Vec<_>>()
        );
        assert_eq!(sent, [3, 3, 3]);
        assert!(are_many(&[(); 4], |()| MIB + MIB / 3) && !are_many(&[(); 3], |()| MIB + MIB / 3));
        assert!(!are_many(&[(); 1], |()| 9 * BYTES));
    }

    #[test]
    fn an_error_of_the_first_request_is_that_of_the_call() {
        let (answers, sent) = send(1, ErrorKind::Ambiguous);
        assert_eq!((answers.unwrap_err().kind, sent.len()), (ErrorKind::Ambiguous, 1));
    }

    #[test]
    fn what_was_done_before_an_error_stays_told() {
        for (kind, rest) in [
            (ErrorKind::Ambiguous, ErrorKind::Unavailable),
            (ErrorKind::Unavailable, ErrorKind::Unavailable),
            (ErrorKind::NotFound, ErrorKind::NotFound),
        ] {
            let (answers, sent) = send(2, kind);
            let kinds: Vec<_> =
                answers.unwrap().into_iter().map(|answer| answer.map_err(|error| error.kind)).collect();
            assert_eq!(kinds[..3], [Ok(0), Ok(1), Ok(2)]);
            assert!(kinds[3..6].iter().all(|answer| *answer == Err(kind)), "{kinds:?}");
            assert!(kinds[6..].iter().all(|answer| *answer == Err(rest)), "{kinds:?}");
            assert_eq!(sent.len(), 2);
        }
    }
}
