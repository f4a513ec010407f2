-- namespace, worker id, info JSON, lifetime (ms)
local _, worker, info, lifetime = unpack(ARGV)
redis.call('HSET', key('worker', worker), 'info', info, 'seen_at', int(now))
redis.call('PEXPIRE', key('worker', worker), lifetime)
redis.call('ZADD', key('workers'), int(now), worker)
redis.call('ZREMRANGEBYSCORE', key('workers'), '-inf', int(now - tonumber(lifetime)))
return 1
