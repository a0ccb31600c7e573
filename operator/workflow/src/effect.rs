//! What the machine wants done.

use crate::Target;

/// Something to be done. Doing it twice does no harm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Evaluate the expression that says how many members a batch has.
    Resolve {
        /// The step.
        step: u16,
    },
    /// Put jobs into the broker.
    Dispatch {
        /// Their places; at most [`Effect::MAX_TARGETS`].
        targets: Vec<Target>,
    },
    /// Put jobs into the broker again that were not heard of for long: known ones tell where they stand.
    Ask {
        /// Their places; at most [`Effect::MAX_TARGETS`].
        targets: Vec<Target>,
    },
    /// Ask the broker to cancel jobs.
    CancelJobs {
        /// Their places; at most [`Effect::MAX_TARGETS`].
        targets: Vec<Target>,
    },
}

impl Effect {
    /// Places in one effect.
    pub const MAX_TARGETS: usize = 1000;
}
