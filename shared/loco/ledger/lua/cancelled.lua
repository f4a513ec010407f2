-- namespace, task id, token. Answers 1, or 0 for a stale token or a job that nobody cancelled.
local _, id, token = unpack(ARGV)
if not is_current(id, token) or not cancel_requested(redis.call('HGET', key('task', id), 'job_id')) then
  return 0
end
end_cancelled(id)
return 1
