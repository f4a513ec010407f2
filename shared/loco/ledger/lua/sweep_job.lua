-- namespace, sweep id, slot ('prepare', a point's number, 'final'), number of the best point or '', random suffix,
-- stages (comma list), queues (comma list), spec JSON, job it builds on or ''
-- Makes the job of a slot, once. Answers {job id, 'created' | 'exists'}, or {'', 'closed'} where the sweep takes
-- no further step.
local _, id, slot, best, suffix, stages, queues, spec, on = unpack(ARGV)
local sweep = key('sweep', id)
local status, cancelled, job_id = unpack(redis.call('HMGET', sweep, 'status', 'cancel_requested', 'job:' .. slot))
if job_id then
  return {job_id, 'exists'}
end
if status ~= 'running' or cancelled == '1' or (on ~= '' and redis.call('EXISTS', key('job', on)) == 0) then
  return {'', 'closed'}
end
local adapter, profile, priority, metadata, owner, not_before = unpack(
  redis.call('HMGET', sweep, 'adapter', 'profile', 'priority', 'metadata', 'owner', 'not_before'))
job_id = create_job(suffix, adapter, profile, stages, queues, priority, metadata, spec, owner)
redis.call('HSET', sweep, 'job:' .. slot, job_id)
if slot == 'prepare' and tonumber(not_before or '') and tonumber(not_before) > now then
  put_off(job_id, tonumber(not_before))
end
if best ~= '' then
  redis.call('HSET', sweep, 'best', best)
end
return {job_id, 'created'}
