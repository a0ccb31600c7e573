//! Settles that share requests: each is answered once and rightly, a lone one waits for nobody, a refused batch answers
//! each of its settles.

#![expect(
    clippy::allow_attributes,
    reason = "twins and models are stamped out: not each one needs each lint"
)]

use super::{Broker, breaks, holds, point};
use crate::{in_flight::Settled, metrics::Metrics, sync::forget_sleeps};
use longshore_drivers::{Receipt, Settle};
use shuttle::{future::block_on, thread};
use std::sync::Arc;
use tokio::time::Instant;

const CALLERS: usize = 4;

macro_rules! settler {
    ($name:ident, $($module:tt)+) => {
        #[allow(dead_code, reason = "not every twin goes through every model")]
        mod $name {
            use super::*;
            use $($module)+::Settler;

            fn settler() -> Arc<Settler> {
                Arc::new(Settler::new(Arc::default(), Arc::new(Metrics::new())))
            }

            fn settle(settler: &Settler, broker: &Arc<Broker>, number: usize) -> Settled {
                let lane = broker.lane("emails");
                let lease_until = Instant::now() + lane.queue.lease;
                let receipt = Receipt(format!("receipt-of-{number}"));
                block_on(settler.settle(&lane, receipt, Settle::Succeed { result: None }, lease_until))
            }

            /// Some settles at once over a broker with faults; connections are taken up anew meanwhile.
            pub(super) fn share() {
                run(2, true);
            }

            /// The same over one connection: one request at a time is under way.
            pub(super) fn share_one_connection() {
                run(2, false);
            }

            fn run(faults: usize, refresh: bool) {
                let (settler, broker) = (settler(), Arc::new(Broker::holding(CALLERS, faults)));
                // Somebody else has one of the jobs.
                broker.leases.lock().unwrap().get_mut("receipt-of-0").unwrap().lost = true;
                let callers: Vec<_> = (0..CALLERS)
                    .map(|number| {
                        let (settler, broker) = (settler.clone(), broker.clone());
                        thread::spawn(move || {
                            settle(&settler, &broker, number)
                        })
                    })
                    .collect();
                if refresh {
                    settler.refresh();
                    point();
                    settler.refresh();
                }
                let settled: Vec<_> = callers.into_iter().map(|caller| caller.join().unwrap()).collect();
                assert!(refresh || *broker.most.lock().unwrap() == 1, "two requests at once");
                for (number, settled) in settled.into_iter().enumerate() {
                    let held = broker.of(&format!("receipt-of-{number}"));
                    match settled {
                        Settled::Done => assert_eq!(held.settled, 1, "told done, and it was not"),
                        Settled::Lost => assert_eq!((number, held.settled), (0, 0), "told lost, and it was not"),
                        // A time-out or a lost answer, and then a refusal.
                        Settled::Unknown => assert!(held.settled == 1 || number == 0, "nothing was ever done"),
                        Settled::Buried => panic!("there is no result that could be too large"),
                        Settled::Abandoned => panic!("given up for nothing"),
                    }
                    assert!(held.settled <= 1, "settled twice");
                }
            }

            /// A lone settle is under way at once.
            pub(super) fn alone() {
                let (settler, broker) = (settler(), Arc::new(Broker::holding(2, 0)));
                forget_sleeps();
                let settled = settle(&settler, &broker, 1);
                assert!(matches!(settled, Settled::Done | Settled::Unknown));
                assert_eq!(*broker.slept.lock().unwrap(), Some(0), "a lone settle waited");
            }
        }
    };
}

macro_rules! twin {
    ($name:ident, $module:ident, $file:literal) => {
        #[allow(
            unused,
            unreachable_pub,
            clippy::all,
            clippy::pedantic,
            reason = "the bug leaves something over"
        )]
        mod $module {
            include!(concat!(env!("LONGSHORE_TWINS", "run `make race`"), "/settle.", $file, ".rs"));
        }
        settler!($name, super::$module);
    };
}

settler!(product, crate::settle);
twin!(waiting, waiting_settler, "waits-for-company");
twin!(forgetful, forgetful_settler, "forgets-the-rest");
twin!(stuck, stuck_settler, "waits-for-the-next");
twin!(sure, sure_settler, "is-sure-of-a-refusal");
twin!(blaming, blaming_settler, "blames-all");

#[test]
fn model_each_settle_is_answered_once_and_rightly() {
    holds(product::share);
}

#[test]
fn model_one_request_is_under_way_on_one_connection() {
    holds(product::share_one_connection);
}

#[test]
fn model_a_lone_settle_waits_for_nobody() {
    holds(product::alone);
}

#[test]
fn twin_that_waits_for_company_is_caught() {
    breaks(waiting::alone, &["a lone settle waited"]);
}

#[test]
fn twin_that_forgets_what_did_not_fit_is_caught() {
    breaks(forgetful::share, &["given up for nothing"]);
}

#[test]
fn twin_that_tries_again_only_when_another_comes_is_caught() {
    breaks(stuck::share, &["deadlock"]);
}

#[test]
fn twin_that_takes_a_refusal_after_a_lost_answer_for_a_loss_is_caught() {
    breaks(sure::share, &["told lost, and it was not"]);
}

#[test]
fn twin_that_blames_all_for_one_is_caught() {
    breaks(blaming::share, &["given up for nothing"]);
}
