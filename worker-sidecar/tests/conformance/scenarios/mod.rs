//! The scenarios, by subject. Names are those of the test plan where it has one.

mod clocks;
mod delivery;
mod events;
mod kills;
mod leases;
mod lifecycle;
mod load;
mod outages;
mod shutdown;
mod timing;

use crate::{Scenario, history};
use longshore_drivers::conformance::needs::{NETWORK, PROCESS};
use std::time::Duration;

/// The longest that a scenario may take unless it says otherwise.
const PATIENCE: fn() -> Duration = || Duration::from_secs(90);

/// Makes the table of all scenarios from paths of functions, so that names can't drift.
macro_rules! scenarios {
    ($($module:ident :: $name:ident $(($($need:ident),+))? $([alone, $patience:expr])? : $guarantee:literal;)+) => {
        /// All scenarios, by subject.
        pub(crate) const ALL: &[Scenario] = &[$(
            Scenario {
                name: stringify!($name),
                guarantee: $guarantee,
                needs: &[$($(&$need),+)?],
                alone: scenarios!(@alone $($patience)?),
                patience: scenarios!(@patience $($patience)?),
                run: |site| Box::pin($module::$name(site)),
            },
        )+];
    };
    (@alone) => { false };
    (@alone $patience:expr) => { true };
    (@patience) => { PATIENCE };
    (@patience $patience:expr) => { $patience };
}

scenarios! {
    lifecycle::register_handler: "A job arrives at its handler as one POST that names its type, and runs once.";
    lifecycle::startworkers_idempotent: "A second start of the same pod and a reload of its policy make no job run twice.";
    lifecycle::worker_churn: "Workers that come and go in good order, under load, make no job run twice and lose none.";
    lifecycle::idle_sidecar_asks_seldom (NETWORK): "A worker without jobs asks its broker twice a second at most.";
    lifecycle::suspended_queue_starts_nothing: "A suspended queue starts nothing and goes on where it stood.";
    delivery::wait_all_processed: "A queue reads empty only after every job's handler has ended.";
    delivery::poison_message_max_retry: "A job that always fails has exactly its attempts, each told to the app, and is dead then.";
    delivery::bind_invalid_json: "A payload that the handler refuses with 400 is dead at once, and the next job runs.";
    delivery::duplicate_delivery_idempotency: "A repeated delivery carries the same idempotency key, so that an effect can be done once.";
    delivery::multi_worker_contention: "Several worker processes share a queue, and each job runs once.";
    delivery::unique_across_processes (PROCESS): "An id that two sidecars are given at once is one job, also after restarts of both and of the broker.";
    delivery::payload_large: "Payloads and results arrive unchanged up to the limit, and one byte more is refused.";
    timing::retry_backoff_not_before_window: "Retries are never early, grow with their number, and their jitter only lengthens them.";
    timing::timeout_retry_not_before_window: "An attempt that takes too long costs an attempt, and the next one waits for its window.";
    timing::worker_restart_delay_recovery (PROCESS): "A delayed job outlives its workers and is never early.";
    clocks::clock_skew_between_workers: "Workers whose clocks are an hour ahead and an hour behind go by the broker's: nothing is early, no lease is lost, and no job has two leased runs.";
    shutdown::shutdown_idempotent: "A stop that is asked for again and again is one stop: the running job ends and settles.";
    shutdown::shutdown_during_delay_retry: "Jobs that wait for a delay or a retry outlive a stop and keep their windows.";
    shutdown::shutdown_releases_running_job: "A stop that can't wait gives running jobs back without an attempt.";
    leases::lease_shorter_than_handler: "A handler that outlasts its lease has exactly one leased run.";
    leases::stopped_worker_wakes_after_lease: "A worker that froze over its lease has its settle refused; the job ran again, one leased run at a time.";
    leases::stopped_worker_starts_no_lost_job (NETWORK): "A claim whose lease ended on its way to the worker starts nothing.";
    leases::throttling_never_quarantines: "Throttled deliveries never count towards quarantine, lost ones do.";
    kills::worker_restart_recovery: "Jobs of a killed worker run again when it is back, and the loss costs them no attempt.";
    kills::worker_killed_before_handler (NETWORK): "A job whose worker was killed between claim and handler runs once, after its lease.";
    kills::worker_killed_mid_handler: "A job whose worker was killed mid-handler runs again elsewhere, after its lease.";
    kills::worker_killed_after_handler (NETWORK): "A job whose worker was killed before the settle left runs again, and only the second end counts.";
    kills::worker_killed_mid_settle (NETWORK): "A settle that reached the broker counts, whatever becomes of the worker that sent it.";
    kills::worker_killed_mid_settle_frozen_broker (PROCESS): "A settle in flight to a frozen broker counts or doesn't; the job succeeds exactly once.";
    kills::app_exit_costs_attempt: "An app that exits or closes the connection mid-job costs that job an attempt.";
    outages::broker_killed_during_push (PROCESS): "Jobs that run while the broker is killed settle when it is back, without running again.";
    outages::dispatch_during_broker_fault (PROCESS): "What was acknowledged before, during and after a broker's death is done; the rest is refused as such.";
    outages::consume_after_broker_recovery (PROCESS): "Workers that start while the broker is away work once it is there.";
    events::events_per_job_in_order: "The events of each job come in order over all workers, a killed one too, and tell its end exactly once.";
    events::events_tell_error_paths: "Whatever goes wrong with a delivery is told by one event that says what it was.";
    events::events_tell_unknown_settles (NETWORK): "A settle whose answer is lost is told as unknown, and never as an end.";
    load::backpressure_saturation: "A saturated worker takes no more than its concurrency, a full queue refuses producers only, and both recover.";
    load::soak_mixed_load [alone, load::soak_patience]: "Under a mix of everything each job comes to the end that it deserves.";
    history::history_random_kills (PROCESS) [alone, history::patience]: "Over random kills of workers and one of the broker, each acknowledged job succeeds exactly once, and its runs never overlap.";
}
