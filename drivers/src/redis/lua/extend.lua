-- Makes leases end later. ARGV: 2 lease, then two for each: id and token.
first()
local lease_until, codes = after(ARGV[2]), {}
local ids = {}
for at = 3, #ARGV, 2 do ids[#ids + 1] = ARGV[at] end
load(ids)
for at = 3, #ARGV, 2 do
  local job = held(ARGV[at], ARGV[at + 1])
  if job then put(job, 'A', lease_until) end
  codes[#codes + 1] = not job and 'T' or job.s[23] == 1 and 'C' or 'K'
end
close()
return { 'OK', lease_until, table.concat(codes) }
