-- namespace, task id, token. Answers 1, or 0 for a stale token. No crash is counted.
local _, id, token = unpack(ARGV)
if not is_current(id, token) then
  return 0
end
if cancel_requested(redis.call('HGET', key('task', id), 'job_id')) then
  end_cancelled(id)
  return 1
end
leave_queues(id)
enqueue(id, false, '{"reason":"drain"}')
return 1
