-- namespace, job id, submits and commits counted before its dependents were looked for, JSON of what is to be
-- cleared, JSON of the answer, lifetime of the answer (ms)
-- Answers 'missing' | 'version' | 'changed' | 'removed', or the status of a job that has not ended.
local _, job_id, seq, commits, leftover, answer, answer_ms = unpack(ARGV)
local job = key('job', job_id)
local status, adapter, profile = unpack(redis.call('HMGET', job, 'status', 'adapter', 'profile'))
if not status then
  return 'missing'
end
if status ~= 'succeeded' and status ~= 'failed' and status ~= 'cancelled' then
  return status
end
if redis.call('HEXISTS', key('versions', adapter, 'jobs'), job_id) == 1 then
  return 'version'
end
if (redis.call('GET', key('seq')) or '0') ~= seq or (redis.call('GET', key('commits')) or '0') ~= commits then
  return 'changed' -- somebody may build on it since
end

-- The newest other job that committed a stage of this adapter and profile; replays count when they are named only.
local function newest_other(stage)
  for _, other in ipairs(redis.call('ZREVRANGE', key('jobs', 'adapter', adapter), 0, -1)) do
    local done = redis.call('HGET', key('task', task_id(other, stage)), 'status')
    if other ~= job_id and (done == 'succeeded' or done == 'reused') then
      local other_profile, spec = unpack(redis.call('HMGET', key('job', other), 'profile', 'spec'))
      local readable, decoded = pcall(cjson.decode, spec or '')
      local point = readable and is_point(other, decoded)
      if other_profile == profile and readable and not point and type(decoded.replay_of) ~= 'string' then
        return other
      end
    end
  end
end

for _, stage in ipairs(stages_of(job_id)) do
  local id = task_id(job_id, stage)
  local fingerprint = redis.call('HGET', key('task', id), 'fingerprint')
  if fingerprint and redis.call('HGET', key('reuse'), fingerprint) == id then
    redis.call('HDEL', key('reuse'), fingerprint)
  end
  local newest, field = key('newest', adapter), profile .. ':' .. stage
  if redis.call('HGET', newest, field) == job_id then
    local other = newest_other(stage)
    if other then
      redis.call('HSET', newest, field, other)
    else
      redis.call('HDEL', newest, field)
    end
  end
  leave_queues(id)
  redis.call('ZREM', key('unpublished'), id)
  redis.call('DEL', key('task', id))
end
redis.call('ZREM', key('jobs'), job_id)
redis.call('ZREM', key('jobs', 'status', status), job_id)
redis.call('ZREM', key('jobs', 'adapter', adapter), job_id)
redis.call('ZREM', key('jobs', 'adapter', adapter, 'status', status), job_id)
redis.call('DEL', job, key('events', job_id))
redis.call('HSET', key('removing'), job_id, leftover)
redis.call('SET', key('removed', job_id), answer, 'PX', answer_ms)
return 'removed'
