-- One job. ARGV: 2 id.
first()
promote(500)
expire(200)
sweep(100)
close()
local job = get(ARGV[2])
if not job or forgotten(job.s) or not learn(job, call('HGET', base .. 's', job.id)) then return { 'OK' } end
return { 'OK', record(job) }
