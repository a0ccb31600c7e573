//! The task that keeps leases: jobs come while it waits and while it asks, brokers fail, one never answers.

#![expect(
    clippy::allow_attributes,
    reason = "twins and models are stamped out: not each one needs each lint"
)]

use super::{Broker, breaks, holds, point};
use crate::{
    core::Core,
    fixture::claimed,
    in_flight::{Abort, Phase},
    lease::Term,
};
use shuttle::{future::block_on, thread};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

macro_rules! keeper {
    ($name:ident, $($module:tt)+) => {
        #[allow(dead_code, reason = "not every twin goes through every model")]
        mod $name {
            use super::*;
            use $($module)+::keep;

            /// Whatever else goes on, a job whose lease is lost hears of it.
            pub(super) fn lose() {
                let core = Arc::new(Core::new("pod".to_owned()));
                let slow = Arc::new(Broker { hangs: true, ..Broker::holding(1, 0) });
                let broker = Arc::new(Broker { keeps: 1, ..Broker::holding(3, 2) });
                drop(shuttle::future::spawn(keep(core.clone())));
                let jobs: Vec<_> = (0..3)
                    .map(|number| {
                        let core = core.clone();
                        let (lane, waits) = match number {
                            0 => (slow.lane("slow"), false),
                            _ => (broker.lane("emails"), true),
                        };
                        thread::spawn(move || {
                            let job = claimed(&number.to_string(), 1);
                            let term = Term::since(Instant::now(), Duration::from_secs(30));
                            let ticket = core.in_flight.admit(&lane, &job, Phase::Running, term);
                            if waits {
                                let mut ticket = ticket;
                                assert_eq!(block_on(&mut ticket.aborted), Ok(Abort::Lost));
                            } else {
                                point();
                                point();
                                // It ends while an extension may be under way.
                                ticket.settling(0);
                            }
                        })
                    })
                    .collect();
                jobs.into_iter().for_each(|job| job.join().unwrap());
                assert_eq!(core.in_flight.counts().total, 0);
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
            include!(concat!(env!("LONGSHORE_TWINS", "run `make race`"), "/lease.", $file, ".rs"));
        }
        keeper!($name, super::$module);
    };
}

keeper!(product, crate::lease);
twin!(forgetful, forgetful_keeper, "forgets-a-loss");
twin!(busy, busy_keeper, "stays-busy");
twin!(deaf, deaf_keeper, "hears-nothing");
twin!(patient, patient_keeper, "waits-for-slow");

#[test]
fn model_a_job_hears_that_its_lease_is_lost() {
    holds(product::lose);
}

#[test]
fn twin_that_forgets_a_loss_is_caught() {
    breaks(forgetful::lose, &["exceeded max_steps", "deadlock"]);
}

#[test]
fn twin_that_asks_once_only_is_caught() {
    breaks(busy::lose, &["deadlock"]);
}

#[test]
fn twin_that_does_not_hear_of_new_jobs_is_caught() {
    breaks(deaf::lose, &["deadlock"]);
}

#[test]
fn twin_that_waits_for_a_slow_broker_is_caught() {
    breaks(patient::lose, &["deadlock"]);
}
