-- namespace, task id, token, lease (ms)
-- Answers 'ok' | 'cancel' | 'drain' | 'lost'. A lease that ran out but was not reaped is still good.
local _, id, token, lease = unpack(ARGV)
if not is_current(id, token) then
  return 'lost'
end
redis.call('ZADD', key('leases'), int(now + tonumber(lease)), id)
local job_id, worker = unpack(redis.call('HMGET', key('task', id), 'job_id', 'worker'))
if cancel_requested(job_id) then
  return 'cancel'
end
if redis.call('EXISTS', key('draining', worker)) == 1 then
  return 'drain'
end
return 'ok'
