-- Forgets completions. ARGV: 2 address, then their names.
first()
local readable, leased = base .. 'a:' .. ARGV[2], base .. 'l:' .. ARGV[2]
for at = 3, #ARGV do
  local m = ARGV[at]
  local id = m:sub(26)
  local raw = call('HGET', base .. 'c', id)
  local fine, c = pcall(cmsgpack.unpack, raw or '')
  if raw and fine and type(c) == 'table' and c[2] == ARGV[2] and string.format('%014x', c[1]) == m:sub(1, 14) then
    call('HDEL', base .. 'c', id)
    call('ZREM', readable, m)
    call('ZREM', leased, m)
    local job = declared and get(id)
    if job and job.s[2] == c[3] and job.s[22] == 1 and over(job.s) and job.s[3] >= PINNED then age(job) end
  end
end
close()
-- The clock of a queue that is gone goes with its last completion.
if not settings[11] and call('EXISTS', base .. 'c') == 0 then call('UNLINK', KEYS[1]) end
return { 'OK' }
