//! A connection of its own to SQLite, for the two transactions that every event goes through. It takes
//! values by reference and keeps one prepared statement for each kind of row, without the driver's
//! value objects and without its thread in between (`docs/adr/0014-sqlite-line.md`).
//!
//! Guarantees: the line and the pool's writer never meet at the file's lock, because whoever works here
//! holds the pool's one connection meanwhile. Work that has begun ends, committed or taken back, before
//! anybody else writes, even when nobody waits for it any more. A connection on which anything went
//! wrong is not used again.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::{Connection, OpenFlags, TransactionBehavior};
use sea_orm::sqlx::SqlitePool;
use tokio::runtime::{Handle, RuntimeFlavor};

use super::super::Error;
use super::super::connect::{BUSY_TIMEOUT, PRAGMAS};
use super::super::error::refused;

/// Statements that stay prepared: more than the hot path has.
const STATEMENTS: usize = 32;
/// As the pools' connections have it. FULL syncs the log at each commit: acknowledged means on disk.
const DURABLE: &str =
    "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON";

/// How a transaction is to end, and what comes of it.
pub(in super::super) enum End<T> {
    Commit(T),
    Rollback(T),
}

/// A connection. Cheap to clone.
#[derive(Clone, Debug)]
pub(in super::super) struct Line(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Has one connection; who holds it may write.
    writer: SqlitePool,
    path: PathBuf,
    connection: Mutex<Option<Connection>>,
}

impl Line {
    /// A line that is connected when it is first used.
    pub(in super::super) fn new(writer: SqlitePool, path: PathBuf) -> Self {
        Self(Arc::new(Inner { writer, path, connection: Mutex::default() }))
    }

    /// Runs `work` in a transaction, when those before it have ended.
    ///
    /// Nothing is awaited once the work has begun, so it cannot be left half done by who waits for it.
    pub(in super::super) async fn run<T>(
        &self,
        work: impl FnOnce(&Connection) -> Result<End<T>, Error>,
    ) -> Result<T, Error> {
        let turn = self.0.writer.acquire().await.map_err(refused)?;
        off_the_workers(move || {
            let result = self.0.run(work);
            drop(turn);
            result
        })
    }

    /// Closes the connection. The pool must be closed, so that nobody opens it again.
    pub(super) fn close(&self) {
        off_the_workers(|| drop(self.0.place().take()));
    }
}

impl Inner {
    fn run<T>(&self, work: impl FnOnce(&Connection) -> Result<End<T>, Error>) -> Result<T, Error> {
        let mut place = self.place();
        let mut connection = place.take().map_or_else(|| self.connect(), Ok)?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let value = match work(&transaction)? {
            End::Commit(value) => {
                transaction.commit()?;
                value
            }
            End::Rollback(value) => {
                transaction.rollback()?;
                value
            }
        };
        // Only now: after an error nobody knows whether a transaction is still open.
        *place = Some(connection);
        Ok(value)
    }

    /// Not created where there is none: the pool has opened the file before.
    fn connect(&self) -> Result<Connection, Error> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.path, flags)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.execute_batch(DURABLE)?;
        for (name, value) in PRAGMAS {
            connection.pragma_update(None, name, value)?;
        }
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        Ok(connection)
    }

    /// Free for whoever holds the pool's connection. What a panic left behind is an empty place.
    fn place(&self) -> std::sync::MutexGuard<'_, Option<Connection>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs what waits for the disk on this thread, and has another one do the runtime's work meanwhile.
/// (A runtime of one thread, as tests have it, waits.)
fn off_the_workers<T>(work: impl FnOnce() -> T) -> T {
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::MultiThread => tokio::task::block_in_place(work),
        _ => work(),
    }
}

#[cfg(test)]
mod tests;
