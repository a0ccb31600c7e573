-- Results. ARGV: ids.
local ids, answers = {}, {}
for at = 2, #ARGV do ids[at - 1] = ARGV[at] end
load(ids)
local results = fields('r', ids)
for at, id in ipairs(ids) do
  local job = jobs[id]
  answers[at] = job and not forgotten(job.s) and results[at] or false
end
return { 'OK', answers }
