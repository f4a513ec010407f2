-- namespace, crash budget, rehint (ms), then pairs of queue and the broker's list for it
-- Answers a flat list of job id, stage: hints to send. Any number of processes may run it at any time.
local budget, rehint = ARGV[2], tonumber(ARGV[3])
local hints = {}

local function hint(id)
  local task = key('task', id)
  redis.call('HSET', task, 'hinted_at', int(now))
  local job_id, stage = unpack(redis.call('HMGET', task, 'job_id', 'stage'))
  hints[#hints + 1] = job_id
  hints[#hints + 1] = stage
end

local function expired(id)
  local stage, attempt, worker = unpack(redis.call('HMGET', key('task', id), 'stage', 'attempt', 'worker'))
  worker = worker or '?'
  local failure = cjson.encode({
    code = 'worker_crashed',
    message = 'Worker ' .. worker .. ' stopped renewing its lease of stage ' .. stage .. '.',
    hint = 'It was killed, frozen or cut off from Redis; look at its log and at the memory of its machine.',
    stage = stage, attempt = tonumber(attempt), user_fault = false,
  })
  if crash(id, failure, budget) then
    hint(id)
  end
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', key('leases'), '-inf', int(now), 'LIMIT', 0, 100)) do
  if sound(id) then
    expired(id)
  else
    forget(id)
  end
end

for i = 4, #ARGV, 2 do
  local queue, broker_list = ARGV[i], ARGV[i + 1]
  for _, id in ipairs(promote_due(queue)) do
    hint(id)
  end
  -- One message a ready stage is enough: while a worker is busy for hours, no more pile up.
  local missing = redis.call('ZCARD', key('ready', queue)) - redis.call('LLEN', broker_list)
  for _, id in ipairs(redis.call('ZRANGE', key('ready', queue), 0, 99)) do
    if missing <= 0 then
      break
    end
    if not sound(id) then
      forget(id)
    elseif now - tonumber(redis.call('HGET', key('task', id), 'hinted_at') or '0') >= rehint then
      hint(id)
      missing = missing - 1
    end
  end
end
return hints
