-- namespace, task id, token, failure JSON, retryable ('1' or '0'), retries, first pause (ms), longest pause (ms)
-- Answers 1, or 0 for a stale token.
local _, id, token, failure, retryable, retries, backoff, longest = unpack(ARGV)
if not is_current(id, token) then
  return 0
end
local task = key('task', id)
local job_id, stage, queue = unpack(redis.call('HMGET', task, 'job_id', 'stage', 'queue'))
if cancel_requested(job_id) then
  end_cancelled(id, failure)
  return 1
end
local retry = tonumber(redis.call('HGET', task, 'retries')) + 1
if retryable == '0' or retry > tonumber(retries) then
  end_failed(id, failure)
  return 1
end
local pause = math.min(tonumber(backoff) * 2 ^ (retry - 1), tonumber(longest))
leave_queues(id)
redis.call('HSET', task, 'retries', retry, 'error', failure, 'status', 'queued', 'queued_at', int(now))
redis.call('ZADD', key('delayed', queue), int(now + pause), id)
event(job_id, 'stage.retry', stage, '{"reason":"failure","retry":' .. retry .. ',"retries":' .. retries ..
  ',"pause_seconds":' .. pause / 1000 .. ',"error":' .. failure .. '}')
return 1
