//! One process per embedded database: a lock on a file beside it.
//!
//! SQLite would let several processes in, but the engine assumes that nobody else has leases in the
//! file. The operating system gives the lock back when the process ends, however it ends; the lock
//! file itself stays, with the number of the process that had it last.
//!
//! The system may take a moment to end a process that was killed. Whoever starts in its place waits
//! for the lock, a little while and not for ever.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::store;

use super::Error;

/// How often, and how far apart, to try to get the lock that a process which is ending may still
/// have: 5 s in all.
const TRIES: u32 = 50;
const PAUSE: Duration = Duration::from_millis(100);

/// The lock, as long as it lives.
#[derive(Debug)]
pub struct DatabaseLock {
    _file: File,
}

impl DatabaseLock {
    /// Takes the lock as soon as it is free, within 5 s; `on_wait` is told once when it is not free
    /// at once. `None` for a database server, which needs none.
    ///
    /// # Errors
    /// [`Error::Locked`] when another process still has it at the end.
    pub async fn wait(
        config: &store::Config,
        on_wait: impl FnOnce(&Error),
    ) -> Result<Option<Self>, Error> {
        Self::try_for(config, TRIES, on_wait).await
    }

    async fn try_for(
        config: &store::Config,
        tries: u32,
        on_wait: impl FnOnce(&Error),
    ) -> Result<Option<Self>, Error> {
        let mut on_wait = Some(on_wait);
        for _ in 0..tries {
            match Self::take(config) {
                Err(locked @ Error::Locked { .. }) => {
                    if let Some(on_wait) = on_wait.take() {
                        on_wait(&locked);
                    }
                    tokio::time::sleep(PAUSE).await;
                }
                taken => return taken,
            }
        }
        Self::take(config)
    }

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
            .read(true)
            .write(true)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {
                sign(&file, &path);
                Ok(Some(Self { _file: file }))
            }
            Err(TryLockError::WouldBlock) => {
                Err(Error::Locked { database: path.with_extension(""), holder: holder(file) })
            }
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }
}

/// Leaves our number for whoever finds the file locked.
fn sign(mut file: &File, path: &Path) {
    let signed = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    if let Err(error) = signed {
        // The lock holds without it; only the message to others is poorer.
        tracing::warn!(%error, "the process id was not written to {}", path.display());
    }
}

/// The number of the process that has the lock. None where a locked file cannot be read.
fn holder(file: File) -> Option<u32> {
    let mut text = String::new();
    file.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
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
    use futures::FutureExt;

    use super::*;

    #[test]
    fn a_file_is_locked_once() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/tidings.db", folder.path().display());
        let config = store::Config { database_url: url, ..store::Config::default() };
        let lock = DatabaseLock::take(&config).unwrap();
        assert!(lock.is_some());
        let error = DatabaseLock::take(&config).unwrap_err();
        assert!(matches!(error, Error::Locked { .. }), "{error}");
        assert!(error.to_string().contains("tidings.db is"), "{error}");
        let process = format!("process {}", std::process::id());
        assert!(error.to_string().ends_with(&process), "who has it is said: {error}");
        drop(lock);
        assert!(DatabaseLock::take(&config).unwrap().is_some());
    }

    #[tokio::test]
    async fn waiting_for_the_lock_is_told_once_and_ends() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/tidings.db", folder.path().display());
        let config = store::Config { database_url: url, ..store::Config::default() };
        let lock = DatabaseLock::take(&config).unwrap();
        let mut told = 0;
        let error = DatabaseLock::try_for(&config, 2, |_| told += 1).await.unwrap_err();
        assert!(matches!(error, Error::Locked { .. }), "{error}");
        assert_eq!(told, 1);
        let mut waiting = std::pin::pin!(DatabaseLock::wait(&config, |_| {}));
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(lock);
        assert!(waiting.await.unwrap().is_some());
    }

    #[test]
    fn a_server_needs_no_lock() {
        let url = "postgres://tidings@127.0.0.1/tidings".to_owned();
        let config = store::Config { database_url: url, ..store::Config::default() };
        assert!(DatabaseLock::take(&config).unwrap().is_none());
    }
}
