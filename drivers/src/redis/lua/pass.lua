-- Somebody was woken who is gone: the next one is told, if there is still something. ARGV: who doesn't wait any more.
first()
local driver = ARGV[2]
for at = 3, #ARGV do call('ZREM', base .. 'w', driver .. '/' .. ARGV[at]) end
if not paused then wake(math.min(call('ZCARD', base .. 'R'), #ARGV - 2)) end
return { 'OK' }
