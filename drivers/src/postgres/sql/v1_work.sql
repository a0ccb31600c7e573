-- What workers do, and what happens by itself, of schema version 1.

-- Up to `p_limit` deliveries of a queue ended without a settle. Answers how many, whether a job became ready, and which
-- addresses have completions.
CREATE FUNCTION @schema@.lose(
    q @schema@.queues, p_limit int, p_now bigint, OUT moved bigint, OUT ready boolean, OUT told text[]
) LANGUAGE plpgsql
AS $$
DECLARE
    v_keys text[];
    v_seqs bigint[];
BEGIN
    IF q.fifo THEN
        -- Lines come before jobs. One that somebody else holds is looked at again the next time.
        SELECT array_agg(a.key) INTO v_keys FROM (
            SELECT key FROM @schema@.active WHERE queue = q.id AND at <= p_now ORDER BY at LIMIT p_limit) a;
        SELECT array_agg(l.key) INTO v_keys FROM (SELECT DISTINCT unnest(v_keys) COLLATE "C" AS key ORDER BY key) u, LATERAL (
            SELECT l.key FROM @schema@.lines l WHERE l.queue = q.id AND l.key = u.key FOR UPDATE SKIP LOCKED) l;
    END IF;
    WITH due AS MATERIALIZED (
        SELECT a.seq FROM @schema@.active a
        WHERE a.queue = q.id AND a.at <= p_now AND (NOT q.fifo OR a.key = ANY (v_keys))
        ORDER BY a.at LIMIT p_limit FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM @schema@.active a USING due d WHERE a.seq = ANY (ARRAY[d.seq]) RETURNING a.*
    ), ends AS MATERIALIZED (
        SELECT g.*, CASE WHEN g.cancel_requested THEN 7 WHEN g.lost + 1 >= greatest(q.max_deliveries, 1) THEN 6 ELSE 0
            END AS next,
            format('%s deliveries ended without a settle, the last one at worker "%s"', g.lost + 1, g.worker) AS message
        FROM gone g
    ), over AS (
        INSERT INTO @schema@.finished (seq, queue, at, finished_at, due_at, state, attempts, lost, bytes, key, dead_reason,
            failure_reason, failure_message)
        SELECT e.seq, q.id, p_now + CASE WHEN e.notify THEN 4611686018427387904 ELSE 0 END, p_now, e.due_at, e.next,
            e.attempts, e.lost + 1, e.bytes, e.key, CASE WHEN e.next = 6 THEN 'Quarantined' END,
            CASE WHEN e.next = 6 THEN 'DeliveriesLost' ELSE e.failure_reason END,
            CASE WHEN e.next = 6 THEN e.message ELSE e.failure_message END
        FROM ends e WHERE e.next > 0
    ), again AS (
        INSERT INTO @schema@.waiting (seq, queue, at, state, notify, bytes, attempts, lost, deliveries, key,
            failure_reason, failure_message)
        SELECT e.seq, q.id, p_now, 0, e.notify, e.bytes, e.attempts, e.lost + 1, e.deliveries, e.key, e.failure_reason,
            e.failure_message
        FROM ends e WHERE e.next = 0
    ), completions AS (
        INSERT INTO @schema@.completions (job_seq, settled_at, address, queue, job, outcome, context)
        SELECT e.seq, p_now, j.notify_address, q.name, j.id,
            CASE WHEN e.next = 7 THEN '"cancelled"' ELSE jsonb_build_object('dead', jsonb_build_object(
                'reason', 'Quarantined',
                'failure', jsonb_build_object('reason', 'DeliveriesLost', 'message', e.message)))::text END,
            j.notify_context
        FROM ends e JOIN @schema@.jobs j ON j.seq = ANY (ARRAY[e.seq])
        WHERE e.next > 0 AND j.notify_address IS NOT NULL
        RETURNING address
    ), counted AS (
        INSERT INTO @schema@.deltas (queue, active, ready, dead)
        SELECT q.id, -count(*), count(*) FILTER (WHERE e.next = 0), count(*) FILTER (WHERE e.next = 6)
        FROM ends e HAVING count(*) > 0
    )
    SELECT count(*), coalesce(bool_or(e.next = 0), false), (SELECT array_agg(DISTINCT c.address) FROM completions c),
        array_agg(e.seq) FILTER (WHERE e.next > 0), array_agg(e.key) FILTER (WHERE e.next > 0)
        INTO moved, ready, told, v_seqs, v_keys
        FROM ends e;
    IF q.fifo AND v_seqs IS NOT NULL AND @schema@.advance(q.id, v_seqs, v_keys, p_now) THEN
        ready := true;
    END IF;
END $$;

-- Leases jobs. The first row holds no job: it tells when there may be something next, and what happened beside.
-- `p_floor`: jobs that are due since before it are left to others, `p_since`: so are leases that ended before it.
CREATE FUNCTION @schema@.claim(
    p_queue text, p_max int, p_lease bigint, p_worker text, p_floor bigint, p_since bigint
) RETURNS TABLE (
    seq bigint, token bigint, id text, type text, content_type text, payload bytea, max_attempts bigint, timeout bigint,
    headers text, key text, attempts int, deliveries int, enqueued_at bigint, due_at bigint, failure_reason text,
    failure_message text, notify_address text, notify_context bytea, now_at bigint, next_at bigint, ready boolean,
    told text[]
) LANGUAGE plpgsql @hot@
AS $$
#variable_conflict use_column
DECLARE
    q @schema@.queues := @schema@.find(p_queue);
    v_now bigint := @schema@.now_ms();
    v_lost record;
    v_found bigint;
BEGIN
    IF EXISTS (SELECT FROM @schema@.active a WHERE a.queue = q.id AND a.at >= p_since AND a.at <= v_now) THEN
        v_lost := @schema@.lose(q, 100, v_now);
        ready := v_lost.ready;
        told := v_lost.told;
    END IF;
    now_at := v_now;
    IF q.paused THEN
        RETURN NEXT;
        RETURN;
    END IF;
    RETURN QUERY WITH best AS MATERIALIZED (
        SELECT w.ctid AS place, w.bytes FROM @schema@.waiting w
        WHERE w.queue = q.id AND w.state <> 3 AND w.at <= v_now AND w.at >= p_floor
        ORDER BY w.at, w.seq LIMIT p_max FOR UPDATE SKIP LOCKED
    ), fitting AS MATERIALIZED (
        SELECT b.place FROM (
            SELECT place, sum(bytes) OVER (ROWS UNBOUNDED PRECEDING) - bytes AS before FROM best) b
        WHERE b.before < 16777216
    ), taken AS (
        DELETE FROM @schema@.waiting w USING fitting f WHERE w.ctid = f.place RETURNING w.*
    ), held AS MATERIALIZED (
        SELECT t.*, nextval('@schema@.tokens') AS token FROM taken t
    ), leased AS (
        INSERT INTO @schema@.active (seq, queue, at, token, due_at, claimed_at, notify, bytes, attempts, lost, deliveries,
            key, worker, failure_reason, failure_message)
        SELECT h.seq, h.queue, v_now + p_lease, h.token, h.at, v_now, h.notify, h.bytes, h.attempts, h.lost,
            h.deliveries + 1, h.key, p_worker, h.failure_reason, h.failure_message FROM held h
    ), counted AS (
        INSERT INTO @schema@.deltas (queue, active, ready, scheduled, retrying)
        SELECT q.id, count(*), -count(*) FILTER (WHERE h.state = 0), -count(*) FILTER (WHERE h.state = 1),
            -count(*) FILTER (WHERE h.state = 2) FROM held h HAVING count(*) > 0
    )
    SELECT h.seq, h.token, j.id, j.type, j.content_type, j.payload, j.max_attempts, j.timeout, j.headers, j.key,
        h.attempts, h.deliveries + 1, j.enqueued_at, h.at, h.failure_reason, h.failure_message, j.notify_address,
        j.notify_context, NULL::bigint, NULL::bigint, NULL::boolean, NULL::text[]
    FROM held h LEFT JOIN @schema@.jobs j ON j.seq = ANY (ARRAY[h.seq]) ORDER BY h.at, h.seq;
    GET DIAGNOSTICS v_found = ROW_COUNT;
    IF v_found = 0 THEN
        SELECT least(
            (SELECT w.at FROM @schema@.waiting w WHERE w.queue = q.id AND w.state <> 3 AND w.at >= p_floor
                ORDER BY w.at LIMIT 1),
            (SELECT a.at FROM @schema@.active a WHERE a.queue = q.id AND a.at >= p_since ORDER BY a.at LIMIT 1))
            INTO next_at;
    END IF;
    RETURN NEXT;
END $$;

-- Makes leases end `p_lease` from now. Answers those that held.
CREATE FUNCTION @schema@.extend(p_queue text, p_seq bigint[], p_token bigint[], p_lease bigint)
RETURNS TABLE (ord bigint, lease_until bigint, cancel_requested boolean) LANGUAGE plpgsql @hot@
AS $$
#variable_conflict use_column
DECLARE
    q @schema@.queues := @schema@.find(p_queue);
    v_now bigint := @schema@.now_ms();
BEGIN
    RETURN QUERY UPDATE @schema@.active a SET at = v_now + p_lease
        FROM unnest(p_seq, p_token) WITH ORDINALITY AS u(seq, token, ord)
        -- With `+ 0` no other index than the one on seq serves, whatever the planner thinks of a table that was empty.
        WHERE a.seq = ANY (ARRAY[u.seq]) AND a.token = u.token AND a.queue + 0 = q.id AND a.at + 0 > v_now
        RETURNING u.ord, a.at, a.cancel_requested;
END $$;

-- Ends claims; kinds: 0 succeed, 1 retry, 2 release, 3 bury. Answers those that held. `ready`: a job became ready
-- (told once), or false: somebody else holds the key of this one at this moment; `address`: who has a completion.
CREATE FUNCTION @schema@.settle(
    p_queue text, p_seq bigint[], p_token bigint[], p_kind smallint[], p_delay bigint[], p_dead_reason text[],
    p_failure_reason text[], p_failure_message text[], p_result_type text[], p_result bytea[], p_outcome text[]
) RETURNS TABLE (ord bigint, ready boolean, address text) LANGUAGE plpgsql @hot@
AS $$
#variable_conflict use_column
DECLARE
    q @schema@.queues := @schema@.find(p_queue);
    v_now bigint := @schema@.now_ms();
    v_busy text[] := '{}';
    v_ords bigint[];
    v_ready boolean;
    v_told text[];
    v_seqs bigint[];
    v_keys text[];
BEGIN
    IF q.fifo THEN
        v_busy := @schema@.try_lock_lines(q.id, (
            SELECT array_agg(a.key) FROM unnest(p_seq) AS u(seq) JOIN @schema@.active a ON a.seq = ANY (ARRAY[u.seq])));
        v_now := @schema@.now_ms();
        RETURN QUERY SELECT u.ord, false, NULL::text FROM unnest(p_seq, p_token) WITH ORDINALITY AS u(seq, token, ord)
            JOIN @schema@.active a ON a.seq = ANY (ARRAY[u.seq]) WHERE a.token = u.token AND a.key = ANY (v_busy);
    END IF;
    WITH gone AS (
        DELETE FROM @schema@.active a
        USING unnest(p_seq, p_token, p_kind, p_delay, p_dead_reason, p_failure_reason, p_failure_message, p_result_type,
            p_result, p_outcome) WITH ORDINALITY AS u(seq, token, kind, delay, dead_reason, failure_reason, failure_message,
            result_type, result, outcome, ord)
        -- With `+ 0` no other index than the one on seq serves, whatever the planner thinks of a table that was empty.
        WHERE a.seq = ANY (ARRAY[u.seq]) AND a.token = u.token AND a.queue + 0 = q.id AND a.at + 0 > v_now
            AND (NOT q.fifo OR a.key <> ALL (v_busy))
        RETURNING u.ord, u.kind, u.delay, u.dead_reason, coalesce(u.failure_reason, a.failure_reason) AS failure_reason,
            coalesce(u.failure_message, a.failure_message) AS failure_message, u.result_type, u.result,
            CASE WHEN a.cancel_requested AND u.kind IN (1, 2) THEN '"cancelled"' ELSE u.outcome END AS outcome,
            CASE WHEN u.kind = 0 THEN 5 WHEN u.kind = 3 THEN 6 WHEN a.cancel_requested THEN 7
                WHEN u.delay = 0 THEN 0 WHEN a.attempts = 0 AND u.kind = 2 THEN 1 ELSE 2 END AS next,
            a.attempts + CASE WHEN u.kind = 2 THEN 0 ELSE 1 END AS attempts,
            a.seq, a.notify, a.bytes, a.lost, a.deliveries, a.key, a.due_at, a.claimed_at
    ), ends AS MATERIALIZED (
        SELECT g.* FROM gone g
    ), over AS (
        INSERT INTO @schema@.finished (seq, queue, at, finished_at, due_at, state, attempts, lost, bytes, key, dead_reason,
            failure_reason, failure_message, result_type, result)
        SELECT e.seq, q.id, v_now + CASE WHEN e.notify THEN 4611686018427387904 ELSE 0 END, v_now, e.due_at, e.next,
            e.attempts, e.lost, e.bytes, e.key, e.dead_reason, e.failure_reason, e.failure_message, e.result_type, e.result
        FROM ends e WHERE e.next >= 5
    ), again AS (
        INSERT INTO @schema@.waiting (seq, queue, at, state, notify, bytes, attempts, lost, deliveries, key,
            failure_reason, failure_message)
        SELECT e.seq, q.id, v_now + e.delay, e.next, e.notify, e.bytes, e.attempts, e.lost, e.deliveries, e.key,
            e.failure_reason, e.failure_message
        FROM ends e WHERE e.next < 5
    ), completions AS (
        INSERT INTO @schema@.completions (job_seq, settled_at, address, queue, job, outcome, context)
        SELECT e.seq, v_now, j.notify_address, q.name, j.id, e.outcome, j.notify_context
        FROM ends e JOIN @schema@.jobs j ON j.seq = ANY (ARRAY[e.seq])
        WHERE e.notify AND e.next >= 5 AND j.notify_address IS NOT NULL ORDER BY e.ord
        RETURNING address
    ), counted AS (
        INSERT INTO @schema@.deltas (queue, active, ready, scheduled, retrying, dead, served, service_ms)
        SELECT q.id, -count(*), count(*) FILTER (WHERE e.next = 0), count(*) FILTER (WHERE e.next = 1),
            count(*) FILTER (WHERE e.next = 2), count(*) FILTER (WHERE e.next = 6), count(*) FILTER (WHERE e.kind <> 2),
            coalesce(sum(greatest(v_now - e.claimed_at, 0)) FILTER (WHERE e.kind <> 2), 0)
        FROM ends e HAVING count(*) > 0
    )
    SELECT array_agg(e.ord), coalesce(bool_or(e.next < 5), false),
        (SELECT array_agg(DISTINCT c.address) FROM completions c),
        array_agg(e.seq) FILTER (WHERE e.next >= 5), array_agg(e.key) FILTER (WHERE e.next >= 5)
        INTO v_ords, v_ready, v_told, v_seqs, v_keys
        FROM ends e;
    IF q.fifo AND v_seqs IS NOT NULL AND @schema@.advance(q.id, v_seqs, v_keys, v_now) THEN
        v_ready := true;
    END IF;
    RETURN QUERY SELECT u, NULL::boolean, NULL::text FROM unnest(v_ords) AS u;
    RETURN QUERY SELECT NULL::bigint, true, NULL::text WHERE v_ready;
    RETURN QUERY SELECT NULL::bigint, NULL::boolean, u FROM unnest(v_told) AS u;
END $$;

-- Adds up old deltas and answers how many. The average of service times keeps the weight of its last 50 jobs.
CREATE FUNCTION @schema@.fold(p_queue bigint) RETURNS bigint LANGUAGE plpgsql
AS $$
DECLARE v_count bigint;
BEGIN
    WITH old AS MATERIALIZED (
        SELECT d.ctid AS place FROM @schema@.deltas d WHERE d.queue = p_queue LIMIT 5000 FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM @schema@.deltas d USING old o WHERE d.ctid = o.place RETURNING d.*
    ), kept AS (
        INSERT INTO @schema@.deltas (queue, ready, scheduled, retrying, blocked, active, dead, served, service_ms)
        SELECT p_queue, sum(ready), sum(scheduled), sum(retrying), sum(blocked), sum(active), sum(dead),
            least(sum(served), 50),
            CASE WHEN sum(served) > 50 THEN sum(service_ms) * 50 / sum(served) ELSE sum(service_ms) END
        FROM gone HAVING count(*) > 0
    )
    SELECT count(*) INTO v_count FROM old;
    RETURN v_count;
END $$;

-- Jobs that became due are counted as ready from now on. Answers how many.
CREATE FUNCTION @schema@.ripen(p_queue bigint, p_limit int, p_now bigint) RETURNS bigint LANGUAGE plpgsql
AS $$
DECLARE
    v_scheduled bigint;
    v_retrying bigint;
BEGIN
    WITH due AS MATERIALIZED (
        SELECT w.ctid AS place, w.state AS was FROM @schema@.waiting w
        WHERE w.queue = p_queue AND w.state IN (1, 2) AND w.at <= p_now LIMIT p_limit FOR UPDATE SKIP LOCKED
    ), ripe AS (
        UPDATE @schema@.waiting w SET state = 0 FROM due d WHERE w.ctid = d.place RETURNING d.was
    )
    SELECT count(*) FILTER (WHERE was = 1), count(*) FILTER (WHERE was = 2) INTO v_scheduled, v_retrying FROM ripe;
    IF v_scheduled + v_retrying > 0 THEN
        INSERT INTO @schema@.deltas (queue, ready, scheduled, retrying)
            VALUES (p_queue, v_scheduled + v_retrying, -v_scheduled, -v_retrying);
    END IF;
    RETURN v_scheduled + v_retrying;
END $$;

-- Does a bounded part of what is due in a queue, unless somebody else is at it: ends leases, counts, adds up. Answers
-- when there is something to do next, and whether there is more at once.
CREATE FUNCTION @schema@.tick(
    p_queue text, OUT now_at bigint, OUT next_at bigint, OUT again boolean, OUT ready boolean, OUT told text[]
) LANGUAGE plpgsql @hot@
AS $$
DECLARE
    q @schema@.queues := @schema@.find(p_queue);
    v_lost record;
    v_ripe bigint;
    v_folded bigint := 0;
BEGIN
    now_at := @schema@.now_ms();
    again := false;
    ready := false;
    IF NOT pg_try_advisory_xact_lock(hashtextextended('@schema@.tick', q.id)) THEN
        next_at := now_at + 1000;
        RETURN;
    END IF;
    v_lost := @schema@.lose(q, 500, now_at);
    told := v_lost.told;
    v_ripe := @schema@.ripen(q.id, 5000, now_at);
    -- Whoever waits is told: nobody else may have seen that it became due.
    ready := v_lost.ready OR v_ripe > 0;
    IF (SELECT count(*) FROM (SELECT FROM @schema@.deltas WHERE queue = q.id LIMIT 17) d) > 16 THEN
        v_folded := @schema@.fold(q.id);
    END IF;
    again := v_lost.moved >= 500 OR v_ripe >= 5000 OR v_folded >= 5000;
    next_at := (SELECT a.at FROM @schema@.active a WHERE a.queue = q.id ORDER BY a.at LIMIT 1);
END $$;

-- Which queues and addresses have something since `p_since`. `p_all` tells whether jobs and completions that were just
-- added count, or only those that became due. The first row tells the time, and when a job is due next.
CREATE FUNCTION @schema@.news(p_since bigint, p_all boolean)
RETURNS TABLE (now_at bigint, next_at bigint, queue text, address text) LANGUAGE plpgsql @hot@
AS $$
#variable_conflict use_column
DECLARE
    q @schema@.queues;
    v_now bigint := @schema@.now_ms();
    v_next bigint;
    v_address text := '';
BEGIN
    FOR q IN SELECT * FROM @schema@.queues WHERE deleted_at IS NULL AND NOT paused LOOP
        IF EXISTS (SELECT FROM @schema@.waiting w WHERE p_all AND w.queue = q.id AND w.state <> 3 AND w.at > p_since
                AND w.at <= v_now)
            OR EXISTS (SELECT FROM @schema@.waiting w WHERE w.queue = q.id AND w.state IN (1, 2) AND w.at > p_since
                AND w.at <= v_now) THEN
            RETURN QUERY SELECT NULL::bigint, NULL::bigint, q.name, NULL::text;
        END IF;
        v_next := least(v_next,
            (SELECT w.at FROM @schema@.waiting w WHERE w.queue = q.id AND w.state <> 3 AND w.at > v_now ORDER BY w.at
                LIMIT 1));
    END LOOP;
    WHILE p_all LOOP
        SELECT min(c.address) INTO v_address FROM @schema@.completions c WHERE c.address > v_address;
        EXIT WHEN v_address IS NULL;
        IF (SELECT c.settled_at > p_since FROM @schema@.completions c WHERE c.address = v_address ORDER BY c.id DESC
            LIMIT 1) THEN
            RETURN QUERY SELECT NULL::bigint, NULL::bigint, NULL::text, v_address;
        END IF;
    END LOOP;
    RETURN QUERY SELECT v_now, v_next, NULL::text, NULL::text;
END $$;
