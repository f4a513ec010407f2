-- namespace, task id, token, result JSON, artifacts JSON, fingerprint, job reused from or '', then what the
-- result says of a version: '' (nothing), or
--   'registered', job, model, candidate, digest, entry JSON, gate JSON of what register did not prove or '', why
--   'measured', job of the candidate, verdict or '', compared version or '', why, gate JSON, scores JSON
-- Answers 'next' | 'done' | 'already' | 'stale' | 'gone' (the job it would be reused from was deleted).
local _, id, token, result, artifacts, fingerprint, reused_from, change = unpack(ARGV)
local task = key('task', id)
local job_id, stage, status, holder = unpack(redis.call('HMGET', task, 'job_id', 'stage', 'status', 'token'))
if holder ~= token then
  return 'stale'
end
if status == 'succeeded' or status == 'reused' then
  return 'already'
end
if status ~= 'running' then
  return 'stale'
end

if reused_from ~= '' and redis.call('EXISTS', key('job', reused_from)) == 0 then
  return 'gone'
end

redis.call('HSET', task, 'result', result, 'artifacts', artifacts, 'fingerprint', fingerprint)
if reused_from == '' then
  redis.call('HSET', key('reuse'), fingerprint, id)
  end_stage(id, 'succeeded')
else
  redis.call('HSET', task, 'reused_from', reused_from)
  end_stage(id, 'reused', cjson.encode({reused_from = reused_from}))
end
local adapter, profile, spec = unpack(redis.call('HMGET', key('job', job_id), 'adapter', 'profile', 'spec'))
local readable, decoded = pcall(cjson.decode, spec)
local replay = readable and type(decoded.replay_of) == 'string'
local point = readable and is_point(job_id, decoded)
if not (replay or point) then -- later jobs build on a replay or a point only when they name it
  redis.call('HSET', key('newest', adapter), profile .. ':' .. stage, job_id)
end
-- in the order of the commits: the files published last are the newest
redis.call('ZADD', key('unpublished'), redis.call('INCR', key('commits')), id)

local stages = stages_of(job_id)
if change == 'registered' then
  local _, _, _, _, _, _, _, _, builder, model, candidate, digest, entry, refused, why = unpack(ARGV)
  local number = record_version(adapter, builder, model, candidate, digest, entry)
  redis.call('HSET', version_key(adapter, number), 'profile', profile)
  if refused ~= '' then -- promoting it by hand takes force, whether or not it is measured
    redis.call('HSET', version_key(adapter, number), 'gate', refused)
  end
  local last = stages[#stages] == stage
  local gate = cjson.decode(redis.call('HGET', key('job', job_id), 'spec')).eval.gate
  settle(job_id, stage, adapter, number, 'registered', last and 'it was not measured: `loco eval` lets the gate decide')
  if last and refused ~= '' then
    pass_gate(job_id, stage, adapter, number, 'refused', '', why)
  elseif last and gate and gate.policy == 'always' then
    local present = redis.call('HGET', key('promoted', model), 'version')
    pass_gate(job_id, stage, adapter, number, 'unproven', present or '', 'policy always: promoted without being measured')
  end
elseif change == 'measured' then
  local _, _, _, _, _, _, _, _, builder, verdict, compared, why, gate, scores = unpack(ARGV)
  local number = redis.call('HGET', key('versions', adapter, 'jobs'), builder)
  if number and replay and builder ~= job_id then
    keep(job_id, stage, adapter, number, 'measured', 'a replay looks again and decides nothing: `loco eval` lets the gate decide')
  elseif number and verdict ~= '' then
    judge(job_id, stage, adapter, number, verdict, compared, why, gate, scores)
  elseif number then -- by an earlier release, which had no gate
    if redis.call('HEXISTS', version_key(adapter, number), 'gate') == 0 then
      redis.call('HSET', version_key(adapter, number), 'scores', scores)
    end
    version_event(adapter, number, 'measured', 'gate')
  end
end
if stages[#stages] == stage then
  end_job(job_id, 'succeeded')
  return 'done'
end
if cancel_requested(job_id) then
  cancel_waiting(job_id)
  end_job(job_id, 'cancelled')
  return 'done'
end
for position, name in ipairs(stages) do
  if name == stage then
    enqueue(task_id(job_id, stages[position + 1]), true)
  end
end
return 'next'
