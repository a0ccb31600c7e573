-- Removes jobs. ARGV: 2 sorted set, 3 how many at most.
first()
promote(1000)
expire(500)
sweep(1000)
local set = ARGV[2]
local members = call('ZRANGEBYSCORE', base .. set, '-inf', '(' .. string.format('%.0f', PINNED), 'LIMIT', 0, ARGV[3])
for _, m in ipairs(members) do
  local id = m:sub(15)
  local job = get(id)
  if job and job.m == m then
    discard(job)
  else
    call('ZREM', base .. set, m)
    forget({ id })
  end
end
close()
return { 'OK', #members }
