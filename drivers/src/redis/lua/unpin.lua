-- Whoever was told of these jobs needs nothing of them any more. ARGV: ids.
if not declared then return { 'OK' } end
first()
for at = 2, #ARGV do
  local job = get(ARGV[at])
  if job and job.s[9] == 1 then
    job.s[22] = 1
    touch(job)
    if over(job.s) and job.s[3] >= PINNED then
      local raw = call('HGET', base .. 'c', job.id)
      local fine, c = pcall(cmsgpack.unpack, raw or '')
      if not (raw and fine and type(c) == 'table' and c[3] == job.s[2]) then age(job) end
    end
  end
end
close()
return { 'OK' }
