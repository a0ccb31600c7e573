//! The group commit's intake under the model checker: the product's own code, then twins of it with one bug each.
//!
//! Two callers' worth of room, groups of three, three callers, two posts, somebody who closes and the writer's thread.

#![expect(
    clippy::allow_attributes,
    reason = "twins and models are stamped out: not each one needs each lint"
)]

use super::{
    command::{self, Answer, Operation, Request},
    intake,
};
use crate::{
    ErrorKind, QueueName, Result,
    sync::check::{breaks, holds, point},
};
use shuttle::{future::block_on, thread};
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// What the model asks of an intake.
trait Intake: Send + Sync + 'static {
    fn new() -> Self;
    async fn send(&self, operation: Operation) -> Result<oneshot::Receiver<Result<Answer>>>;
    fn post(&self, operation: Operation);
    fn close(&self);
    fn abandon(&self);
    fn take(&self, deadline: Instant) -> (Vec<Request>, bool);
}

macro_rules! intake {
    ($module:ident) => {
        impl Intake for $module::Intake {
            fn new() -> Self {
                Self::new()
            }
            async fn send(&self, operation: Operation) -> Result<oneshot::Receiver<Result<Answer>>> {
                self.send(operation).await
            }
            fn post(&self, operation: Operation) {
                self.post(operation);
            }
            fn close(&self) {
                self.close();
            }
            fn abandon(&self) {
                self.abandon();
            }
            fn take(&self, deadline: Instant) -> (Vec<Request>, bool) {
                let group = self.take(deadline);
                (group.requests, group.last)
            }
        }
    };
}

macro_rules! twin {
    ($module:ident, $file:literal) => {
        #[allow(
            unused,
            unreachable_pub,
            clippy::all,
            clippy::pedantic,
            reason = "the bug leaves something over"
        )]
        mod $module {
            include!(concat!(env!("LONGSHORE_TWINS", "run `make race`"), "/intake.", $file, ".rs"));
        }
        intake!($module);
    };
}

intake!(intake);
twin!(wakes_nobody, "wakes-nobody");
twin!(closes_silently, "closes-silently");
twin!(keeps_the_room, "keeps-the-room");
twin!(is_unbounded, "is-unbounded");
twin!(takes_after_close, "takes-after-close");
twin!(ends_early, "ends-early");

const CALLERS: u64 = 3;
const POSTS: usize = 2;

fn ask(number: u64) -> Operation {
    Operation::Stats(format!("queue-{number}").parse::<QueueName>().unwrap())
}

/// What the writer's thread did.
#[derive(Default)]
struct Served {
    asked: Vec<String>,
    posts: usize,
    largest: usize,
}

fn write(intake: &impl Intake, served: &Mutex<Served>) {
    loop {
        let (requests, last) = intake.take(Instant::now() + Duration::from_secs(3600));
        let mut asked = 0;
        for Request { operation, reply } in requests {
            match operation {
                Operation::Stats(queue) => {
                    asked += 1;
                    served.lock().unwrap().asked.push(queue.to_string());
                    point();
                    let _ = reply.send(Ok(Answer::Removed(queue.as_str()[6..].parse().unwrap())));
                }
                _ => served.lock().unwrap().posts += 1,
            }
        }
        {
            let mut served = served.lock().unwrap();
            served.largest = served.largest.max(asked);
        }
        if last {
            break;
        }
    }
    // As the writer's own guard does.
    intake.abandon();
}

/// Whether the caller was heard.
fn call(intake: &impl Intake, number: u64) -> bool {
    match block_on(intake.send(ask(number))) {
        Ok(answer) => match block_on(answer) {
            Ok(Ok(Answer::Removed(answer))) => {
                assert_eq!(answer, number, "somebody else's answer");
                true
            }
            Ok(_) => unreachable!("the writer of the model says nothing else"),
            Err(oneshot::error::RecvError { .. }) => panic!("a command that was taken was lost"),
        },
        Err(error) => {
            assert_eq!(error.kind, ErrorKind::Unavailable);
            false
        }
    }
}

/// Callers, posts and a close in any order. Who is let in is answered once, whoever else may come or close.
fn closing<I: Intake>() {
    run::<I>(true);
}

/// The same where nobody closes before the callers are done: then every one of them is heard.
fn serving<I: Intake>() {
    run::<I>(false);
}

fn run<I: Intake>(close_while_sending: bool) {
    let (intake, served) = (Arc::new(I::new()), Arc::new(Mutex::new(Served::default())));
    let writer = {
        let (intake, served) = (intake.clone(), served.clone());
        thread::spawn(move || write(&*intake, &served))
    };
    let closer = close_while_sending.then(|| {
        let intake = intake.clone();
        thread::spawn(move || intake.close())
    });
    let poster = {
        let intake = intake.clone();
        thread::spawn(move || (0..POSTS).for_each(|_| intake.post(Operation::Unclaim(Vec::new()))))
    };
    let callers: Vec<_> = (0..CALLERS)
        .map(|number| {
            let intake = intake.clone();
            thread::spawn(move || (number, call(&*intake, number)))
        })
        .collect();
    let heard: Vec<_> = callers.into_iter().map(|caller| caller.join().unwrap()).collect();
    poster.join().unwrap();
    closer.into_iter().for_each(|closer| closer.join().unwrap());
    intake.close();
    writer.join().unwrap();
    let heard: BTreeSet<_> =
        heard.into_iter().filter(|(_, heard)| *heard).map(|(number, _)| format!("queue-{number}")).collect();
    let served = served.lock().unwrap();
    assert_eq!(
        served.asked.iter().cloned().collect::<BTreeSet<_>>(),
        heard,
        "carried out and answered differ"
    );
    assert_eq!(served.asked.len(), heard.len(), "a command was carried out twice");
    assert!(served.largest <= 2, "more waited than there is room for");
    if !close_while_sending {
        assert_eq!(heard.len() as u64, CALLERS, "a caller was refused although nobody had closed");
        assert_eq!(served.posts, POSTS, "a post was lost");
    }
}

#[test]
fn model_no_command_is_lost_and_each_is_answered_once() {
    holds(serving::<intake::Intake>);
}

#[test]
fn model_who_sends_while_it_closes_is_served_or_refused() {
    holds(closing::<intake::Intake>);
}

#[test]
fn twin_that_wakes_nobody_is_caught() {
    breaks(serving::<wakes_nobody::Intake>, &["deadlock"]);
}

#[test]
fn twin_that_closes_silently_is_caught() {
    breaks(serving::<closes_silently::Intake>, &["deadlock"]);
}

#[test]
fn twin_that_keeps_the_room_is_caught() {
    breaks(serving::<keeps_the_room::Intake>, &["deadlock"]);
}

#[test]
fn twin_without_a_bound_is_caught() {
    breaks(serving::<is_unbounded::Intake>, &["more waited than there is room for"]);
}

#[test]
fn twin_that_takes_commands_after_its_end_is_caught() {
    breaks(closing::<takes_after_close::Intake>, &["a command that was taken was lost"]);
}

#[test]
fn twin_that_ends_before_all_are_served_is_caught() {
    breaks(closing::<ends_early::Intake>, &["a command that was taken was lost"]);
}
