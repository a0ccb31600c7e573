//! The scenarios, by subject.

mod administration;
mod calls;
mod cancellation;
mod completions;
mod contract;
mod delivery;
mod errors;
mod faults;
mod fifo;
mod ground;
mod leases;
mod lifecycle;
mod limits;
mod load;
mod network;
pub(super) mod refusals;
mod settings;
mod settling;
mod soak;
mod timing;
mod uniqueness;

/// Makes the table of all scenarios from paths of functions, so that names can't drift.
macro_rules! scenarios {
    (@alone) => { false };
    (@alone alone) => { true };
    ($($module:ident :: $name:ident $($alone:ident)? $([$($need:ident),+])? : $guarantee:literal;)+) => {
        /// All scenarios, by subject.
        pub const ALL: &[$crate::conformance::Scenario] = &[$(
            $crate::conformance::Scenario {
                name: stringify!($name),
                guarantee: $guarantee,
                needs: &[$($(&$crate::conformance::needs::$need),+)?],
                alone: scenarios!(@alone $($alone)?),
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
    uniqueness::unique_queue_scope [IDS]: "An id is unique within its queue; another queue has its own.";
    uniqueness::unique_across_handles [IDS]: "Of many handles that enqueue one id at once, one is told that it is new.";
    uniqueness::unique_across_restarts alone [IDS, DURABLE]: "Ids are known after a restart, of jobs that wait and of those that are over.";
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
    timing::delayed_behind_a_longer_one [DELAY]: "A job is not held up by one that is delayed for longer.";
    timing::ordering_retry_reorder_allowed [DELAY]: "Without Fifo a retry lets later jobs pass.";
    timing::ordering_multi_worker_best_effort: "Without Fifo a job that one claimer holds lets others pass at another one.";
    timing::clock_of_the_caller_changes_nothing [ALONE, DELAY, LEASE]: "Due times and leases go by the broker's clock, whatever the caller's shows.";
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
    leases::throttle_between_losses_counts_losses_only [LEASE, INSPECT]: "Releases between lost deliveries neither count nor make up for them.";
    leases::heartbeat_keeps_one_leased_run [LEASE, INSPECT]: "A handler that outlasts its lease and extends it is the only run of its job.";
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
    contract::completions_of_two_installations: "Installations that share a broker read their own completions, whatever the other one does.";
    contract::administration_of_each_state [INSPECT, CANCEL]: "Cancel, redrive and purge do what is written for each state, and nothing else.";
    contract::error_contract_refusals: "Each operation refuses each kind of nonsense with its kind of error.";
    settings::config_option_fuzz [LEASE]: "A setting at its edge is taken with its meaning or refused as invalid.";
    administration::pause_hands_out_nothing [PAUSE]: "A paused queue takes jobs and hands out none.";
    administration::cancel_waiting_job [CANCEL]: "Cancelling a job that waits ends it.";
    administration::cancel_running_job_is_told [CANCEL]: "Cancelling a job that runs is told to its claimer, who decides how it ends.";
    administration::purge_removes [INSPECT]: "A purge removes jobs of one state, and only those.";
    administration::list_pages_through_all [INSPECT]: "Pages together hold every job once.";
    administration::list_tells_each_state [INSPECT, CANCEL]: "A list tells the jobs of each state as a look at them does, those that ended with what came of them.";
    administration::inspect_tells_state [INSPECT]: "Looking at a job tells where it stands.";
    administration::owner_mismatch_conflicts: "A queue of one owner is not taken by another without adoption.";
    administration::deletion_by_another_owner_conflicts: "A queue is deleted by its owner alone.";
    administration::stats_are_exact [EXACT]: "Depths are exact at every moment.";
    administration::declaring_again_wakes_nobody [WAKE]: "A declaration that changes nothing wakes nobody.";
    administration::wake_hints_new_work [WAKE]: "A subscriber hears of new jobs and completions.";
    cancellation::dispatch_context_cancellation_precanceled [FENCING]: "A call that is dropped before it began does nothing.";
    cancellation::dispatch_context_cancellation_midflight [IDS]: "A call that is dropped on its way was done or not done, never half.";
    cancellation::dispatch_context_cancellation_deadline_exceeded [LEASE]: "A wait ends when its time is over; one that its caller gives up before loses nothing.";
    cancellation::dispatch_context_cancellation_followup_health: "After many dropped calls the same handle does everything as before.";
    lifecycle::worker_restart_recovery alone [DURABLE, LEASE]: "What was acknowledged survives a restart of the broker.";
    lifecycle::worker_restart_delay_recovery alone [DURABLE, DELAY]: "Delayed jobs survive a restart, and are not early after it.";
    lifecycle::shutdown_during_delay_retry alone [DURABLE, DELAY]: "A close ends calls that wait; jobs that wait for their time come afterwards, on time and with their attempts.";
    lifecycle::shutdown_idempotent: "Closing twice is fine; calls afterwards are unavailable.";
    lifecycle::closed_handles_leave_nothing alone: "Handles that are closed while calls wait on them leave no file descriptor and no connection behind.";
    load::dispatch_burst: "A burst of concurrent enqueues loses and doubles nothing.";
    load::multi_worker_contention: "Many claimers of one queue settle each job exactly once.";
    load::scheduled_100k_due_at_once [DELAY]: "A hundred thousand jobs that are due at one moment come once each, in bounded time.";
    load::soak_mixed_load: "Under a mixed load every job ends once, and the counts add up.";
    errors::error_contract_broker_faults alone [NETWORK, PROCESS]: "Whatever breaks, every call ends within its bound and says whether it surely did nothing; the handle works again by itself.";
    faults::dispatch_during_broker_fault alone [NETWORK, PROCESS, DURABLE, IDS, INSPECT]: "Jobs that are enqueued while the broker fails are in it if it said so, once each.";
    faults::consume_after_broker_recovery alone [NETWORK, PROCESS, DURABLE, LEASE, FENCING, IDS, INSPECT]: "Claims, extensions, settles and completions go on after a failure, and none of them is lost or made twice.";
    faults::ordering_fifo_broker_faults alone [NETWORK, PROCESS, DURABLE, FIFO, DELAY, LEASE, FENCING, IDS, INSPECT]: "A Fifo queue keeps the order of each key while the broker fails, with jobs that are delayed, retried and lost on the way.";
    network::ambiguous_publish alone [NETWORK, IDS, INSPECT]: "After an answer that was lost the same id again tells that the job is there; half a request is none.";
    network::partitioned_claimer_is_fenced alone [NETWORK, LEASE, FENCING]: "A claimer that is cut off loses its job when the lease ends, not before, and can't settle it afterwards.";
    network::slow_network_changes_nothing alone [NETWORK]: "A slow network makes calls slow, and nothing else.";
    soak::soak_broker_faults alone [NETWORK, PROCESS, DURABLE, LEASE, FENCING, IDS, INSPECT]: "Under load and failures at any moment no history shows a job lost, doubled or run by two at once.";
}
