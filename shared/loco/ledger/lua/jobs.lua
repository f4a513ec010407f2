-- Functions that make jobs and sweeps, in front of every script.

-- Days to a civil date: http://howardhinnant.github.io/date_algorithms.html#civil_from_days
local function civil(seconds)
  local z = math.floor(seconds / 86400) + 719468
  local era = math.floor(z / 146097)
  local doe = z - era * 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  local mp = math.floor((5 * doy + 2) / 153)
  local day = doy - math.floor((153 * mp + 2) / 5) + 1
  local month = mp < 10 and mp + 3 or mp - 9
  local year = yoe + era * 400 + (month <= 2 and 1 or 0)
  local s = seconds % 86400
  return string.format('%04d%02d%02d-%02d%02d%02d', year, month, day,
    math.floor(s / 3600), math.floor(s % 3600 / 60), s % 60)
end

-- An ID that nobody has: the time and a random part (0..16^6-1). kind: what its record is called.
local function new_id(kind, prefix, random)
  local stamp = civil(tonumber(time[1]))
  local id
  repeat
    id = string.format('%s%s-%06x', prefix, stamp, random)
    random = (random + 1) % 16777216
  until redis.call('EXISTS', key(kind, id)) == 0
  return id
end

-- Records a job and queues its first stage; whoever calls sends the hint. Answers its ID.
-- stages, queues: comma lists; metadata, spec: JSON.
local function create_job(random, adapter, profile, stages, queues, priority, metadata, spec, owner)
  local job_id = new_id('job', '', tonumber(random))
  local seq = redis.call('INCR', key('seq'))
  redis.call('HSET', key('job', job_id), 'id', job_id, 'seq', seq, 'place', seq, 'adapter', adapter,
    'profile', profile, 'stages', stages, 'priority', priority, 'metadata', metadata, 'spec', spec, 'owner', owner,
    'cancel_requested', '0', 'created_at', int(now))
  redis.call('ZADD', key('jobs'), seq, job_id)
  redis.call('ZADD', key('jobs', 'adapter', adapter), seq, job_id)

  local names = stages_of(job_id)
  event(job_id, 'job.submitted', nil, cjson.encode({adapter = adapter, profile = profile, stages = names}))
  set_job_status(job_id, 'queued')
  local next_queue = string.gmatch(queues, '[^,]+')
  local first
  for _, stage in ipairs(names) do
    local id = task_id(job_id, stage)
    redis.call('HSET', key('task', id), 'task_id', id, 'job_id', job_id, 'stage', stage, 'queue', next_queue(),
      'status', 'pending', 'attempt', 0, 'crashes', 0, 'retries', 0, 'best_step', -1, 'token', 0)
    first = first or id
  end
  enqueue(first, true)
  return job_id
end

-- Whether a job is one training of a sweep, see `JobSpec.is_point`. spec: decoded.
local function is_point(job_id, spec)
  return type(spec.sweep) == 'string' and redis.call('HGET', key('job', job_id), 'stages') == 'train'
end
