-- namespace, model, adapter, number it goes back to, by, reason, nonce of the call
-- Answers 'ok' | 'changed' (something was promoted or rolled back meanwhile).
local _, model, adapter, number, by, reason, nonce = unpack(ARGV)
local pointer = key('promoted', model)
local owner, present, last_nonce = unpack(redis.call('HMGET', pointer, 'adapter', 'version', 'nonce'))
if last_nonce == nonce then
  return 'ok' -- the same call again after a lost reply
end
local past = key('promoted', model, 'past')
if owner ~= adapter or redis.call('LINDEX', past, -1) ~= number then
  return 'changed'
end
redis.call('RPOP', past)
version_event(adapter, present, 'rolled_back', by, reason)
point(adapter, number)
redis.call('HSET', pointer, 'nonce', nonce)
redis.call('HSET', version_key(adapter, present), 'rolled_back', '1')
version_event(adapter, number, 'promoted', by, 'Rolled back from version ' .. present .. '.')
return 'ok'
