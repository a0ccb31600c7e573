//! Values that tests of several modules need.

use longshore_drivers::{
    Claimed, JobId, Overrides, Payload, Receipt, Timestamp,
    policy::{BrokerAccess, Handler, QueuePolicy, RetryPolicy, Via, WorkerPolicy},
};
use std::{collections::BTreeMap, time::Duration};

/// A queue with a policy of round numbers.
pub(crate) fn queue(name: &str) -> QueuePolicy {
    QueuePolicy {
        name: name.to_owned(),
        physical: format!("test.shop.{name}").parse().unwrap(),
        broker: "default".to_owned(),
        weight: 1,
        suspended: false,
        lease: Duration::from_secs(30),
        timeout: Duration::from_secs(30),
        retry: RetryPolicy {
            max_attempts: 5,
            initial: Duration::from_secs(1),
            multiplier: 2,
            max: Duration::from_secs(300),
            jitter_percent: 0,
        },
    }
}

/// A job in its attempt number `attempt`, never released.
pub(crate) fn claimed(id: &str, attempt: u32) -> Claimed {
    Claimed {
        ordering_key: None,
        id: JobId::new(id).unwrap(),
        receipt: Receipt(format!("receipt-of-{id}")),
        job_type: "emails.send".to_owned(),
        payload: Payload::json("{}"),
        overrides: Overrides::default(),
        headers: BTreeMap::new(),
        attempt,
        delivery: attempt,
        enqueued_at: Timestamp::from_millis(1_700_000_000_123),
        ready_at: Timestamp::from_millis(1_700_000_000_123),
        lease_until: Timestamp::from_millis(1_700_000_030_123),
        last_failure: None,
        notify: None,
    }
}

/// A worker's policy with `names` as queues and the app on `port`.
pub(crate) fn policy(port: u16, names: &[&str]) -> WorkerPolicy {
    WorkerPolicy {
        version: WorkerPolicy::VERSION,
        namespace: "shop".to_owned(),
        worker: "mailer".to_owned(),
        concurrency: 10,
        drain_timeout: Duration::from_secs(600),
        handler: Handler::Http { port, path: "/jobs".to_owned() },
        brokers: vec![BrokerAccess {
            name: "default".to_owned(),
            via: Via::Http { url: "http://broker.test".to_owned(), token_files: vec!["/nowhere".to_owned()] },
        }],
        queues: names.iter().map(|name| queue(name)).collect(),
        draining: Vec::new(),
    }
}
