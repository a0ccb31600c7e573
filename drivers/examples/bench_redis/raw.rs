//! What the server does without the driver, twice: bare, and with no more than the contract asks for.
//!
//! *Bare* is `SET` and `RPUSH`, and a script that pops, notes and forgets. It knows neither ids that come twice, nor a limit,
//! an order by due time, a token, a lease, or that a job is remembered for the retention after its end.
//!
//! *The contract's minimum* keeps all that with the fewest commands, in scripts written for this alone: the limit, the id that
//! adds nothing the second time, the order, the fencing token with its lease, and the memory of what is over. It leaves out
//! what Redis can't do cheaper by itself: other states, failures, results, ordering keys, completions, inspection, damaged
//! data, wake-ups and clocks that jump. A caller sends its own calls; the connection pipelines them.

use super::{BATCHED, CALLERS, CLAIMERS, SINGLE, payload};
use longshore_drivers::JobId;
use redis::{Script, aio::MultiplexedConnection};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// Takes jobs out of a list and notes that they are held.
const POP: &str = "local ids = redis.call('LPOP', KEYS[1], ARGV[1]) \
    if not ids then return {} end \
    local keys, held = {}, {} \
    for at, id in ipairs(ids) do keys[at] = 'raw:' .. id held[2 * at - 1] = 1 held[2 * at] = id end \
    redis.call('ZADD', 'raw-active', unpack(held)) \
    return { ids, redis.call('MGET', unpack(keys)) }";
/// Notes that they are over.
const DONE: &str = "redis.call('ZREM', KEYS[1], unpack(ARGV)) \
    for _, id in ipairs(ARGV) do redis.call('DEL', 'raw:' .. id) end return 1";

/// The limit; then an id and a payload for each job.
const ADD: &str = "local time = redis.call('TIME') local now = time[1] * 1000 + math.floor(time[2] / 1000) \
    local room = ARGV[1] - redis.call('ZCARD', 'm:ready') local ids, ready, states = {}, {}, {} \
    for at = 2, #ARGV, 2 do \
      if room <= 0 then states[#states + 1] = 'F' \
      elseif redis.call('HSETNX', 'm:job', ARGV[at], ARGV[at + 1]) == 0 then states[#states + 1] = 'D' \
      else room = room - 1 states[#states + 1] = 'C' ready[#ready + 1] = now ready[#ready + 1] = ARGV[at] end \
    end \
    if #ready > 0 then redis.call('ZADD', 'm:ready', unpack(ready)) end return table.concat(states)";
/// How many, the token, and the lease.
const LEASE: &str = "local time = redis.call('TIME') local now = time[1] * 1000 + math.floor(time[2] / 1000) \
    local ids = redis.call('ZRANGE', 'm:ready', 0, ARGV[1] - 1) if #ids == 0 then return {} end \
    redis.call('ZREMRANGEBYRANK', 'm:ready', 0, #ids - 1) local held, tokens = {}, {} \
    for at, id in ipairs(ids) do \
      held[2 * at - 1] = now + ARGV[3] held[2 * at] = id tokens[2 * at - 1] = id tokens[2 * at] = ARGV[2] \
    end \
    redis.call('ZADD', 'm:active', unpack(held)) redis.call('HSET', 'm:token', unpack(tokens)) \
    return { ids, redis.call('HMGET', 'm:job', unpack(ids)) }";
/// The token, and ids: they are over, and remembered.
const END: &str = "local time = redis.call('TIME') local now = time[1] * 1000 + math.floor(time[2] / 1000) \
    local ids = { unpack(ARGV, 2) } local over, done = {}, {} \
    local tokens, leases = redis.call('HMGET', 'm:token', unpack(ids)), redis.call('ZMSCORE', 'm:active', unpack(ids)) \
    for at, id in ipairs(ids) do \
      if tokens[at] == ARGV[1] and leases[at] and tonumber(leases[at]) > now then \
        over[#over + 1] = id done[#done + 1] = now done[#done + 1] = id \
      end \
    end \
    if #over > 0 then redis.call('ZREM', 'm:active', unpack(over)) redis.call('HDEL', 'm:token', unpack(over)) \
      redis.call('ZADD', 'm:done', unpack(done)) end return #over";

/// Stores payloads by id and pushes the ids to a list.
pub(super) async fn bare_enqueues(connection: &MultiplexedConnection, batch: usize) -> usize {
    let total = if batch == 1 { SINGLE } else { BATCHED };
    let rounds = total / CALLERS / batch;
    let tasks = (0..CALLERS).map(|_| {
        let mut connection = connection.clone();
        tokio::spawn(async move {
            for _ in 0..rounds {
                let mut pipe = redis::pipe();
                for _ in 0..batch {
                    let id = JobId::generate();
                    pipe.cmd("SET").arg(format!("raw:{id}")).arg(payload()).ignore();
                    pipe.cmd("RPUSH").arg("raw-ready").arg(id.as_str()).ignore();
                }
                pipe.exec_async(&mut connection).await.unwrap();
            }
        })
    });
    futures::future::join_all(tasks).await;
    rounds * CALLERS * batch
}

/// Pops and forgets by script.
pub(super) async fn bare_drain(connection: &MultiplexedConnection, batch: usize) -> usize {
    let tasks = (0..CLAIMERS).map(|_| {
        let mut connection = connection.clone();
        tokio::spawn(async move {
            let (pop, done) = (Script::new(POP), Script::new(DONE));
            let mut count = 0;
            loop {
                let popped: Vec<Vec<String>> =
                    pop.key("raw-ready").arg(batch).invoke_async(&mut connection).await.unwrap();
                let Some(ids) = popped.first() else { return count };
                let () = done.key("raw-active").arg(ids).invoke_async(&mut connection).await.unwrap();
                count += ids.len();
            }
        })
    });
    futures::future::join_all(tasks).await.into_iter().map(Result::unwrap).sum()
}

/// The contract's minimum of an enqueue.
pub(super) async fn least_enqueues(connection: &MultiplexedConnection, batch: usize) -> usize {
    let total = if batch == 1 { SINGLE } else { BATCHED };
    let rounds = total / CALLERS / batch;
    let tasks = (0..CALLERS).map(|_| {
        let mut connection = connection.clone();
        tokio::spawn(async move {
            let add = Script::new(ADD);
            for _ in 0..rounds {
                let mut call = add.prepare_invoke();
                call.arg(10_000_000);
                for _ in 0..batch {
                    call.arg(JobId::generate().as_str()).arg(payload());
                }
                let codes: String = call.invoke_async(&mut connection).await.unwrap();
                assert!(codes.len() == batch && codes.bytes().all(|code| code == b'C'), "{codes}");
            }
        })
    });
    futures::future::join_all(tasks).await.into_iter().for_each(|ended| ended.unwrap());
    rounds * CALLERS * batch
}

/// The contract's minimum of a claim and a settle, until all `total` are over.
pub(super) async fn least_drain(connection: &MultiplexedConnection, total: usize, batch: usize) -> usize {
    let done = Arc::new(AtomicUsize::new(0));
    let tasks = (0..CLAIMERS).map(|_| {
        let (mut connection, done) = (connection.clone(), done.clone());
        tokio::spawn(async move {
            let (lease, end) = (Script::new(LEASE), Script::new(END));
            while done.load(Ordering::Relaxed) < total {
                let token = JobId::generate().as_str().to_owned();
                let mut call = lease.prepare_invoke();
                let call = call.arg(batch).arg(&token).arg(30_000);
                let held: Vec<Vec<Vec<u8>>> = call.invoke_async(&mut connection).await.unwrap();
                let Some(ids) = held.first() else {
                    tokio::task::yield_now().await;
                    continue;
                };
                let mut call = end.prepare_invoke();
                let over: usize = call.arg(&token).arg(ids).invoke_async(&mut connection).await.unwrap();
                done.fetch_add(over, Ordering::Relaxed);
            }
        })
    });
    futures::future::join_all(tasks).await.into_iter().for_each(|ended| ended.unwrap());
    done.load(Ordering::Relaxed)
}

/// The time from a push to the answer of a pop that waits.
pub(super) async fn idle(client: &redis::Client, connection: &MultiplexedConnection) -> Vec<Duration> {
    let mut pusher = connection.clone();
    let config = redis::AsyncConnectionConfig::new().set_response_timeout(None);
    let mut popper = client.get_multiplexed_async_connection_with_config(&config).await.unwrap();
    let mut times = Vec::new();
    for _ in 0..super::IDLE {
        let wait = async {
            let _: Vec<String> =
                redis::cmd("BLPOP").arg("raw-idle").arg(5).query_async(&mut popper).await.unwrap();
            Instant::now()
        };
        let push = async {
            tokio::time::sleep(super::PAUSE).await;
            let since = Instant::now();
            let () =
                redis::cmd("RPUSH").arg("raw-idle").arg(payload()).query_async(&mut pusher).await.unwrap();
            since
        };
        let (at, since) = tokio::join!(wait, push);
        times.push(at.saturating_duration_since(since));
    }
    times
}
