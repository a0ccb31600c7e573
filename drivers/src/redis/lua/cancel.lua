-- Cancels jobs. ARGV: ids.
first()
promote(500)
expire(200)
local codes = {}
for at = 2, #ARGV do
  local job = get(ARGV[at])
  if not job or forgotten(job.s) then
    codes[at - 1] = 'N'
  elseif over(job.s) then
    codes[at - 1] = job.s[1]
  elseif job.s[1] == 'A' then
    job.s[23] = 1
    touch(job)
    codes[at - 1] = 'A'
  else
    finish(job, 'C')
    codes[at - 1] = 'C'
  end
end
close()
return { 'OK', table.concat(codes) }
