-- namespace, queue, worker, nonce, lease (ms), lifetime of the nonce (ms)
-- Answers {task id, job id, stage, token, attempt}, or nil when nothing is ready.
local _, queue, worker, nonce, lease, nonce_ms = unpack(ARGV)

local function answer(id)
  local task = redis.call('HMGET', key('task', id), 'job_id', 'stage', 'token', 'attempt')
  return {id, task[1], task[2], task[3], task[4]}
end

local function extend(id)
  redis.call('ZADD', key('leases'), int(now + tonumber(lease)), id)
end

local held = redis.call('GET', key('claim', nonce))
if held then
  local id, token = string.match(held, '^(.+) (%d+)$')
  if is_current(id, token) then
    extend(id)
    return answer(id)
  end
end
if redis.call('EXISTS', key('draining', worker)) == 1 then
  return false
end

promote_due(queue)
local id
repeat
  id = redis.call('ZPOPMIN', key('ready', queue))[1]
  if not id then
    return false
  end
until sound(id)
local task = key('task', id)
local job_id, stage = unpack(redis.call('HMGET', task, 'job_id', 'stage'))
local token = int(redis.call('INCR', key('tokens')))
local attempt = redis.call('HINCRBY', task, 'attempt', 1)
redis.call('HDEL', task, 'progress', 'error', 'finished_at')
redis.call('HSET', task, 'status', 'running', 'token', token, 'worker', worker, 'started_at', int(now))
extend(id)
redis.call('SET', key('claim', nonce), id .. ' ' .. token, 'PX', nonce_ms)

local job = key('job', job_id)
redis.call('HSETNX', job, 'started_at', int(now))
if redis.call('HGET', job, 'status') == 'queued' then
  set_job_status(job_id, 'running')
end
event(job_id, 'stage.running', stage, cjson.encode({attempt = attempt, worker = worker}))
return answer(id)
