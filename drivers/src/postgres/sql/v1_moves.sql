-- How jobs come in and move, of schema version 1. `@hot@` stands for the settings of every function that drivers call:
-- it runs as the owner of the schema, finds rows through indexes and one by one, whatever the planner's figures say, and
-- doesn't wait for locks for long. `@warm@` is the same where lists are joined with lists.
--
-- A planner that thinks a table empty walks all of its index, for the order that it has or for a join, and keeps that plan
-- when the table has grown. So rows of a list are found with `= ANY (ARRAY[one])`, which serves for nothing but a look at the
-- index for each of the list; and where rows are taken in an order, by a subquery for each key (LATERAL), in the order of keys.

-- The present instant by this server's clock, cut to milliseconds.
CREATE FUNCTION @schema@.now_ms() RETURNS bigint LANGUAGE sql VOLATILE
AS $$ SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint $$;

CREATE FUNCTION @schema@.version() RETURNS TABLE (version int, compatible int, backend_id text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$ BEGIN RETURN QUERY SELECT m.version, m.compatible, m.backend_id FROM @schema@.meta m; END $$;

-- The queue called `p_name`.
CREATE FUNCTION @schema@.find(p_name text) RETURNS @schema@.queues LANGUAGE plpgsql STABLE
AS $$
DECLARE q @schema@.queues;
BEGIN
    SELECT * INTO q FROM @schema@.queues WHERE name = p_name AND deleted_at IS NULL;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'queue % was never declared on this broker', p_name USING ERRCODE = 'LS404';
    END IF;
    RETURN q;
END $$;

-- Takes the lines of `p_keys`, in the one order in which everybody takes them, and makes those that are missing.
CREATE FUNCTION @schema@.open_lines(p_queue bigint, p_keys text[]) RETURNS void LANGUAGE plpgsql
AS $$
BEGIN
    INSERT INTO @schema@.lines (queue, key, first)
        SELECT p_queue, k.key, NULL FROM (SELECT DISTINCT unnest(p_keys) COLLATE "C" AS key) k ORDER BY k.key
        ON CONFLICT (queue, key) DO UPDATE SET first = lines.first;
END $$;

-- Takes lines like that, but of several leaves those out that somebody else holds: an open transaction of a producer keeps
-- up nothing but its own keys. Answers these. A line that was made in a transaction that is still open shows only by
-- how long it takes to make it here.
CREATE FUNCTION @schema@.try_open_lines(p_queue bigint, p_keys text[]) RETURNS text[] LANGUAGE plpgsql
AS $$
DECLARE
    v_keys text[];
    v_busy text[];
    v_key text;
    v_misses int := 0;
BEGIN
    SELECT array_agg(k.key ORDER BY k.key) INTO v_keys FROM (SELECT DISTINCT unnest(p_keys) COLLATE "C" AS key) k;
    IF cardinality(v_keys) = 1 THEN
        PERFORM @schema@.open_lines(p_queue, v_keys);
        RETURN '{}';
    END IF;
    v_busy := @schema@.try_lock_lines(p_queue, v_keys);
    SELECT array_agg(k ORDER BY k) INTO v_keys FROM unnest(v_keys) AS k
        WHERE k <> ALL (v_busy) AND NOT EXISTS (SELECT FROM @schema@.lines l WHERE l.queue = p_queue AND l.key = k);
    IF v_keys IS NULL THEN
        RETURN v_busy;
    END IF;
    PERFORM set_config('lock_timeout', '50ms', true);
    BEGIN
        PERFORM @schema@.open_lines(p_queue, v_keys);
    EXCEPTION WHEN lock_not_available THEN
        FOREACH v_key IN ARRAY v_keys LOOP
            IF v_misses >= 6 THEN
                v_busy := v_busy || v_key;
                CONTINUE;
            END IF;
            BEGIN
                PERFORM @schema@.open_lines(p_queue, ARRAY[v_key]);
            EXCEPTION WHEN lock_not_available THEN
                v_busy := v_busy || v_key;
                v_misses := v_misses + 1;
            END;
        END LOOP;
    END;
    PERFORM set_config('lock_timeout', '500ms', true);
    RETURN v_busy;
END $$;

-- Removes lines that nobody stands in.
CREATE FUNCTION @schema@.close_lines(p_queue bigint, p_keys text[]) RETURNS void LANGUAGE plpgsql
AS $$
BEGIN
    DELETE FROM @schema@.lines WHERE ctid = ANY (ARRAY(
        SELECT l.ctid FROM (SELECT DISTINCT unnest(p_keys) COLLATE "C" AS key ORDER BY key) u, LATERAL (
            SELECT l.ctid FROM @schema@.lines l WHERE l.queue = p_queue AND l.key = u.key AND l.first IS NULL FOR UPDATE) l));
END $$;

-- Takes the lines of `p_keys` that there are.
CREATE FUNCTION @schema@.lock_lines(p_queue bigint, p_keys text[]) RETURNS void LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM FROM (SELECT DISTINCT unnest(p_keys) COLLATE "C" AS key ORDER BY key) u,
        LATERAL (SELECT FROM @schema@.lines l WHERE l.queue = p_queue AND l.key = u.key FOR UPDATE) l;
END $$;

-- Takes the lines of `p_keys` that there are, but of several leaves those out that somebody else holds. Answers these.
CREATE FUNCTION @schema@.try_lock_lines(p_queue bigint, p_keys text[]) RETURNS text[] LANGUAGE plpgsql
AS $$
DECLARE
    v_free text[];
    v_busy text[];
BEGIN
    IF (SELECT count(DISTINCT k) FROM unnest(p_keys) AS k) <= 1 THEN
        PERFORM @schema@.lock_lines(p_queue, p_keys);
        RETURN '{}';
    END IF;
    SELECT coalesce(array_agg(l.key), '{}') INTO v_free
        FROM (SELECT DISTINCT unnest(p_keys) COLLATE "C" AS key ORDER BY key) u, LATERAL (
            SELECT l.key FROM @schema@.lines l WHERE l.queue = p_queue AND l.key = u.key FOR UPDATE SKIP LOCKED) l;
    SELECT coalesce(array_agg(l.key), '{}') INTO v_busy
        FROM (SELECT DISTINCT unnest(p_keys) COLLATE "C" AS key EXCEPT SELECT unnest(v_free)) u, LATERAL (
            SELECT l.key FROM @schema@.lines l WHERE l.queue = p_queue AND l.key = u.key OFFSET 0) l;
    RETURN v_busy;
END $$;

-- Jobs left their lines, which the caller holds: where one was the first, the next one's turn has come. Answers whether
-- a job became ready.
CREATE FUNCTION @schema@.advance(p_queue bigint, p_seqs bigint[], p_keys text[], p_now bigint) RETURNS boolean
LANGUAGE plpgsql
AS $$
DECLARE
    v_key text;
    v_next @schema@.waiting;
    v_state smallint;
    v_ready boolean := false;
BEGIN
    FOR v_key IN
        SELECT u.key FROM unnest(p_seqs, p_keys) AS u(seq, key), LATERAL (
            SELECT l.first FROM @schema@.lines l WHERE l.queue = p_queue AND l.key = u.key OFFSET 0) l
        WHERE l.first = u.seq
    LOOP
        SELECT * INTO v_next FROM @schema@.waiting
            WHERE queue = p_queue AND key = v_key AND state = 3 ORDER BY seq LIMIT 1;
        IF NOT FOUND THEN
            DELETE FROM @schema@.lines WHERE queue = p_queue AND key = v_key;
            CONTINUE;
        END IF;
        v_state := CASE WHEN v_next.at <= p_now THEN 0 WHEN v_next.attempts = 0 THEN 1 ELSE 2 END;
        UPDATE @schema@.waiting SET state = v_state, at = greatest(at, p_now) WHERE seq = v_next.seq;
        UPDATE @schema@.lines SET first = v_next.seq WHERE queue = p_queue AND key = v_key;
        INSERT INTO @schema@.deltas (queue, blocked, ready, scheduled, retrying)
            VALUES (p_queue, -1, (v_state = 0)::int, (v_state = 1)::int, (v_state = 2)::int);
        v_ready := v_ready OR v_state = 0;
    END LOOP;
    RETURN v_ready;
END $$;

-- Whether a job that comes has to wait for another one of its key.
CREATE FUNCTION @schema@.enter_line(p_queue bigint, p_key text, p_seq bigint) RETURNS boolean LANGUAGE plpgsql
AS $$
DECLARE v_first bigint;
BEGIN
    INSERT INTO @schema@.lines AS l (queue, key, first) VALUES (p_queue, p_key, p_seq)
        ON CONFLICT (queue, key) DO UPDATE SET first = coalesce(l.first, excluded.first)
        RETURNING l.first INTO v_first;
    RETURN v_first <> p_seq;
END $$;

-- How many jobs of a queue wait.
CREATE FUNCTION @schema@.depth(p_queue bigint) RETURNS bigint LANGUAGE sql STABLE
AS $$
    SELECT coalesce(sum(ready + scheduled + retrying + blocked), 0)::bigint FROM @schema@.deltas WHERE queue = p_queue
$$;

-- Makes sure that nobody else adds jobs to a queue which is nearly full before this transaction ends; how many wait.
CREATE FUNCTION @schema@.exact_depth(p_queue bigint) RETURNS bigint LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('@schema@.depth', p_queue));
    RETURN @schema@.depth(p_queue);
END $$;

-- Adds one job to a queue that has room for `p_room` more. Answers its state, or -1: the id is known, -2: it is known
-- from a completion that was not acknowledged, -3: the queue is full, -4: it has no order that a key could mean.
CREATE FUNCTION @schema@.add_one(
    q @schema@.queues, p_now bigint, p_room bigint, p_id text, p_type text, p_key text, p_content_type text,
    p_payload bytea, p_delay bigint, p_headers text, p_max_attempts bigint, p_timeout bigint, p_address text,
    p_context bytea
) RETURNS int LANGUAGE plpgsql
AS $$
DECLARE
    v_seq bigint;
    v_state smallint;
BEGIN
    IF p_key IS NOT NULL AND NOT q.fifo THEN
        RETURN -4;
    ELSIF EXISTS (SELECT FROM @schema@.jobs WHERE queue = q.id AND id = p_id) THEN
        RETURN -1;
    ELSIF p_address IS NOT NULL AND EXISTS (SELECT FROM @schema@.completions WHERE queue = q.name AND job = p_id) THEN
        RETURN -2;
    ELSIF p_address IS NULL AND p_room <= 0 THEN
        RETURN -3;
    END IF;
    INSERT INTO @schema@.jobs (seq, queue, enqueued_at, timeout, max_attempts, id, type, content_type, key, headers,
            notify_address, notify_context, payload)
        VALUES (nextval('@schema@.job_seq'), q.id, p_now, p_timeout, p_max_attempts, p_id, p_type, p_content_type, p_key,
            p_headers, p_address, p_context, p_payload)
        ON CONFLICT (queue, id) DO NOTHING RETURNING seq INTO v_seq;
    IF NOT FOUND THEN
        RETURN -1;
    END IF;
    v_state := CASE WHEN p_delay = 0 THEN 0 ELSE 1 END;
    IF q.fifo AND @schema@.enter_line(q.id, coalesce(p_key, ''), v_seq) THEN
        v_state := 3;
    END IF;
    INSERT INTO @schema@.waiting (seq, queue, at, state, notify, bytes, attempts, lost, deliveries, key)
        VALUES (v_seq, q.id, p_now + p_delay, v_state, p_address IS NOT NULL, octet_length(p_payload), 0, 0, 0,
            CASE WHEN q.fifo THEN coalesce(p_key, '') END);
    RETURN v_state;
END $$;

-- All that there is to say of jobs, in the order of `p_seqs`.
CREATE FUNCTION @schema@.describe(p_seqs bigint[], p_now bigint) RETURNS TABLE (
    ord bigint, seq bigint, at bigint, id text, type text, state smallint, attempts int, lost int, enqueued_at bigint,
    due_at bigint, lease_until bigint, worker text, finished_at bigint, dead_reason text, failure_reason text,
    failure_message text, result_type text, result bytea, result_bytes bigint, payload_bytes bigint
) LANGUAGE sql STABLE
AS $$
    SELECT s.ord, s.seq, coalesce(w.at, a.at, f.at), j.id, j.type,
        CASE WHEN w.seq IS NOT NULL THEN CASE WHEN w.state = 3 THEN 3 WHEN w.at <= p_now THEN 0 ELSE w.state END
             WHEN a.seq IS NOT NULL THEN 4 ELSE f.state END::smallint,
        coalesce(w.attempts, a.attempts, f.attempts), coalesce(w.lost, a.lost, f.lost), j.enqueued_at,
        coalesce(w.at, a.due_at, f.due_at), a.at, a.worker, f.finished_at, f.dead_reason,
        coalesce(w.failure_reason, a.failure_reason, f.failure_reason),
        coalesce(w.failure_message, a.failure_message, f.failure_message),
        coalesce(f.result_type, CASE WHEN f.result IS NOT NULL THEN 'application/json' END),
        CASE WHEN octet_length(f.result) <= 1024 THEN f.result END,
        octet_length(f.result)::bigint, coalesce(w.bytes, a.bytes, f.bytes)::bigint
    FROM unnest(p_seqs) WITH ORDINALITY AS s(seq, ord)
    LEFT JOIN @schema@.jobs j ON j.seq = ANY (ARRAY[s.seq])
    LEFT JOIN @schema@.waiting w ON w.seq = ANY (ARRAY[s.seq])
    LEFT JOIN @schema@.active a ON a.seq = ANY (ARRAY[s.seq])
    LEFT JOIN @schema@.finished f ON f.seq = ANY (ARRAY[s.seq])
    ORDER BY s.ord
$$;

-- Adds jobs. Answers one row with `code` 0 that tells how many were added (`ord`) and how many wait now, at most, and one
-- row for each job that was not added: 1 known (or, where `same` isn't true, known as another one), 2 known from a
-- completion, 3 full, 4 it has a key, 5 somebody else holds its key at this moment.
-- `p_chosen` tells whether producers chose ids, `p_keyed` whether there are keys, `p_check` whether the depth has to be
-- looked at.
CREATE FUNCTION @schema@.enqueue_batch(
    p_queue text, p_chosen boolean, p_keyed boolean, p_check boolean, p_id text[], p_type text[], p_key text[], p_content_type text[],
    p_payload bytea[], p_delay bigint[], p_headers text[], p_max_attempts bigint[], p_timeout bigint[],
    p_address text[], p_context bytea[]
) RETURNS TABLE (
    code int, ord bigint, depth bigint, max_depth bigint, fifo boolean, same boolean, outcome text, state smallint,
    dead_reason text, failure_reason text, failure_message text, result_type text, result bytea, result_bytes bigint
) LANGUAGE plpgsql @warm@
AS $$
DECLARE
    q @schema@.queues := @schema@.find(p_queue);
    n int := cardinality(p_id);
    v_now bigint := @schema@.now_ms();
    v_depth bigint;
    v_code int;
    v_added bigint[] := '{}';
    v_ready bigint := 0;
    v_scheduled bigint := 0;
    v_blocked bigint := 0;
    v_full bigint[] := '{}';
    v_left bigint[] := '{}';
    v_bad bigint[] := '{}';
    v_busy text[] := '{}';
    v_wait bigint[] := '{}';
    v_told bigint := 0;
    v_rows bigint;
BEGIN
    IF p_check THEN
        v_depth := @schema@.depth(q.id);
        -- Far from full nobody has to wait for anybody: that many jobs don't arrive at once.
        IF v_depth + n > q.max_depth - 10000 THEN
            v_depth := @schema@.exact_depth(q.id);
        END IF;
    END IF;
    IF NOT q.fifo AND NOT p_keyed AND NOT p_chosen AND (v_depth IS NULL OR v_depth + n <= q.max_depth) THEN
        WITH input AS MATERIALIZED (
            SELECT u.*, nextval('@schema@.job_seq') AS seq
            FROM unnest(p_id, p_type, p_content_type, p_payload, p_delay, p_headers, p_max_attempts, p_timeout, p_address,
                p_context) AS u(id, type, content_type, payload, delay, headers, max_attempts, timeout, address, context)
        ), bodies AS (
            INSERT INTO @schema@.jobs (seq, queue, enqueued_at, timeout, max_attempts, id, type, content_type, headers,
                notify_address, notify_context, payload)
            SELECT i.seq, q.id, v_now, i.timeout, i.max_attempts, i.id, i.type, i.content_type, i.headers, i.address,
                i.context, i.payload FROM input i
        ), heads AS (
            INSERT INTO @schema@.waiting (seq, queue, at, state, notify, bytes, attempts, lost, deliveries)
            SELECT i.seq, q.id, v_now + i.delay, CASE WHEN i.delay = 0 THEN 0 ELSE 1 END, i.address IS NOT NULL,
                octet_length(i.payload), 0, 0, 0 FROM input i
        )
        SELECT count(*) FILTER (WHERE i.delay = 0), count(*) FILTER (WHERE i.delay > 0) INTO v_ready, v_scheduled
            FROM input i;
    ELSIF NOT q.fifo AND NOT p_keyed AND (v_depth IS NULL OR v_depth + n <= q.max_depth) THEN
        SELECT coalesce(array_agg(u.ord), '{}') INTO v_left
            FROM unnest(p_id, p_address) WITH ORDINALITY AS u(id, address, ord)
            WHERE u.address IS NOT NULL
            AND EXISTS (SELECT FROM @schema@.completions c WHERE c.queue = q.name AND c.job = ANY (ARRAY[u.id]))
            AND NOT EXISTS (SELECT FROM @schema@.jobs j WHERE j.queue = q.id AND j.id = ANY (ARRAY[u.id]));
        -- Ids are added in order, so that two batches with the same ones wait for each other on one side only.
        WITH input AS MATERIALIZED (
            SELECT u.*, nextval('@schema@.job_seq') AS seq
            FROM unnest(p_id, p_type, p_content_type, p_payload, p_delay, p_headers, p_max_attempts, p_timeout, p_address,
                p_context) WITH ORDINALITY
                AS u(id, type, content_type, payload, delay, headers, max_attempts, timeout, address, context, ord)
        ), bodies AS (
            INSERT INTO @schema@.jobs (seq, queue, enqueued_at, timeout, max_attempts, id, type, content_type, headers,
                notify_address, notify_context, payload)
            SELECT i.seq, q.id, v_now, i.timeout, i.max_attempts, i.id, i.type, i.content_type, i.headers, i.address,
                i.context, i.payload FROM input i WHERE i.ord <> ALL (v_left) ORDER BY i.id, i.ord
            ON CONFLICT (queue, id) DO NOTHING RETURNING seq
        ), added AS MATERIALIZED (
            SELECT i.* FROM input i JOIN bodies b ON b.seq = i.seq
        ), heads AS (
            INSERT INTO @schema@.waiting (seq, queue, at, state, notify, bytes, attempts, lost, deliveries)
            SELECT i.seq, q.id, v_now + i.delay, CASE WHEN i.delay = 0 THEN 0 ELSE 1 END, i.address IS NOT NULL,
                octet_length(i.payload), 0, 0, 0 FROM added i
        )
        SELECT count(*) FILTER (WHERE i.delay = 0), count(*) FILTER (WHERE i.delay > 0), coalesce(array_agg(i.ord), '{}')
            INTO v_ready, v_scheduled, v_added FROM added i;
    ELSE
        IF q.fifo THEN
            v_busy := @schema@.try_open_lines(q.id, (SELECT array_agg(coalesce(k, '')) FROM unnest(p_key) AS k));
        END IF;
        FOR i IN 1 .. n LOOP
            IF coalesce(p_key[i], '') = ANY (v_busy) THEN
                v_wait := v_wait || i::bigint;
                CONTINUE;
            END IF;
            v_code := @schema@.add_one(q, v_now,
                coalesce(q.max_depth - v_depth - v_ready - v_scheduled - v_blocked, 1), p_id[i], p_type[i], p_key[i],
                p_content_type[i], p_payload[i], p_delay[i], p_headers[i], p_max_attempts[i], p_timeout[i],
                p_address[i], p_context[i]);
            IF v_code >= 0 THEN
                v_added := v_added || i::bigint;
                v_ready := v_ready + (v_code = 0)::int;
                v_scheduled := v_scheduled + (v_code = 1)::int;
                v_blocked := v_blocked + (v_code = 3)::int;
            ELSIF v_code = -2 THEN
                v_left := v_left || i::bigint;
            ELSIF v_code = -3 THEN
                v_full := v_full || i::bigint;
            ELSIF v_code = -4 THEN
                v_bad := v_bad || i::bigint;
            END IF;
        END LOOP;
        IF q.fifo THEN
            PERFORM @schema@.close_lines(q.id, (
                SELECT array_agg(coalesce(k, '')) FROM unnest(p_key) AS k WHERE coalesce(k, '') <> ALL (v_busy)));
        END IF;
    END IF;
    IF v_ready + v_scheduled + v_blocked > 0 THEN
        INSERT INTO @schema@.deltas (queue, ready, scheduled, blocked) VALUES (q.id, v_ready, v_scheduled, v_blocked);
    END IF;
    code := 0; ord := v_ready + v_scheduled + v_blocked; depth := v_depth + ord; max_depth := q.max_depth;
    fifo := q.fifo;
    RETURN NEXT;
    IF v_ready + v_scheduled + v_blocked < n THEN
        v_told := ord + cardinality(v_full) + cardinality(v_bad) + cardinality(v_wait);
        RETURN QUERY SELECT CASE WHEN f = ANY (v_full) THEN 3 WHEN f = ANY (v_bad) THEN 4 ELSE 5 END, f,
            NULL::bigint, NULL::bigint, NULL::boolean, NULL::boolean, NULL::text, NULL::smallint, NULL::text, NULL::text,
            NULL::text, NULL::text, NULL::bytea, NULL::bigint
            FROM unnest(v_full || v_bad || v_wait) AS f;
        RETURN QUERY SELECT 2, l, NULL::bigint, NULL::bigint, NULL::boolean, true, o.outcome, NULL::smallint, NULL::text,
            NULL::text, NULL::text, NULL::text, NULL::bytea, NULL::bigint
            FROM unnest(v_left) AS l, LATERAL (
                SELECT c.outcome FROM @schema@.completions c WHERE c.queue = q.name AND c.job = p_id[l]
                ORDER BY c.id DESC LIMIT 1) o;
        GET DIAGNOSTICS v_rows = ROW_COUNT;
        v_told := v_told + v_rows;
        RETURN QUERY SELECT 1, u.ord, NULL::bigint, NULL::bigint, NULL::boolean,
            j.type = p_type[u.ord] AND j.payload = p_payload[u.ord]
                AND j.content_type IS NOT DISTINCT FROM p_content_type[u.ord],
            NULL::text, d.state, d.dead_reason, d.failure_reason, d.failure_message, d.result_type, d.result,
            d.result_bytes
            FROM unnest(p_id) WITH ORDINALITY AS u(id, ord)
            JOIN @schema@.jobs j ON j.queue = q.id AND j.id = ANY (ARRAY[u.id])
            CROSS JOIN LATERAL @schema@.describe(ARRAY[j.seq], v_now) d
            WHERE u.ord <> ALL (v_added || v_left || v_full || v_bad || v_wait);
        GET DIAGNOSTICS v_rows = ROW_COUNT;
        -- What made a job known may go before it is looked at here: then it is to be added after all.
        IF v_told + v_rows < n THEN
            RAISE EXCEPTION 'a job was forgotten just now' USING ERRCODE = '40001';
        END IF;
    END IF;
END $$;
