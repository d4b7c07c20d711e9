"""What Redis does with jobs, in Lua.

Facts
  - A script is done without anything in between (redis.io/docs/interact/programmability/eval-intro).
  - A script whose first change is refused, for want of memory or by a replica, has changed nothing; after
    its first change nothing is refused for that.
  - From Redis 5 on what a script changed is written down, not the script: the members of a set may come in
    any order (redis.io/docs/interact/programmability/eval-intro).
  - A number of Lua is a float. A job's times and numbers are never made one to be kept.

Rules
  1. Everything is under ``verbatim:job:`` and ``verbatim:jobs:``. Every change of a job's state is one
     script.
  2. What can be counted is not written down: an owner's jobs are the members of its sets. Only totals are
     numbers, and they go with the last unfinished job. No key is left empty.
  3. Who changes a job in processing says its worker and its number, and they have to be right.
  4. Where a body was put aside, the first change is one that needs no memory: it is never left there.

Not here: who asks (`redis_jobs`). A cluster is not supported: scripts make the names of their keys.
"""

# QUEUE..owner: "place:id" of its pending jobs, by when they were made; the place counts what was submitted.
# OWNERS: "place:owner" of all who have pending jobs, by when the oldest of these was made.
# DOING..owner and HELD..worker: the ids of their jobs in processing.
# TOTALS: `pending`, `bytes` of their bodies, `unfinished` (those in processing too), `last` place.
# DUE: the ids of jobs whose webhook is to be told, by when. BEATS: worker -> count.
SHARED = """
local call = redis.call
local JOB, REQUEST, RESULT = 'verbatim:job:', 'verbatim:jobs:request:', 'verbatim:jobs:result:'
local QUEUE, OWNERS, TOTALS = 'verbatim:jobs:queue:', 'verbatim:jobs:owners', 'verbatim:jobs:totals'
local DOING, HELD = 'verbatim:jobs:doing:', 'verbatim:jobs:held:'
local DUE, BEATS, STAGED = 'verbatim:jobs:due', 'verbatim:jobs:beats', 'verbatim:jobs:staged'

local function first(owner)
    local oldest = call('ZRANGE', QUEUE .. owner, 0, 0, 'WITHSCORES')
    return oldest[1] and oldest[1]:sub(1, 17) .. owner, oldest[2]
end

local function queue(id, change)
    local job = call('HMGET', JOB .. id, 'owner', 'place', 'created')
    local owner, member = job[1], job[2] .. ':' .. id
    local before = first(owner)
    local size = call('STRLEN', REQUEST .. id)
    if change == 'ZADD' then
        call('ZADD', QUEUE .. owner, job[3], member)
        call('HINCRBY', TOTALS, 'pending', 1)
        call('HINCRBY', TOTALS, 'bytes', size)
    else
        call('ZREM', QUEUE .. owner, member)
        call('HINCRBY', TOTALS, 'pending', -1)
        -- Not -size: a number of Lua can be -0, which HINCRBY does not read.
        call('HINCRBY', TOTALS, 'bytes', 0 - size)
    end
    local after, created = first(owner)
    if before ~= after then
        if before then call('ZREM', OWNERS, before) end
        if after then call('ZADD', OWNERS, created, after) end
    end
end

local function let_go(id)
    local job = call('HMGET', JOB .. id, 'owner', 'worker')
    call('SREM', DOING .. job[1], id)
    call('SREM', HELD .. job[2], id)
end

local function over()
    if call('HINCRBY', TOTALS, 'unfinished', -1) == 0 then call('DEL', TOTALS) end
end

local function leased(id, worker, number)
    local job = call('HMGET', JOB .. id, 'state', 'worker', 'number')
    return job[1] == 'processing' and job[2] == worker and job[3] == number
end
"""

# ARGV: id, owner, operation, created, ttl, webhook, head; the bounds: jobs, jobs of an owner, bytes.
SUBMIT = """
local id, owner = ARGV[1], ARGV[2]
if call('EXISTS', JOB .. id) == 1 then
    call('DEL', STAGED)
    return ''
end
local totals = call('HMGET', TOTALS, 'pending', 'bytes')
local bound = ''
if tonumber(totals[1] or 0) >= tonumber(ARGV[8]) then
    bound = 'jobs'
elseif call('ZCARD', QUEUE .. owner) >= tonumber(ARGV[9]) then
    bound = 'jobs_of_owner'
elseif tonumber(totals[2] or 0) + call('STRLEN', STAGED) > tonumber(ARGV[10]) then
    bound = 'bytes'
end
if bound ~= '' then
    call('DEL', STAGED)
    return bound
end
call('RENAME', STAGED, REQUEST .. id)
call('HINCRBY', TOTALS, 'unfinished', 1)
local place = string.format('%016d', call('HINCRBY', TOTALS, 'last', 1))
call('HSET', JOB .. id, 'state', 'pending', 'place', place, 'owner', owner, 'operation', ARGV[3],
    'created', ARGV[4], 'ttl', ARGV[5], 'webhook', ARGV[6], 'head', ARGV[7])
queue(id, 'ZADD')
return ''
"""

# ARGV: worker, most of an owner.
CLAIM = """
local worker, most = ARGV[1], tonumber(ARGV[2])
local from = 0
repeat
    local owners = call('ZRANGE', OWNERS, from, from + 99)
    for _, entry in ipairs(owners) do
        local owner = entry:sub(18)
        if call('SCARD', DOING .. owner) < most then
            local id = call('ZRANGE', QUEUE .. owner, 0, 0)[1]:sub(18)
            queue(id, 'ZREM')
            call('SADD', DOING .. owner, id)
            call('SADD', HELD .. worker, id)
            -- Whoever holds a job is among those who can be found dead.
            call('HSETNX', BEATS, worker, 0)
            call('HSET', JOB .. id, 'state', 'processing', 'worker', worker)
            call('HINCRBY', JOB .. id, 'number', 1)
            local job = call('HMGET', JOB .. id, 'number', 'owner', 'operation', 'created', 'ttl',
                'webhook', 'head')
            table.insert(job, 1, id)
            return job
        end
    end
    from = from + 100
until #owners < 100
return false
"""

# ARGV: id, worker, number. `begun` is the number of the lease under which it began.
BEGIN = """
local id, number = ARGV[1], ARGV[3]
if not leased(id, ARGV[2], number) then return 0 end
if call('HGET', JOB .. id, 'begun') ~= number then
    call('HSET', JOB .. id, 'begun', number)
    call('HINCRBY', JOB .. id, 'begins', 1)
end
return 1
"""

# ARGV: id, worker, number.
HAND_BACK = """
local id = ARGV[1]
if not leased(id, ARGV[2], ARGV[3]) then return 0 end
let_go(id)
call('HSET', JOB .. id, 'state', 'pending')
call('HDEL', JOB .. id, 'worker', 'begun')
queue(id, 'ZADD')
return 1
"""

# ARGV: id, worker, number; state, status, answer, packed, completed, expires; seconds to keep it.
# A job that is not in processing has a worker only if it is over: who asks again has its end kept already.
FINISH = """
local id, worker, number = ARGV[1], ARGV[2], ARGV[3]
if not leased(id, worker, number) then
    call('DEL', STAGED)
    local job = call('HMGET', JOB .. id, 'worker', 'number')
    return job[1] == worker and job[2] == number and 1 or 0
end
let_go(id)
call('RENAME', STAGED, RESULT .. id)
call('HSET', JOB .. id, 'state', ARGV[4], 'status', ARGV[5], 'answer', ARGV[6], 'packed', ARGV[7],
    'completed', ARGV[8], 'expires', ARGV[9])
call('DEL', REQUEST .. id)
call('HDEL', JOB .. id, 'head', 'place', 'begun', 'begins')
call('EXPIRE', JOB .. id, ARGV[10])
call('EXPIRE', RESULT .. id, ARGV[10])
if call('HGET', JOB .. id, 'webhook') ~= '' then call('ZADD', DUE, ARGV[8], id) end
over()
return 1
"""

# ARGV: id.
REMOVE = """
local id = ARGV[1]
local state = call('HGET', JOB .. id, 'state')
if state == 'pending' then
    queue(id, 'ZREM')
    over()
elseif state == 'processing' then
    let_go(id)
    over()
end
call('DEL', JOB .. id, REQUEST .. id, RESULT .. id)
call('ZREM', DUE, id)
return state
"""

# ARGV: worker.
HELD = """
local held = {}
for _, id in ipairs(call('SMEMBERS', HELD .. ARGV[1])) do
    local job = call('HMGET', JOB .. id, 'number', 'operation', 'ttl', 'begun', 'begins')
    if job[1] then
        table.insert(job, 1, id)
        table.insert(held, job)
    else
        -- Somebody has deleted it by hand, or a server that evicts.
        call('SREM', HELD .. ARGV[1], id)
        call('DEL', REQUEST .. id)
        over()
    end
end
return held
"""

# ARGV: worker, dead, beat.
ADOPT = """
local worker, dead = ARGV[1], ARGV[2]
if call('HGET', BEATS, dead) ~= ARGV[3] then return end
for _, id in ipairs(call('SMEMBERS', HELD .. dead)) do
    call('SMOVE', HELD .. dead, HELD .. worker, id)
    if call('EXISTS', JOB .. id) == 1 then
        call('HSET', JOB .. id, 'worker', worker)
        call('HINCRBY', JOB .. id, 'number', 1)
    end
    call('HSETNX', BEATS, worker, 0)
end
"""

# ARGV: worker.
LEAVE = """
if call('EXISTS', HELD .. ARGV[1]) == 0 then call('HDEL', BEATS, ARGV[1]) end
"""

# ARGV: now, again. Nothing but expired ones, so far: an empty answer.
NEXT = """
local ids = call('ZRANGEBYSCORE', DUE, '-inf', ARGV[1], 'LIMIT', 0, 100)
for _, id in ipairs(ids) do
    local expires = call('HGET', JOB .. id, 'expires')
    if expires and tonumber(expires) > tonumber(ARGV[1]) then
        call('ZADD', DUE, ARGV[2], id)
        return {id, call('HINCRBY', JOB .. id, 'tries', 1), call('HGET', JOB .. id, 'webhook')}
    end
    call('ZREM', DUE, id)
end
return #ids > 0 and {}
"""

# ARGV: cursor.
PURGE = """
local scanned = call('ZSCAN', DUE, ARGV[1], 'COUNT', 100)
for index = 1, #scanned[2], 2 do
    local id = scanned[2][index]
    if call('EXISTS', JOB .. id) == 0 then call('ZREM', DUE, id) end
end
return scanned[1]
"""
