//! What a piece of work took: its rate, and the processor time of both sides, which says more on a busy machine.

use redis::aio::MultiplexedConnection;
use std::{collections::BTreeMap, time::Instant};

/// What was measured of one piece of work.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cost {
    /// Jobs per second.
    pub(super) rate: f64,
    /// Microseconds of the server's main thread for a job.
    pub(super) server: f64,
    /// Microseconds of this process for a job.
    pub(super) client: f64,
}

/// A piece of work that began.
pub(super) struct Meter {
    connection: MultiplexedConnection,
    since: Instant,
    server: f64,
    client: f64,
}

impl Meter {
    pub(super) async fn start(connection: &MultiplexedConnection) -> Self {
        let mut connection = connection.clone();
        let server = server(&mut connection).await;
        Self { connection, server, client: client(), since: Instant::now() }
    }

    pub(super) async fn stop(mut self, jobs: usize) -> Cost {
        let seconds = self.since.elapsed().as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "numbers for people")]
        let jobs = jobs as f64;
        let client = (client() - self.client) * 1e6 / jobs;
        let server = (server(&mut self.connection).await - self.server) * 1e6 / jobs;
        Cost { rate: jobs / seconds, server, client }
    }
}

/// Seconds of the server's main thread.
async fn server(connection: &mut MultiplexedConnection) -> f64 {
    let info: String = redis::cmd("INFO").arg("cpu").query_async(connection).await.unwrap();
    let fields: BTreeMap<_, _> = info.lines().filter_map(|line| line.trim().split_once(':')).collect();
    ["used_cpu_sys_main_thread", "used_cpu_user_main_thread"]
        .iter()
        .map(|name| fields[name].parse::<f64>().unwrap())
        .sum()
}

/// Seconds of this process: the fields after the program's name, in hundredths.
fn client() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<_> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

/// The one in the middle.
pub(super) fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}
