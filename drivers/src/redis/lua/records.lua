-- A job as people see it.
local function seen(s)
  if s[1] ~= 'W' then return s[1] end
  return s[3] <= now and 'R' or s[6] == 0 and 'W' or 'Y'
end

local function record(job)
  local s = job.s
  local ended = over(s) and outcome_of(s, job.id) or {}
  return { job.id, s[12], seen(s), s[6], s[7], s[4], s[5], s[1] == 'A' and s[3] or -1,
    s[1] == 'A' and s[16] or '', over(s) and s[17] or -1, s[18] ~= '' and s[18]:sub(2), s[19], s[10], ended }
end
