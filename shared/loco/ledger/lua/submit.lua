-- namespace, idempotency key, its lifetime (ms), request digest, nonce of the call, random suffix (0..16^6-1), adapter, profile,
-- stages (comma list), queues (comma list), priority, metadata JSON, spec JSON, owner, time before which it does not begin (ms) or
-- '', then the jobs it descends from
-- Answers {job id, 'created' | 'exists' | 'conflict' | 'gone'}; the same call again after a lost reply is 'created'.
local _, idem_key, idem_ms, digest, nonce, suffix, adapter, profile, stages, queues, priority, metadata, spec, owner, not_before = unpack(ARGV)

local idem = key('idem', idem_key)
local known, known_digest, known_nonce = unpack(redis.call('HMGET', idem, 'job', 'digest', 'nonce'))
if known and redis.call('EXISTS', key('job', known)) == 1 then -- a deleted job frees its key
  return {known, known_nonce == nonce and 'created' or known_digest == digest and 'exists' or 'conflict'}
end

for i = 16, #ARGV do
  if redis.call('EXISTS', key('job', ARGV[i])) == 0 then
    return {ARGV[i], 'gone'} -- deleted meanwhile
  end
end

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

local stamp = civil(tonumber(time[1]))
local random = tonumber(suffix)
local job_id
repeat
  job_id = string.format('%s-%06x', stamp, random)
  random = (random + 1) % 16777216
until redis.call('EXISTS', key('job', job_id)) == 0

local seq = redis.call('INCR', key('seq'))
redis.call('HSET', idem, 'job', job_id, 'digest', digest, 'nonce', nonce)
redis.call('PEXPIRE', idem, idem_ms)
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
if not_before ~= '' and tonumber(not_before) > now then
  put_off(job_id, tonumber(not_before))
end
return {job_id, 'created'}
