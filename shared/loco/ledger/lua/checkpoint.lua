-- namespace, task id, token, checkpoint JSON. Answers 1, or 0 for a stale token.
-- Progress beyond every earlier checkpoint gives the stage its whole crash budget again.
local _, id, token, checkpoint = unpack(ARGV)
if not is_current(id, token) then
  return 0
end
local task = key('task', id)
local job_id, stage, known, best = unpack(redis.call('HMGET', task, 'job_id', 'stage', 'checkpoints', 'best_step'))
local new = cjson.decode(checkpoint)
local newest_first = {new}
for _, old in ipairs(known and cjson.decode(known) or {}) do
  if old['path'] ~= new['path'] and #newest_first < CHECKPOINTS_KEPT then
    newest_first[#newest_first + 1] = old
  end
end
redis.call('HSET', task, 'checkpoints', cjson.encode(newest_first))
if new['step'] > tonumber(best) then
  redis.call('HSET', task, 'best_step', new['step'], 'crashes', 0)
end
event(job_id, 'stage.checkpoint', stage, checkpoint)
return 1
