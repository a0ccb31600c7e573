//! What is weaker than one would wish, or not there: where, why, and the scenario that shows it.

use super::{BROKERS, WORKER_BROKERS};

/// What a note is about.
#[derive(Debug, Clone, Copy)]
pub(super) enum About {
    /// All scenarios that don't run for want of this, and the capability of that name.
    Want(&'static str),
    /// These scenarios and capabilities.
    Rows(&'static [&'static str]),
}

/// Something that is weaker or not there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Note {
    pub(super) brokers: &'static [&'static str],
    pub(super) about: About,
    pub(super) what: &'static str,
    /// It passed on each of the brokers, or its twin did.
    pub(super) shown_by: &'static str,
}

impl Note {
    /// Whether it explains the cell of `row`, which may lack `missing`.
    pub(super) fn is_about(&self, row: &str, missing: Option<&str>) -> bool {
        match self.about {
            About::Want(need) => missing == Some(need) || row == need,
            About::Rows(rows) => rows.contains(&row),
        }
    }
}

/// Of brokers.
pub(super) const OF_BROKERS: &[Note] = &[
    Note {
        brokers: BROKERS,
        about: About::Rows(&["enqueue_is_claimed_once", "lease_expiry_returns_job_and_counts_a_delivery"]),
        what: "Delivery is at least once: a handler runs again after its pod, its sidecar or its lease was lost. Use the \
               `Idempotency-Key`. At most one run of a job is under a lease at a time; after a timeout the handler may \
               still run.",
        shown_by: "lease_expiry_returns_job_and_counts_a_delivery",
    },
    Note {
        brokers: BROKERS,
        about: About::Rows(&[
            "ordering_single_worker_fifo",
            "ordering_multi_worker_best_effort",
            "ordering_retry_reorder_allowed",
        ]),
        what: "Unless a queue is `Fifo`, order is best effort: a job that is held or retried lets others pass.",
        shown_by: "ordering_multi_worker_best_effort",
    },
    Note {
        brokers: &["embedded", "memory"],
        about: About::Want("network"),
        what: "It lives in the process that uses it: there is no way to it that could break, and no process that could die \
               and leave its callers behind. In Kubernetes the embedded broker is always behind its own server, which is \
               `http`; all of these ran there.",
        shown_by: "error_contract_broker_faults",
    },
    Note {
        brokers: &["memory"],
        about: About::Want("durability"),
        what: "It keeps nothing: after a restart its queues are unknown, and the id of a job is as good as new. It is the \
               model that the others are compared with, and for tests; no Broker can name it.",
        shown_by: "worker_restart_recovery",
    },
    Note {
        brokers: &["http", "redis", "postgres", "postgres-poll"],
        about: About::Rows(&[
            "ambiguous_publish",
            "dispatch_during_broker_fault",
            "error_contract_broker_faults",
        ]),
        what: "When the broker dies or the network breaks, whether a call was done may be unknown (`Ambiguous`): the same \
               id again tells.",
        shown_by: "ambiguous_publish",
    },
    Note {
        brokers: &["http", "redis", "postgres", "postgres-poll"],
        about: About::Rows(&["durability"]),
        what: "The suite kills processes (SIGKILL), and what they acknowledged is there afterwards. That the death of a machine \
               takes nothing either rests on the disk being synced before the answer, as the settings say; no scenario cuts \
               a machine's power.",
        shown_by: "soak_broker_faults",
    },
    Note {
        brokers: &["embedded"],
        about: About::Rows(&["durability"]),
        what: "In the suite's process it is restarted in good order; the same broker was killed as `http`.",
        shown_by: "worker_restart_recovery",
    },
    Note {
        brokers: &["redis"],
        about: About::Rows(&[
            "durability",
            "unique_across_restarts",
            "worker_restart_recovery",
            "worker_restart_delay_recovery",
            "shutdown_during_delay_retry",
        ]),
        what: "What is durable depends on the server; the suite runs with `appendfsync always`. With `everysec`, which is \
               Redis' own default, up to two seconds of acknowledged work are lost with the process or the machine, and \
               the Broker's status says so (`docs/brokers/redis.md`).",
        shown_by: "worker_restart_recovery",
    },
    Note {
        brokers: &["embedded", "http"],
        about: About::Rows(&["worker_restart_recovery"]),
        what: "After a restart leases hold for at least 10 s, because nobody could extend one meanwhile: what a lost claimer \
               held comes again that much later.",
        shown_by: "worker_restart_recovery",
    },
    Note {
        brokers: &["postgres", "postgres-poll"],
        about: About::Rows(&["full_queue_refuses_producers_only", "backpressure_saturation"]),
        what: "`maxDepth` is exact within 10,000 jobs of the limit; further away producers that come at the same moment \
               may pass it (`docs/brokers/postgres.md`).",
        shown_by: "full_queue_refuses_producers_only",
    },
    Note {
        brokers: BROKERS,
        about: About::Rows(&["full_queue_refuses_producers_only"]),
        what: "Retries, releases, redriven jobs and those of a workflow go into a full queue all the same, so it may hold \
               more than `maxDepth`: refusing them would lose work that was taken already.",
        shown_by: "full_queue_refuses_producers_only",
    },
    Note {
        brokers: &["postgres-poll"],
        about: About::Rows(&["wake", "wake_hints_new_work", "claim_waits_for_work"]),
        what: "Without LISTEN the driver asks again and again in the place of those who wait: while a call waits or somebody \
               subscribes, every 0.6 s, so what another process brought is heard of up to that much later. Whoever waits in \
               the process that brought it hears at once.",
        shown_by: "wake_hints_new_work",
    },
    Note {
        brokers: &["redis"],
        about: About::Rows(&["durability"]),
        what: "All of this ran on one primary without cluster mode. A node of a cluster is refused by name before any work; \
               a test of the driver (`a_node_of_a_cluster_is_refused_by_name`) shows that, no scenario.",
        shown_by: "worker_restart_recovery",
    },
    Note {
        brokers: BROKERS,
        about: About::Rows(&["clock_of_the_caller_changes_nothing"]),
        what: "The clocks of callers are skewed by skewing the broker's, once an hour ahead and once an hour behind: its \
               process is given another wall clock, and `embedded` and `memory` another source of time. A call carries \
               durations only, no instant that a broker could go by.",
        shown_by: "clock_of_the_caller_changes_nothing",
    },
];

/// Of workers.
pub(super) const OF_WORKERS: &[Note] = &[
    Note {
        brokers: WORKER_BROKERS,
        about: About::Rows(&["duplicate_delivery_idempotency", "worker_killed_after_handler"]),
        what: "A handler that ended well runs again if its worker died before the broker knew: its effect is done once only \
               if the app goes by the `Idempotency-Key`.",
        shown_by: "worker_killed_after_handler",
    },
    Note {
        brokers: WORKER_BROKERS,
        about: About::Rows(&["stopped_worker_wakes_after_lease", "timeout_retry_not_before_window"]),
        what: "After a lost lease or a time-out the app may still be at work on the job while it runs elsewhere: one run has \
               the lease, and the other one's end doesn't count.",
        shown_by: "stopped_worker_wakes_after_lease",
    },
    Note {
        brokers: WORKER_BROKERS,
        about: About::Rows(&["stopped_worker_starts_no_lost_job"]),
        what: "A frozen worker whose claim waits at the broker can be handed a job: that costs the job one more lease and one \
               more delivery, and it is not run twice.",
        shown_by: "stopped_worker_starts_no_lost_job",
    },
    Note {
        brokers: WORKER_BROKERS,
        about: About::Rows(&["app_exit_costs_attempt"]),
        what: "The exit of an app is played by closing its listener and all of its connections, which is what the sidecar \
               sees of it.",
        shown_by: "app_exit_costs_attempt",
    },
    Note {
        brokers: WORKER_BROKERS,
        about: About::Rows(&["history_random_kills"]),
        what: "Machines are one machine here: loopback between worker and broker, and one clock but in \
               `clock_skew_between_workers`, where a worker's wall clock is moved and its app's is not.",
        shown_by: "history_random_kills",
    },
];
