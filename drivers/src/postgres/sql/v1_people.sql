-- What operators and people do, of schema version 1.

-- Makes a queue or brings its settings up to date: 'created', 'updated', 'resumed' after a pause, 'owned' by somebody
-- else, or of another 'ordering'. A row that says all of it already is left alone: operators declare again and again.
CREATE FUNCTION @schema@.declare_queue(
    p_name text, p_installation text, p_uid text, p_adopt boolean, p_max_depth bigint, p_max_deliveries bigint,
    p_retain_completed bigint, p_retain_dead bigint, p_paused boolean, p_fifo boolean
) RETURNS text LANGUAGE plpgsql @hot@
AS $$
DECLARE q @schema@.queues;
BEGIN
    INSERT INTO @schema@.queues (name, installation, uid, max_depth, max_deliveries, retain_completed, retain_dead,
            paused, fifo)
        VALUES (p_name, p_installation, p_uid, p_max_depth, p_max_deliveries, p_retain_completed, p_retain_dead,
            p_paused, p_fifo)
        ON CONFLICT (name) WHERE deleted_at IS NULL DO NOTHING;
    IF FOUND THEN
        RETURN 'created';
    END IF;
    SELECT * INTO q FROM @schema@.queues WHERE name = p_name AND deleted_at IS NULL FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'queue % was just deleted', p_name USING ERRCODE = '40001';
    ELSIF (q.installation, q.uid) <> (p_installation, p_uid) AND NOT p_adopt THEN
        RETURN 'owned';
    ELSIF q.fifo <> p_fifo THEN
        RETURN 'ordering';
    END IF;
    UPDATE @schema@.queues SET installation = p_installation, uid = p_uid, max_depth = p_max_depth,
        max_deliveries = p_max_deliveries, retain_completed = p_retain_completed, retain_dead = p_retain_dead,
        paused = p_paused
        WHERE id = q.id AND (q.installation, q.uid, q.max_depth, q.max_deliveries, q.retain_completed, q.retain_dead, q.paused)
            <> (p_installation, p_uid, p_max_depth, p_max_deliveries, p_retain_completed, p_retain_dead, p_paused);
    RETURN CASE WHEN q.paused AND NOT p_paused THEN 'resumed' ELSE 'updated' END;
END $$;

CREATE FUNCTION @schema@.stats(
    p_queue text, OUT ready bigint, OUT scheduled bigint, OUT retrying bigint, OUT blocked bigint, OUT active bigint,
    OUT dead bigint, OUT oldest_ready_at bigint, OUT next_due_at bigint, OUT parked bigint,
    OUT service_ms double precision, OUT woke boolean, OUT told text[]
) LANGUAGE plpgsql @hot@
AS $$
#variable_conflict use_column
DECLARE
    q @schema@.queues := @schema@.find(p_queue);
    v_now bigint := @schema@.now_ms();
    v_lost record;
    v_due bigint;
BEGIN
    woke := false;
    IF EXISTS (SELECT FROM @schema@.active a WHERE a.queue = q.id AND a.at <= v_now) THEN
        v_lost := @schema@.lose(q, 1000, v_now);
        woke := v_lost.ready;
        told := v_lost.told;
    END IF;
    -- One statement, so one moment. What is due and was not counted as ready yet is counted here.
    SELECT d.ready + u.scheduled + u.retrying, d.scheduled - u.scheduled, d.retrying - u.retrying, d.blocked, d.active,
        d.dead, d.service_ms, u.scheduled + u.retrying,
        (SELECT w.at FROM @schema@.waiting w WHERE w.queue = q.id AND w.state <> 3 AND w.at <= v_now ORDER BY w.at LIMIT 1),
        least(
            (SELECT w.at FROM @schema@.waiting w WHERE w.queue = q.id AND w.state IN (1, 2) AND w.state = 1 AND w.at > v_now
                ORDER BY w.at LIMIT 1),
            (SELECT w.at FROM @schema@.waiting w WHERE w.queue = q.id AND w.state IN (1, 2) AND w.state = 2 AND w.at > v_now
                ORDER BY w.at LIMIT 1)),
        (SELECT count(*) FROM @schema@.finished f WHERE f.queue = q.id AND f.failure_reason = 'Unreadable')
            + (SELECT count(*) FROM @schema@.completions c
                WHERE c.queue = q.name AND c.leased_until = 9223372036854775807)
    INTO ready, scheduled, retrying, blocked, active, dead, service_ms, v_due, oldest_ready_at, next_due_at, parked
    FROM (
        SELECT coalesce(sum(d.ready), 0)::bigint AS ready, coalesce(sum(d.scheduled), 0)::bigint AS scheduled,
            coalesce(sum(d.retrying), 0)::bigint AS retrying, coalesce(sum(d.blocked), 0)::bigint AS blocked,
            coalesce(sum(d.active), 0)::bigint AS active, coalesce(sum(d.dead), 0)::bigint AS dead,
            sum(d.service_ms) / nullif(sum(d.served), 0) AS service_ms
        FROM @schema@.deltas d WHERE d.queue = q.id
    ) d, (
        SELECT count(*) FILTER (WHERE w.state = 1) AS scheduled, count(*) FILTER (WHERE w.state = 2) AS retrying
        FROM @schema@.waiting w WHERE w.queue = q.id AND w.state IN (1, 2) AND w.at <= v_now
    ) u;
    IF v_due > 500 THEN
        PERFORM @schema@.ripen(q.id, 5000, v_now);
    END IF;
END $$;

-- Numbers of up to `p_limit` jobs in `p_state` behind a place in their order.
CREATE FUNCTION @schema@.page(q @schema@.queues, p_state int, p_at bigint, p_seq bigint, p_limit int, p_now bigint)
RETURNS bigint[] LANGUAGE plpgsql
AS $$
DECLARE v_seqs bigint[];
BEGIN
    IF p_state = 0 THEN
        SELECT array_agg(s.seq) INTO v_seqs FROM (
            SELECT w.seq FROM @schema@.waiting w WHERE w.queue = q.id AND w.state <> 3 AND w.at <= p_now
                AND (w.at, w.seq) > (p_at, p_seq) ORDER BY w.at, w.seq LIMIT p_limit) s;
    ELSIF p_state IN (1, 2) THEN
        SELECT array_agg(s.seq) INTO v_seqs FROM (
            SELECT w.seq FROM @schema@.waiting w WHERE w.queue = q.id AND w.state IN (1, 2) AND w.state = p_state
                AND w.at > p_now AND (w.at, w.seq) > (p_at, p_seq) ORDER BY w.at, w.seq LIMIT p_limit) s;
    ELSIF p_state = 3 THEN
        SELECT array_agg(s.seq) INTO v_seqs FROM (
            SELECT w.seq FROM @schema@.waiting w WHERE w.queue = q.id AND w.state = 3
                AND (w.at, w.seq) > (p_at, p_seq) ORDER BY w.at, w.seq LIMIT p_limit) s;
    ELSIF p_state = 4 THEN
        SELECT array_agg(s.seq) INTO v_seqs FROM (
            SELECT a.seq FROM @schema@.active a WHERE a.queue = q.id
                AND (a.at, a.seq) > (p_at, p_seq) ORDER BY a.at, a.seq LIMIT p_limit) s;
    ELSE
        SELECT array_agg(s.seq) INTO v_seqs FROM (
            SELECT f.seq FROM @schema@.finished f WHERE f.queue = q.id AND f.state = p_state
                AND (f.at, f.seq) > (p_at, p_seq) ORDER BY f.at, f.seq LIMIT p_limit) s;
    END IF;
    RETURN v_seqs;
END $$;

CREATE FUNCTION @schema@.list(p_queue text, p_state int, p_at bigint, p_seq bigint, p_limit int) RETURNS TABLE (
    ord bigint, seq bigint, at bigint, id text, type text, state smallint, attempts int, lost int, enqueued_at bigint,
    due_at bigint, lease_until bigint, worker text, finished_at bigint, dead_reason text, failure_reason text,
    failure_message text, result_type text, result bytea, result_bytes bigint, payload_bytes bigint
) LANGUAGE plpgsql @hot@
AS $$
DECLARE
    q @schema@.queues := @schema@.find(p_queue);
    v_now bigint := @schema@.now_ms();
BEGIN
    RETURN QUERY SELECT * FROM @schema@.describe(@schema@.page(q, p_state, p_at, p_seq, p_limit, v_now), v_now);
END $$;

CREATE FUNCTION @schema@.inspect(p_queue text, p_id text) RETURNS TABLE (
    ord bigint, seq bigint, at bigint, id text, type text, state smallint, attempts int, lost int, enqueued_at bigint,
    due_at bigint, lease_until bigint, worker text, finished_at bigint, dead_reason text, failure_reason text,
    failure_message text, result_type text, result bytea, result_bytes bigint, payload_bytes bigint
) LANGUAGE plpgsql @hot@
AS $$
#variable_conflict use_column
DECLARE q @schema@.queues := @schema@.find(p_queue);
BEGIN
    -- One statement, so one moment: a job that goes now is there or isn't.
    RETURN QUERY SELECT d.* FROM @schema@.jobs j, LATERAL @schema@.describe(ARRAY[j.seq], @schema@.now_ms()) d
        WHERE j.queue = q.id AND j.id = p_id;
END $$;

CREATE FUNCTION @schema@.results(p_queue text, p_ids text[])
RETURNS TABLE (ord bigint, result_type text, result bytea) LANGUAGE plpgsql @hot@
AS $$
#variable_conflict use_column
DECLARE q @schema@.queues := @schema@.find(p_queue);
BEGIN
    RETURN QUERY SELECT u.ord, coalesce(f.result_type, 'application/json'), f.result
        FROM unnest(p_ids) WITH ORDINALITY AS u(id, ord)
        JOIN @schema@.jobs j ON j.queue = q.id AND j.id = ANY (ARRAY[u.id])
        JOIN @schema@.finished f ON f.seq = ANY (ARRAY[j.seq]) WHERE f.result IS NOT NULL;
END $$;

-- Takes the lines of jobs that somebody named.
CREATE FUNCTION @schema@.lines_of(q @schema@.queues, p_ids text[], p_open boolean) RETURNS text[] LANGUAGE plpgsql
AS $$
DECLARE v_keys text[];
BEGIN
    IF NOT q.fifo THEN
        RETURN NULL;
    END IF;
    SELECT array_agg(coalesce(j.key, '')) INTO v_keys FROM unnest(p_ids) AS u(id)
        JOIN @schema@.jobs j ON j.queue = q.id AND j.id = ANY (ARRAY[u.id]);
    IF p_open THEN
        PERFORM @schema@.open_lines(q.id, v_keys);
    ELSE
        PERFORM @schema@.lock_lines(q.id, v_keys);
    END IF;
    RETURN v_keys;
END $$;

-- Cancels jobs; `state` is where each stands now, or null where there is none.
CREATE FUNCTION @schema@.cancel(p_queue text, p_ids text[])
RETURNS TABLE (ord bigint, state smallint, ready boolean, address text) LANGUAGE plpgsql @hot@
AS $$
#variable_conflict use_column
DECLARE
    q @schema@.queues := @schema@.find(p_queue);
    v_now bigint;
    v_job @schema@.jobs;
    v_gone @schema@.waiting;
    v_lost record;
BEGIN
    PERFORM @schema@.lines_of(q, p_ids, false);
    v_now := @schema@.now_ms();
    IF EXISTS (SELECT FROM @schema@.active a WHERE a.queue = q.id AND a.at <= v_now) THEN
        v_lost := @schema@.lose(q, 1000, v_now);
    END IF;
    FOR i IN 1 .. cardinality(p_ids) LOOP
        ord := i;
        state := NULL; ready := NULL; address := NULL;
        SELECT * INTO v_job FROM @schema@.jobs j WHERE j.queue = q.id AND j.id = p_ids[i];
        IF NOT FOUND THEN
            RETURN NEXT;
            CONTINUE;
        END IF;
        DELETE FROM @schema@.waiting w WHERE w.seq = v_job.seq RETURNING * INTO v_gone;
        IF FOUND THEN
            INSERT INTO @schema@.finished (seq, queue, at, finished_at, due_at, state, attempts, lost, bytes, key,
                    failure_reason, failure_message)
                VALUES (v_gone.seq, q.id, v_now + CASE WHEN v_gone.notify THEN 4611686018427387904 ELSE 0 END, v_now,
                    v_gone.at, 7, v_gone.attempts, v_gone.lost, v_gone.bytes, v_gone.key, v_gone.failure_reason,
                    v_gone.failure_message);
            INSERT INTO @schema@.deltas (queue, ready, scheduled, retrying, blocked)
                VALUES (q.id, -(v_gone.state = 0)::int, -(v_gone.state = 1)::int, -(v_gone.state = 2)::int,
                    -(v_gone.state = 3)::int);
            IF v_job.notify_address IS NOT NULL THEN
                INSERT INTO @schema@.completions (job_seq, settled_at, address, queue, job, outcome, context)
                    VALUES (v_job.seq, v_now, v_job.notify_address, q.name, v_job.id, '"cancelled"', v_job.notify_context);
            END IF;
            state := 7;
            address := v_job.notify_address;
            ready := q.fifo AND @schema@.advance(q.id, ARRAY[v_gone.seq], ARRAY[v_gone.key], v_now);
        ELSE
            UPDATE @schema@.active a SET cancel_requested = true WHERE a.seq = v_job.seq;
            IF FOUND THEN
                state := 4;
            ELSE
                SELECT f.state INTO state FROM @schema@.finished f WHERE f.seq = v_job.seq;
                IF NOT FOUND THEN
                    RAISE EXCEPTION 'a job moved just now' USING ERRCODE = '40001';
                END IF;
            END IF;
        END IF;
        RETURN NEXT;
    END LOOP;
END $$;

-- Makes dead jobs ready again: 'done', 'missing', 'alive' or 'workflow'.
CREATE FUNCTION @schema@.redrive(p_queue text, p_ids text[]) RETURNS TABLE (ord bigint, verdict text)
LANGUAGE plpgsql @hot@
AS $$
#variable_conflict use_column
DECLARE
    q @schema@.queues := @schema@.find(p_queue);
    v_keys text[];
    v_now bigint;
    v_job @schema@.jobs;
    v_dead @schema@.finished;
    v_state smallint;
BEGIN
    v_keys := @schema@.lines_of(q, p_ids, true);
    v_now := @schema@.now_ms();
    FOR i IN 1 .. cardinality(p_ids) LOOP
        ord := i;
        SELECT * INTO v_job FROM @schema@.jobs j WHERE j.queue = q.id AND j.id = p_ids[i];
        IF NOT FOUND THEN
            verdict := 'missing';
            RETURN NEXT;
            CONTINUE;
        END IF;
        SELECT * INTO v_dead FROM @schema@.finished f WHERE f.seq = v_job.seq AND f.state = 6 FOR UPDATE;
        IF NOT FOUND THEN
            verdict := 'alive';
        ELSIF v_job.notify_address IS NOT NULL THEN
            verdict := 'workflow';
        ELSE
            verdict := 'done';
            DELETE FROM @schema@.finished f WHERE f.seq = v_job.seq;
            v_state := CASE WHEN q.fifo AND @schema@.enter_line(q.id, v_dead.key, v_dead.seq) THEN 3 ELSE 0 END;
            INSERT INTO @schema@.waiting (seq, queue, at, state, notify, bytes, attempts, lost, deliveries, key,
                    failure_reason, failure_message)
                VALUES (v_dead.seq, q.id, v_now, v_state, false, v_dead.bytes, 0, 0, 0, v_dead.key, v_dead.failure_reason,
                    v_dead.failure_message);
            INSERT INTO @schema@.deltas (queue, dead, ready, blocked)
                VALUES (q.id, -1, (v_state = 0)::int, (v_state = 3)::int);
        END IF;
        RETURN NEXT;
    END LOOP;
    IF q.fifo THEN
        PERFORM @schema@.close_lines(q.id, v_keys);
    END IF;
END $$;

-- Reads completions and leases them. The last row holds none: it tells how many of them there are, one more than asked
-- for at most, and, where there is none, when one that is leased can be read again. All of it in one statement, so of one
-- moment.
CREATE FUNCTION @schema@.read_completions(p_address text, p_max int, p_lease bigint) RETURNS TABLE (
    id bigint, queue text, job text, outcome text, settled_at bigint, context bytea, delivery int, now_at bigint,
    next_at bigint, there bigint
) LANGUAGE plpgsql @hot@
AS $$
#variable_conflict use_column
DECLARE v_now bigint := @schema@.now_ms();
BEGIN
    RETURN QUERY WITH readable AS MATERIALIZED (
        SELECT c.id FROM @schema@.completions c WHERE c.address = p_address AND c.leased_until <= v_now
        ORDER BY c.id LIMIT p_max FOR UPDATE SKIP LOCKED
    ), leased AS (
        UPDATE @schema@.completions c SET leased_until = v_now + p_lease, delivery = c.delivery + 1
        FROM readable r WHERE c.id = ANY (ARRAY[r.id]) RETURNING c.*
    )
    SELECT l.id, l.queue, l.job, l.outcome, l.settled_at, l.context, l.delivery, NULL::bigint, NULL::bigint,
        NULL::bigint FROM leased l
    UNION ALL
    SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, v_now,
        CASE WHEN NOT EXISTS (SELECT FROM readable) THEN (SELECT min(f.leased_until) FROM (
            SELECT c.leased_until FROM @schema@.completions c WHERE c.address = p_address ORDER BY c.id LIMIT 1000) f
            WHERE f.leased_until > v_now) END,
        (SELECT count(*) FROM (
            SELECT FROM @schema@.completions c WHERE c.address = p_address AND c.leased_until < 9223372036854775807
            LIMIT p_max + 1) s)
    ORDER BY 1 NULLS LAST;
END $$;

-- Puts completions aside that can't be read, or takes all of them back.
CREATE FUNCTION @schema@.park(p_ids bigint[]) RETURNS void LANGUAGE plpgsql @hot@
AS $$
BEGIN
    IF p_ids IS NULL THEN
        UPDATE @schema@.completions SET leased_until = 0 WHERE leased_until = 9223372036854775807;
    ELSE
        UPDATE @schema@.completions SET leased_until = 9223372036854775807 WHERE id = ANY (p_ids);
    END IF;
END $$;

-- Jobs that are over start to age when nobody needs them any more. The caller holds their bodies.
CREATE FUNCTION @schema@.age(p_seqs bigint[]) RETURNS void LANGUAGE plpgsql
AS $$
BEGIN
    UPDATE @schema@.finished f SET at = @schema@.now_ms()
        FROM unnest(p_seqs) AS u(seq), @schema@.jobs j, @schema@.queues q
        WHERE f.seq = ANY (ARRAY[u.seq]) AND j.seq = ANY (ARRAY[u.seq]) AND q.id = ANY (ARRAY[j.queue]) AND j.unpinned AND f.at >= 4611686018427387904
        AND NOT EXISTS (
            SELECT FROM @schema@.completions c
            WHERE c.queue = ANY (ARRAY[q.name]) AND c.job = ANY (ARRAY[j.id]) AND c.job_seq = ANY (ARRAY[j.seq]));
END $$;

-- Holds the bodies of jobs, in the order of their numbers, which `p_seqs` has.
CREATE FUNCTION @schema@.hold(p_seqs bigint[]) RETURNS void LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM FROM unnest(p_seqs) AS u(seq), LATERAL (
        SELECT FROM @schema@.jobs j WHERE j.seq = u.seq FOR NO KEY UPDATE) j;
END $$;

-- Whoever forgets a completion and whoever unpins its job meet at the job's body: the second one sees what the first one
-- did.
CREATE FUNCTION @schema@.acknowledge(p_address text, p_ids bigint[]) RETURNS void LANGUAGE plpgsql @hot@
AS $$
DECLARE v_seqs bigint[];
BEGIN
    WITH gone AS (
        DELETE FROM @schema@.completions c USING unnest(p_ids) AS u(id)
        WHERE c.id = ANY (ARRAY[u.id]) AND c.address = p_address RETURNING c.job_seq
    )
    SELECT array_agg(DISTINCT g.job_seq ORDER BY g.job_seq) INTO v_seqs FROM gone g;
    PERFORM @schema@.hold(v_seqs);
    PERFORM @schema@.age(v_seqs);
END $$;

CREATE FUNCTION @schema@.unpin(p_queue text, p_ids text[]) RETURNS void LANGUAGE plpgsql @hot@
AS $$
DECLARE
    v_queue bigint;
    v_seqs bigint[];
BEGIN
    SELECT q.id INTO v_queue FROM @schema@.queues q WHERE q.name = p_queue AND q.deleted_at IS NULL;
    SELECT array_agg(j.seq ORDER BY j.seq) INTO v_seqs FROM unnest(p_ids) AS u(id)
        JOIN @schema@.jobs j ON j.queue = v_queue AND j.id = ANY (ARRAY[u.id]);
    PERFORM @schema@.hold(v_seqs);
    UPDATE @schema@.jobs SET unpinned = true WHERE seq = ANY (v_seqs) AND NOT unpinned;
    PERFORM @schema@.age(v_seqs);
END $$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA @schema@ FROM PUBLIC;
