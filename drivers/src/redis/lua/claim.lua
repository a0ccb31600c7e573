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
local claimed, bytes = {}, 0

local function bury(job)
  job.s[18], job.s[19], job.s[20] = 'Unreadable', 'what is stored of the job makes no sense', 'Quarantined'
  finish(job, 'D')
  call('SADD', base .. 'P', job.m)
end

local function take(job, payload, extras, note)
  local s = job.s
  if not payload or (s[14] == 1 and not extras) or (s[9] == 1 and not note) then return bury(job) end
  s[1], s[24], s[15], s[16], s[8] = 'A', token, now, worker, s[8] + 1
  put(job, 'A', lease_until)
  claimed[#claimed + 1] = { job.id, s[12], s[13], extras or '', payload, s[6] + 1, s[8], s[4], s[5], s[11], s[18], s[19], note or '' }
end

-- Up to `limit` from the front of what is ready.
local function batch(limit)
  local front = call('ZRANGE', base .. 'R', 0, limit - 1)
  local ids, found, noted, more = {}, {}, {}, {}
  for at, m in ipairs(front) do ids[at] = m:sub(15) end
  load(ids)
  ids = {}
  local examined = 0
  for _, m in ipairs(front) do
    local job = jobs[m:sub(15)]
    if job and job.m == m and job.s[1] == 'W' then
      if bytes + job.s[10] > BYTES and #found + #claimed > 0 then break end
      bytes = bytes + job.s[10]
      -- It is taken out below, with its neighbours.
      job.from = {}
      found[#found + 1] = job
      ids[#ids + 1] = job.id
      if job.s[14] == 1 then more[#more + 1] = job.id end
      if job.s[9] == 1 then noted[#noted + 1] = job.id end
    else
      stand_aside(m)
    end
    examined = examined + 1
  end
  if examined == 0 then return 0 end
  call('ZREMRANGEBYRANK', base .. 'R', 0, examined - 1)
  local payloads, extras, notes = fields('b', ids), {}, {}
  for at, text in ipairs(fields('m', more)) do extras[more[at]] = text end
  for at, note in ipairs(fields('n', noted)) do notes[noted[at]] = note end
  for at, job in ipairs(found) do take(job, payloads[at], extras[job.id], notes[job.id]) end
  return examined
end

if not paused then
  -- Behind those that can't be read there may be others.
  for _ = 1, 5 do
    if wanted == 0 or #claimed > 0 or batch(wanted) == 0 then break end
  end
end

-- Those for whom nothing is left wait; the others don't any more.
local left, wait_for, done = #claimed, {}, {}
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
readied = math.max(readied - #claimed, 0)
close()
return { 'OK', #claimed == 0 and not paused and quiet({ 'W', 'Y', 'A' }) or -1, lease_until, claimed }
