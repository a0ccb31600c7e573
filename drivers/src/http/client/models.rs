//! Single enqueues that share requests, under the model checker: the product's own code, then twins with one bug each.

#![expect(
    clippy::allow_attributes,
    reason = "twins and models are stamped out: not each one needs each lint"
)]

use super::{batch, coalesce, enqueue, transport};
use crate::{
    Enqueued, Error, ErrorKind, JobId, NewJob, Payload, QueueName, Result,
    sync::check::{breaks, holds, point},
};
use shuttle::{future::block_on, rand::Rng, thread};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

/// A broker that takes a while, and that refuses whole requests if it is told to.
#[derive(Default)]
struct Broker {
    carried: Mutex<BTreeMap<String, usize>>,
    under_way: AtomicUsize,
    refuses: bool,
}

impl Broker {
    fn take(&self, jobs: Vec<NewJob>) -> Result<Vec<Result<Enqueued>>> {
        assert_eq!(self.under_way.fetch_add(1, Ordering::SeqCst), 0, "two requests for one queue at once");
        point();
        if self.refuses && shuttle::rand::thread_rng().gen_bool(0.5) {
            self.under_way.fetch_sub(1, Ordering::SeqCst);
            return Err(Error::unavailable("not now"));
        }
        let mut answers = Vec::new();
        for job in jobs {
            let id = job.id.unwrap();
            *self.carried.lock().unwrap().entry(id.to_string()).or_default() += 1;
            answers.push(Ok(Enqueued::Created { id }));
        }
        point();
        self.under_way.fetch_sub(1, Ordering::SeqCst);
        Ok(answers)
    }
}

/// What the model asks of a coalescer.
trait Coalescer: Default + Send + Sync + 'static {
    async fn enqueue(self: &Arc<Self>, broker: &Arc<Broker>, job: NewJob) -> Result<Result<Enqueued>>;
    async fn finish(&self);
}

fn queue() -> QueueName {
    "emails".parse().unwrap()
}

macro_rules! coalescer {
    ($module:ident) => {
        impl $module::Carrier for Broker {
            async fn carry(&self, _: &QueueName, jobs: Vec<NewJob>) -> Result<Vec<Result<Enqueued>>> {
                self.take(jobs)
            }
        }
        impl Coalescer for $module::Coalescer {
            async fn enqueue(
                self: &Arc<Self>,
                broker: &Arc<Broker>,
                job: NewJob,
            ) -> Result<Result<Enqueued>> {
                self.enqueue(broker, &queue(), job).await
            }
            async fn finish(&self) {
                self.finish().await;
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
            include!(concat!(env!("LONGSHORE_TWINS", "run `make race`"), "/coalesce.", $file, ".rs"));
        }
        coalescer!($module);
    };
}

coalescer!(coalesce);
twin!(takes_another_away, "takes-another-away");
twin!(leaves_a_lane, "leaves-a-lane");
twin!(counts_one_only, "counts-one-only");

const CALLERS: usize = 3;

fn job(number: usize) -> NewJob {
    let mut job = NewJob::new("send", Payload::json("{}"));
    job.id = Some(JobId::new(format!("job-{number}")).unwrap());
    job
}

/// Each caller enqueues two jobs, one after the other, while others do; the last may go away before its answer.
fn sharing<C: Coalescer>() {
    run::<C>(false);
}

/// The same over a broker that refuses some of the requests.
fn failing<C: Coalescer>() {
    run::<C>(true);
}

fn run<C: Coalescer>(refuses: bool) {
    let coalescer = Arc::new(C::default());
    let broker = Arc::new(Broker { refuses, ..Broker::default() });
    let leaver = {
        let (coalescer, broker) = (coalescer.clone(), broker.clone());
        thread::spawn(move || {
            let mut enqueue = Box::pin(async move { coalescer.enqueue(&broker, job(99)).await });
            block_on(async { drop(futures::poll!(&mut enqueue)) });
            point();
        })
    };
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let (coalescer, broker) = (coalescer.clone(), broker.clone());
            thread::spawn(move || {
                [caller * 2, caller * 2 + 1]
                    .map(|number| (number, block_on(coalescer.enqueue(&broker, job(number)))))
            })
        })
        .collect();
    let answers: Vec<_> = callers.into_iter().flat_map(|caller| caller.join().unwrap()).collect();
    leaver.join().unwrap();
    block_on(coalescer.finish());
    assert_eq!(broker.under_way.load(Ordering::SeqCst), 0, "it ended while a request was under way");
    let carried = broker.carried.lock().unwrap();
    for (number, answer) in answers {
        let name = format!("job-{number}");
        let count = carried.get(&name).copied().unwrap_or(0);
        match answer {
            Ok(Ok(Enqueued::Created { id })) => {
                assert_eq!(id.as_str(), name, "somebody else's answer");
                assert_eq!(count, 1, "acknowledged and not carried exactly once");
            }
            Err(error) if refuses && error.kind == ErrorKind::Unavailable => {
                assert_eq!(count, 0, "refused and carried");
            }
            other => panic!("{name} was answered {other:?}"),
        }
    }
}

/// A lone caller needs nobody else to be answered.
fn alone<C: Coalescer>() {
    let (coalescer, broker) = (Arc::new(C::default()), Arc::new(Broker::default()));
    for number in 0..2 {
        assert!(block_on(coalescer.enqueue(&broker, job(number))).unwrap().is_ok());
    }
}

#[test]
fn model_each_enqueue_is_carried_and_answered_once() {
    holds(sharing::<coalesce::Coalescer>);
}

#[test]
fn model_a_refused_request_answers_each_of_its_jobs() {
    holds(failing::<coalesce::Coalescer>);
}

#[test]
fn model_a_lone_enqueue_leaves_at_once() {
    holds(alone::<coalesce::Coalescer>);
}

#[test]
fn twin_that_takes_another_senders_callers_away_is_caught() {
    breaks(sharing::<takes_another_away::Coalescer>, &["was answered", "two requests", "deadlock"]);
}

#[test]
fn twin_that_leaves_a_lane_without_sender_is_caught() {
    breaks(alone::<leaves_a_lane::Coalescer>, &["deadlock"]);
}

#[test]
fn twin_that_forgets_who_did_not_fit_is_caught() {
    breaks(sharing::<counts_one_only::Coalescer>, &["was answered"]);
}
