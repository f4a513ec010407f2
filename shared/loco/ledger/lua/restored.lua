-- namespace, adapter, number, digest, by, reason. Answers 1, or 0 when there is no such version.
local _, adapter, number, digest, by, reason = unpack(ARGV)
if redis.call('EXISTS', version_key(adapter, number)) == 0 then
  return 0
end
set_digest(adapter, number, digest)
version_event(adapter, number, 'restored', by, reason)
return 1
