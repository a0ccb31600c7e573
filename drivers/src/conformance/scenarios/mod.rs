//! The scenarios, by subject.

mod administration;
mod completions;
mod delivery;
mod fifo;
mod leases;
mod lifecycle;
mod limits;
mod load;
pub(super) mod refusals;
mod settling;
mod timing;

/// Makes the table of all scenarios from paths of functions, so that names can't drift.
macro_rules! scenarios {
    ($($module:ident :: $name:ident $([$($need:ident),+])? : $guarantee:literal;)+) => {
        /// All scenarios, by subject.
        pub const ALL: &[$crate::conformance::Scenario] = &[$(
            $crate::conformance::Scenario {
                name: stringify!($name),
                guarantee: $guarantee,
                needs: &[$($(&$crate::conformance::needs::$need),+)?],
                run: |fixture| Box::pin($module::$name(fixture)),
            },
        )+];
    };
}
scenarios! {
    delivery::enqueue_is_claimed_once: "A job is handed to one claimer at a time, as it was enqueued.";
    delivery::duplicate_id_adds_nothing [IDS]: "Enqueueing a known id adds nothing and says where the job stands.";
    delivery::same_id_other_payload_conflicts [IDS]: "A known id with another type or payload is a conflict.";
    delivery::finished_id_answers_its_outcome [IDS]: "Enqueueing the id of a finished job answers its outcome.";
    delivery::ordering_single_worker_fifo: "A lone claimer gets jobs in the order in which they were enqueued.";
    delivery::claim_waits_for_work: "A claim that waits is answered as soon as there is a job, and empty when its time is over.";
    delivery::unknown_queue_is_not_found: "Operations on a queue that was never declared are not found.";
    delivery::bad_requests_are_invalid: "A request that makes no sense is refused as such, item by item where it can be.";
    delivery::empty_batches_are_fine: "An empty batch is answered with an empty batch.";
    fifo::ordering_fifo_one_at_a_time [FIFO]: "In a Fifo queue the jobs of a key are handed out in the order in which they were enqueued, one at a time.";
    fifo::ordering_fifo_keys_are_independent [FIFO]: "A key that is held up holds up no other; jobs without a key have one together.";
    fifo::ordering_fifo_retry_blocks_key [FIFO]: "A retry or a release holds up its key until the job is over.";
    fifo::ordering_fifo_delay_blocks_key [FIFO, DELAY]: "A delayed job holds up its key.";
    fifo::ordering_fifo_lost_lease_blocks_key [FIFO, LEASE, FENCING]: "A job that comes back after its lease comes before those behind it.";
    fifo::ordering_fifo_any_end_frees_key [FIFO, CANCEL, INSPECT]: "Whatever way a job ends, the next one of its key follows.";
    fifo::ordering_fifo_many_workers [FIFO]: "Many claimers do the jobs of a key in their order, retries included.";
    fifo::ordering_key_needs_fifo: "An ordering key is refused where there is no order.";
    fifo::ordering_cannot_be_changed [FIFO]: "The ordering of a queue can't be changed.";
    timing::delay_not_before_window [DELAY]: "A delayed job is never early, and late by little.";
    timing::claim_wakes_for_due_job [DELAY]: "A waiting claim gets a job when it becomes due.";
    timing::ordering_delayed_immediate_mix [DELAY]: "Immediate jobs overtake delayed ones, which come in the order of their due times.";
    timing::retry_backoff_not_before_window [DELAY]: "A retry is never early, and late by little.";
    settling::retry_counts_attempts: "A retry counts an attempt and keeps the failure.";
    settling::release_keeps_attempt: "A release counts no attempt.";
    settling::poison_message_max_retry [INSPECT]: "A buried job is dead, with its reason and its last failure, and isn't handed out again.";
    settling::redrive_gives_all_attempts_back [INSPECT]: "A redriven job starts again with all its attempts.";
    settling::redrive_of_a_workflow_job_is_refused [INSPECT]: "A dead job of a workflow is not redriven past its workflow.";
    settling::result_large [RESULTS]: "Results up to the limit are kept; a larger one is refused and the job stays claimed.";
    settling::duplicate_delivery_idempotency [FENCING]: "Of two claimers of one job, at most one settles it.";
    leases::lease_expiry_returns_job_and_counts_a_delivery [LEASE, INSPECT]: "When a lease ends, the job comes back; a delivery is counted, no attempt.";
    leases::stale_receipt_is_refused [FENCING, LEASE]: "A receipt that lost its lease changes nothing and is told so.";
    leases::extend_keeps_the_job [LEASE]: "A lease that is extended keeps the job.";
    leases::max_deliveries_quarantines [LEASE, INSPECT]: "A job that is lost too often is dead.";
    leases::throttle_never_quarantines [LEASE]: "Releases never make a job dead, however many.";
    limits::full_queue_refuses_producers_only: "A full queue refuses producers, and nothing else.";
    limits::payload_large: "Payloads up to the limit arrive unchanged; a larger one is refused without harm to its batch.";
    limits::backpressure_saturation: "A full queue takes jobs again as soon as some are done.";
    completions::completion_is_written_with_the_settle: "Every way a job leaves the broker writes one completion.";
    completions::completions_are_addressed: "A completion goes to its address alone.";
    completions::completions_stay_until_acknowledged [INSPECT]: "A completion and its job stay until it is acknowledged, beyond retention.";
    completions::finished_jobs_stay_until_unpinned [INSPECT]: "A finished job that notifies stays, with its result, until it is acknowledged and unpinned.";
    completions::removed_ids_are_known_until_acknowledged [INSPECT, IDS]: "The id of a job that was purged, or deleted with its queue, runs again only after its completion was acknowledged.";
    completions::completions_in_settle_order: "Completions come in the order of their settles, and the end of the stream is told.";
    completions::retention_removes_finished_jobs [INSPECT]: "Finished jobs are forgotten when their retention ends.";
    administration::pause_hands_out_nothing [PAUSE]: "A paused queue takes jobs and hands out none.";
    administration::cancel_waiting_job [CANCEL]: "Cancelling a job that waits ends it.";
    administration::cancel_running_job_is_told [CANCEL]: "Cancelling a job that runs is told to its claimer, who decides how it ends.";
    administration::purge_removes [INSPECT]: "A purge removes jobs of one state, and only those.";
    administration::list_pages_through_all [INSPECT]: "Pages together hold every job once.";
    administration::inspect_tells_state [INSPECT]: "Looking at a job tells where it stands.";
    administration::owner_mismatch_conflicts: "A queue of one owner is not taken by another without adoption.";
    administration::deletion_by_another_owner_conflicts: "A queue is deleted by its owner alone.";
    administration::stats_are_exact [EXACT]: "Depths are exact at every moment.";
    administration::wake_hints_new_work [WAKE]: "A subscriber hears of new jobs and completions.";
    lifecycle::dispatch_context_cancellation [IDS, LEASE]: "A call that is dropped was done or not done; a dropped claim loses nothing.";
    lifecycle::worker_restart_recovery [DURABLE, LEASE]: "What was acknowledged survives a restart of the broker.";
    lifecycle::worker_restart_delay_recovery [DURABLE, DELAY]: "Delayed jobs survive a restart, and are not early after it.";
    lifecycle::shutdown_idempotent: "Closing twice is fine; calls afterwards are unavailable.";
    load::dispatch_burst: "A burst of concurrent enqueues loses and doubles nothing.";
    load::multi_worker_contention: "Many claimers of one queue settle each job exactly once.";
    load::soak_mixed_load: "Under a mixed load every job ends once, and the counts add up.";
}
