-- Put behind common.lua in front of every script: versions of an adapter, and what each model points to.
--   version-count              hash   adapter to the highest number
--   versions:ADAPTER           zset   numbers
--   versions:ADAPTER:jobs      hash   job that registered it to number
--   version:ADAPTER:N          hash   entry (JSON of register), model, candidate, digest, profile, gate, scores,
--                                     rolled_back
--   version:ADAPTER:N:events   list   what happened to it
--   models                     set    models that ever had a promoted version
--   promoted:MODEL             hash   adapter, version, candidate, digest, serial, served_at, served_digest
--   latest:MODEL               set    digests that its `latest` may have besides `served_digest`: what it was seen to be
--                                     before, and what it was to be, since it was last seen to follow
--   promoted:MODEL:past        list   numbers that were promoted before, the last one last
--   withdrawn                  hash   model of which nothing is promoted any more to the digests (JSON) that its `latest`
--                                     is taken away with
--   withdrawing                zset   names of deleted versions that Ollama may still have, by when to try
--   removed-version:ADAPTER:N  string answer to a repeated deletion, for a while
--   undeployed                 zset   models whose `latest` has to follow, by when to try
--   deploying:MODEL            string who is at it, for as long as it may take
--   registry                   hash   changes, exported: counts for the readable export

local function version_key(adapter, number)
  return key('version', adapter, number)
end

local function registry_changed()
  redis.call('HINCRBY', key('registry'), 'changes', 1)
end

local function version_event(adapter, number, action, by, reason, forced)
  redis.call('RPUSH', key('version', adapter, number, 'events'), cjson.encode({
    at = int(now), action = action, by = by, reason = reason ~= '' and reason or nil, forced = forced or false,
  }))
  registry_changed()
end

-- Has `latest` follow, now.
local function undeploy(model)
  redis.call('ZADD', key('undeployed'), int(now), model)
end

-- `latest` is to be this digest; until it is seen to be, it may as well be what it was.
local function expect(model, digest)
  local pointer = key('promoted', model)
  local seen = redis.call('HGET', pointer, 'served_digest')
  redis.call('SADD', key('latest', model), digest, seen or digest)
  redis.call('HDEL', pointer, 'served_at', 'served_digest')
  undeploy(model)
end

-- A version's names in Ollama: its candidate, and the base through the same export where export.base asked for it
-- (`exported_base` of loco.contracts.serving).
local function names_of(candidate)
  return candidate, candidate .. '-base'
end

-- Has the names of a version that is no more taken out of Ollama, where it has them.
local function take_out(candidate)
  for _, name in ipairs({names_of(candidate)}) do
    redis.call('ZADD', key('withdrawing'), int(now), name)
  end
end

-- Points a model at a version of an adapter. The caller says what happens to the one before.
local function point(adapter, number)
  local model, candidate, digest = unpack(redis.call('HMGET', version_key(adapter, number), 'model', 'candidate', 'digest'))
  local pointer = key('promoted', model)
  redis.call('HDEL', version_key(adapter, number), 'rolled_back')
  redis.call('HSET', pointer, 'adapter', adapter, 'version', number, 'candidate', candidate, 'digest', digest,
    'serial', redis.call('INCR', key('promotions')))
  redis.call('SADD', key('models'), model)
  redis.call('HDEL', key('withdrawn'), model)
  expect(model, digest)
end

-- Promotes a version over the present one, which a rollback returns to.
local function promote(adapter, number, by, reason, forced)
  local model = redis.call('HGET', version_key(adapter, number), 'model')
  local present = redis.call('HGET', key('promoted', model), 'version')
  if present then
    redis.call('RPUSH', key('promoted', model, 'past'), present)
    version_event(adapter, present, 'replaced', by, 'Version ' .. number .. ' was promoted.')
  end
  point(adapter, number)
  version_event(adapter, number, 'promoted', by, reason, forced)
end

-- The candidate of a version was made, or made again: its digest may be another one.
local function set_digest(adapter, number, digest)
  local version = version_key(adapter, number)
  local model = redis.call('HGET', version, 'model')
  redis.call('HSET', version, 'digest', digest)
  local pointer = key('promoted', model)
  local owner, present = unpack(redis.call('HMGET', pointer, 'adapter', 'version'))
  if owner == adapter and present == number then
    redis.call('HSET', pointer, 'digest', digest, 'serial', redis.call('INCR', key('promotions')))
    expect(model, digest)
  end
end

-- A registered candidate gets its number; the same job again keeps it. Answers the number.
local function record_version(adapter, job, model, candidate, digest, entry)
  local jobs = key('versions', adapter, 'jobs')
  local number = redis.call('HGET', jobs, job)
  if not number then
    number = int(redis.call('HINCRBY', key('version-count'), adapter, 1))
    redis.call('HSET', jobs, job, number)
    redis.call('ZADD', key('versions', adapter), number, number)
  end
  redis.call('HSET', version_key(adapter, number), 'entry', entry, 'model', model, 'candidate', candidate)
  redis.call('ZREM', key('withdrawing'), names_of(candidate)) -- built once more after its version was deleted
  set_digest(adapter, number, digest)
  version_event(adapter, number, 'registered', 'register')
  return number
end

-- Tells a job and the audit trail what became of its version.
local function settle(job_id, stage, adapter, number, action, reason)
  local model = redis.call('HGET', version_key(adapter, number), 'model')
  local owner, serving = unpack(redis.call('HMGET', key('promoted', model), 'adapter', 'version'))
  local promoted = owner == adapter and serving == number
  redis.call('HSET', key('job', job_id), 'promotion', cjson.encode({
    version = tonumber(number), model = model, promoted = promoted,
    serving = owner == adapter and tonumber(serving) or nil,
    reason = reason or nil,
  }))
  event(job_id, 'version.' .. action, stage, cjson.encode({version = tonumber(number), model = model, reason = reason or nil}))
end

-- A version is kept as it is: the audit trail and the job are told so.
local function keep(job_id, stage, adapter, number, action, reason)
  version_event(adapter, number, action, 'gate', reason)
  settle(job_id, stage, adapter, number, action, reason)
end

-- Why a verdict is too weak to take the place of the stored one; nil: it takes it.
-- What policy `never` alone refused is no verdict: it replaces none, but for another of its kind.
local function too_weak(adapter, number, gate)
  local stored = redis.call('HGET', version_key(adapter, number), 'gate')
  if not stored then
    return nil
  end
  local old, new = cjson.decode(stored), cjson.decode(gate)
  local before, now_on = tonumber(old.problems) or 0, tonumber(new.problems) or 0
  local as = old.by_hand == true and '' or ' as ' .. old.verdict
  local force = old.verdict == 'refused' and old.by_hand ~= true and ' --force' or ''
  local by_hand = ': `loco promote ' .. adapter .. ' ' .. number .. force .. '` promotes it by hand'
  if now_on < before then
    return 'measured' .. as .. ' on ' .. int(before) .. ' problems before, now on ' .. int(now_on) .. by_hand
  end
  if new.by_hand == true and old.by_hand ~= true then
    return 'measured' .. as .. ' before, and policy never decides nothing' .. by_hand
  end
  return nil
end

-- What the gate's verdict makes of a measured version.
-- compared: the promoted version it was compared with, '' for none; why: the verdict in words.
local function pass_gate(job_id, stage, adapter, number, verdict, compared, why)
  local version = version_key(adapter, number)
  local model, rolled_back = unpack(redis.call('HMGET', version, 'model', 'rolled_back'))
  local owner, present = unpack(redis.call('HMGET', key('promoted', model), 'adapter', 'version'))
  local function kept(action, reason)
    keep(job_id, stage, adapter, number, action, reason)
  end
  if verdict == 'refused' then
    return kept('refused', why)
  end
  if owner and owner ~= adapter then
    return kept('not_promoted', model .. ':latest belongs to adapter ' .. owner .. ': give one of the two another model_name')
  end
  if present == number then
    version_event(adapter, number, 'measured', 'gate', why)
    return settle(job_id, stage, adapter, number, 'promoted', why)
  end
  if rolled_back then
    return kept('not_promoted', 'version ' .. number .. ' was rolled back by hand: `loco promote ' .. adapter .. ' ' .. number .. '` promotes it again')
  end
  if compared ~= '' and redis.call('EXISTS', version_key(adapter, compared)) == 0 then
    return kept('not_promoted', 'version ' .. compared .. ', which it was compared with, was deleted meanwhile: run `loco eval` again')
  end
  if (present or '') ~= compared then
    return kept('not_promoted', 'version ' .. (present or '') .. ' was promoted meanwhile: run `loco eval` again')
  end
  promote(adapter, number, 'gate', why)
  settle(job_id, stage, adapter, number, 'promoted', why)
end

-- An eval's verdict and scores on a version: stored, and acted on, unless they are too weak.
local function judge(job_id, stage, adapter, number, verdict, compared, why, gate, scores)
  local version = version_key(adapter, number)
  local weak = too_weak(adapter, number, gate)
  if not weak then
    redis.call('HSET', version, 'gate', gate, 'scores', scores)
    return pass_gate(job_id, stage, adapter, number, verdict, compared, why)
  end
  local owner, present = unpack(redis.call('HMGET', key('promoted', redis.call('HGET', version, 'model')), 'adapter', 'version'))
  if owner == adapter and present == number then
    version_event(adapter, number, 'measured', 'gate', weak)
    return settle(job_id, stage, adapter, number, 'promoted', weak)
  end
  keep(job_id, stage, adapter, number, 'not_promoted', weak)
end
