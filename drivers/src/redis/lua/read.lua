-- Leases completions. ARGV: 2 address, 3 lease, then their names.
first()
local readable, leased = base .. 'a:' .. ARGV[2], base .. 'l:' .. ARGV[2]
local lease_until, pages, aside = after(ARGV[3]), {}, 0
for at = 4, #ARGV do
  local m = ARGV[at]
  local id = m:sub(26)
  if call('ZSCORE', readable, m) then
    local raw = call('HGET', base .. 'c', id)
    local fine, c = pcall(cmsgpack.unpack, raw or '')
    if raw and fine and type(c) == 'table' and c[12] and type(c[1]) == 'number' and c[2] == ARGV[2]
      and string.format('%014x', c[1]) == m:sub(1, 14) then
      c[6] = c[6] + 1
      call('HSET', base .. 'c', id, cmsgpack.pack(c))
      call('ZADD', leased, lease_until, m)
      pages[#pages + 1] = { m, id, c[4], c[5], c[6], { c[7], c[8], c[9], c[10], c[11], c[12] } }
    else
      call('SADD', base .. 'P', 'c' .. m)
      aside = aside + 1
    end
    -- Last: what can't be leased stays where it is.
    call('ZREM', readable, m)
  end
end
return { 'OK', aside, pages }
