//! From commands to answers, or to places in line.

use super::{
    command::{self, Answer, Operation, Request},
    state::QueueId,
    storage::Sql,
    transition::Tx,
    waiting::{Answers, Lines},
};
use crate::Result;

/// What one command needs further.
#[derive(Debug)]
pub(super) enum Step {
    Answer(Result<Answer>),
    /// Stands in line for jobs of this queue.
    Claim(QueueId),
    /// Stands in line for completions.
    Read,
    /// Waits for the last job of this queue to go.
    Removal(QueueId),
}

/// Carries one command out.
pub(super) fn execute(tx: &mut Tx<'_>, operation: &Operation, backend_id: &str) -> Sql<Step> {
    let answer = match operation {
        Operation::Probe => Ok(Answer::Done),
        Operation::Declare(queue, declaration) => tx.declare(queue, declaration, backend_id)?,
        Operation::DeleteQueue(queue, owner) => match tx.condemn(queue, owner)? {
            Ok(Some(id)) => return Ok(Step::Removal(id)),
            Ok(None) => Ok(Answer::Done),
            Err(error) => Err(error),
        },
        Operation::Enqueue(queue, rows) => tx.enqueue(queue, rows)?,
        Operation::Claim(queue, ..) => match tx.queue(queue) {
            Ok(id) => return Ok(Step::Claim(id)),
            Err(error) => Err(error),
        },
        Operation::Unclaim(receipts) => {
            tx.unclaim(receipts)?;
            Ok(Answer::Done)
        }
        Operation::Extend(queue, receipts, lease) => tx.extend(queue, receipts, *lease)?,
        Operation::Settle(queue, settlements) => tx.settle(queue, settlements)?,
        Operation::Stats(queue) => tx.stats(queue)?,
        Operation::Completions(..) => return Ok(Step::Read),
        Operation::Acknowledge(address, receipts) => tx.acknowledge(address, receipts)?,
        Operation::Unpin(queue, ids) => tx.unpin(queue, ids)?,
        Operation::Results(queue, ids) => tx.results(queue, ids)?,
        Operation::Inspect(queue, id) => tx.inspect(queue, id)?,
        Operation::List(queue, list) => tx.list(queue, list)?,
        Operation::Cancel(queue, ids) => tx.cancel(queue, ids)?,
        Operation::Redrive(queue, ids) => tx.redrive(queue, ids)?,
        Operation::Purge(queue, state, limit) => tx.purge(queue, *state, *limit)?,
        #[cfg(test)]
        Operation::Break(breakage) => super::tests::spoil(tx, *breakage)?,
    };
    Ok(Step::Answer(answer))
}

/// Gives every caller its answer or its place in line.
pub(super) fn arrange(requests: Vec<Request>, steps: Vec<Step>, lines: &mut Lines, answers: &mut Answers) {
    for (Request { operation, reply }, step) in requests.into_iter().zip(steps) {
        match (step, operation) {
            (Step::Answer(answer), _) => answers.push((reply, answer)),
            (Step::Claim(queue), Operation::Claim(_, claim, deadline)) => {
                lines.claim(queue, claim, deadline, reply);
            }
            (Step::Read, Operation::Completions(address, read, deadline)) => {
                lines.read(address, read, deadline, reply);
            }
            (Step::Removal(queue), _) => lines.removal(queue, reply),
            (Step::Claim(_) | Step::Read, _) => answers.push((reply, Err(command::mismatched()))),
        }
    }
}
