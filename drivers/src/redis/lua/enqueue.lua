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
