//! The server at the other end: which one it is, what it keeps, and whose data it has.

use super::{
    errors::{self, Call},
    scripts,
};
use crate::{Durability, Error, ErrorKind, Result};
use redis::{Value, aio::MultiplexedConnection};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// The version of the layout of our keys. It stands in `<prefix>:meta`.
const LAYOUT: u32 = 2;
/// Scripts may write after they asked for the time from this version on.
const OLDEST: (u32, u32) = (7, 0);

/// What is known of a server from the beginning of a connection.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub(super) version: String,
    pub(super) backend_id: String,
    pub(super) durability: Durability,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    layout: u32,
    backend_id: String,
}

/// Asks the server who it is and makes it ours.
pub(super) async fn meet(connection: &mut MultiplexedConnection, prefix: &str, call: Call) -> Result<Facts> {
    let info = text(ask(connection, redis::cmd("INFO").arg("everything"), "INFO", call).await?);
    old(field(&info, "redis_version").unwrap_or("unknown"))?;
    let version = version(&info);
    if field(&info, "cluster_enabled") == Some("1") {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "cluster: the Redis server is a node of a cluster; use one without cluster mode",
        ));
    }
    evicting(field(&info, "maxmemory_policy").unwrap_or("noeviction"))?;
    if field(&info, "loading") == Some("1") {
        return Err(Error::unavailable("the Redis server is still loading its data; try again"));
    }
    if field(&info, "role") == Some("slave") {
        return Err(Error::unavailable("the Redis server is a read-only replica: use the primary's address"));
    }
    may_tell(connection, prefix, call).await?;
    let durability = durability(connection, field(&info, "aof_enabled") == Some("1")).await;
    let backend_id = identity(connection, prefix, call).await?;
    Ok(Facts { version, backend_id, durability })
}

/// Which server it is. Those that came from Redis tell the version of Redis that they resemble, and their own one beside it.
fn version(info: &str) -> String {
    match (field(info, "valkey_version"), field(info, "redis_version")) {
        (Some(valkey), _) => format!("Valkey {valkey}"),
        (None, Some(redis)) => redis.to_owned(),
        (None, None) => "unknown".to_owned(),
    }
}

/// Scripts tell of jobs and completions on channels, after they wrote them: a user without the right is refused before that.
async fn may_tell(connection: &mut MultiplexedConnection, prefix: &str, call: Call) -> Result<()> {
    // Nobody reads an empty message, and no driver has an empty name.
    for channel in ["wake", "w:"] {
        let mut publish = redis::cmd("PUBLISH");
        publish.arg(format!("{prefix}:{channel}")).arg("");
        ask(connection, &publish, "PUBLISH", call).await.map_err(|error| match error.kind {
            ErrorKind::Unauthorized => Error::new(
                ErrorKind::Unauthorized,
                format!(
                    "the Redis server's user lacks the right to PUBLISH and SUBSCRIBE on Longshore's channels: \
                     give it &{prefix}:* (ACL SETUSER)"
                ),
            ),
            _ => error,
        })?;
    }
    Ok(())
}

/// Has the server know all scripts, so that no call has to be made twice.
pub(super) async fn teach(connection: &mut MultiplexedConnection) -> Result<()> {
    let mut exist = redis::cmd("SCRIPT");
    exist.arg("EXISTS");
    for script in scripts::ALL {
        exist.arg(script.hash());
    }
    let known = ask(connection, &exist, "SCRIPT EXISTS", Call::Prepares).await?;
    let Value::Array(known) = known else { return Ok(()) };
    for (script, known) in scripts::ALL.iter().zip(known) {
        if matches!(known, Value::Int(0) | Value::Boolean(false)) {
            let mut load = redis::cmd("SCRIPT");
            load.arg("LOAD").arg(script.text);
            ask(connection, &load, "SCRIPT LOAD", Call::Prepares).await?;
        }
    }
    Ok(())
}

async fn ask(
    connection: &mut MultiplexedConnection,
    cmd: &redis::Cmd,
    what: &str,
    call: Call,
) -> Result<Value> {
    let answer = connection.send_packed_command(cmd).await.and_then(Value::extract_error);
    answer.map_err(|error| errors::failed(&error, what, call))
}

fn text(value: Value) -> String {
    match value {
        Value::BulkString(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Value::VerbatimString { text, .. } | Value::SimpleString(text) => text,
        _ => String::new(),
    }
}

fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

fn old(version: &str) -> Result<()> {
    let mut parts = version.split('.').map(|part| part.parse::<u32>().ok());
    let known = parts.next().flatten().zip(parts.next().flatten());
    if known.is_some_and(|known| known < OLDEST) {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("the Redis server is version {version}; 7.0 or newer is needed"),
        ));
    }
    Ok(())
}

/// A server that may throw any key away can't keep jobs. The `volatile` policies throw away only keys that expire; ours
/// don't.
fn evicting(policy: &str) -> Result<()> {
    if policy.starts_with("allkeys") {
        return Err(Error::new(
            ErrorKind::Fatal,
            format!(
                "the Redis server's maxmemory-policy is {policy}: it would throw jobs away; \
                 set maxmemory-policy to noeviction"
            ),
        ));
    }
    Ok(())
}

/// What survives. A server that doesn't tell how often it syncs is taken to do it every second, as Redis does unless told
/// otherwise.
async fn durability(connection: &mut MultiplexedConnection, appends: bool) -> Durability {
    if !appends {
        return Durability::None;
    }
    let asked = connection.send_packed_command(redis::cmd("CONFIG").arg("GET").arg("appendfsync")).await;
    let answer: HashMap<String, String> =
        asked.ok().and_then(|value| redis::from_redis_value(value).ok()).unwrap_or_default();
    match answer.get("appendfsync").map(String::as_str) {
        Some("always") => Durability::Machine,
        Some("no") => Durability::Process,
        // While an fsync is under way, up to two seconds of acknowledged writes are in the process alone.
        _ => Durability::Mostly,
    }
}

/// The id of the data, made once.
async fn identity(connection: &mut MultiplexedConnection, prefix: &str, call: Call) -> Result<String> {
    let key = format!("{prefix}:meta");
    let mut known = ask(connection, redis::cmd("GET").arg(&key), "GET", call).await?;
    if known == Value::Nil {
        let meta = Meta { layout: LAYOUT, backend_id: uuid::Uuid::now_v7().to_string() };
        let meta = serde_json::to_string(&meta).expect("plain data");
        ask(connection, redis::cmd("SET").arg(&key).arg(meta).arg("NX"), "SET", call).await?;
        known = ask(connection, redis::cmd("GET").arg(&key), "GET", call).await?;
    }
    let broken =
        || Error::new(ErrorKind::Fatal, format!("the key {key} is not Longshore's; use another prefix"));
    let Value::BulkString(bytes) = known else { return Err(broken()) };
    let meta: Meta = serde_json::from_slice(&bytes).map_err(|_| broken())?;
    if meta.layout > LAYOUT {
        return Err(Error::new(
            ErrorKind::Fatal,
            format!(
                "the data under {key} was written by a newer Longshore (layout {}); use that one",
                meta.layout
            ),
        ));
    }
    if meta.layout < LAYOUT {
        return Err(Error::new(
            ErrorKind::Fatal,
            format!(
                "the data under {key} was written before the first release (layout {}); let that version work its \
                 queues off and remove the keys, or use another prefix",
                meta.layout
            ),
        ));
    }
    Ok(meta.backend_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_that_throw_jobs_away_are_refused_by_name() {
        for good in ["noeviction", "volatile-lru", "volatile-ttl"] {
            assert!(evicting(good).is_ok(), "{good}");
        }
        for bad in ["allkeys-lru", "allkeys-lfu", "allkeys-random"] {
            let error = evicting(bad).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Fatal);
            assert!(error.message.contains(bad) && error.message.contains("noeviction"), "{error}");
        }
    }

    #[test]
    fn a_server_that_came_from_redis_tells_its_own_version() {
        assert_eq!(version("redis_version:7.0.15\r\n"), "7.0.15");
        let info = "redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:8.0.1\r\n";
        assert_eq!(version(info), "Valkey 8.0.1");
        assert_eq!(version("# Server\r\n"), "unknown");
    }

    #[test]
    fn old_servers_are_refused() {
        for good in ["7.0.15", "8.2.1", "unknown"] {
            assert!(old(good).is_ok(), "{good}");
        }
        assert_eq!(old("6.2.14").unwrap_err().kind, ErrorKind::Unsupported);
    }
}
