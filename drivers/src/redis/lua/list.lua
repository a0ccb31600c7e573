-- A page of jobs. ARGV: 2 sorted set, 3 how many at most, 4 and 5 the place after which it starts (time and name), or nothing.
first()
promote(1000)
expire(500)
sweep(1000)
close()
local set, limit, start = base .. ARGV[2], tonumber(ARGV[3]), 0
if ARGV[4] ~= '' then
  -- By rank, found by halves: thousands of jobs may share a time.
  local low = call('ZCOUNT', set, '-inf', '(' .. ARGV[4])
  local high = call('ZCOUNT', set, '-inf', ARGV[4])
  while low < high do
    local middle = math.floor((low + high) / 2)
    local there = call('ZRANGE', set, middle, middle)[1]
    if there and there <= ARGV[5] then low = middle + 1 else high = middle end
  end
  start = low
end
local found = call('ZRANGE', set, start, start + limit, 'WITHSCORES')
local page, ids, next = {}, {}, ''
for at = 1, math.min(#found, 2 * limit), 2 do ids[#ids + 1] = found[at]:sub(15) end
load(ids)
local fixed = fields('s', ids)
for at, id in ipairs(ids) do
  local job = jobs[id]
  if job and job.m == found[2 * at - 1] and not forgotten(job.s) and learn(job, fixed[at]) then
    page[#page + 1] = record(job)
  end
end
if #found > 2 * limit then next = string.format('%.0f', found[2 * limit]) .. '.' .. found[2 * limit - 1] end
return { 'OK', next, page }
