-- Adds jobs. ARGV[2] is "1" when the addresses of all jobs that notify are in their index. Then nine for each job: id, type,
-- media type, payload, delay in milliseconds, JSON of headers and overrides (or nothing), address, context, ordering key.
-- Or ARGV[2] is "same": then type and media type of all jobs, and two for each, id and payload; they have nothing else.
local JOB, alike = 9, ARGV[2] == 'same'
local count = alike and (#ARGV - 4) / 2 or (#ARGV - 2) / JOB
local ids, told = {}, {}
for at = 1, count do
  ids[at] = ARGV[alike and 3 + 2 * at or 3 + (at - 1) * JOB]
  local address = alike and '' or ARGV[(at - 1) * JOB + 9]
  if address ~= '' then told[address] = told[address] or {} end
end

-- Type, media type, payload, delay, extras, address, context and key of a job.
local function what(at)
  if alike then return ARGV[3], ARGV[4], ARGV[4 + 2 * at], 0, '', '', '', '' end
  local from = 4 + (at - 1) * JOB
  return unpack(ARGV, from, from + 7)
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
    changed[#changed + 1] = id
    changed[#changed + 1] = pack({ state, own, due, 0, due, 0, 0, 0, notifies, 0, key, '', '', 0, 0, '', 0, '', '', '', -1, 0,
      0, '' })
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
  fresh[id], place[id], depth = at, set, depth + 1
  return 'C'
end

local function decide(at, id, kind, media, payload, delay, extras, address, context, key)
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
    forget({ id })
    job = false
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
many('HSET', base .. 't', changed, 2)
many('HSET', base .. 'n', notes, 2)
for set, list in pairs(enter) do many('ZADD', base .. set, list, 2) end
if #states > 0 then close() end
return { 'OK', table.concat(codes), details, settings[6] }
