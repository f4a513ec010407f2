-- namespace, task id, token, data JSON. Answers 1, or 0 for a stale token.
local _, id, token, data = unpack(ARGV)
if not is_current(id, token) then
  return 0
end
local job_id, stage = unpack(redis.call('HMGET', key('task', id), 'job_id', 'stage'))
event(job_id, 'stage.log', stage, data)
return 1
