//! A clock that is not this machine's: wall clocks of servers and workers may be wrong, and nothing may go by them that
//! another machine has to agree with.
//!
//! A process gets one by a small library that answers in the place of the C library when it asks for the time
//! (`e2e/lib/servers/clock.c`). Only the wall clock is moved; what goes by the monotonic clock, as time-outs do, goes on as it
//! is. libfaketime does the same and more, but stops `redis-server` for ever when its allocator asks for the time first.

use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// Names the library, where it is not found by itself.
const LIBRARY: &str = "LONGSHORE_CLOCK_LIBRARY";

/// How far a wall clock is from this machine's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Skew {
    /// Negative behind.
    seconds: i32,
}

impl Skew {
    /// This machine's clock.
    pub const NONE: Self = Self { seconds: 0 };

    /// A clock that shows later than it is.
    pub const fn ahead(seconds: i32) -> Self {
        Self { seconds }
    }

    /// A clock that shows earlier than it is.
    pub const fn behind(seconds: i32) -> Self {
        Self { seconds: -seconds }
    }

    /// By how many milliseconds it is ahead.
    pub const fn as_millis(self) -> i64 {
        self.seconds as i64 * 1000
    }

    /// What has to be in the environment of a process, as `NAME=value`, for it to see this clock: nothing for this machine's.
    /// The library is put into `directory`, where whoever runs the process can read it.
    ///
    /// # Errors
    /// `Unavailable` when there is no library, or it can't be put there.
    pub fn environment(self, directory: &Path) -> Result<Vec<String>> {
        if self == Self::NONE {
            return Ok(Vec::new());
        }
        let (library, copy) = (library()?, directory.join("clock.so"));
        // A process that has it mapped keeps the one that it has.
        let fresh = directory.join("clock.so.new");
        let copied = std::fs::copy(&library, &fresh).and_then(|_| std::fs::rename(&fresh, &copy));
        copied.map_err(|error| {
            Error::unavailable(format!(
                "{} can't be copied to {}: {error}",
                library.display(),
                copy.display()
            ))
        })?;
        Ok(vec![format!("LD_PRELOAD={}", copy.display()), format!("LONGSHORE_CLOCK_AHEAD={}", self.seconds)])
    }

    /// A program and its arguments, run with this clock.
    ///
    /// # Errors
    /// Those of [`Skew::environment`].
    pub fn command(
        self,
        program: &Path,
        arguments: &[&str],
        directory: &Path,
    ) -> Result<(PathBuf, Vec<String>)> {
        let arguments = arguments.iter().map(|argument| (*argument).to_owned());
        let environment = self.environment(directory)?;
        if environment.is_empty() {
            return Ok((program.to_owned(), arguments.collect()));
        }
        let program = [program.display().to_string()];
        Ok(("env".into(), environment.into_iter().chain(program).chain(arguments).collect()))
    }
}

/// Where the library is: named, or in the cache that `e2e/lib/servers/clock` fills.
fn library() -> Result<PathBuf> {
    let cache = || {
        let named = std::env::var_os("LONGSHORE_CACHE").map(PathBuf::from);
        let own = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache/longshore"));
        named.or_else(own).map(|cache| cache.join("servers/clock/clock.so"))
    };
    let library = std::env::var_os(LIBRARY).map(PathBuf::from).or_else(cache);
    library.filter(|library| library.is_file()).ok_or_else(|| {
        Error::unavailable(format!(
            "the library is missing without which no process has another clock: run e2e/lib/servers/clock, or name \
             it with {LIBRARY}"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::{super::process::Directory, *};
    use crate::Timestamp;
    use std::process::Command;

    /// What `date` shows, in milliseconds.
    fn shown(skew: Skew) -> i64 {
        let directory = Directory::new("clock-test").unwrap();
        let (program, arguments) = skew.command(Path::new("date"), &["+%s%3N"], directory.path()).unwrap();
        let out = Command::new(program).args(arguments).output().unwrap();
        String::from_utf8_lossy(&out.stdout).trim().parse().unwrap()
    }

    #[test]
    fn a_process_sees_the_clock_that_it_is_given() {
        for skew in [Skew::NONE, Skew::ahead(3600), Skew::behind(3600)] {
            let before = Timestamp::now().as_millis();
            let shown = shown(skew) - skew.as_millis();
            let after = Timestamp::now().as_millis();
            assert!((before..=after).contains(&shown), "{skew:?}: {before} {shown} {after}");
        }
    }

    #[test]
    fn this_machines_clock_needs_nothing() {
        let none = Skew::NONE.command(Path::new("date"), &["-u"], Path::new("/nowhere")).unwrap();
        assert_eq!(none, (PathBuf::from("date"), vec!["-u".to_owned()]));
    }
}
