//! The controllers of Longshore: what users declared becomes what runs.
//!
//! Every controller has one shape: observe, validate, decide, act, report. Only observing, acting and reporting do I/O;
//! what lies between is pure and takes the clock as an argument.

mod apply;
mod backoff;
mod broker;
mod cleanup;
mod cli;
mod connections;
mod context;
mod error;
mod http;
mod leader;
mod lookup;
mod metrics;
mod queue;
mod reporting;
mod run;
mod seat;
mod trouble;
mod wake;
mod worker;
mod workflows;

pub use cli::{Cli, execute};
