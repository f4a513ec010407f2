-- namespace, adapter, number, candidate, digest ('' when nothing came of it for the version), by, reason
-- Answers 1, or 0 when there is no such version: what was made under its name has to go, unless its job has
-- registered again.
local _, adapter, number, candidate, digest, by, reason = unpack(ARGV)
if redis.call('EXISTS', version_key(adapter, number)) == 0 then
  local builder = string.match(candidate, ':(.+)$') or ''
  if redis.call('HEXISTS', key('versions', adapter, 'jobs'), builder) == 0 then
    take_out(candidate)
  end
  return 0
end
if digest ~= '' then
  set_digest(adapter, number, digest)
  version_event(adapter, number, 'restored', by, reason)
end
return 1
