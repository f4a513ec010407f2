-- namespace, adapter, number, '1' to overrule a refusal, by, reason
-- Answers 'promoted' | 'same' | 'missing' | 'refused' | 'foreign'.
local _, adapter, number, force, by, reason = unpack(ARGV)
local model, gate = unpack(redis.call('HMGET', version_key(adapter, number), 'model', 'gate'))
if not model then
  return 'missing'
end
local owner, present = unpack(redis.call('HMGET', key('promoted', model), 'adapter', 'version'))
if owner and owner ~= adapter then
  return 'foreign'
end
if present == number then
  undeploy(model) -- `latest` is looked at again
  return 'same'
end
local refused = false
if gate then
  local result = cjson.decode(gate)
  refused = result.verdict == 'refused' and result.by_hand ~= true
end
if refused and force ~= '1' then
  return 'refused'
end
promote(adapter, number, by, reason, refused)
return 'promoted'
