-- namespace, then for each version: adapter, number, job, model, candidate, digest, entry JSON, gate JSON or '',
-- scores JSON or '', '1' if promoted, events as a JSON list of JSON texts
-- Answers how many; 0 when anything was ever registered here.
if redis.call('EXISTS', key('registry')) == 1 then
  return 0
end
local count = 0
for i = 2, #ARGV, 11 do
  local adapter, number, job, model, candidate, digest, entry, gate, scores, promoted, events = unpack(ARGV, i, i + 10)
  redis.call('HSET', key('versions', adapter, 'jobs'), job, number)
  redis.call('ZADD', key('versions', adapter), number, number)
  if tonumber(number) > tonumber(redis.call('HGET', key('version-count'), adapter) or '0') then
    redis.call('HSET', key('version-count'), adapter, number)
  end
  local version = version_key(adapter, number)
  redis.call('HSET', version, 'entry', entry, 'model', model, 'candidate', candidate, 'digest', digest)
  if gate ~= '' then redis.call('HSET', version, 'gate', gate) end
  if scores ~= '' then redis.call('HSET', version, 'scores', scores) end
  for _, past in ipairs(cjson.decode(events)) do
    redis.call('RPUSH', key('version', adapter, number, 'events'), past)
  end
  if promoted == '1' then
    point(adapter, number)
  end
  count = count + 1
end
redis.call('HSET', key('registry'), 'changes', 1)
return count
