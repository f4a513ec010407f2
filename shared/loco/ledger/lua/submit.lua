-- namespace, idempotency key, its lifetime (ms), request digest, nonce of the call, random suffix (0..16^6-1), adapter, profile,
-- stages (comma list), queues (comma list), priority, metadata JSON, spec JSON, owner
-- Answers {job id, 'created' | 'exists' | 'conflict'}; the same call again after a lost reply is 'created'.
local _, idem_key, idem_ms, digest, nonce, suffix, adapter, profile, stages, queues, priority, metadata, spec, owner = unpack(ARGV)

local idem = key('idem', idem_key)
local known, known_digest, known_nonce = unpack(redis.call('HMGET', idem, 'job', 'digest', 'nonce'))
if known then
  return {known, known_nonce == nonce and 'created' or known_digest == digest and 'exists' or 'conflict'}
end

local job_id = create_job(suffix, adapter, profile, stages, queues, priority, metadata, spec, owner)
redis.call('HSET', idem, 'job', job_id, 'digest', digest, 'nonce', nonce)
redis.call('PEXPIRE', idem, idem_ms)
return {job_id, 'created'}
