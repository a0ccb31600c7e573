-- Which completions of an address could be read. ARGV: 2 address, 3 how many at most. Works without the queue: completions
-- outlive it. Clocks of queues differ once the server's went back, so its own time is told too.
first()
-- A lost delivery may be the end of a job.
if declared then expire(200) end
close()
local readable, leased = base .. 'a:' .. ARGV[2], base .. 'l:' .. ARGV[2]
local ended = call('ZRANGEBYSCORE', leased, '-inf', now, 'LIMIT', 0, 1000)
if #ended > 0 then
  local back = {}
  for _, m in ipairs(ended) do
    back[#back + 1] = 0
    back[#back + 1] = m
  end
  many('ZADD', readable, back, 2)
  call('ZREMRANGEBYRANK', leased, 0, #ended - 1)
end
-- Leases of jobs that notify nobody are looked at in vain; there is one look for each lease at most.
local next = tonumber(call('ZRANGE', leased, 0, 0, 'WITHSCORES')[2])
local lost = declared and tonumber(call('ZRANGE', base .. 'A', 0, 0, 'WITHSCORES')[2])
if lost and (not next or lost < next) then next = lost end
return { 'OK', wall, now - wall, settings[11] and 0 or 1, call('ZCARD', readable) + call('ZCARD', leased), next and math.max(next - now, 1) or -1,
  call('ZRANGE', readable, 0, ARGV[3] - 1) }
