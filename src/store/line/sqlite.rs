//! A connection of its own to SQLite, for the two transactions that every event goes through. It takes
//! values by reference and keeps one prepared statement for each kind of row, without the driver's
//! value objects and without its thread in between (`docs/adr/0014-sqlite-line.md`).
//!
//! Guarantees: the line and the pool's writer never meet at the file's lock, because whoever works here
//! holds the pool's one connection meanwhile, and hands it on to whoever waits here, a few times in a
//! row. Work that has begun ends, committed or taken back, before
//! anybody else writes, even when nobody waits for it any more. What was committed is on the disk before
//! anybody is told ([`log`]). A connection on which anything went wrong is not used again.

mod log;

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, OpenFlags, TransactionBehavior};
use sea_orm::sqlx::pool::PoolConnection;
use sea_orm::sqlx::{self, Sqlite, SqlitePool};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::oneshot;

use super::super::Error;
use super::super::connect::{ACQUIRE_TIMEOUT, BUSY_TIMEOUT, PRAGMAS};
use super::super::error::refused;
use log::Log;

/// Transactions in a row before the pool's writers have their turn. To give its connection back and to get it
/// again takes the pool a task and its driver's thread: about as long as a transaction.
const MOST_IN_A_ROW: u32 = 16;
/// Statements that stay prepared: more than the hot path has.
const STATEMENTS: usize = 32;
/// The pools' connections sync the log at each commit (FULL). This one leaves that to [`Log`]; NORMAL still
/// syncs log and database where the log is written back.
const MODE: &str =
    "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON";
/// Writes all of the log into the database, syncs that, and empties the log.
const WRITE_BACK: &str = "PRAGMA wal_checkpoint(TRUNCATE)";

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
    turns: Mutex<Turns>,
    path: PathBuf,
    connection: Mutex<Option<Connection>>,
    log: Log,
}

/// Who works on the line, and who waits for that.
#[derive(Debug, Default)]
struct Turns {
    is_taken: bool,
    waiting: VecDeque<oneshot::Sender<Turn>>,
}

/// The right to work. Whoever waits gets it when it is dropped, with the pool's connection.
#[derive(Debug)]
struct Turn {
    /// `None` of one that nobody took.
    line: Option<Arc<Inner>>,
    /// The pool's connection, unless it is still to be asked for.
    writer: Option<PoolConnection<Sqlite>>,
    /// How often it was handed on.
    in_a_row: u32,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(line) = self.line.take() else { return };
        let mut writer = self.writer.take();
        let in_a_row = self.in_a_row + 1;
        if in_a_row >= MOST_IN_A_ROW {
            writer = None;
        }
        let mut turns = line.turns();
        while let Some(next) = turns.waiting.pop_front() {
            let turn = Self { line: Some(Arc::clone(&line)), writer: writer.take(), in_a_row };
            match next.send(turn) {
                Ok(()) => return,
                Err(mut turn) => {
                    turn.line = None;
                    writer = turn.writer.take();
                }
            }
        }
        turns.is_taken = false;
    }
}

impl Line {
    /// A line that is connected when it is first used.
    pub(in super::super) fn new(writer: SqlitePool, path: PathBuf) -> Self {
        let (turns, connection, log) = (Mutex::default(), Mutex::default(), Log::default());
        Self(Arc::new(Inner { writer, turns, path, connection, log }))
    }

    /// Runs `work` in a transaction, when those before it have ended, and waits until it is on the disk.
    ///
    /// Nothing is awaited once the work has begun, so it cannot be left half done by who waits for it.
    pub(in super::super) async fn run<T>(
        &self,
        work: impl FnOnce(&Connection) -> Result<End<T>, Error>,
    ) -> Result<T, Error> {
        self.run_telling(work, || ()).await
    }

    /// The same, and says when it has committed and waits for the disk.
    pub(in super::super) async fn run_telling<T>(
        &self,
        work: impl FnOnce(&Connection) -> Result<End<T>, Error>,
        written: impl FnOnce(),
    ) -> Result<T, Error> {
        let turn = self.turn().await.map_err(refused)?;
        let (value, commit) = off_the_workers(move || {
            let result = self.0.run(work);
            drop(turn);
            result
        })?;
        if let Some(commit) = commit {
            written();
            self.0.log.synced(commit).await?;
        }
        Ok(value)
    }

    /// Waits until all is on the disk that anybody can have read by now: a commit shows before that.
    pub(in super::super) async fn settled(&self) -> Result<(), Error> {
        let latest = self.0.log.latest();
        if !self.0.log.is_open() || self.0.log.is_in_doubt() {
            // Opens it, and writes it back.
            self.run(|_| Ok(End::Rollback(()))).await?;
        }
        self.0.log.synced(latest).await
    }

    /// Waits for those before, and for the pool's connection if none of them hands it on.
    async fn turn(&self) -> Result<Turn, sqlx::Error> {
        let waits = {
            let mut turns = self.0.turns();
            if turns.is_taken {
                let (sender, waits) = oneshot::channel();
                turns.waiting.push_back(sender);
                Some(waits)
            } else {
                turns.is_taken = true;
                None
            }
        };
        let mut turn = match waits {
            None => Turn { line: Some(Arc::clone(&self.0)), writer: None, in_a_row: 0 },
            Some(waits) => match tokio::time::timeout(ACQUIRE_TIMEOUT, waits).await {
                Ok(turn) => turn.map_err(|_| sqlx::Error::PoolClosed)?,
                Err(_) => return Err(sqlx::Error::PoolTimedOut),
            },
        };
        if turn.writer.is_none() {
            (turn.writer, turn.in_a_row) = (Some(self.0.writer.acquire().await?), 0);
        }
        Ok(turn)
    }

    /// Closes the connection. The pool must be closed, so that nobody opens it again.
    pub(super) fn close(&self) {
        off_the_workers(|| drop(self.0.place().take()));
    }
}

impl Inner {
    fn run<T>(
        &self,
        work: impl FnOnce(&Connection) -> Result<End<T>, Error>,
    ) -> Result<(T, Option<log::Commit>), Error> {
        let mut place = self.place();
        let mut connection = place.take().map_or_else(|| self.connect(), Ok)?;
        if self.log.is_in_doubt() {
            self.write_back(&connection)?;
        }
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let ended = match work(&transaction)? {
            End::Commit(value) => {
                let ((), commit) = self.log.commit(|| transaction.commit())?;
                (value, Some(commit))
            }
            End::Rollback(value) => {
                transaction.rollback()?;
                (value, None)
            }
        };
        // Only now: after an error nobody knows whether a transaction is still open.
        *place = Some(connection);
        Ok(ended)
    }

    fn write_back(&self, connection: &Connection) -> Result<(), Error> {
        let is_busy: bool = connection.query_row(WRITE_BACK, [], |row| row.get(0))?;
        if is_busy {
            return Err(Error::unavailable(
                "the database's log has to be emptied, and somebody reads it: end what reads the database, \
                 such as a backup or a shell",
            ));
        }
        self.log.written_back();
        tracing::info!("the database's log is written back; all that was committed is on the disk");
        Ok(())
    }

    /// Not created where there is none: the pool has opened the file before.
    fn connect(&self) -> Result<Connection, Error> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.path, flags)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.execute_batch(MODE)?;
        for (name, value) in PRAGMAS {
            connection.pragma_update(None, name, value)?;
        }
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        self.log.open(log_of(&connection).map_err(|error| refused(sqlx::Error::Io(error)))?);
        Ok(connection)
    }

    fn turns(&self) -> MutexGuard<'_, Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Free for whoever holds the pool's connection. What a panic left behind is an empty place.
    fn place(&self) -> MutexGuard<'_, Option<Connection>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The log beside the database's file, which SQLite may have found behind a symbolic link.
fn log_of(connection: &Connection) -> io::Result<File> {
    let mut path = OsString::from(connection.path().unwrap_or_default());
    path.push("-wal");
    File::options().read(true).write(true).open(path)
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
