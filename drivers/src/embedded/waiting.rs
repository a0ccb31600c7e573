//! Callers that wait for jobs or completions. Every claim and every read stands in line here, if only for a moment:
//! one way to be served, in the order of arrival, without anybody holding the database.

use super::{
    claim::Budget,
    command::{Answer, Reply},
    intake,
    state::{Queue, QueueId, State},
    storage::Sql,
    transition::Tx,
};
use crate::{Address, Claim, CompletionPage, Error, ReadCompletions, Result};
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::Instant,
};

/// How long completions of an address rest that could not be read.
const REST: i64 = 1000;

/// Answers that go out when the transaction is committed.
pub(super) type Answers = Vec<(Reply, Result<Answer>)>;

#[derive(Debug)]
struct Waiter<R> {
    request: R,
    deadline: Instant,
    reply: Reply,
}

/// All that wait.
#[derive(Debug, Default)]
pub(super) struct Lines {
    claims: BTreeMap<QueueId, VecDeque<Waiter<Claim>>>,
    /// The queue with which the next pass begins.
    turn: QueueId,
    reads: HashMap<Address, VecDeque<Waiter<ReadCompletions>>>,
    removals: Vec<(QueueId, Reply)>,
    /// No waiter's time is over before this.
    nearest: Option<Instant>,
}

impl Lines {
    pub(super) fn claim(&mut self, queue: QueueId, request: Claim, deadline: Instant, reply: Reply) {
        self.note(deadline);
        self.claims.entry(queue).or_default().push_back(Waiter { request, deadline, reply });
    }

    pub(super) fn read(
        &mut self,
        address: Address,
        request: ReadCompletions,
        deadline: Instant,
        reply: Reply,
    ) {
        self.note(deadline);
        self.reads.entry(address).or_default().push_back(Waiter { request, deadline, reply });
    }

    pub(super) fn removal(&mut self, queue: QueueId, reply: Reply) {
        self.removals.push((queue, reply));
    }

    fn note(&mut self, deadline: Instant) {
        self.nearest = Some(self.nearest.map_or(deadline, |nearest| nearest.min(deadline)));
    }

    /// When the first waiter's time is over.
    pub(super) const fn nearest(&self) -> Option<Instant> {
        self.nearest
    }

    /// When completions that somebody waits for can be handed out.
    pub(super) fn next_readable(&self, state: &State) -> Option<i64> {
        self.reads.keys().filter_map(|address| state.readable.get(address)).min()
    }

    /// Serves whom it can; whether it stopped although there was more to do.
    pub(super) fn serve(&mut self, tx: &mut Tx<'_>, answers: &mut Answers) -> Sql<bool> {
        let cut = self.serve_all_claims(tx, answers)?;
        for (address, line) in &mut self.reads {
            let mut served = Answers::new();
            let done = tx.part(|tx| serve_reads(tx, address, line, &mut served));
            if let Ok(Err(error)) = &done {
                tracing::error!(%address, %error, "completions can't be read for now");
                tx.state.readable.set(address, Some(tx.now.as_millis().saturating_add(REST)));
            }
            conclude(done, served, line, answers)?;
        }
        Ok(cut)
    }

    /// Every queue has its turn: a pass that ends early goes on where it ended.
    fn serve_all_claims(&mut self, tx: &mut Tx<'_>, answers: &mut Answers) -> Sql<bool> {
        let mut budget = Budget::whole();
        for queue in in_turn(&self.claims, self.turn) {
            if budget.is_spent() {
                self.turn = queue;
                return Ok(true);
            }
            self.turn = queue.saturating_add(1);
            let Some(line) = self.claims.get_mut(&queue) else { continue };
            let mut served = Answers::new();
            let done = tx.part(|tx| serve_claims(tx, queue, line, &mut budget, &mut served));
            if let Ok(Err(error)) = &done {
                tracing::error!(queue, %error, "a queue can't hand out jobs for now");
            }
            conclude(done, served, line, answers)?;
        }
        Ok(budget.is_spent())
    }

    /// Answers those whose time is over and forgets those that went away.
    pub(super) fn expire(&mut self, state: &State, now: Instant, pass: Pass<'_>, answers: &mut Answers) {
        if self.nearest.is_none_or(|nearest| nearest > now) {
            return;
        }
        let failure = match pass {
            Pass::Failed(error) => Some(error),
            Pass::Whole | Pass::Cut => None,
        };
        let answer = |otherwise| failure.map_or(Ok(otherwise), |error| Err(error.clone()));
        self.claims.retain(|queue, line| {
            // Who came too late for this pass has the next one: there are jobs.
            if !matches!(pass, Pass::Cut) || !state.queue(*queue).is_some_and(Queue::is_claimable) {
                let over = expired(line, now).into_iter();
                answers.extend(over.map(|reply| (reply, answer(Answer::Claimed(Vec::new())))));
            }
            !line.is_empty()
        });
        self.reads.retain(|address, line| {
            for reply in expired(line, now) {
                let caught_up = state.completions(address) == 0;
                let page = CompletionPage { completions: Vec::new(), caught_up };
                answers.push((reply, answer(Answer::Completions(page))));
            }
            !line.is_empty()
        });
        let claims = self.claims.values().flatten().map(|waiter| waiter.deadline);
        let reads = self.reads.values().flatten().map(|waiter| waiter.deadline);
        self.nearest = claims.chain(reads).min();
    }

    /// Answers those who waited for the end of `queue`, or for jobs from it.
    pub(super) fn removed(&mut self, queue: QueueId, answers: &mut Answers) {
        for (_, reply) in self.removals.extract_if(.., |(id, _)| *id == queue) {
            answers.push((reply, Ok(Answer::Done)));
        }
        for waiter in self.claims.remove(&queue).into_iter().flatten() {
            let gone = Error::new(crate::ErrorKind::NotFound, "the queue was deleted");
            answers.push((waiter.reply, Err(gone)));
        }
    }

    /// Answers those whose deletion was rolled back.
    pub(super) fn undone(&mut self, state: &State, error: &Error) {
        let undone = |id: &QueueId| state.queue(*id).is_some_and(|queue| !queue.deleting);
        for (_, reply) in self.removals.extract_if(.., |(id, _)| undone(id)) {
            let _ = reply.send(Err(error.clone()));
        }
    }

    /// Sends everybody away.
    pub(super) fn close(self) {
        let claims = self.claims.into_values().flatten().map(|waiter| waiter.reply);
        let reads = self.reads.into_values().flatten().map(|waiter| waiter.reply);
        let removals = self.removals.into_iter().map(|(_, reply)| reply);
        for reply in claims.chain(reads).chain(removals) {
            let _ = reply.send(Err(intake::closed()));
        }
    }
}

/// What the last pass did for those who wait.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pass<'e> {
    /// Everybody was offered what there is.
    Whole,
    /// It ended early; the next one begins at once.
    Cut,
    /// It failed, and the next one has to wait.
    Failed(&'e Error),
}

/// The queues of `lines`, beginning with `first`.
fn in_turn<L>(lines: &BTreeMap<QueueId, L>, first: QueueId) -> Vec<QueueId> {
    lines.range(first..).chain(lines.range(..first)).map(|(queue, _)| *queue).collect()
}

/// Passes on what a part of a pass answered, or its failure.
fn conclude<R>(
    done: Sql<Result<()>>,
    mut served: Answers,
    line: &mut VecDeque<Waiter<R>>,
    answers: &mut Answers,
) -> Sql<()> {
    if !matches!(done, Ok(Ok(()))) {
        // Whoever is first in line met the failure; the next pass must not meet it with them again.
        served.extend(line.pop_front().map(|waiter| (waiter.reply, Ok(Answer::Done))));
    }
    if let Ok(Err(error)) = &done {
        // Those before got nothing after all.
        for (_, answer) in &mut served {
            *answer = Err(error.clone());
        }
    }
    answers.extend(served);
    done.map(drop)
}

fn serve_claims(
    tx: &mut Tx<'_>,
    queue: QueueId,
    line: &mut VecDeque<Waiter<Claim>>,
    budget: &mut Budget,
    answers: &mut Answers,
) -> Sql<()> {
    while let Some(waiter) = line.front() {
        if budget.is_spent() || !tx.state.queue(queue).is_some_and(Queue::is_claimable) {
            break;
        }
        let jobs = if waiter.reply.is_closed() {
            Vec::new()
        } else {
            let jobs = tx.claim(queue, &waiter.request, budget)?;
            if jobs.is_empty() {
                break;
            }
            jobs
        };
        let Some(waiter) = line.pop_front() else { break };
        answers.push((waiter.reply, Ok(Answer::Claimed(jobs))));
    }
    Ok(())
}

fn serve_reads(
    tx: &mut Tx<'_>,
    address: &Address,
    line: &mut VecDeque<Waiter<ReadCompletions>>,
    answers: &mut Answers,
) -> Sql<()> {
    while let Some(waiter) = line.front() {
        if waiter.reply.is_closed() {
            line.pop_front();
            continue;
        }
        if tx.state.readable.get(address).is_none_or(|at| at > tx.now.as_millis()) {
            break;
        }
        let page = tx.read_completions(address, &waiter.request)?;
        if page.completions.is_empty() {
            break;
        }
        let Some(waiter) = line.pop_front() else { break };
        answers.push((waiter.reply, Ok(Answer::Completions(page))));
    }
    Ok(())
}

/// Takes those out whose time is over, and forgets those that went away.
fn expired<R>(line: &mut VecDeque<Waiter<R>>, now: Instant) -> Vec<Reply> {
    let mut over = Vec::new();
    for waiter in std::mem::take(line) {
        if waiter.deadline <= now {
            over.push(waiter.reply);
        } else if !waiter.reply.is_closed() {
            line.push_back(waiter);
        }
    }
    over
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_walk_begins_where_it_is_told_and_meets_everybody_once() {
        let lines: BTreeMap<QueueId, u8> = [2, 5, 9].map(|queue| (queue, 0)).into();
        for (first, expected) in [(0, [2, 5, 9]), (5, [5, 9, 2]), (6, [9, 2, 5]), (10, [2, 5, 9])] {
            assert_eq!(in_turn(&lines, first), expected, "{first}");
        }
    }
}
