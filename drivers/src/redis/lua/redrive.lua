-- Makes dead jobs ready again. ARGV: ids.
first()
expire(200)
local codes = {}
for at = 2, #ARGV do
  local job = get(ARGV[at])
  if not job or forgotten(job.s) then
    codes[at - 1] = 'N'
  elseif job.s[1] ~= 'D' then
    codes[at - 1] = 'X'
  elseif job.s[9] == 1 then
    codes[at - 1] = 'W'
  else
    local s = job.s
    if s[18] == '+Unreadable' then call('SREM', base .. 'P', job.m) end
    s[6], s[7], s[8], s[17], s[20] = 0, 0, 0, 0, ''
    if fifo then enter_line(job.m, s[11]) end
    wait(job, now)
    codes[at - 1] = 'K'
  end
end
close()
return { 'OK', table.concat(codes) }
