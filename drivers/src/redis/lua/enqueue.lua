-- Adds jobs. ARGV[2] is "1" when the addresses of all jobs that notify are in their index. Then nine for each job: id, type,
-- media type, payload, delay in milliseconds, JSON of headers and overrides (or nothing), address, context, ordering key.
local JOB = 9
local count = (#ARGV - 2) / JOB
if count ~= math.floor(count) then return redis.error_reply('ERR a job takes ' .. JOB .. ' arguments') end

local find, known = string.find, { [''] = true, ['0'] = true, ['application/json'] = true }

-- Types, keys and media types come again and again.
local function word(text, most)
  if known[text] == nil then known[text] = #text <= most and not find(text, '[%c "\\\128-\255]') end
  return known[text]
end

-- Whether a job keeps the contract's limits: one that doesn't must leave nothing behind, and hold up nobody in its line.
local function legal(from)
  local id, kind, media, delay, address = ARGV[from + 1], ARGV[from + 2], ARGV[from + 3], ARGV[from + 5], ARGV[from + 7]
  return #id > 0 and #id <= 200 and not find(id, '[^%w._:-]') and kind ~= '' and word(kind, 128) and word(ARGV[from + 9], 128)
    and (word(media, 128) or #media <= 128 and not find(media, '[^\t -~]')) and #ARGV[from + 4] <= 1048576
    and (delay == '0' or #delay <= 11 and find(delay, '^%d+$') and tonumber(delay) <= 31622400000)
    and #ARGV[from + 6] <= 65536 and #ARGV[from + 8] <= 1024 and (address == '' or #address <= 63 and not find(address, '[^a-z0-9-]'))
end

local ids, bad, told = {}, {}, {}
for at = 1, count do
  local from = 2 + (at - 1) * JOB
  ids[at], bad[at] = ARGV[from + 1], not legal(from)
  local address = ARGV[from + 7]
  if address ~= '' and not bad[at] then told[address] = told[address] or {} end
end
-- Readers find the queue by an index that lies elsewhere, so it is written before there can be a completion.
for address in pairs(told) do
  if call('SISMEMBER', base .. 'x', address) == 0 then
    if ARGV[2] ~= '1' then return { 'INDEX' } end
    call('SADD', base .. 'x', address)
  end
end
load(ids)
local depth = 0
for _, set in ipairs({ 'R', 'W', 'Y', 'B' }) do depth = depth + call('ZCARD', base .. set) end
local max, fresh = tonumber(settings[6]), {}
local bodies, metas, states, notes, enter, codes, details = {}, {}, {}, {}, { R = {}, W = {}, B = {} }, {}, {}

local function same(id, from)
  local kind, media, payload = ARGV[from + 2], ARGV[from + 3], ARGV[from + 4]
  if fresh[id] then
    local other = fresh[id]
    return ARGV[other + 2] == kind and ARGV[other + 3] == media and ARGV[other + 4] == payload
  end
  local s = jobs[id].s
  return s[12] == kind and s[13] == media and call('HGET', base .. 'b', id) == payload
end

local function seen(s)
  if s[1] ~= 'W' then return s[1] end
  return s[3] <= now and 'R' or s[6] == 0 and 'W' or 'Y'
end

-- How a job ended that left by a purge or with its queue, until its completion is acknowledged.
local function left(id, address)
  local raw = address ~= '' and call('HGET', base .. 'c', id)
  local fine, c = pcall(cmsgpack.unpack, raw or '')
  if raw and fine and type(c) == 'table' and c[12] then return { c[7], c[7], c[8], c[9], c[10], c[11], c[12] } end
end

local function add(id, from)
  local payload, address, key = ARGV[from + 4], ARGV[from + 7], ARGV[from + 9]
  local s = { 'W', number(), after(ARGV[from + 5]), now, 0, 0, 0, 0, address ~= '' and 1 or 0, #payload, key,
    ARGV[from + 2], ARGV[from + 3], ARGV[from + 6] ~= '' and 1 or 0 }
  s[5] = s[3]
  local m, set = name_of(s, id), s[3] <= now and 'R' or 'W'
  if fifo and not enter_line(m, key) then s[1], set = 'B', 'B' end
  if set == 'R' then readied = readied + 1 end
  if set == 'W' then soonest = math.min(soonest or s[3], s[3]) end
  table.insert(enter[set], s[3])
  table.insert(enter[set], m)
  local at = #bodies
  bodies[at + 1], bodies[at + 2] = id, payload
  if s[14] == 1 then
    metas[#metas + 1] = id
    metas[#metas + 1] = ARGV[from + 6]
  end
  states[at + 1], states[at + 2] = id, cmsgpack.pack(s)
  if address ~= '' then
    notes[#notes + 1] = id
    notes[#notes + 1] = address .. ' ' .. ARGV[from + 8]
  end
  fresh[id], depth, jobs[id] = from, depth + 1, { s = s }
  return 'C'
end

local function decide(at)
  if bad[at] then return 'I' end
  local id, from = ids[at], 2 + (at - 1) * JOB
  local job = jobs[id]
  if job == nil then return 'U' end
  if ARGV[from + 9] ~= '' and not fifo then return 'O' end
  if job and forgotten(job.s) then
    call('ZREM', base .. job.s[1], job.m)
    if job.s[18] == 'Unreadable' then call('SREM', base .. 'P', job.m) end
    for _, key in ipairs({ 's', 'b', 'm', 'r', 'n' }) do call('HDEL', base .. key, id) end
    job = false
  end
  if job then
    if not same(id, from) then return 'X' end
    local ended = over(job.s) and outcome_of(job.s, id) or {}
    details[#details + 1] = { seen(job.s), unpack(ended) }
    return 'D'
  end
  local before = left(id, ARGV[from + 7])
  if before then
    details[#details + 1] = before
    return 'D'
  end
  if ARGV[from + 7] == '' and depth >= max then return 'F' end
  return add(id, from)
end

for at = 1, count do codes[at] = decide(at) end
many('HSET', base .. 'b', bodies, 2)
many('HSET', base .. 'm', metas, 2)
many('HSET', base .. 's', states, 2)
many('HSET', base .. 'n', notes, 2)
for set, list in pairs(enter) do many('ZADD', base .. set, list, 2) end
if #bodies > 0 then close() end
return { 'OK', table.concat(codes), details, settings[6] }
