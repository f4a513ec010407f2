-- namespace, sweep id, field, value. Notes something of a sweep that runs, once: the first one stays.
-- Answers 1 where this call or one before noted it, else 0.
local _, id, field, value = unpack(ARGV)
local sweep = key('sweep', id)
local status, cancelled = unpack(redis.call('HMGET', sweep, 'status', 'cancel_requested'))
if status ~= 'running' or cancelled == '1' then
  return 0
end
redis.call('HSETNX', sweep, field, value)
return 1
