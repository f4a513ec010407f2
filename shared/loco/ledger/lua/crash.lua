-- namespace, task id, token, failure JSON, crash budget. Answers 1, or 0 for a stale token.
local _, id, token, failure, budget = unpack(ARGV)
if not is_current(id, token) then
  return 0
end
crash(id, failure, budget)
return 1
