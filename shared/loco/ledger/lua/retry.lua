-- namespace, job id, nonce of the call. Answers 'missing', 'ok', or the status that can't be retried.
local _, job_id, nonce = unpack(ARGV)
local job = key('job', job_id)
local status, last_nonce = unpack(redis.call('HMGET', job, 'status', 'retry_nonce'))
if not status then
  return 'missing'
end
if last_nonce == nonce then
  return 'ok' -- the same call again after a lost reply
end
if status ~= 'failed' and status ~= 'cancelled' then
  return status
end
redis.call('HDEL', job, 'error', 'finished_at', 'not_before', 'paused')
redis.call('HSET', job, 'cancel_requested', '0', 'retry_nonce', nonce, 'place', redis.call('INCR', key('seq')))
set_job_status(job_id, 'queued')
local first
for _, stage in ipairs(stages_of(job_id)) do
  local id = task_id(job_id, stage)
  local task = key('task', id)
  local stage_status = redis.call('HGET', task, 'status')
  if stage_status ~= 'succeeded' and stage_status ~= 'reused' then
    redis.call('HDEL', task, 'error', 'progress', 'finished_at')
    redis.call('HSET', task, 'status', 'pending', 'crashes', 0, 'retries', 0)
    first = first or id
  end
end
enqueue(first, true)
return 'ok'
