//! SQLite's write-ahead log, brought to the disk beside the transaction that comes next.
//!
//! A commit of the line's leaves its pages in the log, in the system's memory, and lets the next one
//! begin. Whoever committed then waits here until the log has been synced: once for all that had
//! committed by then. The log is valid up to its first frame that is not, so what is synced has all that
//! was committed before it. What an earlier process has left there is synced with the first of ours.
//!
//! Guarantees: nothing counts as synced because of a sync that began before its commit had ended, or after
//! one that failed: the system tells once of a page that it could not write, and then takes it for written. After
//! that nothing counts until the log has been written back into the database.

use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sea_orm::sqlx;
use tokio::sync::watch;

use super::super::super::Error;
use super::super::super::error::refused;
use super::off_the_workers;

/// A commit by its number: of two, the later one has the larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Commit(u64);

/// What is known of the log.
#[derive(Debug)]
pub(super) struct Log {
    state: Mutex<State>,
    /// The latest commit that has ended, well or not.
    ended: watch::Sender<Commit>,
    /// Whoever syncs has it. The others wait for that, and mostly find that it was for them, too.
    pub(super) syncing: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct State {
    /// The latest commit that has begun. From then on others may see it.
    begun: Commit,
    synced: Commit,
    /// That of the connection.
    file: Option<Arc<File>>,
    /// A sync has failed.
    is_in_doubt: bool,
}

/// A commit that has begun; dropped when it has ended.
#[derive(Debug)]
struct Committing<'l> {
    log: &'l Log,
    commit: Commit,
}

impl Drop for Committing<'_> {
    fn drop(&mut self) {
        self.log.ended.send_replace(self.commit);
    }
}

impl Default for Log {
    fn default() -> Self {
        // What was left there is as if it had been committed first.
        let left = Commit(1);
        let state = State { begun: left, synced: Commit(0), file: None, is_in_doubt: false };
        let (state, ended) = (Mutex::new(state), watch::Sender::new(left));
        Self { state, ended, syncing: tokio::sync::Mutex::default() }
    }
}

impl Log {
    /// A new connection writes into `file` from now on.
    pub(super) fn open(&self, file: File) {
        let before = self.state().file.replace(Arc::new(file));
        // The system tells of a failure by the file that was open when it happened.
        if let Some(before) = before
            && let Err(error) = before.sync_data()
        {
            self.fail(&error);
        }
    }

    /// Whether there has been a connection.
    pub(super) fn is_open(&self) -> bool {
        self.state().file.is_some()
    }

    /// Commits by `work`, and says which commit that was. There is one at a time. It counts from before it
    /// can be seen.
    pub(super) fn commit<T, E>(
        &self,
        work: impl FnOnce() -> Result<T, E>,
    ) -> Result<(T, Commit), E> {
        let committing = {
            let mut state = self.state();
            state.begun.0 += 1;
            Committing { log: self, commit: state.begun }
        };
        Ok((work()?, committing.commit))
    }

    /// The latest commit that anybody can have seen.
    pub(super) fn latest(&self) -> Commit {
        self.state().begun
    }

    /// Waits until a commit is on the disk.
    pub(super) async fn synced(&self, commit: Commit) -> Result<(), Error> {
        if self.state().synced >= commit {
            return Ok(());
        }
        let mut ended = self.ended.subscribe();
        // Its sender is here.
        let _ = ended.wait_for(|ended| *ended >= commit).await;
        let _turn = self.syncing.lock().await;
        let covered = *self.ended.borrow();
        let file = {
            let state = self.state();
            if state.synced >= commit {
                return Ok(());
            }
            if state.is_in_doubt {
                return Err(in_doubt());
            }
            state.file.clone().ok_or_else(in_doubt)?
        };
        if let Err(error) = off_the_workers(|| file.sync_data()) {
            self.fail(&error);
            return Err(refused(sqlx::Error::Io(error)));
        }
        let mut state = self.state();
        state.synced = state.synced.max(covered);
        Ok(())
    }

    fn fail(&self, error: &std::io::Error) {
        tracing::error!(%error, "the database's log could not be brought to the disk");
        self.state().is_in_doubt = true;
    }

    /// Whether a sync has failed since the log was last written back.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.state().is_in_doubt
    }

    /// All that was committed has been written into the database, and is on the disk there. To be called by
    /// whoever may commit.
    pub(super) fn written_back(&self) {
        let mut state = self.state();
        (state.synced, state.is_in_doubt) = (state.begun, false);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn in_doubt() -> Error {
    Error::unavailable(
        "the database's log could not be brought to the disk; the next write tries to write it back, \
         and the service's log says why it failed",
    )
}
