//! SQLite's write-ahead log, brought to the disk beside the transaction that comes next.
//!
//! A commit of the line's leaves its pages in the log, in the system's memory, and lets the next one
//! begin. Whoever committed then waits here until the log has been synced: once for all that had
//! committed by then. The log is valid up to its first frame that is not, so what is synced has all that
//! was committed before it.
//!
//! Guarantees: nothing counts as synced because of a sync that began before its commit, or after one
//! that failed: the system says once that it could not write a page, and then takes it for written. After
//! that nothing counts until the log has been written back into the database.

use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sea_orm::sqlx;

use super::super::super::Error;
use super::super::super::error::refused;
use super::off_the_workers;

/// A commit by its number: of two, the later one has the larger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Commit(u64);

/// What is known of the log.
#[derive(Debug, Default)]
pub(super) struct Log {
    state: Mutex<State>,
    /// Whoever syncs has it. The others wait for that, and mostly find that it was for them, too.
    pub(super) syncing: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    committed: Commit,
    synced: Commit,
    /// That of the latest commit's connection.
    file: Option<Arc<File>>,
    /// A sync has failed.
    is_in_doubt: bool,
}

impl Log {
    /// Takes note of a commit into the log that is `file`.
    pub(super) fn committed(&self, file: &Arc<File>) -> Commit {
        let mut state = self.state();
        state.committed.0 += 1;
        if state.file.as_ref().is_none_or(|known| !Arc::ptr_eq(known, file)) {
            state.file = Some(Arc::clone(file));
        }
        state.committed
    }

    /// The latest commit.
    pub(super) fn latest(&self) -> Commit {
        self.state().committed
    }

    /// Waits until a commit is on the disk.
    pub(super) async fn synced(&self, commit: Commit) -> Result<(), Error> {
        if self.state().synced >= commit {
            return Ok(());
        }
        let _turn = self.syncing.lock().await;
        let (file, covered) = {
            let state = self.state();
            if state.synced >= commit {
                return Ok(());
            }
            if state.is_in_doubt {
                return Err(in_doubt());
            }
            (state.file.clone().ok_or_else(in_doubt)?, state.committed)
        };
        match off_the_workers(|| file.sync_data()) {
            Ok(()) => {
                let mut state = self.state();
                state.synced = state.synced.max(covered);
                Ok(())
            }
            Err(error) => {
                tracing::error!(%error, "the database's log could not be brought to the disk");
                self.state().is_in_doubt = true;
                Err(refused(sqlx::Error::Io(error)))
            }
        }
    }

    /// Whether a sync has failed since the log was last written back.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.state().is_in_doubt
    }

    /// All that was committed has been written into the database, and is on the disk there.
    pub(super) fn written_back(&self) {
        let mut state = self.state();
        (state.synced, state.is_in_doubt) = (state.committed, false);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn in_doubt() -> Error {
    Error::unavailable("the database's log could not be brought to the disk; see the service's log")
}
