//! Ports that stay free between the end of one server and the start of the next.
//!
//! They lie below those that the kernel gives to outgoing connections, one of which could otherwise take the port of a
//! server that is about to come back.

use std::{
    net::{Ipv4Addr, TcpListener},
    sync::atomic::{AtomicU32, Ordering},
};

const FIRST: u32 = 20_000;
const COUNT: u32 = 10_000;

/// Listens on a port that no other server of this run was given.
pub(crate) fn listen() -> TcpListener {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    for _ in 0..COUNT {
        let number = GIVEN.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + std::process::id().wrapping_mul(97).wrapping_add(number) % COUNT;
        let port = u16::try_from(port).expect("it is below 30,000");
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            listener.set_nonblocking(true).unwrap();
            return listener;
        }
    }
    panic!("no port of this machine is free");
}

/// A free port.
pub(crate) fn free() -> u16 {
    listen().local_addr().unwrap().port()
}
