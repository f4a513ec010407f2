-- namespace
-- Puts the jobs of an earlier release into the index by adapter and status, once.
if redis.call('SETNX', key('indexed'), '1') == 1 then
  for _, job_id in ipairs(redis.call('ZRANGE', key('jobs'), 0, -1)) do
    local job = key('job', job_id)
    if redis.call('TYPE', job).ok == 'hash' then
      local status, seq, adapter = unpack(redis.call('HMGET', job, 'status', 'seq', 'adapter'))
      if status and tonumber(seq) and adapter then
        redis.call('ZADD', key('jobs', 'adapter', adapter, 'status', status), seq, job_id)
      end
    end
  end
end
return 1
