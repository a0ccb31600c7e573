//! JSON that producers, workers, operators and policy files bring.

use longshore_drivers::{
    Claim, Claimed, Completion, Declaration, JobRecord, NewJob, Settlement, policy::WorkerPolicy,
};
use serde::{Serialize, de::DeserializeOwned};
use std::fmt::Debug;

/// The first byte says what the others are. Nothing panics, and what was accepted reads back as the same value.
pub(crate) fn envelope(data: &[u8]) {
    let Some((kind, json)) = data.split_first() else {
        return;
    };
    match kind % 8 {
        0 => {
            if let Some(job) = reads_back::<NewJob>(json) {
                drop(job.validate(&longshore_drivers::Limits::default()));
            }
        }
        1 => drop(reads_back::<Settlement>(json)),
        2 => drop(reads_back::<Completion>(json)),
        3 => drop(reads_back::<WorkerPolicy>(json)),
        4 => drop(reads_back::<Claim>(json)),
        5 => drop(reads_back::<Claimed>(json)),
        6 => drop(reads_back::<Declaration>(json)),
        _ => drop(reads_back::<JobRecord>(json)),
    }
}

fn reads_back<T: DeserializeOwned + Serialize + PartialEq + Debug>(json: &[u8]) -> Option<T> {
    let value: T = serde_json::from_slice(json).ok()?;
    let text = serde_json::to_vec(&value).expect("what was read can be written");
    let again: T = serde_json::from_slice(&text).expect("what was written can be read");
    assert_eq!(again, value, "it reads back as something else");
    Some(value)
}
