//! The sidecar between a broker and an app that do as they are told.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking and have no public API")]

mod api;
mod claim;
mod drain;
mod events;
mod inspection;
mod lease;
mod ordering;
mod process;
mod push;
mod support;
