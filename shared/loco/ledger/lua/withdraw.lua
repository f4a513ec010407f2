-- namespace, adapter, number, '1' to delete also what serves, digests of the model's versions (JSON list: `latest` is
-- taken away where it has one of them, or one that it is known to have had), submits, commits and claims counted before
-- the look at who works on it, JSON of the answer, its lifetime (ms)
-- Answers 'missing' | 'changed' | 'serves' | 'removed' | 'stopped' (it served). Its number is never given again: version-count stays.
local _, adapter, number, force, digests, seq, commits, tokens, answer, answer_ms = unpack(ARGV)
local version = version_key(adapter, number)
local model, candidate = unpack(redis.call('HMGET', version, 'model', 'candidate'))
if not model then
  return 'missing'
end
for name, count in pairs({seq = seq, commits = commits, tokens = tokens}) do
  if (redis.call('GET', key(name)) or '0') ~= count then
    return 'changed' -- somebody may work on it since
  end
end
local pointer, past = key('promoted', model), key('promoted', model, 'past')
local owner, present = unpack(redis.call('HMGET', pointer, 'adapter', 'version'))
local served = owner == adapter and present == number
if served then
  if force ~= '1' then
    return 'serves'
  end
  for _, digest in ipairs(cjson.decode(digests)) do
    redis.call('SADD', key('latest', model), digest)
  end
  expect(model, redis.call('HGET', pointer, 'digest'))
  redis.call('DEL', pointer, past)
  redis.call('HSET', key('withdrawn'), model, cjson.encode(redis.call('SMEMBERS', key('latest', model))))
  local told = cjson.decode(answer)
  told.removal.stopped = true
  answer = cjson.encode(told)
elseif owner == adapter then -- a rollback goes to what is left, never to the version that serves
  local kept, last = {}, nil
  for _, before in ipairs(redis.call('LRANGE', past, 0, -1)) do
    if before ~= number and before ~= last then
      kept[#kept + 1] = before
      last = before
    end
  end
  if kept[#kept] == present then
    kept[#kept] = nil
  end
  redis.call('DEL', past)
  for _, before in ipairs(kept) do
    redis.call('RPUSH', past, before)
  end
end
local jobs = key('versions', adapter, 'jobs')
for _, job in ipairs(redis.call('HKEYS', jobs)) do
  if redis.call('HGET', jobs, job) == number then
    redis.call('HDEL', jobs, job)
  end
end
redis.call('ZREM', key('versions', adapter), number)
redis.call('DEL', version, key('version', adapter, number, 'events'))
take_out(candidate)
redis.call('SET', key('removed-version', adapter, number), answer, 'PX', answer_ms)
registry_changed()
return served and 'stopped' or 'removed'
