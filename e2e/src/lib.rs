//! Scenarios on a real cluster: a real API server, kubelet, containers, a Helm install and a durable broker.
//!
//! A scenario runs in a namespace of its own, waits on conditions with deadlines, and judges by the ledger that the
//! handlers keep. When it fails, it dumps the objects, events and logs of its namespace.

pub mod broker;
pub mod cluster;
pub mod dump;
pub mod host;
pub mod installation;
pub mod ledger;
pub mod manifests;
pub mod scenario;
pub mod scenarios;
pub mod servers;
pub mod wait;

pub use scenario::{Scenario, World};
