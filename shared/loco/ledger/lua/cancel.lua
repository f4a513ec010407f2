-- namespace, job id, '1' for a pause. Answers 'missing' | 'ended' | 'cancelled' | 'requested'.
-- A pause is a cancel with a mark, until a retry or a plain cancel takes it off.
local _, job_id, pause = unpack(ARGV)
local job = key('job', job_id)
local status = redis.call('HGET', job, 'status')
if not status then
  return 'missing'
end
if status == 'succeeded' or status == 'failed' or status == 'cancelled' then
  if pause ~= '1' then
    redis.call('HDEL', job, 'paused')
  end
  return 'ended'
end
local requested = cancel_requested(job_id)
redis.call('HSET', job, 'cancel_requested', '1') -- first: a full Redis refuses it, and then nothing has changed
if pause ~= '1' then
  redis.call('HDEL', job, 'paused')
elseif not requested then
  redis.call('HSET', job, 'paused', '1')
end
for _, stage in ipairs(stages_of(job_id)) do
  if redis.call('HGET', key('task', task_id(job_id, stage)), 'status') == 'running' then
    if not requested then
      event(job_id, 'job.cancel_requested', stage)
    end
    cancel_waiting(job_id)
    return 'requested'
  end
end
cancel_waiting(job_id)
end_job(job_id, 'cancelled')
return 'cancelled'
