-- Ends claims. ARGV: seven for each: id, token, what (S succeed, R retry, L release, B bury, U bury what
-- can't be read), delay or bytes of the result (-1
-- for none), why dead, failure, its message or the result.
first()
local ids, codes, results = {}, {}, {}
for at = 2, #ARGV, 7 do ids[#ids + 1] = ARGV[at] end
load(ids)
local service = tonumber(settings[10])

local function settle(job, at)
  local s, what = job.s, ARGV[at + 2]
  if what ~= 'L' then
    s[6] = s[6] + 1
    local took = now - s[15]
    service = (service or took) + 0.02 * (took - (service or took))
  end
  if what == 'S' then
    s[21] = tonumber(ARGV[at + 3])
    if s[21] >= 0 then
      results[#results + 1] = job.id
      results[#results + 1] = ARGV[at + 6]
    end
    finish(job, 'S', ARGV[at + 6])
  elseif what == 'B' or what == 'U' then
    s[20], s[18], s[19] = ARGV[at + 4], ARGV[at + 5], ARGV[at + 6]
    finish(job, 'D')
    if what == 'U' then call('SADD', base .. 'P', job.m) end
  else
    if what == 'R' then s[18], s[19] = ARGV[at + 5], ARGV[at + 6] end
    again(job, after(ARGV[at + 3]))
  end
end

for at = 2, #ARGV, 7 do
  local job = held(ARGV[at], ARGV[at + 1])
  if job then settle(job, at) end
  codes[#codes + 1] = job and 'K' or 'T'
end
many('HSET', base .. 'r', results, 2)
sweep(math.max(50, 2 * #ids))
close()
if service then call('HSET', KEYS[1], 'service', string.format('%.6f', service)) end
return { 'OK', table.concat(codes) }
