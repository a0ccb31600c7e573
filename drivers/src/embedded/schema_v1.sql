CREATE TABLE meta (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- A queue that is being deleted keeps its row until its last job is gone; its name is free again at once.
CREATE TABLE queues (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL,
    installation TEXT NOT NULL,
    uid TEXT NOT NULL,
    max_depth INTEGER NOT NULL,
    max_deliveries INTEGER NOT NULL,
    retain_completed INTEGER NOT NULL,
    retain_dead INTEGER NOT NULL,
    paused INTEGER NOT NULL,
    ordering TEXT NOT NULL,
    deleting INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE UNIQUE INDEX queues_by_name ON queues (name) WHERE deleting = 0;

-- What changes while a job lives. `at` is what a job in its state waits for: its due time (waiting), the end of its
-- lease (active), the beginning of its retention (over), or its end moved far into the future (over, but somebody
-- still needs it); so that one index serves claims, timers, retention and lists.
CREATE TABLE jobs (
    seq INTEGER PRIMARY KEY,
    queue INTEGER NOT NULL,
    id TEXT NOT NULL,
    type TEXT NOT NULL,
    state INTEGER NOT NULL,
    at INTEGER NOT NULL,
    notify INTEGER NOT NULL,
    ordering_key TEXT,
    unpinned INTEGER NOT NULL DEFAULT 0,
    payload_bytes INTEGER NOT NULL,
    enqueued_at INTEGER NOT NULL,
    due_at INTEGER NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    lost INTEGER NOT NULL DEFAULT 0,
    deliveries INTEGER NOT NULL DEFAULT 0,
    cancel_requested INTEGER NOT NULL DEFAULT 0,
    token INTEGER,
    claimed_at INTEGER,
    worker TEXT,
    finished_at INTEGER,
    dead_reason TEXT,
    failure_reason TEXT,
    failure_message TEXT
) STRICT;

CREATE UNIQUE INDEX jobs_by_id ON jobs (queue, id);
CREATE INDEX jobs_by_state ON jobs (queue, state, at);
CREATE INDEX jobs_unreadable ON jobs (queue) WHERE failure_reason = 'Unreadable';

-- Lines of Fifo queues, the only ones whose jobs have a key (an empty one if they were given none). One job of a line at
-- most waits for its time, is ready or runs; the others are blocked behind it.
CREATE UNIQUE INDEX jobs_first ON jobs (queue, ordering_key)
    WHERE ordering_key IS NOT NULL AND state IN (0, 1, 2, 3);
CREATE INDEX jobs_behind ON jobs (queue, ordering_key) WHERE state = 7;

-- What never changes, apart from `jobs`, so that a transition doesn't write the payload again.
CREATE TABLE bodies (
    seq INTEGER PRIMARY KEY,
    content_type TEXT NOT NULL,
    payload BLOB NOT NULL,
    headers TEXT,
    max_attempts INTEGER,
    timeout INTEGER,
    notify_address TEXT,
    notify_context TEXT
) STRICT;

CREATE TABLE results (
    seq INTEGER PRIMARY KEY,
    content_type TEXT NOT NULL,
    payload BLOB NOT NULL
) STRICT;

-- Stands on its own, because it may outlive its job. Ids are never used twice: they are receipts.
CREATE TABLE completions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    address TEXT NOT NULL,
    queue TEXT NOT NULL,
    job TEXT NOT NULL,
    job_seq INTEGER NOT NULL,
    outcome TEXT NOT NULL,
    settled_at INTEGER NOT NULL,
    context TEXT NOT NULL,
    delivery INTEGER NOT NULL DEFAULT 0,
    leased_until INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE INDEX completions_by_address ON completions (address, leased_until);
CREATE INDEX completions_by_job ON completions (queue, job);
CREATE INDEX completions_parked ON completions (queue) WHERE leased_until = 9223372036854775807;
