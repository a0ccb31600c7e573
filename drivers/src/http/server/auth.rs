//! Bearer tokens from files that may change at any time.

use super::body::drain;
use crate::{Error, ErrorKind, Result};
use axum::{
    Router,
    extract::{Request, State},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, header::AUTHORIZATION};
use sha2::{Digest, Sha256};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};
use tokio::time::Instant;

/// A token that is no longer in any file is accepted for this long at most.
const REFRESH: Duration = Duration::from_secs(5);
/// An unknown token makes the files be read again, but not more often than this.
const REREAD: Duration = Duration::from_millis(100);
/// How long somebody who was refused gets to send the rest of the body.
const DRAIN: Duration = Duration::from_secs(2);

type Fingerprint = [u8; 32];

/// The accepted tokens. Only their hashes are kept.
#[derive(Debug)]
pub struct Tokens {
    files: Vec<PathBuf>,
    refresh: Duration,
    known: RwLock<Known>,
    reading: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Known {
    tokens: Vec<Fingerprint>,
    read_at: Instant,
}

impl Tokens {
    /// The tokens in `files`, each a file with one token or a directory of such files, where a rotation keeps the
    /// previous one beside the current one. They are read again as they change.
    ///
    /// # Errors
    /// `Invalid` when there is no token, naming the file that can't be read or holds none.
    pub fn load(files: Vec<PathBuf>) -> Result<Self> {
        let tokens = read_all(&files)?;
        Ok(Self::of(files, tokens))
    }

    /// These tokens, forever.
    pub fn fixed<T: AsRef<str>>(tokens: impl IntoIterator<Item = T>) -> Self {
        let tokens = tokens.into_iter().map(|token| fingerprint(token.as_ref().as_bytes()));
        Self::of(Vec::new(), tokens.collect())
    }

    fn of(files: Vec<PathBuf>, tokens: Vec<Fingerprint>) -> Self {
        let read_at = Instant::now();
        Self {
            files,
            refresh: REFRESH,
            known: RwLock::new(Known { tokens, read_at }),
            reading: tokio::sync::Mutex::default(),
        }
    }

    /// The same tokens, read again at least this often.
    #[must_use]
    pub fn with_refresh(self, refresh: Duration) -> Self {
        Self { refresh, ..self }
    }

    /// Whether `token` is one of them.
    pub async fn accepts(&self, token: &str) -> bool {
        let presented = fingerprint(token.as_bytes());
        self.read_unless_younger(self.refresh).await;
        if self.knows(&presented) {
            return true;
        }
        self.read_unless_younger(REREAD.min(self.refresh)).await;
        self.knows(&presented)
    }

    /// Compares with all of them, whichever fits, in the same time.
    fn knows(&self, presented: &Fingerprint) -> bool {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.tokens.iter().fold(false, |found, token| found | same(token, presented))
    }

    async fn read_unless_younger(&self, age: Duration) {
        let is_young = || {
            let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
            known.read_at.elapsed() < age
        };
        if self.files.is_empty() || is_young() {
            return;
        }
        let _reading = self.reading.lock().await;
        if is_young() {
            return;
        }
        let files = self.files.clone();
        let read = tokio::task::spawn_blocking(move || read_all(&files)).await;
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.read_at = Instant::now();
        match read {
            Ok(Ok(tokens)) => known.tokens = tokens,
            // A mount that is being swapped must not lock everybody out: the tokens that were good stay so.
            Ok(Err(error)) => tracing::warn!(%error, "tokens can't be read again"),
            Err(_) => tracing::warn!("tokens can't be read again: the reader ended"),
        }
    }
}

/// Lets only those through to `router` who present one of `tokens`.
pub fn protect(router: Router, tokens: Arc<Tokens>) -> Router {
    router.layer(from_fn_with_state(tokens, check))
}

async fn check(State(tokens): State<Arc<Tokens>>, request: Request, next: Next) -> Response {
    if let Some(token) = bearer(request.headers())
        && tokens.accepts(token).await
    {
        return next.run(request).await;
    }
    // A timeout is fine: the answer is the same.
    drop(tokio::time::timeout(DRAIN, drain(request.into_body())).await);
    Error::new(ErrorKind::Unauthorized, "a valid bearer token is required").into_response()
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Hashes have one length and say nothing about how much of a guess was right.
fn fingerprint(token: &[u8]) -> Fingerprint {
    Sha256::digest(token).into()
}

fn same(one: &Fingerprint, other: &Fingerprint) -> bool {
    let difference = one.iter().zip(other).fold(0, |bits, (one, other)| bits | (one ^ other));
    std::hint::black_box(difference) == 0
}

/// A file that is being written, or that somebody spoilt, must not keep the others from being read: it is passed over as
/// long as there is a token without it.
fn read_all(files: &[PathBuf]) -> Result<Vec<Fingerprint>> {
    let mut tokens = Vec::new();
    let mut problems = Vec::new();
    for path in files {
        match read_path(path) {
            Ok(some) => some.into_iter().for_each(|read| match read {
                Ok(token) => tokens.push(token),
                Err(error) => problems.push(error),
            }),
            Err(error) => problems.push(unreadable(path, &error)),
        }
    }
    if tokens.is_empty() {
        return Err(problems.into_iter().next().unwrap_or_else(|| Error::invalid("there is no token")));
    }
    for error in problems {
        tracing::warn!(%error, "tokens are read without this one");
    }
    Ok(tokens)
}

/// The token in a file, or those in the files of a directory.
fn read_path(path: &Path) -> io::Result<Vec<Result<Fingerprint>>> {
    if !fs::metadata(path)?.is_dir() {
        return Ok(vec![read_one(path)]);
    }
    let mut tokens = Vec::new();
    for entry in fs::read_dir(path)? {
        let path = entry?.path();
        // A mounted Secret keeps its versions in directories whose names start with dots.
        let hidden = path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
        if !hidden && path.is_file() {
            tokens.push(read_one(&path));
        }
    }
    Ok(tokens)
}

fn unreadable(path: &Path, error: &io::Error) -> Error {
    Error::invalid(format!("the token file {} can't be read: {error}", path.display()))
}

fn read_one(path: &Path) -> Result<Fingerprint> {
    let text = fs::read_to_string(path).map_err(|error| unreadable(path, &error))?;
    let token = text.trim();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Error::invalid(format!(
            "the token file {} must hold one token of printable ASCII characters",
            path.display()
        )));
    }
    Ok(fingerprint(token.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_rotation_needs_no_restart() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, token: &str| fs::write(directory.path().join(name), token).unwrap();
        write("current", "one\n");
        let tokens = Tokens::load(vec![directory.path().into()]).unwrap().with_refresh(Duration::ZERO);
        assert!(tokens.accepts("one").await);
        assert!(!tokens.accepts("two").await);
        write("current", "two");
        write("previous", "one");
        assert!(tokens.accepts("two").await);
        assert!(tokens.accepts("one").await);
        fs::remove_file(directory.path().join("previous")).unwrap();
        assert!(!tokens.accepts("one").await);
    }

    #[tokio::test]
    async fn a_swap_that_fails_locks_nobody_out() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("token");
        fs::write(&file, "one").unwrap();
        let tokens = Tokens::load(vec![file.clone()]).unwrap().with_refresh(Duration::ZERO);
        fs::remove_file(&file).unwrap();
        assert!(tokens.accepts("one").await);
        assert!(!tokens.accepts("").await);
    }

    #[tokio::test]
    async fn a_spoilt_file_does_not_stop_a_rotation() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, token: &str| fs::write(directory.path().join(name), token).unwrap();
        write("current", "one");
        let files = vec![directory.path().into(), directory.path().join("no-such-file")];
        let tokens = Tokens::load(files).unwrap().with_refresh(Duration::ZERO);
        assert!(tokens.accepts("one").await);
        for spoilt in ["", " \n", "a b"] {
            write("another", spoilt);
            write("current", "two");
            assert!(tokens.accepts("two").await, "{spoilt:?}");
            assert!(!tokens.accepts("one").await, "{spoilt:?}");
            assert!(!tokens.accepts(spoilt.trim()).await, "{spoilt:?}");
            write("current", "one");
            assert!(tokens.accepts("one").await);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_that_is_gone_is_refused_once_the_files_are_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("token");
        fs::write(&file, "one").unwrap();
        let tokens = Tokens::load(vec![file.clone()]).unwrap();
        fs::write(&file, "two").unwrap();
        tokio::time::advance(REFRESH / 10 * 9).await;
        assert!(tokens.accepts("one").await, "known, and young enough");
        tokio::time::advance(REFRESH / 10).await;
        assert!(!tokens.accepts("one").await);
        assert!(tokens.accepts("two").await);
    }

    #[tokio::test(start_paused = true)]
    async fn guesses_do_not_read_the_files_every_time() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("token");
        fs::write(&file, "one").unwrap();
        let tokens = Tokens::load(vec![file.clone()]).unwrap();
        fs::write(&file, "two").unwrap();
        tokio::time::advance(REREAD / 10 * 9).await;
        assert!(!tokens.accepts("two").await, "the files were read just now");
        tokio::time::advance(REREAD / 10).await;
        assert!(tokens.accepts("two").await);
    }

    #[test]
    fn a_missing_or_empty_file_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("token");
        let missing = Tokens::load(vec![file.clone()]).unwrap_err();
        assert!(missing.message.contains("token"), "{missing}");
        for bad in ["", " \n", "a b", "ü"] {
            fs::write(&file, bad).unwrap();
            assert!(Tokens::load(vec![file.clone()]).is_err(), "{bad:?}");
        }
        assert!(Tokens::load(Vec::new()).is_err());
    }

    #[test]
    fn tokens_are_not_in_debug_output() {
        let text = format!("{:?}", Tokens::fixed(["hunter2"]));
        assert!(!text.contains("hunter2"));
    }
}
