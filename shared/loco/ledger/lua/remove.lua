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

-- The stages of which this is the newest job, and for each the newest other one of this adapter and profile that
-- committed it. Replays count when they are named only. A spec is decoded once, and only where it may be the answer.
local newest, wanted, missing = key('newest', adapter), {}, 0
for _, stage in ipairs(stages_of(job_id)) do
  if redis.call('HGET', newest, profile .. ':' .. stage) == job_id then
    wanted[stage] = true
    missing = missing + 1
  end
end
local others = {}
for _, other in ipairs(missing > 0 and redis.call('ZREVRANGE', key('jobs', 'adapter', adapter), 0, -1) or {}) do
  if other ~= job_id and redis.call('HGET', key('job', other), 'profile') == profile then
    local counts
    for stage in pairs(wanted) do
      local done = redis.call('HGET', key('task', task_id(other, stage)), 'status')
      if counts ~= false and not others[stage] and (done == 'succeeded' or done == 'reused') then
        if counts == nil then
          local readable, spec = pcall(cjson.decode, redis.call('HGET', key('job', other), 'spec') or '')
          counts = readable and not is_point(other, spec) and type(spec.replay_of) ~= 'string'
        end
        if counts then
          others[stage] = other
          missing = missing - 1
        end
      end
    end
    if missing == 0 then
      break
    end
  end
end

for _, stage in ipairs(stages_of(job_id)) do
  local id = task_id(job_id, stage)
  local fingerprint = redis.call('HGET', key('task', id), 'fingerprint')
  if fingerprint and redis.call('HGET', key('reuse'), fingerprint) == id then
    redis.call('HDEL', key('reuse'), fingerprint)
  end
  if wanted[stage] and others[stage] then
    redis.call('HSET', newest, profile .. ':' .. stage, others[stage])
  elseif wanted[stage] then
    redis.call('HDEL', newest, profile .. ':' .. stage)
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
