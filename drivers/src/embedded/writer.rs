//! The thread that owns the database. It takes all commands that wait at once, carries them out in one transaction,
//! commits once and then answers all of them: many callers share one sync of the disk, and a lone one waits for nobody.
//!
//! A command that spoils the transaction must not harm its neighbours: then the group is rolled back and each command
//! runs in a transaction of its own.

#[cfg(test)]
use super::tests::commit;
use super::{
    Config, claim,
    command::{Answer, Operation, Request},
    completions,
    config::Clock,
    execute::{Step, arrange, execute},
    intake::Intake,
    schema,
    state::State,
    storage::{self, Sql},
    transition::Tx,
    waiting::{Answers, Lines, Pass},
};
use crate::{Error, ErrorKind, Result, Timestamp, Wake, time::Steady};
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

/// How long transactions may fail for good before the thread gives up: a new process may have more luck, and whoever
/// watches processes sees that something is wrong.
const DESPAIR: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });
/// How far the time in the database may be behind. Only after a wall clock jumped ahead and the process ended does it
/// matter: what waits then waits this much longer.
const MARK_EVERY: Duration = Duration::from_secs(10);

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
    let Shared { intake, hints, done } = shared;
    // Dropped last: whoever hears of the end is refused at once by what is abandoned before.
    let _done = done;
    // However this ends, nobody waits for ever.
    let _abandon = Abandon(intake.clone());
    match Writer::open(config, intake, hints) {
        Ok(writer) => {
            let _ = opened.send(Ok(writer.backend_id.clone()));
            writer.work();
        }
        Err(error) => {
            let _ = opened.send(Err(error));
        }
    }
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
    steady: Steady,
    /// The instant that the database knows to have passed.
    marked: Timestamp,
    backend_id: String,
    intake: Arc<Intake>,
    hints: broadcast::Sender<Wake>,
    /// Transactions fail: until they work again timers have one of their own.
    rest: Option<Rest>,
    /// When a failure was logged last.
    complained: Option<Instant>,
    /// There is more to do at once.
    busy: bool,
}

/// A pause after a failure.
#[derive(Debug)]
struct Rest {
    until: Instant,
    error: Error,
    /// Since when nothing but failures that repeating won't mend.
    fatal_since: Option<Instant>,
}

/// How a pass over timers and waiters ended.
#[derive(Debug, Clone, Copy)]
struct Tended {
    /// There is more to do at once.
    busy: bool,
    /// Not everybody who waits was offered what there is.
    cut: bool,
}

/// A transaction that changed nothing, or perhaps nothing.
#[derive(Debug)]
struct Spoilt(Error);

impl Writer {
    fn open(config: &Config, intake: Arc<Intake>, hints: broadcast::Sender<Wake>) -> Result<Self> {
        let db = schema::open(config)?;
        let backend_id = schema::backend_id(&db)?;
        let marked = schema::passed(&db).map_err(|error| storage::error(&error))?;
        let now = Timestamp::from_millis(config.clock.now().as_millis().max(marked.as_millis()));
        let state = completions::unpark(&db)
            .and_then(|()| claim::lengthen_leases(&db, now.after(config.lease_grace)))
            .and_then(|()| State::load(&db))
            .map_err(|error| storage::error(&error))?;
        Ok(Self {
            db,
            state,
            lines: Lines::default(),
            clock: config.clock.clone(),
            steady: Steady::new(marked),
            marked,
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
            if self.despairs() {
                tracing::error!("the embedded broker gives up: its transactions fail for good");
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
        if let Some(rest) = &self.rest {
            return rest.until;
        }
        if self.busy {
            return now;
        }
        let clock = self.now().as_millis();
        let State { due, sweeps, removals, walks, .. } = &self.state;
        let readable = self.lines.next_readable(&self.state);
        let timers = [due.next(), sweeps.next(), removals.next(), walks.next(), readable];
        let timer = timers.into_iter().flatten().min().map(|at| {
            let millis = u64::try_from(at.saturating_sub(clock)).unwrap_or(0);
            now + Duration::from_millis(millis).min(GLANCE)
        });
        let waiter = self.lines.nearest();
        timer.into_iter().chain(waiter).chain([now + GLANCE]).min().unwrap_or(now)
    }

    /// The clock, which neither goes backwards nor stops.
    fn now(&mut self) -> Timestamp {
        self.steady.now(self.clock.now())
    }

    fn despairs(&self) -> bool {
        let since = self.rest.as_ref().and_then(|rest| rest.fatal_since);
        since.is_some_and(|since| since.elapsed() > DESPAIR)
    }

    /// Nothing of a pass over timers and waiters came to be.
    fn pause(&mut self, error: Error) {
        let now = Instant::now();
        let before = self.rest.take().and_then(|rest| rest.fatal_since);
        let fatal_since = (error.kind == ErrorKind::Fatal).then(|| before.unwrap_or(now));
        let rest = Rest { until: now + REST, error, fatal_since };
        // Whoever does not wait hears of it now.
        let mut answers = Answers::new();
        self.lines.expire(&self.state, now, Pass::Failed(&rest.error), &mut answers);
        self.answer(answers);
        self.rest = Some(rest);
    }

    /// Carries one group out.
    fn turn(&mut self, mut requests: Vec<Request>) {
        // Who went away before the work began wants nothing any more.
        requests.retain(|request| {
            !request.reply.is_closed() || matches!(request.operation, Operation::Unclaim(_))
        });
        if self.rest.is_some() {
            self.apart(requests);
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
            Ok(tended) => self.finish_turn(tended, answers),
            Err(Spoilt(error)) if requests.is_empty() => {
                self.fail(answers, &error);
                self.pause(error);
            }
            Err(_) => {
                self.apart(requests);
                self.timers_alone();
            }
        }
    }

    fn finish_turn(&mut self, tended: Tended, mut answers: Answers) {
        self.busy = tended.busy;
        let pass = if tended.cut { Pass::Cut } else { Pass::Whole };
        self.lines.expire(&self.state, Instant::now(), pass, &mut answers);
        self.answer(answers);
    }

    /// Carries each command out in a part of one transaction, so that one that fails costs its neighbours nothing.
    fn apart(&mut self, mut requests: Vec<Request>) {
        if requests.is_empty() {
            return;
        }
        let mut answers = Answers::new();
        let done = self.transaction(|tx, lines, backend_id| {
            let mut steps = Vec::with_capacity(requests.len());
            for request in &requests {
                let step = tx.part(|tx| execute(tx, &request.operation, backend_id))?;
                steps.push(step.unwrap_or_else(|error| Step::Answer(Err(error))));
            }
            arrange(std::mem::take(&mut requests), steps, lines, &mut answers);
            Ok(())
        });
        match done {
            Ok(()) => self.answer(answers),
            Err(Spoilt(error)) if requests.is_empty() => self.fail(answers, &error),
            Err(_) => self.one_by_one(requests),
        }
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
        let mut answers = Answers::new();
        let now = Instant::now();
        if let Some(rest) = self.rest.as_ref().filter(|rest| rest.until > now) {
            self.lines.expire(&self.state, now, Pass::Failed(&rest.error), &mut answers);
            self.answer(answers);
            return;
        }
        match self.transaction(|tx, lines, _| tend(tx, lines, &mut answers)) {
            Ok(tended) => {
                self.rest = None;
                self.finish_turn(tended, answers);
            }
            Err(Spoilt(error)) => {
                self.fail(answers, &error);
                self.pause(error);
            }
        }
    }

    fn transaction<T>(
        &mut self,
        work: impl FnOnce(&mut Tx<'_>, &mut Lines, &str) -> Sql<T>,
    ) -> std::result::Result<T, Spoilt> {
        let now = self.now();
        let mark_due = now.since(self.marked) >= MARK_EVERY;
        let Self { db, state, lines, backend_id, .. } = self;
        let worked = catch_unwind(AssertUnwindSafe(|| {
            db.execute_batch("BEGIN IMMEDIATE")?;
            let before = db.total_changes();
            let mut tx = Tx { db, state, now };
            let value = work(&mut tx, lines, backend_id)?;
            let mark = mark_due && db.total_changes() != before;
            if mark {
                schema::mark_passed(db, now)?;
            }
            Ok((value, mark))
        }));
        let failure = match worked {
            Ok(Ok((value, mark))) => match commit(db, state) {
                Ok(()) => {
                    if mark {
                        self.marked = now;
                    }
                    for hint in state.keep() {
                        // Without subscribers there is nobody to tell.
                        let _ = self.hints.send(hint);
                    }
                    return Ok(value);
                }
                Err(error) => storage::commit_error(&error),
            },
            Ok(Err(error)) => storage::error(&error),
            Err(panic) => storage::panicked(panic.as_ref()),
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

/// Timers, then those who wait. Whether there is more to do at once.
fn tend(tx: &mut Tx<'_>, lines: &mut Lines, answers: &mut Answers) -> Sql<Tended> {
    let pass = tx.pass()?;
    for queue in pass.removed {
        lines.removed(queue, answers);
    }
    let cut = lines.serve(tx, answers)?;
    let removes = tx.state.removals.next().is_some_and(|at| at <= tx.now.as_millis());
    Ok(Tended { busy: cut || removes, cut })
}

/// Makes the transaction last.
#[cfg(not(test))]
fn commit(db: &Connection, _: &mut State) -> Sql<()> {
    db.execute_batch("COMMIT")
}
