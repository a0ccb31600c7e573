-- Removes jobs. ARGV: 2 sorted set, 3 how many at most.
first()
promote(1000)
expire(500)
sweep(1000)
local set = ARGV[2]
local members = call('ZRANGEBYSCORE', base .. set, '-inf', '(' .. string.format('%.0f', PINNED), 'LIMIT', 0, ARGV[3])

-- Of a job whose state is gone or can't be read, the rest goes; whoever is to be told of it hears that it was purged.
local function clear(m, id)
  announce({ id = id, s = { [2] = tonumber(m:sub(1, 14), 16) or 0, [9] = 1 } }, { 'P', '', '', '', -1, '' })
  forget({ id })
end

for _, m in ipairs(members) do
  local id = m:sub(15)
  local job = get(id)
  if job and job.m == m then
    -- It is here, whatever is known of it.
    job.one, job.two = set, nil
    discard(job)
  else
    call('ZREM', base .. set, m)
    call('SREM', base .. 'P', m)
    parked[#parked + 1] = m
    -- A job that came later under the same id keeps its own.
    if not job then clear(m, id) end
  end
end
-- What stood aside and is nowhere else goes with the dead, some at a time.
if set == 'D' then
  for _, m in ipairs(call('SRANDMEMBER', base .. 'P', 1000)) do
    -- A completion has a name of its own; a job's number never begins with that letter.
    local told = m:sub(1, 1) == 'c'
    local id = m:sub(told and 27 or 15)
    local there = call('HEXISTS', base .. (told and 'c' or 's'), id) == 1 or not told and call('HEXISTS', base .. 't', id) == 1
    if not there then
      call('SREM', base .. 'P', m)
      if not told then clear(m, id) end
    end
  end
end
close()
return { 'OK', #members }
