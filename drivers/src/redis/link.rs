//! The connection that calls share. It is made at the first call and made anew when it breaks, for as long as there are
//! calls.

use super::{
    config::RedisConfig,
    errors::{self, Call},
    scripts::Script,
    server::{self, Facts},
};
use crate::{Error, QueueName, Result};
use redis::{AsyncConnectionConfig, Cmd, RedisError, Value, aio::MultiplexedConnection};
use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long a connection may take to be made.
pub(super) const CONNECTS: Duration = Duration::from_secs(5);
/// How long an answer may take.
pub(super) const ANSWERS: Duration = Duration::from_secs(10);
/// The pauses between attempts to connect.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// One connection.
#[derive(Clone)]
pub(super) struct Open {
    number: u64,
    connection: MultiplexedConnection,
}

/// Why there is no connection now, and when the next attempt may begin.
struct Broken {
    error: Error,
    pause: Duration,
    until: Instant,
}

#[derive(Default)]
struct State {
    open: Option<Open>,
    broken: Option<Broken>,
    connections: u64,
}

pub(super) struct Link {
    pub(super) client: redis::Client,
    pub(super) prefix: String,
    state: Mutex<State>,
    /// Held by whoever connects; the others wait for the result.
    connecting: tokio::sync::Mutex<()>,
    pub(super) closed: CancellationToken,
}

impl fmt::Debug for Link {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Link").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

pub(super) fn closed() -> Error {
    Error::unavailable("the broker is closed")
}

impl Link {
    pub(super) fn new(config: RedisConfig) -> Result<Self> {
        Ok(Self {
            client: config.client()?,
            prefix: config.prefix,
            state: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
            closed: CancellationToken::new(),
        })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The key of a queue that every script gets; the others are made of it.
    pub(super) fn key(&self, queue: &QueueName) -> String {
        format!("{}:{{{queue}}}:q", self.prefix)
    }

    /// The connection, made if there is none.
    pub(super) async fn open(&self) -> Result<Open> {
        if self.closed.is_cancelled() {
            return Err(closed());
        }
        if let Some(open) = &self.state().open {
            return Ok(open.clone());
        }
        let connect = async {
            let _turn = self.connecting.lock().await;
            {
                let state = self.state();
                if let Some(open) = &state.open {
                    return Ok(open.clone());
                }
                if let Some(broken) = state.broken.as_ref().filter(|broken| Instant::now() < broken.until) {
                    return Err(broken.error.clone());
                }
            }
            self.connect().await
        };
        tokio::select! {
            open = connect => open,
            () = self.closed.cancelled() => Err(closed()),
        }
    }

    async fn connect(&self) -> Result<Open> {
        let attempt = tokio::time::timeout(CONNECTS, self.handshake()).await;
        let attempt = attempt.unwrap_or_else(|_| {
            Err(Error::unavailable(format!(
                "the Redis server did not answer within {} s",
                CONNECTS.as_secs()
            )))
        });
        let mut state = self.state();
        match attempt {
            Ok(connection) => {
                state.connections += 1;
                let open = Open { number: state.connections, connection };
                state.broken = None;
                state.open = Some(open.clone());
                Ok(open)
            }
            Err(error) => {
                let pause =
                    state.broken.as_ref().map_or(FIRST_PAUSE, |broken| broken.pause * 2).min(LONGEST_PAUSE);
                // Clients that lost the same server don't come back in step.
                let dice = u32::from(uuid::Uuid::new_v4().as_bytes()[0]);
                let until = Instant::now() + pause * (192 + dice) / 256;
                tracing::debug!(%error, "no connection to the Redis server");
                state.broken = Some(Broken { error: error.clone(), pause, until });
                Err(error)
            }
        }
    }

    async fn handshake(&self) -> Result<MultiplexedConnection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECTS))
            .set_response_timeout(Some(ANSWERS))
            .set_pipeline_buffer_size(1024)
            .set_write_backpressure_boundary(256 * 1024);
        let connected = self.client.get_multiplexed_async_connection_with_config(&config).await;
        let mut connection = connected.map_err(|error| errors::not_sent(&error))?;
        server::meet(&mut connection, &self.prefix).await?;
        Ok(connection)
    }

    /// Gives a connection up, unless another one has taken its place.
    pub(super) fn give_up(&self, number: u64) {
        let mut state = self.state();
        if state.open.as_ref().is_some_and(|open| open.number == number) {
            state.open = None;
        }
    }

    /// The connection ends when the last call that uses it ends.
    pub(super) fn let_go(&self) {
        self.state().open = None;
    }

    /// Asks the server again who it is.
    pub(super) async fn meet(&self) -> Result<Facts> {
        let mut open = self.open().await?;
        match server::meet(&mut open.connection, &self.prefix).await {
            Ok(facts) => Ok(facts),
            Err(error) => {
                if error.kind.is_transient() {
                    self.give_up(open.number);
                }
                Err(error)
            }
        }
    }

    /// Sends one command.
    pub(super) async fn command(&self, cmd: &Cmd, what: &str, call: Call) -> Result<Value> {
        let mut open = self.open().await?;
        self.send(&mut open, cmd).await.map_err(|error| errors::failed(&error, what, call))
    }

    /// Sends one command over a connection, and gives the connection up when it is broken.
    pub(super) async fn send(&self, open: &mut Open, cmd: &Cmd) -> Result<Value, RedisError> {
        let answer = open.connection.send_packed_command(cmd).await.and_then(Value::extract_error);
        if let Err(error) = &answer
            && errors::breaks(error)
        {
            self.give_up(open.number);
        }
        answer
    }

    /// Runs a script on one queue. `arguments` writes those that follow the prefix.
    pub(super) async fn run(
        &self,
        script: &Script,
        queue: &QueueName,
        arguments: impl Fn(&mut Cmd),
    ) -> Result<Value> {
        let open = self.open().await?;
        self.run_over(open, script, queue, arguments).await
    }

    /// The same for what is left to do after the broker was closed: as long as the connection is there.
    pub(super) async fn run_late(
        &self,
        script: &Script,
        queue: &QueueName,
        arguments: impl Fn(&mut Cmd),
    ) -> Result<Value> {
        let open = self.state().open.clone();
        let open = match open {
            Some(open) => open,
            None => self.open().await?,
        };
        self.run_over(open, script, queue, arguments).await
    }

    async fn run_over(
        &self,
        mut open: Open,
        script: &Script,
        queue: &QueueName,
        arguments: impl Fn(&mut Cmd),
    ) -> Result<Value> {
        let call = if script.changes { Call::Changes } else { Call::Reads };
        let build = |name: &str, body: &str| {
            let mut cmd = redis::cmd(name);
            cmd.arg(body).arg(1).arg(self.key(queue)).arg(&self.prefix);
            arguments(&mut cmd);
            cmd
        };
        let answer = self.send(&mut open, &build("EVALSHA", script.hash())).await;
        let answer = match answer {
            // Nothing was done: the server forgot the script, or never had it.
            Err(error) if error.code() == Some("NOSCRIPT") => {
                self.send(&mut open, &build("EVAL", script.text)).await
            }
            other => other,
        };
        answer.map_err(|error| {
            let error = errors::failed(&error, script.name, call);
            Error { message: format!("{} (queue {queue})", error.message), ..error }
        })
    }
}
