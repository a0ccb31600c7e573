-- Tables of schema version 1. `@schema@` is replaced by the schema's name.
--
-- A job is one row of `jobs` for as long as its id is known, and one row of exactly one of `waiting`, `active` and
-- `finished`. Those are narrow, so that a transition writes few bytes and leaves small dead rows, and what is over is
-- in nobody's way. Instants are milliseconds since the epoch by the clock of this server.

CREATE TABLE @schema@.meta (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    version int NOT NULL,
    -- Drivers that know this version or a later one may use the schema.
    compatible int NOT NULL,
    backend_id text NOT NULL
);

-- A queue that was deleted keeps its row for an hour, so that whoever was just adding jobs to it leaves none behind.
CREATE TABLE @schema@.queues (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL,
    installation text NOT NULL,
    uid text NOT NULL,
    max_depth bigint NOT NULL,
    max_deliveries bigint NOT NULL,
    retain_completed bigint NOT NULL,
    retain_dead bigint NOT NULL,
    paused boolean NOT NULL,
    fifo boolean NOT NULL,
    deleted_at bigint
) WITH (fillfactor = 50);

CREATE UNIQUE INDEX queues_by_name ON @schema@.queues (name) WHERE deleted_at IS NULL;
CREATE INDEX queues_deleted ON @schema@.queues (deleted_at) WHERE deleted_at IS NOT NULL;

CREATE SEQUENCE @schema@.job_seq;
CREATE SEQUENCE @schema@.tokens CACHE 64;

-- What doesn't change while a job lives. No content type means JSON; only `unpinned` is ever updated.
CREATE TABLE @schema@.jobs (
    seq bigint PRIMARY KEY,
    queue bigint NOT NULL,
    enqueued_at bigint NOT NULL,
    timeout bigint,
    max_attempts bigint,
    unpinned boolean NOT NULL DEFAULT false,
    id text COLLATE "C" NOT NULL,
    type text NOT NULL,
    content_type text,
    key text,
    headers text,
    notify_address text,
    notify_context bytea,
    payload bytea NOT NULL
);

CREATE UNIQUE INDEX jobs_by_id ON @schema@.jobs (queue, id);

-- state: 0 ready, 1 scheduled, 2 retrying, 3 blocked. One that is due can be claimed, whatever its state says: the
-- state is how the job was counted in `deltas`.
CREATE TABLE @schema@.waiting (
    seq bigint PRIMARY KEY,
    queue bigint NOT NULL,
    at bigint NOT NULL,
    state smallint NOT NULL,
    notify boolean NOT NULL,
    bytes int NOT NULL,
    attempts int NOT NULL,
    lost int NOT NULL,
    deliveries int NOT NULL,
    key text COLLATE "C",
    failure_reason text,
    failure_message text
);

CREATE INDEX waiting_in_order ON @schema@.waiting (queue, at, seq) WHERE state <> 3;
CREATE INDEX waiting_delayed ON @schema@.waiting (queue, state, at, seq) WHERE state IN (1, 2);
CREATE INDEX waiting_blocked ON @schema@.waiting (queue, at, seq) WHERE state = 3;
CREATE INDEX waiting_in_line ON @schema@.waiting (queue, key, seq) WHERE state = 3;

-- `at` is the end of the lease.
CREATE TABLE @schema@.active (
    seq bigint PRIMARY KEY,
    queue bigint NOT NULL,
    at bigint NOT NULL,
    token bigint NOT NULL,
    due_at bigint NOT NULL,
    claimed_at bigint NOT NULL,
    notify boolean NOT NULL,
    cancel_requested boolean NOT NULL DEFAULT false,
    bytes int NOT NULL,
    attempts int NOT NULL,
    lost int NOT NULL,
    deliveries int NOT NULL,
    key text COLLATE "C",
    worker text NOT NULL,
    failure_reason text,
    failure_message text
);

CREATE INDEX active_by_lease ON @schema@.active (queue, at);

-- state: 5 succeeded, 6 dead, 7 cancelled. `at` is when retention began, or the job's end moved by 2^62 for as long as
-- somebody still needs it.
CREATE TABLE @schema@.finished (
    seq bigint PRIMARY KEY,
    queue bigint NOT NULL,
    at bigint NOT NULL,
    finished_at bigint NOT NULL,
    due_at bigint NOT NULL,
    state smallint NOT NULL,
    attempts int NOT NULL,
    lost int NOT NULL,
    bytes int NOT NULL,
    key text COLLATE "C",
    dead_reason text,
    failure_reason text,
    failure_message text,
    result_type text,
    result bytea
);

CREATE INDEX finished_by_age ON @schema@.finished (queue, state, at, seq);
CREATE INDEX finished_unreadable ON @schema@.finished (queue) WHERE failure_reason = 'Unreadable';

-- Whose turn it is, per ordering key with jobs that aren't over ('' is the key of those without one). The row is also
-- the lock of its key; it is taken before anything else.
CREATE TABLE @schema@.lines (
    queue bigint NOT NULL,
    key text COLLATE "C" NOT NULL,
    first bigint,
    PRIMARY KEY (queue, key)
) WITH (fillfactor = 50);

-- Stands on its own, because it may outlive its job and its queue. The largest lease there is marks one that can't be
-- read.
CREATE TABLE @schema@.completions (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_seq bigint NOT NULL,
    settled_at bigint NOT NULL,
    leased_until bigint NOT NULL DEFAULT 0,
    delivery int NOT NULL DEFAULT 0,
    address text COLLATE "C" NOT NULL,
    queue text COLLATE "C" NOT NULL,
    job text COLLATE "C" NOT NULL,
    outcome text NOT NULL,
    context bytea NOT NULL
) WITH (fillfactor = 70);

CREATE INDEX completions_by_address ON @schema@.completions (address, id);
CREATE INDEX completions_by_job ON @schema@.completions (queue, job);
CREATE INDEX completions_parked ON @schema@.completions (queue) WHERE leased_until = 9223372036854775807;

-- How full queues are, as the sum of what every statement changed: rows are only added, so nobody waits for anybody.
-- `tick` adds old ones up.
CREATE TABLE @schema@.deltas (
    queue bigint NOT NULL,
    ready bigint NOT NULL DEFAULT 0,
    scheduled bigint NOT NULL DEFAULT 0,
    retrying bigint NOT NULL DEFAULT 0,
    blocked bigint NOT NULL DEFAULT 0,
    active bigint NOT NULL DEFAULT 0,
    dead bigint NOT NULL DEFAULT 0,
    served double precision NOT NULL DEFAULT 0,
    service_ms double precision NOT NULL DEFAULT 0
);

CREATE INDEX deltas_by_queue ON @schema@.deltas (queue);

-- Rows come and go all the time: dead ones are cleared away after few changes, and without pauses.
ALTER TABLE @schema@.waiting SET (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0.05);
ALTER TABLE @schema@.active SET (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0.05);
ALTER TABLE @schema@.deltas SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 0);
ALTER TABLE @schema@.lines SET (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 0);
ALTER TABLE @schema@.completions SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_cost_delay = 0);
ALTER TABLE @schema@.jobs SET (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0.5);
ALTER TABLE @schema@.finished SET (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0.5);
