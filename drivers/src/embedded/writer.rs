//! The thread that owns the database. It takes all commands that wait at once, carries them out in one transaction,
//! commits once and then answers all of them: many callers share one sync of the disk, and a lone one waits for nobody.
//!
//! A command that spoils the transaction must not harm its neighbours: then the group is rolled back and each command
//! runs in a transaction of its own.

use super::{
    Config,
    command::{Answer, Operation, Request},
    completions,
    config::Clock,
    intake::Intake,
    schema,
    state::{QueueId, State},
    storage::{self, Sql},
    transition::Tx,
    waiting::{Answers, Lines},
};
use crate::{Error, ErrorKind, Result, Timestamp, Wake};
use rusqlite::Connection;
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};
use tokio::sync::{broadcast, watch};

/// The thread looks at the clock at least this often: the wall clock may jump while it sleeps.
const GLANCE: Duration = Duration::from_millis(500);
/// How long timers rest after they failed.
const REST: Duration = Duration::from_millis(200);

/// Failures are logged this often at most.
const COMPLAIN: Duration = Duration::from_secs(1);

/// What the thread shares with the callers.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) intake: Arc<Intake>,
    pub(super) hints: broadcast::Sender<Wake>,
    /// Dropped when the file is closed.
    pub(super) done: watch::Sender<()>,
}

/// The body of the thread: opens the database, tells `opened` the id of its data, and works until the intake is closed.
pub(super) fn run(config: &Config, shared: Shared, opened: &mpsc::Sender<Result<String>>) {
    // However this ends, nobody waits for ever.
    let _abandon = Abandon(shared.intake.clone());
    let Shared { intake, hints, done } = shared;
    match Writer::open(config, intake, hints) {
        Ok(writer) => {
            let _ = opened.send(Ok(writer.backend_id.clone()));
            writer.work();
        }
        Err(error) => {
            let _ = opened.send(Err(error));
        }
    }
    drop(done);
}

struct Abandon(Arc<Intake>);

impl Drop for Abandon {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

struct Writer {
    db: Connection,
    state: State,
    lines: Lines,
    clock: Arc<dyn Clock>,
    /// The latest instant that anybody was told.
    latest: Timestamp,
    backend_id: String,
    intake: Arc<Intake>,
    hints: broadcast::Sender<Wake>,
    /// Timers failed: until they work again they have a transaction of their own, and not before this.
    rest: Option<Instant>,
    /// When a failure was logged last.
    complained: Option<Instant>,
    /// There is more to do at once.
    busy: bool,
}

/// What one command needs further.
#[derive(Debug)]
enum Step {
    Answer(Result<Answer>),
    /// Stands in line for jobs of this queue.
    Claim(QueueId),
    /// Stands in line for completions.
    Read,
    /// Waits for the last job of this queue to go.
    Removal(QueueId),
}

/// A transaction that changed nothing, or perhaps nothing.
#[derive(Debug)]
struct Spoilt(Error);

impl Writer {
    fn open(config: &Config, intake: Arc<Intake>, hints: broadcast::Sender<Wake>) -> Result<Self> {
        let db = schema::open(config)?;
        let backend_id = schema::backend_id(&db)?;
        let state = completions::unpark(&db)
            .and_then(|()| State::load(&db))
            .map_err(|error| storage::error(&error))?;
        Ok(Self {
            db,
            state,
            lines: Lines::default(),
            clock: config.clock.clone(),
            latest: Timestamp::default(),
            backend_id,
            intake,
            hints,
            rest: None,
            complained: None,
            busy: true,
        })
    }

    fn work(mut self) {
        loop {
            let look = self.next_look();
            let group = self.intake.take(look);
            let last = group.last;
            self.turn(group.requests);
            if last {
                break;
            }
        }
        self.lines.close();
        if let Err((_, error)) = self.db.close() {
            tracing::warn!(%error, "the database was not closed cleanly; nothing is lost");
        }
    }

    /// Until when the thread may sleep.
    fn next_look(&mut self) -> Instant {
        let now = Instant::now();
        if let Some(rest) = self.rest {
            return rest;
        }
        if self.busy {
            return now;
        }
        let clock = self.now().as_millis();
        let timers = [self.state.due.next(), self.state.sweeps.next(), self.lines.next_readable(&self.state)];
        let timer = timers.into_iter().flatten().min().map(|at| {
            let millis = u64::try_from(at.saturating_sub(clock)).unwrap_or(0);
            now + Duration::from_millis(millis).min(GLANCE)
        });
        let waiter = self.lines.nearest();
        timer.into_iter().chain(waiter).chain([now + GLANCE]).min().unwrap_or(now)
    }

    /// The clock, which doesn't go backwards.
    fn now(&mut self) -> Timestamp {
        self.latest = self.latest.max(self.clock.now());
        self.latest
    }

    /// Carries one group out.
    fn turn(&mut self, mut requests: Vec<Request>) {
        // Who went away before the work began wants nothing any more.
        requests.retain(|request| {
            !request.reply.is_closed() || matches!(request.operation, Operation::Unclaim(_))
        });
        let cautious = self.rest.is_some();
        if cautious {
            self.one_by_one(requests);
            self.timers_alone();
            return;
        }
        let mut answers = Answers::new();
        let done = self.transaction(|tx, lines, backend_id| {
            let steps = requests
                .iter()
                .map(|request| execute(tx, &request.operation, backend_id))
                .collect::<Sql<Vec<_>>>()?;
            arrange(std::mem::take(&mut requests), steps, lines, &mut answers);
            tend(tx, lines, &mut answers)
        });
        match done {
            Ok(busy) => self.finish_turn(busy, answers),
            Err(Spoilt(error)) if requests.is_empty() => {
                self.rest = Some(Instant::now() + REST);
                self.fail(answers, &error);
            }
            Err(_) => {
                self.one_by_one(requests);
                self.timers_alone();
            }
        }
    }

    fn finish_turn(&mut self, busy: bool, mut answers: Answers) {
        self.busy = busy;
        self.lines.expire(&self.state, Instant::now(), &mut answers);
        self.answer(answers);
    }

    fn one_by_one(&mut self, requests: Vec<Request>) {
        for request in requests {
            let mut answers = Answers::new();
            let mut waiting = Some(request);
            let done = self.transaction(|tx, lines, backend_id| {
                let operation = waiting.as_ref().map(|request| &request.operation);
                let steps = operation
                    .map(|operation| execute(tx, operation, backend_id))
                    .into_iter()
                    .collect::<Sql<Vec<_>>>()?;
                arrange(waiting.take().into_iter().collect(), steps, lines, &mut answers);
                Ok(())
            });
            match done {
                Ok(()) => self.answer(answers),
                Err(Spoilt(error)) => {
                    answers.extend(waiting.map(|request| (request.reply, Ok(Answer::Done))));
                    self.fail(answers, &error);
                }
            }
        }
    }

    /// Timers and waiters in a transaction of their own.
    fn timers_alone(&mut self) {
        if self.rest.is_some_and(|rest| rest > Instant::now()) {
            let mut answers = Answers::new();
            self.lines.expire(&self.state, Instant::now(), &mut answers);
            self.answer(answers);
            return;
        }
        let mut answers = Answers::new();
        match self.transaction(|tx, lines, _| tend(tx, lines, &mut answers)) {
            Ok(busy) => {
                self.rest = None;
                self.finish_turn(busy, answers);
            }
            Err(Spoilt(error)) => {
                self.rest = Some(Instant::now() + REST);
                self.fail(answers, &error);
            }
        }
    }

    fn transaction<T>(
        &mut self,
        work: impl FnOnce(&mut Tx<'_>, &mut Lines, &str) -> Sql<T>,
    ) -> std::result::Result<T, Spoilt> {
        let now = self.now();
        let Self { db, state, lines, backend_id, .. } = self;
        let worked = catch_unwind(AssertUnwindSafe(|| {
            db.execute_batch("BEGIN IMMEDIATE")?;
            let mut tx = Tx { db, state, now };
            work(&mut tx, lines, backend_id)
        }));
        let failure = match worked {
            Ok(Ok(value)) => match db.execute_batch("COMMIT") {
                Ok(()) => {
                    for hint in state.keep() {
                        // Without subscribers there is nobody to tell.
                        let _ = self.hints.send(hint);
                    }
                    return Ok(value);
                }
                Err(error) => storage::commit_error(&error),
            },
            Ok(Err(error)) => storage::error(&error),
            Err(panic) => panicked(panic.as_ref()),
        };
        // A full disk would fill the log as well.
        if self.complained.is_none_or(|at| at.elapsed() > COMPLAIN) {
            self.complained = Some(Instant::now());
            tracing::error!(error = %failure, "a transaction of the embedded broker was rolled back");
        }
        // Some failures have rolled back already; then there is nothing to do.
        if !db.is_autocommit()
            && let Err(error) = db.execute_batch("ROLLBACK")
        {
            tracing::error!(%error, "the embedded broker can't roll back");
        }
        state.undo();
        Err(Spoilt(failure))
    }

    fn answer(&self, answers: Answers) {
        for (reply, answer) in answers {
            if let Err(Ok(Answer::Claimed(jobs))) = reply.send(answer)
                && !jobs.is_empty()
            {
                let receipts = jobs.into_iter().map(|job| job.receipt).collect();
                self.intake.post(Operation::Unclaim(receipts));
            }
        }
    }

    /// Nothing of it came to be.
    fn fail(&mut self, answers: Answers, error: &Error) {
        self.busy = false;
        for (reply, _) in answers {
            let _ = reply.send(Err(error.clone()));
        }
        self.lines.undone(&self.state, error);
    }
}

fn execute(tx: &mut Tx<'_>, operation: &Operation, backend_id: &str) -> Sql<Step> {
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
fn arrange(requests: Vec<Request>, steps: Vec<Step>, lines: &mut Lines, answers: &mut Answers) {
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
            (Step::Claim(_) | Step::Read, _) => answers.push((reply, Err(super::command::mismatched()))),
        }
    }
}

/// Timers, then those who wait. Whether there is more to do at once.
fn tend(tx: &mut Tx<'_>, lines: &mut Lines, answers: &mut Answers) -> Sql<bool> {
    let pass = tx.pass()?;
    for queue in pass.removed {
        lines.removed(queue, answers);
    }
    let more = lines.serve(tx, answers)?;
    Ok(more || tx.state.deleting().is_some())
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> Error {
    let message = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message");
    Error::new(ErrorKind::Fatal, format!("the embedded broker panicked at a command and undid it: {message}"))
}
