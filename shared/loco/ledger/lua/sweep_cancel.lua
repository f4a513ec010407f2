-- namespace, sweep id. No further step is taken from here on. Answers 'missing' | 'ended' | 'requested'.
local _, id = unpack(ARGV)
local sweep = key('sweep', id)
local status = redis.call('HGET', sweep, 'status')
if not status then
  return 'missing'
end
if status ~= 'running' then
  return 'ended'
end
redis.call('HSET', sweep, 'cancel_requested', '1')
return 'requested'
