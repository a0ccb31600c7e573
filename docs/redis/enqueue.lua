-- What every script begins with: one queue, its keys, its clock, and the ways in which a job moves.
--
-- KEYS[1] is "<prefix>:{<queue>}:q" and ARGV[1] the prefix. All other keys begin like the first one, so that they share its
-- hash slot. Writes are gathered and made at the end, one command for all jobs.
local call = redis.call
local base, prefix = KEYS[1]:sub(1, -2), ARGV[1]
local queue = base:sub(#prefix + 3, -3)
-- Added to the end of a job whose completion was not acknowledged or that was not unpinned.
local PINNED = 4503599627370496
local PIN = 2592000000
local settings = call('HMGET', KEYS[1], 'clock', 'shift', 'seq', 'fifo', 'paused', 'depth', 'deliveries', 'done', 'dead',
  'service', 'installation', 'uid', 'deleting')
local declared = settings[11] and settings[13] ~= '1'
local fifo, paused = settings[4] == '1', settings[5] == '1'
local retain = { S = tonumber(settings[8]) or 0, D = tonumber(settings[9]) or 0 }
retain.C = retain.S
local seq = tonumber(settings[3]) or 0

-- Milliseconds. Small steps back of the server's clock stop ours, large ones move it: it neither goes back nor stops.
local now, wall, shift
do
  local time = call('TIME')
  wall = time[1] * 1000 + math.floor(time[2] / 1000)
  shift = tonumber(settings[2]) or 0
  local last = tonumber(settings[1]) or 0
  now = wall + shift
  if now < last then
    if last - now > 2000 then shift = last - wall end
    now = last
  end
end

-- Rounded up: instants are cut to milliseconds, and nothing may be early.
local function after(delay)
  delay = math.min(tonumber(delay), 31622400000)
  return delay > 0 and now + delay + 1 or now
end

local function number()
  seq = seq + 1
  return seq
end

-- Calls a command with a key and a list of any length.
local function many(command, key, list, width)
  local size = 2 * (width or 1) * 250
  for from = 1, #list, size do
    call(command, key, unpack(list, from, math.min(from + size - 1, #list)))
  end
end

local function fields(key, ids)
  local found = {}
  for from = 1, #ids, 500 do
    local part = call('HMGET', base .. key, unpack(ids, from, math.min(from + 499, #ids)))
    for at = 1, #part do found[from + at - 1] = part[at] end
  end
  return found
end

-- Numbers as commands get them. Redis makes text of a number slowly, and most jobs of a call share theirs.
local texts = {}
local function text(number)
  local known = texts[number]
  if not known then
    known = string.format('%.0f', number)
    texts[number] = known
  end
  return known
end

-- What is gathered.
local touched, readied, soonest, addresses, parked = {}, 0, nil, {}, {}

-- A job is { id, m = its name in sorted sets, s = what is known of it, one, two = the sorted sets it may be in, to, score }.
-- Known, and stored as two fields that drivers read too. Longer texts are slow here, so what never changes stands apart and is
-- handed out as it is: `s`, followed by the payload if that is short (a longer one is in `b`):
-- 4 enqueued at  10 payload bytes  12 type  13 media type  14 has extras  25 whether the payload follows
-- What changes, `t`: none before anything did (a job that waits since it came, in no line):
-- 1 state  2 number  3 time  5 due at  6 attempts  7 lost  8 deliveries  9 notifies  11 key  15 claimed at  16 worker
-- 17 finished at  18 failure ("+" and its reason, or nothing)  19 its message  20 why dead  21 result bytes  22 unpinned
-- 23 cancel requested  24 token
local FIXED = '>I7I6I6BI4BBI4c0I4c0I4c0'
local CHANGES = '>c1I7I7I6I4I4I4BI4c0I6Hc0I6Hc0Hc0Bc0i4BBBc0'
local INLINE = 512
local STATES = { W = true, B = true, A = true, S = true, D = true, C = true }
local jobs = {}

local function pack(s)
  return struct.pack(CHANGES, s[1], s[2], s[3], s[5], s[6], s[7], s[8], s[9], #s[11], s[11], s[15], #s[16], s[16], s[17],
    #s[18], s[18], #s[19], s[19], #s[20], s[20], s[21], s[22], s[23], #s[24], s[24])
end

-- A job that waits since it came.
local function fresh_of(raw)
  local number, enqueued, due, notifies, bytes, extras, follows, key, kind, media = struct.unpack(FIXED, raw)
  return { 'W', number, due, enqueued, due, 0, 0, 0, notifies, bytes, key, kind, media, extras, 0, '', 0, '', '', '', -1, 0, 0,
    '', follows }
end

-- What it lacks of what never changes stands there as nothing, see `learn`.
local function changed_of(raw)
  local state, number, time, due, attempts, lost, deliveries, notifies, key, claimed, worker, finished, failure, message, why,
    bytes, unpinned, cancel, token = struct.unpack(CHANGES, raw)
  return { state, number, time, 0, due, attempts, lost, deliveries, notifies, 0, key, '', '', 0, claimed, worker, finished,
    failure, message, why, bytes, unpinned, cancel, token, 0 }
end

local function name_of(s, id) return string.format('%014x', s[2]) .. id end

local function job_of(id, s)
  local one, two = s[1], nil
  if one == 'W' then one, two = 'R', s[6] == 0 and 'W' or 'Y' end
  return { id = id, s = s, m = name_of(s, id), one = one, two = two, to = nil, score = 0, moved = false, touched = false,
    stored = nil }
end

local function decode(id, raw, read)
  if not raw then return false end
  local fine, s = pcall(read, raw)
  return fine and STATES[s[1]] and job_of(id, s) or nil
end

-- The job: false when there is none, nil when what is stored makes no sense.
local function get(id)
  if jobs[id] == nil then
    local raw = call('HGET', base .. 't', id)
    if raw then
      jobs[id] = decode(id, raw, changed_of)
    else
      jobs[id] = decode(id, call('HGET', base .. 's', id), fresh_of)
    end
  end
  return jobs[id]
end

local function load(ids)
  local wanted, rest = {}, {}
  for _, id in ipairs(ids) do
    if jobs[id] == nil then wanted[#wanted + 1] = id end
  end
  local raw = fields('t', wanted)
  for at, id in ipairs(wanted) do
    if raw[at] then jobs[id] = decode(id, raw[at], changed_of) else rest[#rest + 1] = id end
  end
  raw = fields('s', rest)
  for at, id in ipairs(rest) do jobs[id] = decode(id, raw[at], fresh_of) end
end

local function learned(s, raw)
  local _, enqueued, _, _, bytes, extras, follows, _, kind, media = struct.unpack(FIXED, raw)
  s[4], s[10], s[12], s[13], s[14], s[25] = enqueued, bytes, kind, media, extras, follows
end

-- Has a job know also what never changes of it; whether that makes sense.
local function learn(job, raw) return raw and (pcall(learned, job.s, raw)) end

local function touch(job)
  if not job.touched then
    job.touched = true
    touched[#touched + 1] = job
  end
end

local function put(job, to, score)
  job.to, job.score, job.s[3], job.moved = to, score, score, true
  touch(job)
end

-- Something that can't be read stands aside, so that nothing else has to wait for it.
local function stand_aside(member)
  call('SADD', base .. 'P', member)
  parked[#parked + 1] = member
end

local function park(set, member)
  call('ZREM', base .. set, member)
  stand_aside(member)
end

local function over(s) return s[1] == 'S' or s[1] == 'D' or s[1] == 'C' end

-- Whether nobody should see the job any more, although it was not swept yet.
local function forgotten(s) return over(s) and s[3] < PINNED and s[3] + retain[s[1]] <= now end

-- Whether the job is in this state. One that lost what changed of it looks as if it waited since it came; it is where it was
-- found, and goes on from there.
local function is_in(job, m, set)
  if not job or job.m ~= m then return false end
  if job.s[1] == 'W' then job.one, job.two = set, nil end
  return job.s[1] == set or job.s[1] == 'W'
end

local function wait(job, due)
  local s = job.s
  s[5], s[24] = due, ''
  if fifo and call('HGET', base .. 'F', s[11]) ~= job.m then
    s[1] = 'B'
    put(job, 'B', due)
  elseif due <= now then
    s[1] = 'W'
    put(job, 'R', due)
    readied = readied + 1
  else
    s[1] = 'W'
    put(job, s[6] == 0 and 'W' or 'Y', due)
    soonest = math.min(soonest or due, due)
  end
end

-- Of jobs with one ordering key the next one's turn has come. It could not be handed out before: those of other keys that
-- were ready earlier come first.
local function advance(key)
  for _ = 1, 100 do
    local entry = call('ZRANGEBYLEX', base .. 'L', '[' .. key .. ' ', '(' .. key .. '!', 'LIMIT', 0, 1)[1]
    if not entry then
      call('HDEL', base .. 'F', key)
      return
    end
    local member = entry:sub(#key + 2)
    call('ZREM', base .. 'L', entry)
    call('HSET', base .. 'F', key, member)
    local next = get(member:sub(15))
    if is_in(next, member, 'B') then
      wait(next, math.max(next.s[3], now))
      return
    end
    park('B', member)
  end
end

local function leave_line(job)
  if not fifo then return end
  local key = job.s[11]
  if call('HGET', base .. 'F', key) == job.m then
    advance(key)
  else
    call('ZREM', base .. 'L', key .. ' ' .. job.m)
  end
end

-- Whether nobody stands in a line under this name any more.
local function absent(m)
  local job = get(m:sub(15))
  return not job or job.m ~= m or over(job.s)
end

-- The first of a line who is gone or can't be read would hold up all others.
local function enter_line(m, key)
  if call('HSETNX', base .. 'F', key, m) == 1 then return true end
  local head = call('HGET', base .. 'F', key)
  if head == m then return true end
  if absent(head) then
    advance(key)
    if call('HSETNX', base .. 'F', key, m) == 1 then return true end
  end
  call('ZADD', base .. 'L', 0, key .. ' ' .. m)
  return false
end

-- Those who stand aside may be first in their lines. Which these are, they don't tell any more, so all lines are looked at;
-- a line beyond the first ten thousand goes on with the next job that enters it.
local function vacate()
  if not fifo or #parked == 0 then return end
  local aside, cursor = {}, '0'
  for _, m in ipairs(parked) do aside[m] = true end
  for _ = 1, 20 do
    local page = call('HSCAN', base .. 'F', cursor, 'COUNT', 500)
    for at = 1, #page[2], 2 do
      if aside[page[2][at + 1]] and absent(page[2][at + 1]) then advance(page[2][at]) end
    end
    cursor = page[1]
    if cursor == '0' then return end
  end
end

-- The end of a job as answers carry it: state, why dead, failure, its message, result bytes, a small result.
local function outcome_of(s, id)
  local small = s[1] == 'S' and s[21] >= 0 and s[21] <= 1024 and call('HGET', base .. 'r', id)
  return { s[1], s[20], s[18]:sub(2), s[19], s[21], small or '' }
end

local function announce(job, outcome)
  local note = call('HGET', base .. 'n', job.id)
  local at = note and note:find(' ', 1, true)
  if not at then
    -- Nobody can be told, so nobody will acknowledge.
    if over(job.s) then put(job, job.s[1], now) end
    return
  end
  local address, own = note:sub(1, at - 1), number()
  local m = string.format('%014x%011x', own, now) .. job.id
  local c = { own, address, job.s[2], now, note:sub(at + 1), 0 }
  for at = 1, 6 do c[6 + at] = outcome[at] end
  call('HSET', base .. 'c', job.id, cmsgpack.pack(c))
  call('ZADD', base .. 'a:' .. address, 0, m)
  addresses[address] = true
end

-- `result` is given while it is not stored yet.
local function finish(job, state, result)
  local s = job.s
  s[1], s[23], s[24], s[17] = state, 0, '', now
  put(job, state, now + (s[9] == 1 and PINNED or 0))
  if s[9] == 1 then
    local outcome = { state, s[20], s[18]:sub(2), s[19], s[21], '' }
    if state == 'S' and s[21] >= 0 and s[21] <= 1024 then outcome[6] = result end
    announce(job, outcome)
  end
  leave_line(job)
end

-- A job that would wait again ends instead if somebody asked for that.
local function again(job, due)
  if job.s[23] == 1 then finish(job, 'C') else wait(job, due) end
end

local function remove(job)
  job.to, job.gone, job.moved = nil, true, true
  touch(job)
end

local function discard(job)
  if not over(job.s) then
    if job.s[9] == 1 then announce(job, { 'P', '', '', '', -1, '' }) end
    leave_line(job)
  end
  remove(job)
end

-- A delivery ended without a settle.
local function lose(job)
  local s = job.s
  s[7] = s[7] + 1
  if s[7] >= math.max(tonumber(settings[7]) or 1, 1) and s[23] == 0 then
    s[18], s[20] = '+DeliveriesLost', 'Quarantined'
    s[19] = string.format('%d deliveries ended without a settle, the last one at worker "%s"', s[7], s[16])
    finish(job, 'D')
  else
    again(job, now)
  end
end

local function age(job) put(job, job.s[1], now) end

-- The job that a receipt holds. A lease that ended is over even if nobody else has the job yet.
local function held(id, token)
  local job = get(id)
  if job and job.s[1] == 'A' and job.s[24] == token and token ~= '' and job.s[3] > now then return job end
end

local function forget(ids)
  for _, key in ipairs({ 's', 't', 'b', 'm', 'r', 'n' }) do many('HDEL', base .. key, ids) end
end

local function gather(lists, set, member, score)
  local list = lists[set]
  if not list then
    list = {}
    lists[set] = list
  end
  if score then list[#list + 1] = score end
  list[#list + 1] = member
end

-- Makes the gathered moves.
local function flush()
  local leave, enter, store, gone = {}, {}, {}, {}
  for _, job in ipairs(touched) do
    local to, m = job.to, job.m
    if job.moved then
      if job.one and job.one ~= to then gather(leave, job.one, m) end
      if job.two and job.two ~= to then gather(leave, job.two, m) end
      if to then gather(enter, to, m, text(job.score)) end
      job.one, job.two = to, nil
    end
    if job.gone then
      gone[#gone + 1] = job.id
      if job.s[18] == '+Unreadable' then call('SREM', base .. 'P', m) end
      jobs[job.id] = false
    else
      job.stored = pack(job.s)
      local at = #store
      store[at + 1], store[at + 2] = job.id, job.stored
    end
    job.touched, job.moved = false, false
  end
  touched = {}
  for set, list in pairs(leave) do many('ZREM', base .. set, list) end
  for set, list in pairs(enter) do many('ZADD', base .. set, list, 2) end
  many('HSET', base .. 't', store, 2)
  if #gone > 0 then
    forget(gone)
  end
end

-- The memory of the server may be full: what makes room, or only moves jobs, has to go on. Redis refuses the first write of
-- a script then if it could take memory, so the first write is one that can't.
local function first() call('HDEL', KEYS[1], '') end

-- What is due becomes ready.
local function promote(limit)
  for _, set in ipairs({ 'W', 'Y' }) do
    local due = call('ZRANGEBYSCORE', base .. set, '-inf', now, 'WITHSCORES', 'LIMIT', 0, limit)
    if #due > 0 then
      for at = 1, #due, 2 do due[at], due[at + 1] = due[at + 1], due[at] end
      many('ZADD', base .. 'R', due, 2)
      call('ZREMRANGEBYRANK', base .. set, 0, #due / 2 - 1)
      readied = readied + #due / 2
    end
  end
end

-- Leases that ended are lost deliveries.
local function expire(limit)
  local ended = call('ZRANGEBYSCORE', base .. 'A', '-inf', now, 'LIMIT', 0, limit)
  if #ended == 0 then return end
  local ids = {}
  for at, m in ipairs(ended) do ids[at] = m:sub(15) end
  load(ids)
  for at, m in ipairs(ended) do
    local job = jobs[ids[at]]
    if is_in(job, m, 'A') then lose(job) else park('A', m) end
  end
  flush()
end

-- What nobody needs any more is forgotten.
local function sweep(limit)
  for _, set in ipairs({ 'S', 'D', 'C' }) do
    local old = call('ZRANGEBYSCORE', base .. set, '-inf', now - retain[set], 'LIMIT', 0, limit)
    if #old > 0 then
      call('ZREMRANGEBYRANK', base .. set, 0, #old - 1)
      if set == 'D' then many('SREM', base .. 'P', old) end
      for at, m in ipairs(old) do
        old[at] = m:sub(15)
        jobs[old[at]] = false
      end
      forget(old)
    end
  end
end

-- An installation that is gone must not fill the memory.
local function unpin_old(limit)
  for _, set in ipairs({ 'S', 'D', 'C' }) do
    local old = call('ZRANGEBYSCORE', base .. set, PINNED, PINNED + now - PIN, 'LIMIT', 0, limit)
    for _, m in ipairs(old) do
      local job = get(m:sub(15))
      if job and job.m == m and job.s[1] == set then age(job) else park(set, m) end
    end
  end
  flush()
end

-- Tells whoever listens to the channel, and how many they are. What it tells of is written already, so a user that lost its
-- right to channels just wakes nobody.
local function tell(channel, message)
  local heard = redis.pcall('PUBLISH', channel, message)
  return type(heard) == 'number' and heard or 0
end

-- Wakes up to `count` claims that wait, those first that have waited longest. Whoever is gone is passed over.
local function wake(count)
  count = math.min(count, 1000)
  while count > 0 do
    local waiter = call('ZPOPMIN', base .. 'w')[1]
    if not waiter then return end
    local driver, own = waiter:match('^(.*)/(.*)$')
    if driver and tell(prefix .. ':w:' .. driver, own .. ' ' .. queue) > 0 then count = count - 1 end
  end
end

-- When something becomes ready by itself next, in milliseconds from now; -1 when nothing does.
local function quiet(sets)
  local next
  for _, set in ipairs(sets) do
    local at = tonumber(call('ZRANGE', base .. set, 0, 0, 'WITHSCORES')[2])
    if at and (not next or at < next) then next = at end
  end
  return next and math.max(next - now, 1) or -1
end

-- Ends a script that changed something.
local function close()
  vacate()
  flush()
  if settings[1] then
    call('HSET', KEYS[1], 'clock', text(now), 'shift', text(shift), 'seq', text(seq))
  end
  if readied > 0 then
    if not paused then wake(readied) end
    tell(prefix .. ':wake', 'q ' .. queue)
  end
  if soonest then tell(prefix .. ':wake', 'd ' .. queue .. ' ' .. (soonest - now)) end
  for address in pairs(addresses) do tell(prefix .. ':wake', 'c ' .. address) end
end
if not declared then return { 'NOTFOUND' } end
-- Adds jobs. ARGV[2] is "1" when the addresses of all jobs that notify are in their index. Then nine for each job: id, type,
-- media type, payload, delay in milliseconds, JSON of headers and overrides (or nothing), address, context, ordering key.
-- Or ARGV[2] is "same": then type and media type of all jobs, and two for each, id and payload; they have nothing else.
local JOB, alike = 9, ARGV[2] == 'same'
local count = alike and (#ARGV - 4) / 2 or (#ARGV - 2) / JOB
if count < 0 or count ~= math.floor(count) then
  return redis.error_reply('ERR a job takes ' .. JOB .. ' arguments, or two behind "same", a type and a media type')
end

-- Type, media type, payload, delay, extras, address, context and key of a job.
local function what(at)
  if alike then return ARGV[3], ARGV[4], ARGV[4 + 2 * at], '0', '', '', '', '' end
  local from = 4 + (at - 1) * JOB
  return unpack(ARGV, from, from + 7)
end

local find, words = string.find, { [''] = true, ['application/json'] = true }

-- Types, keys and media types come again and again.
local function word(text, most)
  if words[text] == nil then words[text] = #text <= most and not find(text, '[%c "\\\128-\255]') end
  return words[text]
end

-- Whether a job keeps the contract's limits: one that doesn't must leave nothing behind, and hold up nobody in its line.
local function legal(id, kind, media, payload, delay, extras, address, context, key)
  return #id > 0 and #id <= 200 and not find(id, '[^%w._:-]') and kind ~= '' and word(kind, 128) and #payload <= 1048576
    and (word(media, 128) or #media <= 128 and not find(media, '[^\t -~]'))
    and (alike or word(key, 128) and #extras <= 65536 and #context <= 1024
      and (delay == '0' or #delay <= 11 and find(delay, '^%d+$') and tonumber(delay) <= 31622400000)
      and (address == '' or #address <= 127 and not find(address, '[^a-z0-9.-]')))
end

local ids, bad, told = {}, {}, {}
for at = 1, count do
  local id = ARGV[alike and 3 + 2 * at or 3 + (at - 1) * JOB]
  local address = alike and '' or ARGV[(at - 1) * JOB + 9]
  ids[at], bad[at] = id, not legal(id, what(at))
  if address ~= '' and not bad[at] then told[address] = told[address] or {} end
end

-- Readers find the queue by an index that lies elsewhere, so it is written before there can be a completion.
for address in pairs(told) do
  if call('SISMEMBER', base .. 'x', address) == 0 then
    if ARGV[2] ~= '1' then return { 'INDEX' } end
    call('SADD', base .. 'x', address)
  end
end
-- Nobody knows most of them.
local known = fields('s', ids)
for at, id in ipairs(ids) do
  if not known[at] then jobs[id] = false elseif get(id) and not learn(get(id), known[at]) then jobs[id] = nil end
end
local depth = 0
for _, set in ipairs({ 'R', 'W', 'Y', 'B' }) do depth = depth + call('ZCARD', base .. set) end
local max, fresh, place = tonumber(settings[6]), {}, {}
local bodies, metas, states, changed, notes, enter, codes, details = {}, {}, {}, {}, {}, {}, {}, {}
local created = {}

local function same(id, kind, media, payload)
  if fresh[id] then
    local other_kind, other_media, other_payload = what(fresh[id])
    return other_kind == kind and other_media == media and other_payload == payload
  end
  local s = jobs[id].s
  if s[12] ~= kind or s[13] ~= media or s[10] ~= #payload then return false end
  if s[25] == 0 then return call('HGET', base .. 'b', id) == payload end
  return #payload == 0 or call('HGET', base .. 's', id):sub(-#payload) == payload
end

local function seen(s)
  if s[1] ~= 'W' then return s[1] end
  return s[3] <= now and 'R' or s[6] == 0 and 'W' or 'Y'
end

-- How a job ended that left by a purge or with its queue, until its completion is acknowledged.
local function left(id, address)
  if address == '' then return nil end
  local raw = call('HGET', base .. 'c', id)
  local fine, c = pcall(cmsgpack.unpack, raw or '')
  if raw and fine and type(c) == 'table' and c[12] then return { c[7], c[7], c[8], c[9], c[10], c[11], c[12] } end
end

local function add(at, id, kind, media, payload, delay, extras, address, context, key)
  local own, due, size = number(), after(delay), #payload
  local m, set, notifies = string.format('%014x', own) .. id, due <= now and 'R' or 'W', address ~= '' and 1 or 0
  if fifo then
    local state = 'W'
    if not enter_line(m, key) then state, set = 'B', 'B' end
    local s = { state, own, due, 0, due, 0, 0, 0, notifies, 0, key, '', '', 0, 0, '', 0, '', '', '', -1, 0, 0, '', 0 }
    changed[#changed + 1] = id
    changed[#changed + 1] = pack(s)
    -- Those behind it find it in its line before it is stored.
    jobs[id] = job_of(id, s)
  end
  if set == 'R' then readied = readied + 1 end
  if set == 'W' then soonest = math.min(soonest or due, due) end
  gather(enter, set, m, text(due))
  local fixed = struct.pack(FIXED, own, now, due, notifies, size, extras ~= '' and 1 or 0, size <= INLINE and 1 or 0, #key, key,
    #kind, kind, #media, media)
  if size <= INLINE then
    fixed = fixed .. payload
  else
    bodies[#bodies + 1] = id
    bodies[#bodies + 1] = payload
  end
  if extras ~= '' then
    metas[#metas + 1] = id
    metas[#metas + 1] = extras
  end
  if address ~= '' then
    notes[#notes + 1] = id
    notes[#notes + 1] = address .. ' ' .. context
  end
  local to = #states
  states[to + 1], states[to + 2] = id, fixed
  created[#created + 1] = id
  fresh[id], place[id], depth = at, set, depth + 1
  return 'C'
end

local function decide(at, id, kind, media, payload, delay, extras, address, context, key)
  if bad[at] then return 'I' end
  local job = jobs[id]
  if job == nil then return 'U' end
  if key ~= '' and not fifo then return 'O' end
  if fresh[id] then
    if not same(id, kind, media, payload) then return 'X' end
    details[#details + 1] = { place[id] }
    return 'D'
  end
  if job and forgotten(job.s) then
    call('ZREM', base .. job.s[1], job.m)
    if job.s[18] == '+Unreadable' then call('SREM', base .. 'P', job.m) end
    forget({ id })
    jobs[id], job = false, false
  end
  if job then
    if not same(id, kind, media, payload) then return 'X' end
    local ended = over(job.s) and outcome_of(job.s, id) or {}
    details[#details + 1] = { seen(job.s), unpack(ended) }
    return 'D'
  end
  local before = left(id, address)
  if before then
    details[#details + 1] = before
    return 'D'
  end
  if address == '' and depth >= max then return 'F' end
  return add(at, id, kind, media, payload, delay, extras, address, context, key)
end

for at, id in ipairs(ids) do codes[at] = decide(at, id, what(at)) end
many('HSET', base .. 'b', bodies, 2)
many('HSET', base .. 'm', metas, 2)
many('HSET', base .. 's', states, 2)
-- What is left of a damaged job must not speak for the one that comes under its id.
if not fifo then many('HDEL', base .. 't', created) end
many('HSET', base .. 't', changed, 2)
many('HSET', base .. 'n', notes, 2)
for set, list in pairs(enter) do many('ZADD', base .. set, list, 2) end
if #states > 0 then close() end
return { 'OK', table.concat(codes), details, settings[6] }
