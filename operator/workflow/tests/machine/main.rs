//! The machine in a world of its own: what it promises under duplicates, loss, late news, crashes and two operators.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking and have no public API")]

mod broker;
mod crash;
mod fold;
mod golden;
mod late;
mod properties;
mod sizes;
mod stopping;
mod two_operators;
mod world;
