-- namespace, sweep id, status, error JSON or '', number of the best point or ''. The first one to end it does.
local _, id, status, failure, best = unpack(ARGV)
local sweep = key('sweep', id)
redis.call('ZREM', key('sweeps', 'open'), id)
if redis.call('HGET', sweep, 'status') ~= 'running' then
  return 0
end
redis.call('HSET', sweep, 'status', status, 'finished_at', int(now))
if failure ~= '' then
  redis.call('HSET', sweep, 'error', failure)
end
if best ~= '' then
  redis.call('HSET', sweep, 'best', best)
end
return 1
