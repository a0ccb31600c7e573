//! The token that a client presents.

use crate::{Error, ErrorKind, Result};
use http::HeaderValue;
use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// A file is read again after this long, and whenever its token was refused.
const REFRESH: Duration = Duration::from_mins(1);

/// Where a client's bearer token comes from.
#[derive(Clone)]
pub struct TokenSource(Source);

#[derive(Clone)]
enum Source {
    Fixed(String),
    Files(Arc<Files>),
}

struct Files {
    paths: Vec<PathBuf>,
    last: Mutex<Option<(HeaderValue, Instant)>>,
}

impl TokenSource {
    /// This token, forever.
    pub fn fixed(token: impl Into<String>) -> Self {
        Self(Source::Fixed(token.into()))
    }

    /// The token in the file `path`, which may be rotated and need not exist yet.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self::files(vec![path.into()])
    }

    /// The token in the first of `paths`; where that is refused, those in the others. With the token before a rotation in
    /// the second file, it doesn't matter whether client or server sees the rotation first.
    pub fn files(paths: Vec<PathBuf>) -> Self {
        Self(Source::Files(Arc::new(Files { paths, last: Mutex::default() })))
    }

    /// The header that carries the token.
    pub(super) async fn header(&self) -> Result<HeaderValue> {
        match &self.0 {
            Source::Fixed(token) => header(token),
            Source::Files(files) => match files.fresh() {
                Some(header) => Ok(header),
                None => files.read(None).await,
            },
        }
    }

    /// Another header, if there is one now that `refused` was refused.
    pub(super) async fn after(&self, refused: &HeaderValue) -> Option<HeaderValue> {
        match &self.0 {
            Source::Fixed(_) => None,
            Source::Files(files) => files.read(Some(refused)).await.ok().filter(|header| header != refused),
        }
    }
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Source::Fixed(_) => out.write_str("TokenSource::fixed(…)"),
            Source::Files(files) => write!(out, "TokenSource::files({:?})", files.paths),
        }
    }
}

impl Files {
    fn fresh(&self) -> Option<HeaderValue> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.as_ref().filter(|(_, read_at)| read_at.elapsed() < REFRESH).map(|(header, _)| header.clone())
    }

    /// Reads the files for a token other than `refused`; while none can be read, the last token has to do.
    async fn read(&self, refused: Option<&HeaderValue>) -> Result<HeaderValue> {
        let (paths, refused) = (self.paths.clone(), refused.cloned());
        let read = tokio::task::spawn_blocking(move || first(&paths, refused.as_ref()))
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

/// The first token that is not `refused`, or else why there is none.
fn first(paths: &[PathBuf], refused: Option<&HeaderValue>) -> Result<HeaderValue> {
    let mut problem = None;
    for path in paths {
        match read(path) {
            Ok(header) if refused != Some(&header) => return Ok(header),
            Ok(_) => {}
            Err(error) => problem = problem.or(Some(error)),
        }
    }
    Err(problem
        .unwrap_or_else(|| Error::new(ErrorKind::Unauthorized, "the broker refused every token there is")))
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

    #[tokio::test(start_paused = true)]
    async fn a_file_is_read_again_when_its_token_is_old() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        fs::write(&path, "one").unwrap();
        let source = TokenSource::file(&path);
        assert_eq!(source.header().await.unwrap(), "Bearer one");
        fs::write(&path, "two").unwrap();
        tokio::time::advance(REFRESH / 10 * 9).await;
        assert_eq!(source.header().await.unwrap(), "Bearer one");
        tokio::time::advance(REFRESH / 10).await;
        assert_eq!(source.header().await.unwrap(), "Bearer two");
        fs::remove_file(&path).unwrap();
        tokio::time::advance(REFRESH).await;
        assert_eq!(source.header().await.unwrap(), "Bearer two", "the last one has to do");
    }

    #[tokio::test]
    async fn the_token_before_a_rotation_is_presented_where_the_new_one_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let [current, previous] = ["current", "previous"].map(|name| directory.path().join(name));
        let source = TokenSource::files(vec![current.clone(), previous.clone()]);
        fs::write(&current, "new").unwrap();
        fs::write(&previous, "old").unwrap();
        let new = source.header().await.unwrap();
        assert_eq!(new, "Bearer new");
        // The server has not seen the rotation.
        let old = source.after(&new).await.unwrap();
        assert_eq!(old, "Bearer old");
        assert_eq!(source.header().await.unwrap(), old, "it goes on with the one that works");
        assert_eq!(source.after(&old).await.unwrap(), new);
        fs::remove_file(&current).unwrap();
        assert_eq!(source.after(&new).await.unwrap(), old, "one file is enough");
        assert!(source.after(&old).await.is_none());
    }

    #[test]
    fn tokens_are_not_in_debug_output() {
        assert!(!format!("{:?}", TokenSource::fixed("hunter2")).contains("hunter2"));
        assert!(!format!("{:?}", header("hunter2").unwrap()).contains("hunter2"));
    }
}
