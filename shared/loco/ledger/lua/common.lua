-- Put in front of every script of the ledger. ARGV[1] is the namespace; keys are derived from it here,
-- so the ledger needs one server (or one with replicas), not a cluster.
-- Times are whole milliseconds of the server's clock.

local ns = ARGV[1]
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

local EVENTS_KEPT = 10000
local CHECKPOINTS_KEPT = 10
-- Scores order by priority, then place; both stay exact in a double.
local PLACES = 1e11

local function key(...)
  return ns .. ':' .. table.concat({...}, ':')
end

-- Lua prints large numbers in scientific notation.
local function int(number)
  return string.format('%.0f', number)
end

local function task_id(job_id, stage)
  return job_id .. '-' .. stage
end

local function event(job_id, kind, stage, data)
  redis.call('XADD', key('events', job_id), 'MAXLEN', '~', EVENTS_KEPT, '*',
    'type', kind, 'at', int(now), 'stage', stage or '', 'data', data or '{}')
end

local function stages_of(job_id)
  local stages = {}
  for stage in string.gmatch(redis.call('HGET', key('job', job_id), 'stages'), '[^,]+') do
    stages[#stages + 1] = stage
  end
  return stages
end

local function set_job_status(job_id, status, data)
  local job = key('job', job_id)
  local old, seq, adapter = unpack(redis.call('HMGET', job, 'status', 'seq', 'adapter'))
  if old then
    redis.call('ZREM', key('jobs', 'status', old), job_id)
    redis.call('ZREM', key('jobs', 'adapter', adapter, 'status', old), job_id)
  end
  redis.call('ZADD', key('jobs', 'status', status), seq, job_id)
  redis.call('ZADD', key('jobs', 'adapter', adapter, 'status', status), seq, job_id)
  redis.call('HSET', job, 'status', status)
  event(job_id, 'job.' .. status, nil, data)
end

-- Puts a stage among the ready ones of its queue. A job keeps its place over its stages and attempts,
-- so a job that has begun goes before one that came later.
-- hinted: whether the caller is going to send the hint now.
local function enqueue(id, hinted, data)
  local task = key('task', id)
  local job_id, stage, queue = unpack(redis.call('HMGET', task, 'job_id', 'stage', 'queue'))
  local priority, place = unpack(redis.call('HMGET', key('job', job_id), 'priority', 'place'))
  redis.call('ZADD', key('ready', queue), int(-tonumber(priority) * PLACES + tonumber(place)), id)
  redis.call('HSET', task, 'status', 'queued', 'queued_at', int(now),
    'hinted_at', hinted and int(now) or '0')
  event(job_id, 'stage.queued', stage, data)
end

local function leave_queues(id)
  local queue, status, started = unpack(redis.call('HMGET', key('task', id), 'queue', 'status', 'started_at'))
  if status == 'running' and tonumber(started) then -- its time is counted, what it waits is not
    redis.call('HINCRBY', key('task', id), 'ran', int(math.max(now - tonumber(started), 0)))
  end
  redis.call('ZREM', key('leases'), id)
  redis.call('ZREM', key('ready', queue), id)
  redis.call('ZREM', key('delayed', queue), id)
end

-- Has the stage that a job begins with wait until a time, as a retry does.
local function put_off(job_id, milliseconds)
  local id = task_id(job_id, stages_of(job_id)[1])
  local queue = redis.call('HGET', key('task', id), 'queue')
  redis.call('HSET', key('job', job_id), 'not_before', int(milliseconds))
  redis.call('ZREM', key('ready', queue), id)
  redis.call('ZADD', key('delayed', queue), int(milliseconds), id)
end

-- Whether a token is that of the attempt which runs now.
local function is_current(id, token)
  local status, holder = unpack(redis.call('HMGET', key('task', id), 'status', 'token'))
  return status == 'running' and holder == token
end

local function cancel_requested(job_id)
  return redis.call('HGET', key('job', job_id), 'cancel_requested') == '1'
end

local function end_stage(id, status, data)
  local task = key('task', id)
  local job_id, stage = unpack(redis.call('HMGET', task, 'job_id', 'stage'))
  leave_queues(id)
  redis.call('HSET', task, 'status', status, 'finished_at', int(now))
  event(job_id, 'stage.' .. status, stage, data)
end

local function end_job(job_id, status, failure)
  local job = key('job', job_id)
  redis.call('HSET', job, 'finished_at', int(now))
  if failure then
    redis.call('HSET', job, 'error', failure)
  end
  set_job_status(job_id, status, failure and '{"error":' .. failure .. '}')
end

-- Cancels what has not started.
local function cancel_waiting(job_id)
  for _, stage in ipairs(stages_of(job_id)) do
    local id = task_id(job_id, stage)
    local status = redis.call('HGET', key('task', id), 'status')
    if status == 'queued' or status == 'pending' then
      end_stage(id, 'cancelled')
    end
  end
end

-- Ends the running attempt of a job that was cancelled. The failure, if any, stays on the stage.
local function end_cancelled(id, failure)
  local task = key('task', id)
  local job_id = redis.call('HGET', task, 'job_id')
  if failure then
    redis.call('HSET', task, 'error', failure)
  end
  end_stage(id, 'cancelled')
  cancel_waiting(job_id)
  end_job(job_id, 'cancelled')
end

local function end_failed(id, failure)
  local task = key('task', id)
  redis.call('HSET', task, 'error', failure)
  end_stage(id, 'failed', '{"error":' .. failure .. '}')
  end_job(redis.call('HGET', task, 'job_id'), 'failed', failure)
end

-- Counts a crash of the running attempt: requeued, or failed when the budget is spent.
-- Answers whether the stage is queued again.
local function crash(id, failure, budget)
  local task = key('task', id)
  local job_id, stage = unpack(redis.call('HMGET', task, 'job_id', 'stage'))
  if cancel_requested(job_id) then
    end_cancelled(id, failure)
    return false
  end
  local crashes = redis.call('HINCRBY', task, 'crashes', 1)
  if crashes >= tonumber(budget) then
    local last = cjson.decode(failure)
    last['code'] = 'worker_crashed'
    last['message'] = last['message'] .. ' Crash ' .. crashes .. ' of ' .. budget ..
      ' without checkpoint progress, so the stage is given up.'
    end_failed(id, cjson.encode(last))
    return false
  end
  leave_queues(id)
  redis.call('HSET', task, 'error', failure)
  event(job_id, 'stage.retry', stage, '{"reason":"crash","crashes":' .. crashes .. ',"error":' .. failure .. '}')
  enqueue(id, false)
  return true
end

-- Whether what is stored of a stage and its job can be worked with. Only locollm writes there; what another
-- program left must not stop the rest.
local function sound(id)
  local task = key('task', id)
  if redis.call('TYPE', task).ok ~= 'hash' then
    return false
  end
  local job_id, stage, queue, attempt, hinted = unpack(
    redis.call('HMGET', task, 'job_id', 'stage', 'queue', 'attempt', 'hinted_at'))
  if not (job_id and stage and queue and tonumber(attempt) and tonumber(hinted or '0')) then
    return false
  end
  local job = key('job', job_id)
  if redis.call('TYPE', job).ok ~= 'hash' then
    return false
  end
  local priority, place, seq, status, stages, adapter = unpack(
    redis.call('HMGET', job, 'priority', 'place', 'seq', 'status', 'stages', 'adapter'))
  if not (tonumber(priority) and tonumber(place) and tonumber(seq) and status and stages and adapter) then
    return false
  end
  return string.find(',' .. stages .. ',', ',' .. stage .. ',', 1, true) ~= nil
end

-- Takes a stage that is not sound off every list, so that nobody meets it again; its record stays.
local function forget(id)
  redis.call('ZREM', key('leases'), id)
  for _, queue in ipairs({'cpu', 'gpu'}) do
    redis.call('ZREM', key('ready', queue), id)
    redis.call('ZREM', key('delayed', queue), id)
  end
end

-- Moves due retries of a queue to the ready stages; answers their ids.
local function promote_due(queue)
  local due = {}
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', key('delayed', queue), '-inf', int(now), 'LIMIT', 0, 100)) do
    redis.call('ZREM', key('delayed', queue), id)
    if sound(id) then
      enqueue(id, false)
      due[#due + 1] = id
    else
      forget(id)
    end
  end
  return due
end
