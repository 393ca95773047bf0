//! One process per embedded database: a lock on a file beside it.
//!
//! SQLite would let several processes in, but the engine assumes that nobody else has leases in the
//! file. The operating system gives the lock back when the process ends, however it ends; the lock
//! file itself stays.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::PathBuf;

use crate::store;

use super::Error;

/// The lock, as long as it lives.
#[derive(Debug)]
pub struct DatabaseLock {
    _file: File,
}

impl DatabaseLock {
    /// Takes the lock. `None` for a database server, which needs none.
    ///
    /// # Errors
    /// [`Error::Locked`] when another process has it.
    pub fn take(config: &store::Config) -> Result<Option<Self>, Error> {
        let Some(path) = lock_path(config)? else {
            return Ok(None);
        };
        let failed = |source| Error::Lock { path: path.clone(), source };
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(TryLockError::WouldBlock) => Err(Error::Locked(path.with_extension(""))),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }
}

/// `tidings.db.lock` for `tidings.db`.
fn lock_path(config: &store::Config) -> Result<Option<PathBuf>, Error> {
    let database = config.database()?;
    Ok(database.embedded_file().map(|file| {
        let mut path = file.as_os_str().to_owned();
        path.push(".lock");
        PathBuf::from(path)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_locked_once() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/tidings.db", folder.path().display());
        let config = store::Config { database_url: url, ..store::Config::default() };
        let lock = DatabaseLock::take(&config).unwrap();
        assert!(lock.is_some());
        let error = DatabaseLock::take(&config).unwrap_err();
        assert!(matches!(error, Error::Locked(_)), "{error}");
        assert!(error.to_string().contains("tidings.db is"), "{error}");
        drop(lock);
        assert!(DatabaseLock::take(&config).unwrap().is_some());
    }

    #[test]
    fn a_server_needs_no_lock() {
        let url = "postgres://tidings@127.0.0.1/tidings".to_owned();
        let config = store::Config { database_url: url, ..store::Config::default() };
        assert!(DatabaseLock::take(&config).unwrap().is_none());
    }
}
