-- namespace, model, nonce of who copied, serial it copied, 'withdrawn' (`latest` was taken away) or '' (it
-- failed), digest, pause (ms) before the next try
-- Answers 'ok' | 'stale' (something else is promoted, or another deployer took over) | 'failed'.
local _, model, nonce, serial, digest, pause = unpack(ARGV)
local holder = key('deploying', model)
-- Whoever took over is the last to have begun; while nobody did, being slow is no harm.
local mine = redis.call('GET', holder .. ':unfinished') == nonce
if redis.call('GET', holder) == nonce then
  redis.call('DEL', holder)
end
if mine then
  redis.call('DEL', holder .. ':unfinished')
end
if serial == '' then
  redis.call('ZADD', key('undeployed'), int(now + tonumber(pause)), model)
  return 'failed'
end
local pointer = key('promoted', model)
if not mine or (redis.call('HGET', pointer, 'serial') or 'withdrawn') ~= serial then
  if digest ~= '' then
    redis.call('SADD', key('latest', model), digest)
  end
  undeploy(model) -- this copy may have come after a newer one
  return 'stale'
end
if serial ~= 'withdrawn' then
  redis.call('HSET', pointer, 'served_at', int(now), 'served_digest', digest)
  registry_changed()
end
if redis.call('DEL', holder .. ':again') == 1 then
  redis.call('ZADD', key('undeployed'), int(now + tonumber(pause)), model)
else
  redis.call('ZREM', key('undeployed'), model)
  redis.call('HDEL', key('withdrawn'), model)
  redis.call('DEL', key('latest', model))
end
return 'ok'
