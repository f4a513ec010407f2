-- namespace, idempotency key, its lifetime (ms), request digest, nonce of the call, random suffix (0..16^6-1),
-- head JSON (an object of strings), plan JSON, spec JSON, owner, how many open sweeps one may have
--   sweep:ID       hash   the head; id, seq, status, cancel_requested, created_at, finished_at, error, best;
--                         job:prepare, job:NUMBER, job:final: its jobs; outcome:NUMBER, stopped:NUMBER
--   sweep-plan:ID  hash   spec of the whole, trains: the train spec of each point
--   sweeps         zset   all, by seq        sweeps:open   zset   those that have a next step
-- Answers {sweep id, 'created' | 'exists' | 'conflict'}, or {'', 'too many'}; the same call again after a lost reply is 'created'.
local _, idem_key, idem_ms, digest, nonce, suffix, head, trains, spec, owner, most = unpack(ARGV)
local idem = key('idem', idem_key)
local known, known_digest, known_nonce = unpack(redis.call('HMGET', idem, 'sweep', 'digest', 'nonce'))
if known then
  return {known, known_nonce == nonce and 'created' or known_digest == digest and 'exists' or 'conflict'}
end
local open = 0
for _, other in ipairs(redis.call('ZRANGE', key('sweeps', 'open'), 0, -1)) do
  open = open + (redis.call('HGET', key('sweep', other), 'owner') == owner and 1 or 0)
end
if open >= tonumber(most) then
  return {'', 'too many'}
end
local id = new_id('sweep', 'sweep-', tonumber(suffix))
local seq = redis.call('INCR', key('sweep-seq'))
for name, value in pairs(cjson.decode(head)) do
  redis.call('HSET', key('sweep', id), name, value)
end
redis.call('HSET', key('sweep', id), 'id', id, 'seq', seq, 'status', 'running', 'cancel_requested', '0',
  'created_at', int(now))
redis.call('HSET', key('sweep-plan', id), 'spec', spec, 'trains', trains)
redis.call('ZADD', key('sweeps'), seq, id)
redis.call('ZADD', key('sweeps', 'open'), seq, id)
redis.call('HSET', idem, 'sweep', id, 'digest', digest, 'nonce', nonce)
redis.call('PEXPIRE', idem, idem_ms)
return {id, 'created'}
