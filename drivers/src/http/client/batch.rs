//! Batches that are too big for one request go in several, one after the other.

use crate::{Error, Limits, NewJob, Payload, Result, Settle, Settlement};

/// Bytes of items in one request, as estimated here; far from what a server takes.
pub(super) const BYTES: usize = 8 * 1024 * 1024;

/// What an item takes beside what is counted.
const ENVELOPE: usize = 512;

/// Refuses batches that the contract doesn't allow.
pub(super) fn check(items: usize) -> Result<()> {
    if items > Limits::BATCH {
        return Err(Error::invalid(format!("{items} items in one call, the limit is {}", Limits::BATCH)));
    }
    Ok(())
}

/// About what `job` takes on the wire.
pub(super) fn job_bytes(job: &NewJob) -> usize {
    let headers: usize = job.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    payload_bytes(&job.payload) + headers + ENVELOPE
}

/// About what `settlement` takes on the wire.
pub(super) fn settlement_bytes(settlement: &Settlement) -> usize {
    let content = match &settlement.settle {
        Settle::Succeed { result } => result.as_ref().map_or(0, payload_bytes),
        Settle::Retry { failure, .. } | Settle::Bury { failure, .. } => failure.message.len(),
        Settle::Release { .. } => 0,
    };
    content + settlement.receipt.0.len() + ENVELOPE
}

/// Base64 makes four of three.
const fn payload_bytes(payload: &Payload) -> usize {
    payload.bytes.len().div_ceil(3) * 4
}

/// How many of the first `items` go together: one at least.
pub(super) fn fitting<'a, T: 'a>(
    items: impl IntoIterator<Item = &'a T>,
    bytes: impl Fn(&T) -> usize,
) -> usize {
    let mut sum = 0;
    let fitting = items.into_iter().take(Limits::BATCH).take_while(|item| {
        sum += bytes(item);
        sum <= BYTES
    });
    fitting.count().max(1)
}

/// Sends `items` in parts. When a part fails after another went through, its error is the answer to each item that is
/// left: nothing takes back what is known.
pub(super) async fn in_parts<T, R, F, S>(
    mut items: Vec<T>,
    bytes: fn(&T) -> usize,
    send: S,
) -> Result<Vec<Result<R>>>
where
    S: Fn(Vec<T>) -> F,
    F: Future<Output = Result<Vec<Result<R>>>>,
{
    let mut answers = Vec::with_capacity(items.len());
    while !items.is_empty() {
        let rest = items.split_off(fitting(&items, bytes).min(items.len()));
        let part = std::mem::replace(&mut items, rest);
        let count = part.len() + items.len();
        match send(part).await {
            Ok(part) => answers.extend(part),
            Err(error) if answers.is_empty() => return Err(error),
            Err(error) => {
                answers.extend(std::iter::repeat_n(error, count).map(Err));
                break;
            }
        }
    }
    Ok(answers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;
    use std::cell::RefCell;

    async fn send(items: Vec<usize>, fail_from: usize) -> (Vec<usize>, Result<Vec<Result<usize>>>) {
        let parts = RefCell::new(Vec::new());
        let answers = in_parts(
            items,
            |item| *item,
            |part| {
                parts.borrow_mut().push(part.len());
                let fails = parts.borrow().len() > fail_from;
                async move {
                    if fails {
                        return Err(Error::new(ErrorKind::Ambiguous, "lost"));
                    }
                    Ok(part.into_iter().map(Ok).collect())
                }
            },
        )
        .await;
        (parts.into_inner(), answers)
    }

    #[tokio::test]
    async fn parts_are_bounded_and_in_order() {
        let items = vec![BYTES / 2, BYTES / 2, 1, BYTES * 2, 1];
        let (parts, answers) = send(items.clone(), 9).await;
        assert_eq!(parts, [2, 1, 1, 1]);
        let answers: Vec<_> = answers.unwrap().into_iter().map(Result::unwrap).collect();
        assert_eq!(answers, items);
    }

    #[tokio::test]
    async fn a_later_failure_keeps_what_is_known() {
        let (_, answers) = send(vec![BYTES, BYTES, BYTES], 1).await;
        let known: Vec<_> = answers.unwrap().iter().map(Result::is_ok).collect();
        assert_eq!(known, [true, false, false]);
        assert!(send(vec![1], 0).await.1.is_err());
    }
}
