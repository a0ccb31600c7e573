//! The table of leases: an extension, a settle, an abort, a lost lease and the app's own word about one job at once.

#![expect(
    clippy::allow_attributes,
    reason = "twins and models are stamped out: not each one needs each lint"
)]

use super::{Broker, breaks, chance, holds, point};
use crate::{fixture::claimed, lease::Term, outcome::Answer};
use shuttle::{future::block_on, thread};
use std::{sync::Arc, time::Duration};
use tokio::{sync::oneshot, time::Instant};

const LEASE: Duration = Duration::from_secs(30);

fn term() -> Term {
    Term::since(Instant::now(), LEASE)
}

macro_rules! table {
    ($name:ident, $($module:tt)+) => {
        #[allow(dead_code, reason = "not every twin goes through every model")]
        mod $name {
            use super::*;
            use $($module)+::{Abort, Completion, Counts, InFlight, Phase, Said, Settled, Ticket};

            /// Waits like the task of a job; whether the app's word ended the run.
            fn work(mut ticket: Ticket) -> bool {
                let end = block_on(async {
                    tokio::select! {
                        biased;
                        Ok(completion) = &mut ticket.completed => Ok(completion),
                        Ok(why) = &mut ticket.aborted => Err(why),
                    }
                });
                match end {
                    Ok(completion) => {
                        ticket.settling(0);
                        point();
                        let _ = completion.reply.send(Settled::Done);
                        true
                    }
                    Err(Abort::Lost) => false,
                    Err(_) => {
                        ticket.settling(0);
                        point();
                        false
                    }
                }
            }

            /// What the app says; whether it was told that the broker took it.
            fn say(table: &InFlight, receipt: &longshore_drivers::Receipt) -> bool {
                let (reply, told) = oneshot::channel();
                let said = Box::new(Said::Answer(Answer::Panicked));
                let heard = table.complete(receipt, Completion { said, reply, share: None });
                // It hears something in any case, also when the run ended another way.
                let told = block_on(told);
                assert!(heard || told.is_err(), "nobody listened, and somebody answered");
                told.is_ok()
            }

            fn extend(table: &InFlight, key: &crate::plan::LaneKey) {
                for (id, receipt) in table.leases_of(key) {
                    point();
                    if chance(0.3) {
                        table.extended(id, Instant::now(), None);
                        table.abort(id, Abort::Lost);
                    } else {
                        table.extended(id, Instant::now() + LEASE, Some(Instant::now() + LEASE));
                    }
                    let _ = table.knows(&receipt);
                }
            }

            /// Everything at once about one job, while another comes and goes.
            pub(super) fn contest() {
                let (table, lane) = (Arc::new(InFlight::default()), Arc::new(Broker::default()).lane("emails"));
                let job = claimed("1", 1);
                let phase = if chance(0.5) { Phase::Running } else { Phase::Pulled };
                let ticket = table.admit(&lane, &job, phase, term());
                let mut hands = Vec::new();
                for _ in 0..usize::from(chance(0.5)) * 2 {
                    let (table, receipt) = (table.clone(), job.receipt.clone());
                    hands.push(thread::spawn(move || usize::from(say(&table, &receipt))));
                }
                let others: [Box<dyn FnOnce() + Send>; 3] = {
                    let tables = [table.clone(), table.clone(), table.clone()];
                    let [extender, stopper, passer] = tables;
                    let (key, lane) = (lane.key.clone(), lane.clone());
                    [
                        Box::new(move || extend(&extender, &key)),
                        Box::new(move || assert!(stopper.abort_all(Abort::Stopping) <= 2)),
                        Box::new(move || {
                            let ticket = passer.admit(&lane, &claimed("2", 1), Phase::Running, term());
                            ticket.detached();
                            ticket.settling(7);
                        }),
                    ]
                };
                let others: Vec<_> = others.into_iter().map(thread::spawn).collect();
                let worker = thread::spawn(move || work(ticket));
                let told: usize = hands.into_iter().map(|hand| hand.join().unwrap()).sum();
                others.into_iter().for_each(|other| other.join().unwrap());
                let by_word = worker.join().unwrap();
                assert_eq!(told, usize::from(by_word), "who was told and what ended the run differ");
                assert!(!table.knows(&job.receipt) && table.find(&job.receipt).is_none());
                assert_eq!(table.counts(), Counts::default(), "the numbers and the entries differ");
            }

            /// Whoever follows the numbers sees the last of them.
            pub(super) fn follow() {
                let (table, lane) = (Arc::new(InFlight::default()), Arc::new(Broker::default()).lane("emails"));
                let followed = table.watch();
                let tickets = ["1", "2"].map(|id| table.admit(&lane, &claimed(id, 1), Phase::Running, term()));
                let enders = tickets.map(|ticket| thread::spawn(move || drop(ticket)));
                enders.into_iter().for_each(|ender| ender.join().unwrap());
                assert_eq!(*followed.borrow(), table.counts(), "an old number stands");
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
            include!(concat!(env!("LONGSHORE_TWINS", "run `make race`"), "/in_flight.", $file, ".rs"));
        }
        table!($name, super::$module);
    };
}

table!(product, crate::in_flight);
twin!(old_numbers, old_numbers_table, "old-numbers");
twin!(deaf, deaf_table, "deaf");
twin!(leaky, leaky_table, "leaky");

#[test]
fn model_a_job_ends_once_whoever_comes_first() {
    holds(product::contest);
}

#[test]
fn model_whoever_follows_the_numbers_sees_the_last() {
    holds(product::follow);
}

#[test]
fn twin_whose_old_numbers_overtake_newer_ones_is_caught() {
    breaks(old_numbers::follow, &["an old number stands"]);
}

#[test]
fn twin_that_aborts_nobody_is_caught() {
    breaks(deaf::contest, &["deadlock"]);
}

#[test]
fn twin_that_keeps_an_entry_is_caught() {
    breaks(leaky::contest, &["knows(&job.receipt)", "the numbers and the entries differ"]);
}
