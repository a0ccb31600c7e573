//! The sidecar of a worker's pod.
//!
//! It claims jobs from the broker, hands each to the app on localhost, keeps their leases, settles them in batches and
//! drains when the pod ends. It needs neither Kubernetes nor the operator: its policy is a file. What is decided stands
//! in pure modules ([`outcome`], [`schedule`], [`weights`], [`drain`], [`throttle`]); the others do what they say.

pub mod broker;
pub mod cli;
mod connect;
pub mod drain;
pub mod events;
pub mod hooks;
pub mod outcome;
pub mod policy;
pub mod run;
pub mod schedule;
pub mod throttle;
pub mod weights;

mod admin;
mod api;
mod bounces;
mod budget;
mod claim;
mod core;
mod headers;
mod health;
mod in_flight;
mod job;
mod lease;
mod metrics;
mod plan;
mod pull;
mod push;
mod readiness;
mod settle;
mod stop;
mod sync;
mod token;

#[cfg(test)]
#[expect(dead_code, reason = "it is the broker of the tests beside this crate, which use the rest")]
#[path = "../tests/sidecar/support/broker.rs"]
mod fake_broker;
#[cfg(test)]
mod fixture;
#[cfg(test)]
#[cfg(feature = "models")]
mod models;
