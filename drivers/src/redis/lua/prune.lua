-- Takes a queue that is gone, and has nothing left for an address, out of the address' index: the one key that lies elsewhere. A
-- queue that is declared anew enters it again. ARGV: 2 address, 3 the index.
if not settings[11] and call('EXISTS', base .. 'a:' .. ARGV[2], base .. 'l:' .. ARGV[2]) == 0 then
  call('SREM', ARGV[3], queue)
end
return { 'OK' }
