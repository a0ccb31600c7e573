//! What can be done to a queue, as data.

use longshore_drivers::{Capabilities, JobState};
use proptest::{collection::vec, option, prelude::*};

/// A job to be enqueued.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    /// One of a few ids that come again, or one of its own that the broker makes.
    pub(crate) id: Option<u8>,
    /// The payload is one of two.
    pub(crate) other_payload: bool,
    /// Far in the future.
    pub(crate) delayed: bool,
    /// Completions go to the address of the history.
    pub(crate) notifies: bool,
    /// Of a queue that is Fifo.
    pub(crate) key: Option<u8>,
}

/// How a claim ends.
#[derive(Debug, Clone, Copy)]
pub(crate) enum End {
    /// Well, with a result of this many bytes.
    Succeed(Option<u16>),
    /// Again, now or far in the future.
    Retry {
        /// Far in the future.
        later: bool,
    },
    /// Given back.
    Release {
        /// Far in the future.
        later: bool,
    },
    /// Dead.
    Bury,
}

/// One call. Jobs, receipts and completions are named by their number in the order in which they were first seen, modulo
/// how many there are.
#[derive(Debug, Clone)]
pub(crate) enum Operation {
    /// Adds jobs.
    Enqueue(Vec<Sent>),
    /// Takes up to this many.
    Claim(u8),
    /// Ends a claim, which may have ended before.
    Settle(u8, End),
    /// Extends a lease, which may have ended before.
    Extend(u8),
    /// Cancels two jobs at once, perhaps twice the same.
    Cancel(u8, u8),
    /// Redrives a job.
    Redrive(u8),
    /// Removes all that stand in a state.
    Purge(JobState),
    /// Stops or goes on, and changes the depth.
    Declare {
        /// Hands out nothing.
        paused: bool,
        /// The maximum of jobs that wait.
        depth: u8,
    },
    /// Reads up to this many completions and keeps them leased.
    Read(u8),
    /// Acknowledges a completion that was read.
    Acknowledge(u8),
    /// Needs nothing more of a job.
    Unpin(u8),
    /// Looks at a job.
    Inspect(u8),
    /// Asks for the result of a job.
    Result(u8),
    /// Looks at all jobs in a state.
    List(JobState),
    /// Counts.
    Stats,
}

/// All states, in no order that matters.
const STATES: [JobState; 8] = [
    JobState::Ready,
    JobState::Scheduled,
    JobState::Retrying,
    JobState::Blocked,
    JobState::Active,
    JobState::Succeeded,
    JobState::Dead,
    JobState::Cancelled,
];

impl Operation {
    /// Looks that see everything.
    pub(crate) fn final_looks() -> Vec<Self> {
        let lists = STATES.into_iter().map(Self::List);
        lists.chain([Self::Stats, Self::Read(250)]).collect()
    }
}

/// A queue and what is done to it.
#[derive(Debug, Clone)]
pub(crate) struct History {
    /// Whether the queue is Fifo.
    pub(crate) fifo: bool,
    /// What is done, one after the other.
    pub(crate) operations: Vec<Operation>,
}

/// Histories that showed a difference once.
pub(crate) fn known(can: &Capabilities) -> Vec<History> {
    let job = |delayed, notifies| Sent { id: None, other_payload: false, delayed, notifies, key: None };
    let retry = Operation::Settle(0, End::Retry { later: false });
    // A purge tells of its jobs in their order, which is not that of their enqueueing.
    let retried_behind = vec![
        Operation::Enqueue(vec![job(false, true)]),
        Operation::Claim(1),
        Operation::Enqueue(vec![job(false, true)]),
        retry,
        Operation::Purge(JobState::Ready),
    ];
    let blocked_behind = vec![
        Operation::Enqueue(vec![job(false, false)]),
        Operation::Enqueue(vec![job(true, true)]),
        Operation::Enqueue(vec![job(false, true)]),
        Operation::Purge(JobState::Blocked),
    ];
    let mut known = vec![History { fifo: false, operations: retried_behind }];
    if can.fifo {
        known.push(History { fifo: true, operations: blocked_behind });
    }
    known
}

/// Histories that a broker with these capabilities can carry out.
pub(crate) fn histories(can: &Capabilities) -> BoxedStrategy<History> {
    let fifo = if can.fifo { any::<bool>().boxed() } else { Just(false).boxed() };
    let can = can.clone();
    fifo.prop_flat_map(move |fifo| {
        let operations = vec(operation(&can, fifo), 1..45);
        operations.prop_map(move |operations| History { fifo, operations })
    })
    .boxed()
}

fn sent(can: &Capabilities, fifo: bool) -> impl Strategy<Value = Sent> + use<> {
    let delayed = if can.delay.is_some() { prop::bool::weighted(0.2).boxed() } else { Just(false).boxed() };
    let key = if fifo { option::of(0..2_u8).boxed() } else { Just(None).boxed() };
    (option::of(0..6_u8), prop::bool::weighted(0.1), delayed, prop::bool::weighted(0.4), key).prop_map(
        |(id, other_payload, delayed, notifies, key)| Sent { id, other_payload, delayed, notifies, key },
    )
}

fn end() -> impl Strategy<Value = End> {
    prop_oneof![
        3 => option::of(prop_oneof![0..64_u16, 1020..1030_u16]).prop_map(End::Succeed),
        3 => any::<bool>().prop_map(|later| End::Retry { later }),
        2 => any::<bool>().prop_map(|later| End::Release { later }),
        2 => Just(End::Bury),
    ]
}

fn operation(can: &Capabilities, fifo: bool) -> BoxedStrategy<Operation> {
    let state = || prop::sample::select(STATES.to_vec());
    let mut all = vec![
        (10, vec(sent(can, fifo), 1..4).prop_map(Operation::Enqueue).boxed()),
        (8, (1..6_u8).prop_map(Operation::Claim).boxed()),
        (12, (any::<u8>(), end()).prop_map(|(claim, end)| Operation::Settle(claim, end)).boxed()),
        (3, any::<u8>().prop_map(Operation::Extend).boxed()),
        (3, (1..5_u8).prop_map(Operation::Read).boxed()),
        (3, any::<u8>().prop_map(Operation::Acknowledge).boxed()),
        (2, any::<u8>().prop_map(Operation::Unpin).boxed()),
        (1, Just(Operation::Stats).boxed()),
    ];
    let pause = can.pause;
    let declare = (any::<bool>(), 0..8_u8);
    all.push((
        2,
        declare
            .prop_map(move |(paused, depth)| Operation::Declare { paused: paused && pause, depth })
            .boxed(),
    ));
    if can.cancel {
        // Two ends at one moment free two lines of a Fifo queue, whose order then is nobody's promise.
        let pair = (any::<u8>(), any::<u8>());
        all.push((4, pair.prop_map(move |(a, b)| Operation::Cancel(a, if fifo { a } else { b })).boxed()));
    }
    if can.inspect {
        all.push((3, any::<u8>().prop_map(Operation::Redrive).boxed()));
        all.push((1, state().prop_map(Operation::Purge).boxed()));
        all.push((3, any::<u8>().prop_map(Operation::Inspect).boxed()));
        all.push((1, state().prop_map(Operation::List).boxed()));
    }
    if can.result_store {
        all.push((2, any::<u8>().prop_map(Operation::Result).boxed()));
    }
    proptest::strategy::Union::new_weighted(all).boxed()
}
