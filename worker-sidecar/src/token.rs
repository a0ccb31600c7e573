//! The token that opens the local API to the containers of this pod.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use std::{
    fs::{File, OpenOptions, rename},
    io::{Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// Random bytes in a token.
const BYTES: usize = 32;
/// App and sidecar may run as different users; the directory is memory that only this pod's containers mount.
const MODE: u32 = 0o444;

/// The token in `path`, made if there is none.
///
/// One from before a restart of the sidecar stays: apps read it once.
pub(crate) fn ensure(path: &Path) -> std::io::Result<String> {
    match read(path) {
        Ok(token) if token.len() >= BYTES => return Ok(token),
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let token = random()?;
    // In one step: nobody reads half a token.
    let fresh = path.with_extension("new");
    if let Err(error) = std::fs::remove_file(&fresh)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(&fresh)?;
    file.write_all(token.as_bytes())?;
    rename(&fresh, path)?;
    Ok(token)
}

/// The token in `path`.
pub(crate) fn read(path: &Path) -> std::io::Result<String> {
    Ok(std::fs::read_to_string(path)?.trim().to_owned())
}

fn random() -> std::io::Result<String> {
    let mut bytes = [0; BYTES];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_token_is_made_once_and_readable_by_all_containers() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        let token = ensure(&path).unwrap();
        assert!(token.len() >= BYTES);
        assert_eq!(ensure(&path).unwrap(), token);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
        assert_ne!(token, random().unwrap());
    }

    #[test]
    fn half_a_token_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        std::fs::write(&path, "short").unwrap();
        assert_ne!(ensure(&path).unwrap(), "short");
    }
}
