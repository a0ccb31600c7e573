-- Takes jobs back that nobody received, as if they had never been handed out. ARGV: two for each: id and token.
first()
for at = 2, #ARGV, 2 do
  local job = held(ARGV[at], ARGV[at + 1])
  if job then
    job.s[8] = job.s[8] - 1
    again(job, job.s[5])
  end
end
close()
return { 'OK' }
