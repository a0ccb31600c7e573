//! Real servers for the suite and for those who try it out: each with a directory and a port of its own, on loopback.

pub mod clock;
pub mod postgres;
pub mod process;
pub mod redis;
