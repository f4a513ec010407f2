-- namespace, task id, token, progress JSON. Answers 1, or 0 for a stale token.
local _, id, token, progress = unpack(ARGV)
if not is_current(id, token) then
  return 0
end
local task = key('task', id)
local job_id, stage = unpack(redis.call('HMGET', task, 'job_id', 'stage'))
redis.call('HSET', task, 'progress', progress)
event(job_id, 'stage.progress', stage, progress)
return 1
