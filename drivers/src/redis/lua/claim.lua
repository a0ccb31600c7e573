-- Hands jobs out. ARGV: 2 token, 3 lease, 4 worker, 5 driver, then two for each claim: how many at most, and under which
-- number it waits if there is none (or nothing).
local BYTES = 16777216
first()
promote(500)
expire(200)
local token, worker, driver = ARGV[2], ARGV[4], ARGV[5]
local wanted = 0
for at = 6, #ARGV, 2 do wanted = wanted + tonumber(ARGV[at]) end
wanted = math.min(wanted, 1000)
local lease_until = after(ARGV[3])
-- Answers: six for each job: id, the two things that are stored of it, payload, extras, whom to tell.
local answers, taken, bytes, late, held, stored = {}, 0, 0, {}, {}, {}
local lease_text = text(lease_until)

local function answer(id, raw, changes, payload, extras, note)
  local to = 6 * taken
  taken = taken + 1
  answers[to + 1], answers[to + 2], answers[to + 3], answers[to + 4] = id, raw, changes, payload
  answers[to + 5], answers[to + 6] = extras, note
end

local function bury(job)
  job.s[18], job.s[19], job.s[20] = '+Unreadable', 'what is stored of the job makes no sense', 'Quarantined'
  finish(job, 'D')
  call('SADD', base .. 'P', job.m)
end

-- `payload` is nothing where it follows what never changes.
local function take(job, raw, payload, extras, note)
  local s = job.s
  if not payload or (s[14] == 1 and not extras) or (s[9] == 1 and not note) then return bury(job) end
  s[1], s[24], s[15], s[16], s[8] = 'A', token, now, worker, s[8] + 1
  put(job, 'A', lease_until)
  answer(job.id, raw, '', payload, extras or '', note or '')
  late[6 * taken - 3] = job
end

-- Most jobs are handed out for the first time and are a payload alone: the same with less effort. Whether it was such a one.
local function take_plain(m, id, raw)
  local fine, own, _, due, notifies, size, extras, follows, key = pcall(struct.unpack, FIXED, raw)
  if not fine or notifies + extras > 0 or follows == 0 or tonumber(m:sub(1, 14), 16) ~= own then return false end
  bytes = bytes + size
  local changes = struct.pack(CHANGES, 'A', own, lease_until, due, 0, 0, 1, 0, #key, key, now, #worker, worker, 0, 0, '', 0, '',
    0, '', -1, 0, 0, #token, token)
  local at = #stored
  held[at + 1], held[at + 2], stored[at + 1], stored[at + 2] = lease_text, m, id, changes
  answer(id, raw, changes, '', '', '')
  return true
end

-- Loads a job that may have changed; whether all makes sense that never does.
local function load_whole(id, changes, raw)
  if jobs[id] == nil then jobs[id] = decode(id, changes or raw, changes and changed_of or fresh_of) end
  return not changes or (jobs[id] and learn(jobs[id], raw))
end

local function take_all(found, raws)
  local apart, noted, more = {}, {}, {}
  for at, job in ipairs(found) do
    local s = job.s
    if s[25] == 0 and raws[at] then apart[#apart + 1] = job.id end
    if s[14] == 1 then more[#more + 1] = job.id end
    if s[9] == 1 then noted[#noted + 1] = job.id end
  end
  local payloads, extras, notes = {}, {}, {}
  for at, payload in ipairs(fields('b', apart)) do payloads[apart[at]] = payload end
  for at, json in ipairs(fields('m', more)) do extras[more[at]] = json end
  for at, note in ipairs(fields('n', noted)) do notes[noted[at]] = note end
  for at, job in ipairs(found) do
    local id = job.id
    take(job, raws[at], job.s[25] == 1 and '' or payloads[id], extras[id], notes[id])
  end
end

-- Up to `limit` from the front of what is ready.
local function batch(limit)
  local front = call('ZRANGE', base .. 'R', 0, limit - 1)
  local ids, found, raws, examined = {}, {}, {}, 0
  for at, m in ipairs(front) do ids[at] = m:sub(15) end
  local changed, fixed = fields('t', ids), fields('s', ids)
  for at, m in ipairs(front) do
    local id = ids[at]
    -- In their order: what needs more effort must not fall behind.
    if #found > 0 or changed[at] or not fixed[at] or jobs[id] ~= nil or bytes >= BYTES or not take_plain(m, id, fixed[at]) then
      local whole = load_whole(id, changed[at], fixed[at])
      local job = jobs[id]
      if job and job.m == m and job.s[1] == 'W' then
        if bytes + job.s[10] > BYTES and #found + taken > 0 then break end
        bytes = bytes + job.s[10]
        -- It is taken out below, with its neighbours.
        job.one, job.two = nil, nil
        found[#found + 1] = job
        raws[#found] = whole and fixed[at]
      else
        stand_aside(m)
      end
    end
    examined = examined + 1
  end
  if examined == 0 then return 0 end
  call('ZREMRANGEBYRANK', base .. 'R', 0, examined - 1)
  take_all(found, raws)
  many('ZADD', base .. 'A', held, 2)
  many('HSET', base .. 't', stored, 2)
  held, stored = {}, {}
  return examined
end

if not paused then
  -- Behind those that can't be read there may be others.
  for _ = 1, 5 do
    if wanted == 0 or taken > 0 or batch(wanted) == 0 then break end
  end
end

-- Those for whom nothing is left wait; the others don't any more.
local left, wait_for, done = taken, {}, {}
for at = 6, #ARGV, 2 do
  local own = ARGV[at + 1]
  if own ~= '' then
    if left > 0 then
      done[#done + 1] = driver .. '/' .. own
    else
      wait_for[#wait_for + 1] = now
      wait_for[#wait_for + 1] = driver .. '/' .. own
    end
  end
  left = left - math.min(left, tonumber(ARGV[at]))
end
many('ZREM', base .. 'w', done)
many('ZADD', base .. 'w', wait_for, 2)
if #wait_for > 0 then call('ZREMRANGEBYSCORE', base .. 'w', '-inf', now - 60000) end
sweep(100)
-- These are handed out already, nobody has to be woken for them.
readied = math.max(readied - taken, 0)
close()
for at, job in pairs(late) do answers[at] = job.stored end
return { 'OK', taken == 0 and not paused and quiet({ 'W', 'Y', 'A' }) or -1, lease_until, answers }
