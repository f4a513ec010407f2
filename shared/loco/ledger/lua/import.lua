-- namespace, JSON of adapter to the highest number it ever gave, then for each version: adapter, number, job, model, candidate, digest, entry JSON, gate JSON or '',
-- scores JSON or '', '1' if promoted, '1' if rolled back, what was promoted before it as a JSON list of numbers,
-- events as a JSON list of JSON texts
-- Answers how many; 0 when anything was ever registered here.
if redis.call('EXISTS', key('registry')) == 1 then
  return 0
end
local count = 0
for adapter, highest in pairs(cjson.decode(ARGV[2])) do
  redis.call('HSET', key('version-count'), adapter, int(highest))
end
for i = 3, #ARGV, 13 do
  local adapter, number, job, model, candidate, digest, entry, gate, scores, promoted, rolled_back, past, events =
    unpack(ARGV, i, i + 12)
  redis.call('HSET', key('versions', adapter, 'jobs'), job, number)
  redis.call('ZADD', key('versions', adapter), number, number)
  if tonumber(number) > tonumber(redis.call('HGET', key('version-count'), adapter) or '0') then
    redis.call('HSET', key('version-count'), adapter, number)
  end
  local version = version_key(adapter, number)
  redis.call('HSET', version, 'entry', entry, 'model', model, 'candidate', candidate, 'digest', digest)
  if gate ~= '' then redis.call('HSET', version, 'gate', gate) end
  if scores ~= '' then redis.call('HSET', version, 'scores', scores) end
  if rolled_back ~= '' then redis.call('HSET', version, 'rolled_back', '1') end
  for _, told in ipairs(cjson.decode(events)) do
    redis.call('RPUSH', key('version', adapter, number, 'events'), told)
  end
  if promoted == '1' then
    point(adapter, number)
    for _, before in ipairs(cjson.decode(past)) do
      redis.call('RPUSH', key('promoted', model, 'past'), int(before))
    end
  end
  count = count + 1
end
redis.call('HSET', key('registry'), 'changes', 1)
return count
