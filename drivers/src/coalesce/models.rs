//! Calls that share requests, under the model checker: the product's own code, then twins with one bug each.

#![expect(
    clippy::allow_attributes,
    reason = "twins and models are stamped out: not each one needs each lint"
)]

use crate::{
    Error, ErrorKind, Result,
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
    carried: Mutex<BTreeMap<usize, usize>>,
    under_way: AtomicUsize,
    most: usize,
    refuses: bool,
}

impl Broker {
    fn take(&self, jobs: Vec<usize>) -> Result<Vec<usize>> {
        let before = self.under_way.fetch_add(1, Ordering::SeqCst);
        assert!(before < self.most, "too many requests at once");
        point();
        if self.refuses && shuttle::rand::thread_rng().gen_bool(0.5) {
            self.under_way.fetch_sub(1, Ordering::SeqCst);
            return Err(Error::unavailable("not now"));
        }
        for job in &jobs {
            *self.carried.lock().unwrap().entry(*job).or_default() += 1;
        }
        point();
        self.under_way.fetch_sub(1, Ordering::SeqCst);
        Ok(jobs)
    }
}

/// What the model asks of a coalescer.
trait Coalescer: Send + Sync + Sized + 'static {
    /// One before `broker`, with as many requests under way as that one allows.
    fn before(broker: &Arc<Broker>) -> Arc<Self>;
    async fn enqueue(self: &Arc<Self>, job: usize) -> Result<usize>;
    async fn finish(&self);
}

macro_rules! coalescer {
    ($module:path) => {
        const _: () = {
            use $module as module;
            impl Coalescer for module::Coalescer<u8, usize, usize> {
                fn before(broker: &Arc<Broker>) -> Arc<Self> {
                    let bounds = module::Bounds { under_way: broker.most, items: 2, bytes: 100 };
                    let broker = broker.clone();
                    Self::of_items(
                        bounds,
                        |_| module::Size::item(1),
                        move |_, jobs| {
                            let broker = broker.clone();
                            async move { broker.take(jobs) }
                        },
                    )
                }
                async fn enqueue(self: &Arc<Self>, job: usize) -> Result<usize> {
                    self.call(1, job).await
                }
                async fn finish(&self) {
                    self.finish().await;
                }
            }
        };
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
        coalescer!(self::$module);
    };
}

coalescer!(crate::coalesce);
twin!(takes_another_away, "takes-another-away");
twin!(leaves_a_lane, "leaves-a-lane");
twin!(forgets_the_rest, "forgets-the-rest");

type Real = crate::coalesce::Coalescer<u8, usize, usize>;

const CALLERS: usize = 3;

/// Each caller enqueues two jobs, one after the other, while others do; the last may go away before its answer.
fn sharing<C: Coalescer>() {
    run::<C>(1, false);
}

/// The same with two requests under way at once.
fn overlapping<C: Coalescer>() {
    run::<C>(2, false);
}

/// The same over a broker that refuses some of the requests.
fn failing<C: Coalescer>() {
    run::<C>(2, true);
}

fn run<C: Coalescer>(most: usize, refuses: bool) {
    let broker = Arc::new(Broker { refuses, most, ..Broker::default() });
    let coalescer = C::before(&broker);
    let leaver = {
        let coalescer = coalescer.clone();
        thread::spawn(move || {
            let mut enqueue = Box::pin(async move { coalescer.enqueue(99).await });
            block_on(async { drop(futures::poll!(&mut enqueue)) });
            point();
        })
    };
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let coalescer = coalescer.clone();
            thread::spawn(move || {
                [caller * 2, caller * 2 + 1].map(|job| (job, block_on(coalescer.enqueue(job))))
            })
        })
        .collect();
    let answers: Vec<_> = callers.into_iter().flat_map(|caller| caller.join().unwrap()).collect();
    leaver.join().unwrap();
    block_on(coalescer.finish());
    assert_eq!(broker.under_way.load(Ordering::SeqCst), 0, "it ended while a request was under way");
    let carried = broker.carried.lock().unwrap();
    for (job, answer) in answers {
        let count = carried.get(&job).copied().unwrap_or(0);
        match answer {
            Ok(answered) => {
                assert_eq!(answered, job, "somebody else's answer");
                assert_eq!(count, 1, "acknowledged and not carried exactly once");
            }
            Err(error) if refuses && error.kind == ErrorKind::Unavailable => {
                assert_eq!(count, 0, "refused and carried");
            }
            Err(error) => panic!("{job} was answered {error:?}"),
        }
    }
}

/// A lone caller needs nobody else to be answered.
fn alone<C: Coalescer>() {
    let broker = Arc::new(Broker { most: 1, ..Broker::default() });
    let coalescer = C::before(&broker);
    for job in 0..2 {
        assert_eq!(block_on(coalescer.enqueue(job)).unwrap(), job);
    }
}

#[test]
fn model_each_enqueue_is_carried_and_answered_once() {
    holds(sharing::<Real>);
    holds(overlapping::<Real>);
}

#[test]
fn model_a_refused_request_answers_each_of_its_jobs() {
    holds(failing::<Real>);
}

#[test]
fn model_a_lone_enqueue_leaves_at_once() {
    holds(alone::<Real>);
}

#[test]
fn twin_that_takes_another_senders_callers_away_is_caught() {
    breaks(
        sharing::<takes_another_away::Coalescer<u8, usize, usize>>,
        &["was answered", "too many requests", "deadlock"],
    );
}

#[test]
fn twin_that_leaves_a_lane_without_sender_is_caught() {
    breaks(alone::<leaves_a_lane::Coalescer<u8, usize, usize>>, &["deadlock"]);
}

#[test]
fn twin_that_forgets_who_did_not_fit_is_caught() {
    breaks(sharing::<forgets_the_rest::Coalescer<u8, usize, usize>>, &["was answered"]);
}
