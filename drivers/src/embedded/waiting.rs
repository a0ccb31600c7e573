//! Callers that wait for jobs or completions. Every claim and every read stands in line here, if only for a moment:
//! one way to be served, in the order of arrival, without anybody holding the database.

use super::{
    command::{Answer, Reply},
    intake,
    state::{QueueId, State},
    storage::Sql,
    transition::Tx,
};
use crate::{Address, Claim, CompletionPage, Error, JobState, ReadCompletions, Result};
use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    time::Instant,
};

/// Jobs handed out in one transaction, so that claims don't keep settles waiting for long.
const PASS: usize = 4000;

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
    claims: HashMap<QueueId, VecDeque<Waiter<Claim>>>,
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
        let mut budget = PASS;
        for (queue, line) in &mut self.claims {
            serve_claims(tx, *queue, line, &mut budget, answers)?;
        }
        for (address, line) in &mut self.reads {
            serve_reads(tx, address, line, answers)?;
        }
        Ok(budget == 0)
    }

    /// Answers those whose time is over and forgets those that went away.
    pub(super) fn expire(&mut self, state: &State, now: Instant, answers: &mut Answers) {
        if self.nearest.is_none_or(|nearest| nearest > now) {
            return;
        }
        let over = expired(&mut self.claims, now);
        answers.extend(over.into_iter().map(|(_, reply)| (reply, Ok(Answer::Claimed(Vec::new())))));
        for (address, reply) in expired(&mut self.reads, now) {
            let page =
                CompletionPage { completions: Vec::new(), caught_up: state.completions(&address) == 0 };
            answers.push((reply, Ok(Answer::Completions(page))));
        }
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

fn serve_claims(
    tx: &mut Tx<'_>,
    queue: QueueId,
    line: &mut VecDeque<Waiter<Claim>>,
    budget: &mut usize,
    answers: &mut Answers,
) -> Sql<()> {
    while *budget > 0
        && let Some(waiter) = line.front()
    {
        let known = tx.state.queue(queue);
        if known
            .is_none_or(|known| known.settings.paused || known.deleting || known.count(JobState::Ready) == 0)
        {
            break;
        }
        let jobs = if waiter.reply.is_closed() {
            Vec::new()
        } else {
            let jobs = tx.claim(queue, &waiter.request)?;
            if jobs.is_empty() {
                // Whatever was ready could not be read and is out of the way now.
                break;
            }
            jobs
        };
        let Some(waiter) = line.pop_front() else { break };
        *budget = budget.saturating_sub(jobs.len());
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

/// Takes those out whose time is over. Lines in which nobody is left go.
fn expired<K: Clone + Eq + Hash, R>(
    lines: &mut HashMap<K, VecDeque<Waiter<R>>>,
    now: Instant,
) -> Vec<(K, Reply)> {
    let mut over = Vec::new();
    lines.retain(|key, line| {
        let waiters = std::mem::take(line);
        for waiter in waiters {
            if waiter.deadline <= now {
                over.push((key.clone(), waiter.reply));
            } else if !waiter.reply.is_closed() {
                line.push_back(waiter);
            }
        }
        !line.is_empty()
    });
    over
}
