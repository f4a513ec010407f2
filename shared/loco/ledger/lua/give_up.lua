-- namespace, task id, token, failure JSON
-- Ends an attempt whose job cannot be read by the program that claimed it, for good.
local _, id, token, failure = unpack(ARGV)
if not is_current(id, token) then
  return 0
end
end_failed(id, failure)
return 1
