-- Removes the queue, a slice at a time: `MORE` and a cursor until all is gone. ARGV: 2 installation, 3 uid, 4 cursor. A queue
-- that is half removed is found by nobody; whoever declares it anew ends the removal first (without owner).
if not settings[11] then return { 'OK' } end
if declared and (settings[11] ~= ARGV[2] or settings[12] ~= ARGV[3]) then return { 'OWNED' } end
first()
call('HSET', KEYS[1], 'deleting', '1')
-- Only jobs that notify leave something behind.
local page = call('HSCAN', base .. 'n', ARGV[4], 'COUNT', 500)
local gone = {}
fifo = false
for at = 1, #page[2], 2 do
  local job = get(page[2][at])
  if job and job.s[9] == 1 and not over(job.s) then announce(job, { 'P', '', '', '', -1, '' }) end
  gone[#gone + 1] = page[2][at]
end
many('HDEL', base .. 'n', gone)
touched = {}
close()
if call('EXISTS', base .. 'n') == 1 then return { 'MORE', page[1] } end
wake(1000)
for _, key in ipairs({ 'q', 's', 't', 'b', 'm', 'r', 'R', 'W', 'Y', 'B', 'A', 'S', 'D', 'C', 'P', 'L', 'F', 'x', 'w' }) do
  call('UNLINK', base .. key)
end
-- Completions outlive the queue, and so does the clock that they go by.
if call('EXISTS', base .. 'c') == 1 then call('HSET', KEYS[1], 'clock', now, 'shift', shift, 'seq', seq) end
return { 'OK' }
