-- namespace, model, nonce of who copies, time it may take (ms)
-- Answers 'busy', 'none' (nothing is promoted, and nothing to be taken away), or 'yours'.
-- A deployer that never said how it ended may still be copying: what comes after it is looked at once more.
local _, model, nonce, patience = unpack(ARGV)
local holder = key('deploying', model)
local other = redis.call('GET', holder)
if other and other ~= nonce then
  return 'busy'
end
if redis.call('EXISTS', key('promoted', model)) == 0 and redis.call('HEXISTS', key('withdrawn'), model) == 0 then
  redis.call('ZREM', key('undeployed'), model)
  return 'none'
end
redis.call('SET', holder, nonce, 'PX', patience)
local unfinished = redis.call('GET', holder .. ':unfinished')
if unfinished and unfinished ~= nonce then
  redis.call('SET', holder .. ':again', '1')
end
redis.call('SET', holder .. ':unfinished', nonce)
return 'yours'
