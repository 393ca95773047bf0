//! What can go wrong with a database, in the two ways that matter to a caller.

use std::borrow::Cow;

use sea_orm::sqlx::error::{DatabaseError, ErrorKind};
use sea_orm::{DbErr, RuntimeErr};

/// A query did not give its answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database is gone, full or too busy: trying again later may work.
    #[error("the database is unavailable: {0}")]
    Unavailable(#[source] DbErr),
    /// The database refused the query, or a stored document cannot be read: a fault of ours.
    #[error("the database refused a query: {0}")]
    Query(#[source] DbErr),
    /// A stored value is not one that this version writes.
    #[error("a stored value cannot be read: {0}")]
    Corrupt(String),
    /// The schema is not the one that this version needs.
    #[error("{0}")]
    Schema(String),
    /// The master key is missing, wrong, or cannot be read: a sentence that says what to do.
    #[error("{0}")]
    MasterKey(String),
    /// The options do not describe a database.
    #[error("{0}")]
    Configuration(String),
}

/// What became of an update that names the revision it was made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Update {
    /// It is stored.
    Done,
    /// Somebody else changed or deleted the row first.
    Stale,
}

impl Error {
    /// What only time or an operator can mend, such as others that change the same things again and again.
    pub fn unavailable(what: &str) -> Self {
        Self::Unavailable(DbErr::Custom(what.to_owned()))
    }

    /// Whether trying again later may work.
    pub const fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }

    /// Whether it is for want of space on the database's disk.
    pub fn is_full(&self) -> bool {
        let Self::Unavailable(
            DbErr::Exec(RuntimeErr::SqlxError(cause))
            | DbErr::Query(RuntimeErr::SqlxError(cause))
            | DbErr::Conn(RuntimeErr::SqlxError(cause)),
        ) = self
        else {
            return false;
        };
        let code = cause.as_database_error().and_then(DatabaseError::code);
        code.is_some_and(|code| is_full_code(&code))
    }
}

impl From<DbErr> for Error {
    fn from(error: DbErr) -> Self {
        let transient = match &error {
            DbErr::ConnectionAcquire(_) | DbErr::Conn(_) => true,
            DbErr::Exec(RuntimeErr::SqlxError(cause))
            | DbErr::Query(RuntimeErr::SqlxError(cause)) => is_transient(cause),
            _ => false,
        };
        if transient { Self::Unavailable(error) } else { Self::Query(error) }
    }
}

/// The database refused a statement that went past sea-orm.
pub(super) fn refused(error: sea_orm::sqlx::Error) -> Error {
    Error::from(DbErr::Query(RuntimeErr::SqlxError(std::sync::Arc::new(error))))
}

/// SQLite refused something on the line: told as the driver would have told it.
impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        refused(match error {
            rusqlite::Error::SqliteFailure(..) => {
                sea_orm::sqlx::Error::Database(Box::new(SqliteFailure(error)))
            }
            error => sea_orm::sqlx::Error::Decode(Box::new(error)),
        })
    }
}

/// An error of SQLite's that did not come through the driver.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct SqliteFailure(#[from] rusqlite::Error);

impl DatabaseError for SqliteFailure {
    fn message(&self) -> &str {
        match &self.0 {
            rusqlite::Error::SqliteFailure(_, Some(message)) => message,
            _ => "SQLite gave no reason",
        }
    }

    fn code(&self) -> Option<Cow<'_, str>> {
        let code = self.0.sqlite_error()?.extended_code;
        Some(Cow::Owned(code.to_string()))
    }

    fn kind(&self) -> ErrorKind {
        ErrorKind::Other
    }

    fn as_error(&self) -> &(dyn std::error::Error + Send + Sync + 'static) {
        self
    }

    fn as_error_mut(&mut self) -> &mut (dyn std::error::Error + Send + Sync + 'static) {
        self
    }

    fn into_error(self: Box<Self>) -> Box<dyn std::error::Error + Send + Sync + 'static> {
        self
    }
}

#[cfg(feature = "failpoints")]
impl From<crate::failpoint::Injected> for Error {
    fn from(error: crate::failpoint::Injected) -> Self {
        Self::Unavailable(DbErr::Custom(error.to_string()))
    }
}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        Self::Corrupt(error.to_string())
    }
}

fn is_transient(error: &sea_orm::sqlx::Error) -> bool {
    use sea_orm::sqlx::Error as Sqlx;
    match error {
        Sqlx::Io(_)
        | Sqlx::Tls(_)
        | Sqlx::Protocol(_)
        | Sqlx::PoolTimedOut
        | Sqlx::PoolClosed
        | Sqlx::WorkerCrashed => true,
        Sqlx::Database(cause) => cause.code().is_some_and(|code| is_transient_code(&code)),
        _ => false,
    }
}

/// PostgreSQL: connection exceptions (08), transaction rollback (40), insufficient resources (53),
/// operator intervention (57), system errors (58), read-only (25006), a transaction that was given up
/// because this process said nothing for too long (25P03). SQLite's codes are numbers:
/// 5 busy, 6 locked, 8 read-only, 10 I/O, 13 full, 14 cannot open, with extensions above the low byte.
fn is_transient_code(code: &str) -> bool {
    if code.len() == 5 {
        return ["08", "40", "53", "57", "58"].iter().any(|class| code.starts_with(class))
            || ["25006", "25P03"].contains(&code);
    }
    code.parse::<u32>().is_ok_and(|code| [5, 6, 8, 10, 13, 14].contains(&(code & 0xff)))
}

/// PostgreSQL's `disk_full`; SQLite's FULL, and the I/O error of a shared index that cannot grow.
fn is_full_code(code: &str) -> bool {
    const SQLITE_FULL: &str = "13";
    const SQLITE_IOERR_SHMSIZE: &str = "4874";
    ["53100", SQLITE_FULL, SQLITE_IOERR_SHMSIZE].contains(&code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_tell_what_may_work_later() {
        // A full disk, too many connections, a lost connection, a deadlock, a shutdown, read-only.
        for code in ["53100", "53300", "08006", "40P01", "57P01", "25006", "25P03"] {
            assert!(is_transient_code(code), "{code}");
        }
        // SQLite: busy, busy with a snapshot, locked, read-only, I/O, I/O of a sync, full, no file.
        for code in ["5", "517", "6", "8", "10", "1034", "13", "14", "4874"] {
            assert!(is_transient_code(code), "{code}");
        }
        for code in ["23514", "42P01", "22021", "23505", "25P02", "1", "19", "275", "11", "26"] {
            assert!(!is_transient_code(code), "{code}");
        }
    }

    #[test]
    fn codes_tell_that_the_disk_is_full() {
        for code in ["53100", "13", "4874"] {
            assert!(is_full_code(code) && is_transient_code(code), "{code}");
        }
        for code in ["53200", "53300", "10", "1034", "5"] {
            assert!(!is_full_code(code), "{code}");
        }
    }
}
