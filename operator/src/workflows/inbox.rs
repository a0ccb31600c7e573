//! Completions between their broker and their workflow.
//!
//! A completion waits here until the status that contains it was committed; only then is it acknowledged. What doesn't fit
//! is left in its broker, which hands it out again.

use crate::connections::BrokerKey;
use longshore_drivers::{Completion, CompletionReceipt};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::broadcast;

/// Completions that wait for one workflow. More of them come again when these were taken.
const MAX_OF_ONE: usize = 10_000;
/// Completions that wait for all workflows together.
const MAX_OF_ALL: usize = 100_000;
/// A broker that didn't answer is left alone for this long.
const SILENCE: Duration = Duration::from_secs(2);

/// The job's place, as the completion's context tells it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub(crate) struct Origin {
    /// The namespace of the workflow.
    #[serde(rename = "ns")]
    pub(crate) namespace: String,
    /// The name of the workflow.
    pub(crate) name: String,
    /// The uid of the workflow.
    pub(crate) uid: String,
    /// Round and place, in the machine's own form.
    pub(crate) place: String,
}

/// A completion and where it came from.
#[derive(Debug, Clone)]
pub(crate) struct Arrived {
    pub(crate) broker: BrokerKey,
    pub(crate) origin: Origin,
    pub(crate) completion: Completion,
}

#[derive(Debug)]
struct Waiting {
    since: Instant,
    /// By receipt: what is handed out again after its lease is the same.
    arrived: BTreeMap<(BrokerKey, CompletionReceipt), Arrived>,
}

/// What is known of a broker's stream of completions.
#[derive(Debug, Default)]
struct Stream {
    /// When the last read began that came to the end.
    read_to_end: Option<Instant>,
    /// Somebody wants to know soon whether there is more, until then.
    hurry_until: Option<Instant>,
    /// It didn't answer a call.
    silent_until: Option<Instant>,
}

/// Completions by the uid of their workflow.
#[derive(Debug)]
pub(crate) struct Inbox {
    waiting: Mutex<HashMap<String, Waiting>>,
    streams: Mutex<BTreeMap<BrokerKey, Stream>>,
    /// Namespace and name of a workflow that has something to look at.
    arrivals: broadcast::Sender<(String, String)>,
}

impl Default for Inbox {
    fn default() -> Self {
        Self {
            waiting: Mutex::default(),
            streams: Mutex::default(),
            arrivals: broadcast::channel(16 * 1024).0,
        }
    }
}

impl Inbox {
    /// Puts completions in, as far as there is room, and tells who listens.
    pub(super) fn put(&self, arrivals: Vec<Arrived>) {
        let mut woken = BTreeSet::new();
        {
            let mut waiting = lock(&self.waiting);
            let mut room =
                MAX_OF_ALL.saturating_sub(waiting.values().map(|waiting| waiting.arrived.len()).sum());
            for arrived in arrivals {
                woken.insert((arrived.origin.namespace.clone(), arrived.origin.name.clone()));
                if room > 0 && place(&mut waiting, arrived) {
                    room -= 1;
                }
            }
        }
        for key in woken {
            self.wake(key);
        }
    }

    /// Puts back what was taken and not committed, unless a newer copy came meanwhile. Wakes nobody: who takes it back
    /// looks again by itself.
    pub(super) fn put_back(&self, arrivals: Vec<Arrived>) {
        let mut waiting = lock(&self.waiting);
        for arrived in arrivals {
            let key = key(&arrived);
            let newer = waiting.get(&arrived.origin.uid).is_some_and(|it| it.arrived.contains_key(&key));
            if !newer {
                place(&mut waiting, arrived);
            }
        }
    }

    /// Has a workflow looked at.
    pub(super) fn wake(&self, key: (String, String)) {
        drop(self.arrivals.send(key));
    }

    /// Workflows that have something to look at.
    pub(super) fn arrivals(&self) -> broadcast::Receiver<(String, String)> {
        self.arrivals.subscribe()
    }

    /// Takes what waits for `uid`, in the order in which it was settled.
    pub(super) fn take(&self, uid: &str) -> Vec<Arrived> {
        let waiting = lock(&self.waiting).remove(uid);
        let mut arrived: Vec<_> =
            waiting.into_iter().flat_map(|waiting| waiting.arrived.into_values()).collect();
        arrived.sort_by(|one, other| {
            let key = |it: &Arrived| (it.completion.settled_at, it.completion.job.clone());
            key(one).cmp(&key(other))
        });
        arrived
    }

    /// Workflows whose completions have waited since before `since`: nobody may be there to take them.
    pub(super) fn untaken(&self, since: Instant) -> Vec<Origin> {
        let waiting = lock(&self.waiting);
        let old = waiting.values().filter(|waiting| waiting.since < since);
        old.filter_map(|waiting| waiting.arrived.values().next().map(|arrived| arrived.origin.clone()))
            .collect()
    }

    /// Remembers that a read that began at `began` came to the end of the completions of `broker`. Whether it is the
    /// first one.
    pub(super) fn set_read_to_end(&self, broker: &BrokerKey, began: Instant) -> bool {
        lock(&self.streams).entry(broker.clone()).or_default().read_to_end.replace(began).is_none()
    }

    /// Since when everything that was settled on `broker` before is here or committed.
    pub(super) fn read_to_end(&self, broker: &BrokerKey) -> Option<Instant> {
        lock(&self.streams).get(broker)?.read_to_end
    }

    /// Forgets what is known of the stream of `broker`: there is none any more, or it is another one.
    pub(crate) fn forget(&self, broker: &BrokerKey) {
        lock(&self.streams).remove(broker);
    }

    /// Has the completions of `broker` read in short turns until `until`.
    pub(super) fn hurry(&self, broker: &BrokerKey, until: Instant) {
        let mut streams = lock(&self.streams);
        let stream = streams.entry(broker.clone()).or_default();
        stream.hurry_until = stream.hurry_until.max(Some(until));
    }

    /// Whether somebody wants to know soon whether there is more.
    pub(super) fn is_hurried(&self, broker: &BrokerKey) -> bool {
        let streams = lock(&self.streams);
        streams.get(broker).and_then(|stream| stream.hurry_until).is_some_and(|until| Instant::now() < until)
    }

    /// `broker` didn't answer a call.
    pub(super) fn silent(&self, broker: &BrokerKey) {
        let until = Instant::now() + SILENCE;
        lock(&self.streams).entry(broker.clone()).or_default().silent_until = Some(until);
    }

    /// Whether `broker` is to be left alone for the moment.
    pub(super) fn is_silent(&self, broker: &BrokerKey) -> bool {
        let streams = lock(&self.streams);
        streams.get(broker).and_then(|stream| stream.silent_until).is_some_and(|until| Instant::now() < until)
    }
}

/// Whether there was room for it.
fn place(waiting: &mut HashMap<String, Waiting>, arrived: Arrived) -> bool {
    let entry = waiting
        .entry(arrived.origin.uid.clone())
        .or_insert_with(|| Waiting { since: Instant::now(), arrived: BTreeMap::new() });
    if entry.arrived.len() >= MAX_OF_ONE {
        return false;
    }
    entry.arrived.insert(key(&arrived), arrived).is_none()
}

fn key(arrived: &Arrived) -> (BrokerKey, CompletionReceipt) {
    (arrived.broker.clone(), arrived.completion.receipt.clone())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use longshore_drivers::{JobId, Outcome, Timestamp};

    fn arrived(uid: &str, job: &str, receipt: usize, settled: i64) -> Arrived {
        let completion = Completion {
            receipt: CompletionReceipt(receipt.to_string()),
            queue: "q".parse().unwrap(),
            job: JobId::new(job).unwrap(),
            outcome: Outcome::Cancelled,
            settled_at: Timestamp::from_millis(settled),
            context: String::new(),
            delivery: 1,
        };
        let origin =
            Origin { namespace: "n".into(), name: "w".into(), uid: uid.into(), place: "0.s0.m0".into() };
        Arrived { broker: ("n".into(), "b".into()), origin, completion }
    }

    fn receipts(arrived: &[Arrived]) -> Vec<&str> {
        arrived.iter().map(|arrived| arrived.completion.receipt.0.as_str()).collect()
    }

    #[test]
    fn completions_are_taken_in_the_order_of_their_settles() {
        let inbox = Inbox::default();
        inbox.put(vec![arrived("u", "b", 1, 20), arrived("u", "a", 2, 10), arrived("other", "c", 3, 5)]);
        inbox.put(vec![arrived("u", "a", 2, 10)]);
        assert_eq!(receipts(&inbox.take("u")), ["2", "1"], "what is handed out again is the same");
        assert!(inbox.take("u").is_empty());
    }

    #[test]
    fn two_completions_of_one_job_are_both_heard() {
        let inbox = Inbox::default();
        inbox.put(vec![arrived("u", "job", 2, 20), arrived("u", "job", 1, 10)]);
        assert_eq!(receipts(&inbox.take("u")), ["1", "2"], "the first one has to win");
    }

    #[test]
    fn a_workflow_that_takes_nothing_fills_only_its_own_share() {
        let inbox = Inbox::default();
        inbox.put((0..2 * MAX_OF_ONE).map(|number| arrived("stuck", "job", number, 0)).collect());
        inbox.put(vec![arrived("u", "job", 1, 0)]);
        assert_eq!(inbox.take("u").len(), 1);
        assert_eq!(inbox.take("stuck").len(), MAX_OF_ONE);
    }

    #[test]
    fn what_is_put_back_gives_way_to_what_came_meanwhile() {
        let inbox = Inbox::default();
        inbox.put(vec![arrived("u", "job", 1, 0)]);
        let taken = inbox.take("u");
        let mut again = arrived("u", "job", 1, 0);
        again.completion.delivery = 2;
        inbox.put(vec![again]);
        inbox.put_back(taken);
        assert_eq!(inbox.take("u")[0].completion.delivery, 2);
    }
}
