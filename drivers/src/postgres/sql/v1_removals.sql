-- How jobs and queues go, of schema version 1: in parts bounded by rows and by bytes, so that a statement can do each.

-- Removes jobs whatever their state; those that weren't over leave a completion, in the order of `p_seqs`. The caller
-- holds their lines. Answers whom completions were written to.
CREATE FUNCTION @schema@.erase(q @schema@.queues, p_seqs bigint[], p_now bigint) RETURNS text[] LANGUAGE plpgsql
AS $$
DECLARE
    v_told text[];
    v_seqs bigint[];
    v_keys text[];
BEGIN
    WITH waited AS (
        DELETE FROM @schema@.waiting w WHERE w.seq = ANY (p_seqs) RETURNING w.seq, w.state, w.notify, w.key
    ), ran AS (
        DELETE FROM @schema@.active a WHERE a.seq = ANY (p_seqs) RETURNING a.seq, 4::smallint AS state, a.notify, a.key
    ), ended AS (
        DELETE FROM @schema@.finished f WHERE f.seq = ANY (p_seqs) RETURNING f.seq, f.state, false AS notify, f.key
    ), gone AS MATERIALIZED (
        SELECT * FROM waited UNION ALL SELECT * FROM ran UNION ALL SELECT * FROM ended
    ), completions AS (
        INSERT INTO @schema@.completions (job_seq, settled_at, address, queue, job, outcome, context)
        SELECT g.seq, p_now, j.notify_address, q.name, j.id, '"purged"', j.notify_context
        FROM unnest(p_seqs) WITH ORDINALITY AS u(seq, ord) JOIN gone g ON g.seq = u.seq JOIN @schema@.jobs j ON j.seq = ANY (ARRAY[g.seq])
        WHERE g.notify AND j.notify_address IS NOT NULL ORDER BY u.ord
        RETURNING address
    ), bodies AS (
        DELETE FROM @schema@.jobs j USING gone g WHERE j.seq = ANY (ARRAY[g.seq])
    ), counted AS (
        INSERT INTO @schema@.deltas (queue, ready, scheduled, retrying, blocked, active, dead)
        SELECT q.id, -count(*) FILTER (WHERE state = 0), -count(*) FILTER (WHERE state = 1),
            -count(*) FILTER (WHERE state = 2), -count(*) FILTER (WHERE state = 3), -count(*) FILTER (WHERE state = 4),
            -count(*) FILTER (WHERE state = 6) FROM gone HAVING count(*) > 0
    )
    SELECT (SELECT array_agg(DISTINCT c.address) FROM completions c), array_agg(g.seq) FILTER (WHERE g.state < 5),
        array_agg(g.key) FILTER (WHERE g.state < 5)
        INTO v_told, v_seqs, v_keys FROM gone g;
    IF q.fifo AND v_seqs IS NOT NULL THEN
        PERFORM @schema@.advance(q.id, v_seqs, v_keys, p_now);
    END IF;
    RETURN v_told;
END $$;

-- Does a bounded part of a queue's deletion: its name is free at once, its jobs go bit by bit. `more` tells whether some
-- are left; `verdict` is 'owned' when the name belongs to somebody else by now, who keeps it.
CREATE FUNCTION @schema@.delete_queue(
    p_name text, p_installation text, p_uid text, OUT verdict text, OUT more boolean, OUT told text[]
) LANGUAGE plpgsql @hot@
AS $$
DECLARE
    q @schema@.queues;
    v_now bigint := @schema@.now_ms();
    v_seqs bigint[];
BEGIN
    verdict := 'deleted';
    more := false;
    SELECT * INTO q FROM @schema@.queues WHERE name = p_name AND deleted_at IS NULL FOR UPDATE;
    IF FOUND THEN
        IF (q.installation, q.uid) = (p_installation, p_uid) THEN
            UPDATE @schema@.queues SET deleted_at = v_now WHERE id = q.id;
        ELSE
            verdict := 'owned';
        END IF;
    END IF;
    -- Whoever has the name now, what was deleted under it before goes on going.
    FOR q IN SELECT * FROM @schema@.queues WHERE name = p_name AND deleted_at IS NOT NULL LOOP
        PERFORM pg_advisory_xact_lock(hashtextextended('@schema@.delete', q.id));
        -- Lines don't matter any more: nobody can claim here.
        q.fifo := false;
        SELECT array_agg(s.seq ORDER BY s.seq) FILTER (WHERE s.before < 33554432) INTO v_seqs FROM (
            SELECT j.seq, sum(j.bytes) OVER (ROWS UNBOUNDED PRECEDING) - j.bytes AS before FROM (
                SELECT j.seq, octet_length(j.payload)::bigint + coalesce(
                    (SELECT octet_length(f.result) FROM @schema@.finished f WHERE f.seq = j.seq), 0) AS bytes
                FROM @schema@.jobs j WHERE j.queue = q.id ORDER BY j.id LIMIT 1000 FOR UPDATE OF j) j) s;
        IF v_seqs IS NULL THEN
            DELETE FROM @schema@.deltas WHERE queue = q.id;
            DELETE FROM @schema@.lines WHERE queue = q.id;
            DELETE FROM @schema@.queues WHERE id = q.id AND q.deleted_at < v_now - 3600000;
        ELSE
            told := told || @schema@.erase(q, v_seqs, v_now);
            more := true;
            RETURN;
        END IF;
    END LOOP;
END $$;

-- Names of queues whose deletion isn't over.
CREATE FUNCTION @schema@.deleted_queues() RETURNS TABLE (name text) LANGUAGE plpgsql @hot@
AS $$
BEGIN
    RETURN QUERY SELECT DISTINCT q.name FROM @schema@.queues q WHERE q.deleted_at IS NOT NULL
        AND (q.deleted_at < @schema@.now_ms() - 3600000 OR EXISTS (SELECT FROM @schema@.jobs j WHERE j.queue = q.id))
        LIMIT 16;
END $$;

-- Removes jobs in `p_state`, up to `p_limit` and up to 32 MiB of them; `more` tells that bytes were the bound.
CREATE FUNCTION @schema@.purge(
    p_queue text, p_state int, p_limit int, OUT purged bigint, OUT told text[], OUT more boolean
) LANGUAGE plpgsql @hot@
AS $$
DECLARE
    q @schema@.queues := @schema@.find(p_queue);
    v_now bigint := @schema@.now_ms();
    v_seqs bigint[] := @schema@.page(q, p_state, -9223372036854775808, -9223372036854775808, p_limit, v_now);
    v_locked bigint[];
    v_seen bigint;
BEGIN
    IF q.fifo THEN
        PERFORM @schema@.lock_lines(q.id, (
            SELECT array_agg(w.key) FROM unnest(v_seqs) AS u(seq) JOIN @schema@.waiting w ON w.seq = ANY (ARRAY[u.seq])));
        v_now := @schema@.now_ms();
    END IF;
    -- Whatever somebody else moves at this moment is no longer in the state that was asked for.
    IF p_state < 4 THEN
        SELECT array_agg(s.seq ORDER BY s.ord) FILTER (WHERE s.before < 33554432), count(*) INTO v_locked, v_seen FROM (
            SELECT l.seq, l.ord, sum(l.bytes) OVER (ORDER BY l.ord ROWS UNBOUNDED PRECEDING) - l.bytes AS before FROM (
                SELECT w.seq, u.ord, w.bytes::bigint AS bytes FROM unnest(v_seqs) WITH ORDINALITY AS u(seq, ord)
                JOIN @schema@.waiting w ON w.seq = ANY (ARRAY[u.seq])
                WHERE (w.state = 3) = (p_state = 3) FOR UPDATE OF w SKIP LOCKED) l) s;
    ELSE
        SELECT array_agg(s.seq ORDER BY s.ord) FILTER (WHERE s.before < 33554432), count(*) INTO v_locked, v_seen FROM (
            SELECT l.seq, l.ord, sum(l.bytes) OVER (ORDER BY l.ord ROWS UNBOUNDED PRECEDING) - l.bytes AS before FROM (
                SELECT f.seq, u.ord, f.bytes::bigint + coalesce(octet_length(f.result), 0) AS bytes
                FROM unnest(v_seqs) WITH ORDINALITY AS u(seq, ord) JOIN @schema@.finished f ON f.seq = ANY (ARRAY[u.seq])
                WHERE f.at < 4611686018427387904 FOR UPDATE OF f SKIP LOCKED) l) s;
    END IF;
    purged := coalesce(cardinality(v_locked), 0);
    more := purged < v_seen;
    IF purged > 0 THEN
        told := @schema@.erase(q, v_locked, v_now);
    END IF;
END $$;

-- Forgets a bounded part of what a queue kept for long enough. Answers when there is something to forget next, and whether
-- there is more at once. It stands alone, so that a part that is too much for the server undoes nothing else.
CREATE FUNCTION @schema@.forget(p_queue text, OUT now_at bigint, OUT next_at bigint, OUT again boolean)
LANGUAGE plpgsql @hot@
AS $$
DECLARE
    q @schema@.queues := @schema@.find(p_queue);
    v_state smallint;
    v_keep bigint;
    v_seen bigint;
    v_count bigint;
    v_nearest bigint;
    v_room bigint := 33554432;
BEGIN
    now_at := @schema@.now_ms();
    again := false;
    IF NOT pg_try_advisory_xact_lock(hashtextextended('@schema@.forget', q.id)) THEN
        next_at := now_at + 1000;
        RETURN;
    END IF;
    FOREACH v_state IN ARRAY ARRAY[5, 6, 7]::smallint[] LOOP
        v_keep := CASE WHEN v_state = 6 THEN q.retain_dead ELSE q.retain_completed END;
        -- Nobody came for these in 30 days.
        UPDATE @schema@.finished f SET at = now_at FROM (
            SELECT seq FROM @schema@.finished WHERE queue = q.id AND state = v_state AND at >= 4611686018427387904
                AND at <= 4611686018427387904 + now_at - 2592000000 ORDER BY at LIMIT 500 FOR UPDATE SKIP LOCKED
            ) o WHERE f.seq = ANY (ARRAY[o.seq]);
        WITH old AS MATERIALIZED (
            SELECT seq, bytes::bigint + coalesce(octet_length(result), 0) AS bytes FROM @schema@.finished
                WHERE queue = q.id AND state = v_state AND at <= now_at - v_keep
                ORDER BY at LIMIT 1000 FOR UPDATE SKIP LOCKED
        ), few AS MATERIALIZED (
            SELECT s.seq, s.bytes FROM (
                SELECT o.seq, o.bytes, sum(o.bytes) OVER (ROWS UNBOUNDED PRECEDING) - o.bytes AS before FROM old o) s
                WHERE s.before < v_room
        ), gone AS (
            DELETE FROM @schema@.finished f USING few w WHERE f.seq = ANY (ARRAY[w.seq]) RETURNING f.seq
        ), bodies AS (
            DELETE FROM @schema@.jobs j USING gone g WHERE j.seq = ANY (ARRAY[g.seq])
        )
        SELECT (SELECT count(*) FROM old), count(*), v_room - coalesce(sum(w.bytes), 0)
            INTO v_seen, v_count, v_room FROM few w;
        IF v_count > 0 AND v_state = 6 THEN
            INSERT INTO @schema@.deltas (queue, dead) VALUES (q.id, -v_count);
        END IF;
        again := again OR v_seen >= 1000 OR v_count < v_seen;
        SELECT f.at + v_keep INTO v_nearest FROM @schema@.finished f
            WHERE f.queue = q.id AND f.state = v_state AND f.at < 4611686018427387904 ORDER BY f.at LIMIT 1;
        next_at := least(next_at, v_nearest);
    END LOOP;
END $$;
