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

local job_id = create_job(suffix, adapter, profile, stages, queues, priority, metadata, spec, owner)
redis.call('HSET', idem, 'job', job_id, 'digest', digest, 'nonce', nonce)
redis.call('PEXPIRE', idem, idem_ms)
if not_before ~= '' and tonumber(not_before) > now then
  put_off(job_id, tonumber(not_before))
end
return {job_id, 'created'}
