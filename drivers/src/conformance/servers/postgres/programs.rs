//! The programs of PostgreSQL, run as somebody who may: it refuses to run as root, so root runs it as `nobody`.

use super::failed;
use crate::Result;
use std::{
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::OnceLock,
};

/// Where the programs of PostgreSQL are, if not where Debian puts them.
pub const PROGRAMS: &str = "LONGSHORE_TEST_POSTGRES_BIN";
/// Own servers' user and database.
pub(super) const USER: &str = "postgres";
pub(super) const PASSWORD: &str = "conformance";

/// Where the programs of the newest installed PostgreSQL are.
///
/// # Errors
/// `Unavailable` when there is none.
pub fn programs() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os(PROGRAMS) {
        return Ok(PathBuf::from(named));
    }
    let installed = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let versions = installed.filter_map(|entry| {
        let major: u32 = entry.file_name().to_str()?.parse().ok()?;
        let programs = entry.path().join("bin");
        programs.join("initdb").exists().then_some((major, programs))
    });
    versions.max_by_key(|(major, _)| *major).map(|(_, programs)| programs).ok_or_else(|| {
        failed(
            "no server is installed",
            format!("run e2e/lib/servers/postgres, or set {PROGRAMS} or {}", super::URL),
        )
    })
}

/// The user to run as, where this one is root.
fn nobody() -> Result<Option<[String; 3]>> {
    let id = |flag: &str, user: &str| -> Result<String> {
        let out = Command::new("id").args([flag, user]).output().map_err(|error| failed("id", error))?;
        Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
    };
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let (user, group) = (id("-u", "nobody")?, id("-g", "nobody")?);
    Ok(Some([format!("--reuid={user}"), format!("--regid={group}"), "--clear-groups".to_owned()]))
}

/// A program and its arguments, as the user that may run it.
pub(super) fn unprivileged(program: &Path, arguments: &[&str]) -> Result<(PathBuf, Vec<String>)> {
    let arguments = arguments.iter().map(|argument| (*argument).to_owned());
    let Some(user) = nobody()? else { return Ok((program.to_owned(), arguments.collect())) };
    let program = [program.display().to_string()];
    Ok((
        "setpriv".into(),
        user.into_iter().chain(["--".to_owned()]).chain(program).chain(arguments).collect(),
    ))
}

pub(super) fn done(what: &str, out: std::io::Result<Output>) -> Result<Output> {
    let out = out.map_err(|error| failed(what, error))?;
    if out.status.success() {
        return Ok(out);
    }
    Err(failed(what, String::from_utf8_lossy(&out.stderr)))
}

fn run(program: &Path, arguments: &[&str]) -> Result<Output> {
    let (program, arguments) = unprivileged(program, arguments)?;
    done(&program.display().to_string(), Command::new(&program).args(arguments).current_dir("/").output())
}

/// Gives a directory to the user that runs the server.
pub(super) fn hand_over(directory: &Path) -> Result<()> {
    if nobody()?.is_some() {
        let path = directory.display().to_string();
        done("chown", Command::new("chown").args(["-R", "nobody:", &path]).output())?;
    }
    Ok(())
}

/// Everything that servers of this process write. It is removed when the process ends, however that happens: a shell
/// waits for the end of a pipe that nobody writes to.
pub(super) fn base() -> Result<&'static Path> {
    static BASE: OnceLock<Result<(PathBuf, Child)>> = OnceLock::new();
    let made = BASE.get_or_init(|| {
        let path = std::env::temp_dir().join(format!("longshore-postgres-{}", std::process::id()));
        std::fs::create_dir_all(&path).map_err(|error| failed("no directory", error))?;
        let shell = Command::new("sh")
            .args(["-c", "cat > /dev/null; sleep 1; rm -rf \"$0\""])
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|error| failed("no shell", error))?;
        Ok((path, shell))
    });
    made.as_ref().map(|(path, _)| path.as_path()).map_err(Clone::clone)
}

/// A cluster to be copied, made once.
pub(super) fn template() -> Result<&'static Path> {
    static TEMPLATE: OnceLock<Result<PathBuf>> = OnceLock::new();
    let made = TEMPLATE.get_or_init(|| {
        let directory = base()?.join("template");
        std::fs::create_dir_all(&directory).map_err(|error| failed("no directory", error))?;
        let password = directory.join("password");
        std::fs::write(&password, PASSWORD)
            .map_err(|error| failed("its password can't be written", error))?;
        hand_over(&directory)?;
        let data = directory.join("data");
        let arguments = [
            "--pgdata",
            &data.display().to_string(),
            "--username",
            USER,
            "--pwfile",
            &password.display().to_string(),
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
        ];
        run(&programs()?.join("initdb"), &arguments)?;
        Ok(data)
    });
    made.as_ref().map(PathBuf::as_path).map_err(Clone::clone)
}
