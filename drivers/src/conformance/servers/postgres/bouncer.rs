//! PgBouncer before a server, in transaction mode: each transaction of a client may run in another session.

use super::{
    failed,
    programs::{PASSWORD, USER, hand_over, unprivileged},
};
use crate::{
    Result,
    conformance::servers::process::{Process, free_port},
};
use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

/// Where the program is, if it is not on the path.
const PROGRAM: &str = "LONGSHORE_TEST_PGBOUNCER";

/// It lives as long as its server's directory, and outlives restarts of the server.
#[derive(Debug)]
pub(super) struct Bouncer {
    port: u16,
    log: PathBuf,
    _process: Process,
}

impl Bouncer {
    /// Starts one before the server at `server`; its files go to `directory`.
    pub(super) fn start(server: SocketAddr, directory: &Path) -> Result<Self> {
        let port = free_port()?;
        let directory = directory.join("bouncer");
        let write = |name: &str, text: String| {
            let file = directory.join(name);
            std::fs::write(&file, text).map(|()| file).map_err(|error| failed("PgBouncer's files", error))
        };
        std::fs::create_dir_all(&directory).map_err(|error| failed("no directory", error))?;
        let users = write("users", format!("\"{USER}\" \"{PASSWORD}\"\n"))?;
        let settings = write("settings", settings(server, port, &users))?;
        hand_over(&directory)?;
        let program = std::env::var_os(PROGRAM).map_or_else(|| PathBuf::from("pgbouncer"), PathBuf::from);
        // Whoever changes its user loses the wish to die with its parent, so it is told again.
        let (program, settings) = (program.display().to_string(), settings.display().to_string());
        let arguments = ["--pdeathsig", "KILL", "--", &program, &settings];
        let (program, arguments) = unprivileged(Path::new("setpriv"), &arguments)?;
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let log = directory.with_extension("log");
        let process = Process::start("pgbouncer", &program, &arguments, &log)?;
        Ok(Self { port, log, _process: process })
    }

    /// Why nobody gets through, as far as it says.
    pub(super) fn last_words(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        log.lines().last().unwrap_or("nothing").to_owned()
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }
}

/// Few sessions for many clients, so that transactions of one client meet sessions of another. A server that was away is
/// asked again after 0.2 s, not after 15.
fn settings(server: SocketAddr, port: u16, users: &Path) -> String {
    format!(
        "[databases]\npostgres = host={} port={} dbname=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
         listen_port = {port}\nunix_socket_dir =\nauth_type = scram-sha-256\nauth_file = {}\npool_mode = transaction\n\
         default_pool_size = 20\nmax_client_conn = 2000\nserver_login_retry = 0.2\nserver_connect_timeout = 5\n",
        server.ip(),
        server.port(),
        users.display(),
    )
}
