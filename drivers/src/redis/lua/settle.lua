-- Ends claims. ARGV: three for each that succeeds without a result: id, token, "K". Seven for each other: id, token, what (S
-- succeed, R retry, L release, B bury, U bury what can't be read), delay or bytes of the result, why dead, failure, its
-- message or the result.
first()
local ids, places, codes, results = {}, {}, {}, {}
local place = 2
while ARGV[place] do
  ids[#ids + 1], places[#places + 1] = ARGV[place], place
  place = place + (ARGV[place + 2] == 'K' and 3 or 7)
end
local stored = fields('t', ids)
local over_now, ended, states = {}, {}, {}
local service = tonumber(settings[10])

local function serve(claimed)
  local took = now - claimed
  service = (service or took) + 0.02 * (took - (service or took))
end

-- Most jobs succeed with nothing to tell: the same with less effort. The letter of the answer, nothing if it was no such job.
local function succeed(raw, id, mine)
  local fine, state, own, time, due, attempts, lost, deliveries, notifies, key, claimed, worker, _, failure, message, _, _, pin,
    _, token = pcall(struct.unpack, CHANGES, raw)
  if not fine or notifies == 1 then return nil end
  if state ~= 'A' or token ~= mine or token == '' or time <= now then return 'T' end
  serve(claimed)
  local m, to = string.format('%014x', own) .. id, #states
  over_now[#over_now + 1] = m
  ended[to + 1], ended[to + 2], states[to + 1] = text(now), m, id
  states[to + 2] = struct.pack(CHANGES, 'S', own, now, due, attempts + 1, lost, deliveries, 0, #key, key, claimed, #worker,
    worker, now, #failure, failure, #message, message, 0, '', -1, pin, 0, 0, '')
  -- Over for whoever comes behind in this call.
  jobs[id] = false
  return 'K'
end

local function settle(job, at)
  local s, what = job.s, ARGV[at + 2]
  if what ~= 'L' then
    s[6] = s[6] + 1
    serve(s[15])
  end
  if what == 'K' then
    s[21] = -1
    finish(job, 'S')
  elseif what == 'S' then
    s[21] = tonumber(ARGV[at + 3])
    results[#results + 1] = job.id
    results[#results + 1] = ARGV[at + 6]
    finish(job, 'S', ARGV[at + 6])
  elseif what == 'B' or what == 'U' then
    s[20], s[18], s[19] = ARGV[at + 4], '+' .. ARGV[at + 5], ARGV[at + 6]
    finish(job, 'D')
    if what == 'U' then call('SADD', base .. 'P', job.m) end
  else
    if what == 'R' then s[18], s[19] = '+' .. ARGV[at + 5], ARGV[at + 6] end
    again(job, after(ARGV[at + 3]))
  end
end

for index, id in ipairs(ids) do
  local at, code = places[index], nil
  if ARGV[at + 2] == 'K' and not fifo and stored[index] and jobs[id] == nil then
    code = succeed(stored[index], id, ARGV[at + 1])
  end
  if not code then
    local job = held(id, ARGV[at + 1])
    if job then settle(job, at) end
    code = job and 'K' or 'T'
  end
  codes[index] = code
end
many('ZREM', base .. 'A', over_now)
many('ZADD', base .. 'S', ended, 2)
many('HSET', base .. 't', states, 2)
many('HSET', base .. 'r', results, 2)
sweep(math.max(50, 2 * #ids))
close()
if service then call('HSET', KEYS[1], 'service', string.format('%.6f', service)) end
return { 'OK', table.concat(codes) }
