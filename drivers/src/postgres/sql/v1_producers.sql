-- What producers call in transactions of their own, of schema version 1. `@patient@` stands for `@hot@` with a longer wait
-- for locks: nobody repeats these calls for them.

-- How many jobs a queue has room for, as far as a producer's transaction has to know. It looks at the first job, and again
-- after half of the room that it saw, or after 1000 jobs: adding up what is in the queue for every job would make a
-- transaction of many jobs slower with each. Its notes end with the transaction.
CREATE FUNCTION @schema@.room(q @schema@.queues) RETURNS bigint LANGUAGE plpgsql
AS $$
DECLARE
    v_mark text := '@channel@ ' || q.id || ' ' || pg_current_xact_id();
    v_note text[] := string_to_array(current_setting('longshore.room', true), '/');
    v_room bigint;
    v_looks bigint;
BEGIN
    IF v_note[1] = v_mark THEN
        v_room := v_note[2]::bigint - 1;
        v_looks := v_note[3]::bigint - 1;
    END IF;
    IF v_looks IS NULL OR v_looks <= 0 THEN
        v_room := q.max_depth - @schema@.depth(q.id);
        v_looks := least(v_room / 2, 1000);
    END IF;
    PERFORM set_config('longshore.room', concat_ws('/', v_mark, v_room, v_looks), true);
    RETURN v_room;
END $$;

-- Adds one job in the caller's own transaction: it is there if that commits, and only then. Answers its id, the one
-- given or a new one; an id that is known adds nothing. `payload` is JSON; `enqueue_bytes` takes anything else.
CREATE FUNCTION @schema@.enqueue_bytes(
    queue text, type text, payload bytea, content_type text, id text DEFAULT NULL, delay interval DEFAULT '0',
    ordering_key text DEFAULT NULL, headers jsonb DEFAULT NULL, max_attempts int DEFAULT NULL,
    timeout interval DEFAULT NULL
) RETURNS text LANGUAGE plpgsql @patient@
AS $$
#variable_conflict use_variable
DECLARE
    q @schema@.queues := @schema@.find(queue);
    v_now bigint := @schema@.now_ms();
    v_id text := coalesce(id, gen_random_uuid()::text);
    v_delay bigint := ceil(extract(epoch FROM coalesce(delay, '0')) * 1000);
    v_timeout bigint := floor(extract(epoch FROM timeout) * 1000);
    v_code int;
BEGIN
    IF v_id !~ '^[A-Za-z0-9._:-]{1,200}$' THEN
        RAISE EXCEPTION 'id must be 1 to 200 letters, digits, dots, dashes, underscores and colons'
            USING ERRCODE = 'LS400';
    ELSIF type IS NULL OR type !~ '^[!-~]{1,128}$' OR type ~ '["\\]' THEN
        RAISE EXCEPTION 'type must be 1 to 128 printable ASCII characters without spaces, quotes and backslashes'
            USING ERRCODE = 'LS400';
    ELSIF ordering_key !~ '^[!-~]{1,128}$' OR ordering_key ~ '["\\]' THEN
        RAISE EXCEPTION 'ordering_key must be 1 to 128 printable ASCII characters without spaces, quotes and backslashes'
            USING ERRCODE = 'LS400';
    ELSIF ordering_key IS NOT NULL AND NOT q.fifo THEN
        RAISE EXCEPTION 'ordering_key needs a queue whose ordering is Fifo' USING ERRCODE = 'LS400';
    ELSIF payload IS NULL OR octet_length(payload) > 1048576 THEN
        RAISE EXCEPTION 'payload must be there and take 1 MiB at most' USING ERRCODE = 'LS400';
    ELSIF content_type !~ '^[ -~]{1,128}$' THEN
        RAISE EXCEPTION 'content_type is no media type' USING ERRCODE = 'LS400';
    ELSIF v_delay < 0 OR v_delay > 31622400000 THEN
        RAISE EXCEPTION 'delay must be from 0 to 366 days' USING ERRCODE = 'LS400';
    ELSIF max_attempts < 1 OR v_timeout < 1 THEN
        RAISE EXCEPTION 'max_attempts and timeout must be at least 1 and 1 ms' USING ERRCODE = 'LS400';
    ELSIF headers IS NOT NULL AND (jsonb_typeof(headers) <> 'object' OR octet_length(headers::text) > 8192 OR EXISTS (
        SELECT FROM jsonb_each(CASE WHEN jsonb_typeof(headers) = 'object' THEN headers ELSE '{}' END) AS h
        WHERE h.key !~ '^[A-Za-z0-9!#$%&''*+.^_`|~-]+$' OR jsonb_typeof(h.value) <> 'string'
            OR h.value #>> '{}' !~ '^[ -~]*$'
    )) THEN
        RAISE EXCEPTION 'headers must be an object of names and texts of 8 KiB at most' USING ERRCODE = 'LS400';
    END IF;
    -- Nobody waits here for others who fill the queue: their transactions may be long.
    v_code := @schema@.add_one(q, v_now, @schema@.room(q), v_id, type, ordering_key,
        nullif(content_type, 'application/json'), payload, CASE WHEN v_delay = 0 THEN 0 ELSE v_delay + 1 END,
        headers::text, max_attempts, v_timeout, NULL, NULL);
    IF v_code = -3 THEN
        RAISE EXCEPTION 'queue % has its maximum of % waiting jobs', queue, q.max_depth USING ERRCODE = 'LS429';
    ELSIF v_code = -1 AND NOT EXISTS (
        SELECT FROM @schema@.jobs j WHERE j.queue = q.id AND j.id = v_id AND j.type = enqueue_bytes.type
            AND j.payload = enqueue_bytes.payload
            AND coalesce(j.content_type, 'application/json') = coalesce(enqueue_bytes.content_type, 'application/json')
    ) THEN
        RAISE EXCEPTION 'job % is known with another type or payload', v_id USING ERRCODE = 'LS409';
    ELSIF v_code >= 0 THEN
        INSERT INTO @schema@.deltas (queue, ready, scheduled, blocked)
            VALUES (q.id, (v_code = 0)::int, (v_code = 1)::int, (v_code = 3)::int);
        -- Within a transaction equal notifications become one.
        PERFORM pg_notify('@channel@', '-:q:' || q.name);
    END IF;
    RETURN v_id;
END $$;

CREATE FUNCTION @schema@.enqueue(
    queue text, type text, payload jsonb, id text DEFAULT NULL, delay interval DEFAULT '0',
    ordering_key text DEFAULT NULL, headers jsonb DEFAULT NULL, max_attempts int DEFAULT NULL,
    timeout interval DEFAULT NULL
) RETURNS text LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT @schema@.enqueue_bytes($1, $2, convert_to($3::text, 'UTF8'), 'application/json', $4, $5, $6, $7, $8, $9)
$$;
