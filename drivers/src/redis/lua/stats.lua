-- How full the queue is, and the time passes for it.
first()
promote(1000)
expire(500)
sweep(500)
unpin_old(100)
close()
local function size(set) return call('ZCARD', base .. set) end
local function due(set) return call('ZCOUNT', base .. set, '-inf', now) end
local function nearest(set) return tonumber(call('ZRANGE', base .. set, 0, 0, 'WITHSCORES')[2]) or -1 end
local waits, again_at = nearest('W'), nearest('Y')
local next = waits < 0 and again_at or again_at < 0 and waits or math.min(waits, again_at)
return { 'OK', size('R') + due('W') + due('Y'), size('W') - due('W'), size('A'), size('Y') - due('Y'), size('B'), size('D'),
  nearest('R'), next, size('R') >= 0 and call('SCARD', base .. 'P'), settings[10] or '', quiet({ 'W', 'Y', 'A' }) }
