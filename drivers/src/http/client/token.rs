//! The token that a client presents.

use crate::{Error, ErrorKind, Result};
use http::HeaderValue;
use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// A file is read again after this long, and whenever its token was refused.
const REFRESH: Duration = Duration::from_mins(1);

/// Where a client's bearer token comes from.
#[derive(Clone)]
pub struct TokenSource(Source);

#[derive(Clone)]
enum Source {
    Fixed(String),
    File(Arc<File>),
}

struct File {
    path: PathBuf,
    last: Mutex<Option<(HeaderValue, Instant)>>,
}

impl TokenSource {
    /// This token, forever.
    pub fn fixed(token: impl Into<String>) -> Self {
        Self(Source::Fixed(token.into()))
    }

    /// The token in the file `path`, which may be rotated and need not exist yet.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let last = Mutex::default();
        Self(Source::File(Arc::new(File { path, last })))
    }

    /// The header that carries the token.
    pub(super) async fn header(&self) -> Result<HeaderValue> {
        match &self.0 {
            Source::Fixed(token) => header(token),
            Source::File(file) => match file.fresh() {
                Some(header) => Ok(header),
                None => file.read().await,
            },
        }
    }

    /// Another header, if there is one now that `refused` was refused.
    pub(super) async fn after(&self, refused: &HeaderValue) -> Option<HeaderValue> {
        match &self.0 {
            Source::Fixed(_) => None,
            Source::File(file) => file.read().await.ok().filter(|header| header != refused),
        }
    }
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Source::Fixed(_) => out.write_str("TokenSource::fixed(…)"),
            Source::File(file) => write!(out, "TokenSource::file({:?})", file.path),
        }
    }
}

impl File {
    fn fresh(&self) -> Option<HeaderValue> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.as_ref().filter(|(_, read_at)| read_at.elapsed() < REFRESH).map(|(header, _)| header.clone())
    }

    /// Reads the file; while it can't be read, the last token has to do.
    async fn read(&self) -> Result<HeaderValue> {
        let path = self.path.clone();
        let read = tokio::task::spawn_blocking(move || read(&path))
            .await
            .unwrap_or_else(|_| Err(Error::unavailable("the token's reader ended")));
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match (read, last.as_ref()) {
            (Ok(header), _) => {
                *last = Some((header.clone(), Instant::now()));
                Ok(header)
            }
            (Err(_), Some((header, _))) => Ok(header.clone()),
            (Err(error), None) => Err(error),
        }
    }
}

fn read(path: &Path) -> Result<HeaderValue> {
    let text = fs::read_to_string(path).map_err(|error| {
        let message = format!("the token file {} can't be read: {error}", path.display());
        Error::new(ErrorKind::Unauthorized, message)
    })?;
    header(&text)
}

fn header(token: &str) -> Result<HeaderValue> {
    let token = token.trim();
    let unusable = || Error::new(ErrorKind::Unauthorized, "the broker's token is empty or no ASCII text");
    if token.is_empty() {
        return Err(unusable());
    }
    let mut header = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| unusable())?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_refused_token_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        let source = TokenSource::file(&path);
        assert_eq!(source.header().await.unwrap_err().kind, ErrorKind::Unauthorized);
        fs::write(&path, "one\n").unwrap();
        let one = source.header().await.unwrap();
        assert!(source.after(&one).await.is_none(), "nothing new");
        fs::write(&path, "two").unwrap();
        assert_eq!(source.header().await.unwrap(), one, "young enough");
        let two = source.after(&one).await.unwrap();
        assert_eq!(two, "Bearer two");
        assert_eq!(source.header().await.unwrap(), two);
    }

    #[test]
    fn tokens_are_not_in_debug_output() {
        assert!(!format!("{:?}", TokenSource::fixed("hunter2")).contains("hunter2"));
        assert!(!format!("{:?}", header("hunter2").unwrap()).contains("hunter2"));
    }
}
