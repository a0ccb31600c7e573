-- Makes the queue or brings it up to date. ARGV: 2 installation, 3 uid, 4 adopt, 5 depth, 6 deliveries, 7 and 8 retention of
-- the completed and the dead, 9 paused, 10 fifo.
if settings[11] and not declared then return { 'AGAIN' } end
if declared then
  if (settings[11] ~= ARGV[2] or settings[12] ~= ARGV[3]) and ARGV[4] ~= '1' then return { 'OWNED' } end
  if (settings[4] or '0') ~= ARGV[10] then return { 'ORDER', settings[4] } end
end
-- Numbers of a queue with the same name that was deleted are not used again: they are receipts.
if declared then first() else seq = math.max(seq, wall * 1000) end
call('HSET', KEYS[1], 'installation', ARGV[2], 'uid', ARGV[3], 'depth', ARGV[5], 'deliveries', ARGV[6], 'done', ARGV[7],
  'dead', ARGV[8], 'paused', ARGV[9], 'fifo', ARGV[10], 'clock', now, 'shift', shift, 'seq', seq)
if paused and ARGV[9] == '0' then wake(1000) end
return { 'OK', declared and 0 or 1 }
