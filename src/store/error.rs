//! What can go wrong with a database, in the two ways that matter to a caller.

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
    /// Whether trying again later may work.
    pub const fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable(_))
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
/// operator intervention (57), system errors (58), read-only (25006). SQLite's codes are numbers:
/// 5 busy, 6 locked, 8 read-only, 10 I/O, 13 full, 14 cannot open, with extensions above the low byte.
fn is_transient_code(code: &str) -> bool {
    if code.len() == 5 {
        return ["08", "40", "53", "57", "58"].iter().any(|class| code.starts_with(class))
            || code == "25006";
    }
    code.parse::<u32>().is_ok_and(|code| [5, 6, 8, 10, 13, 14].contains(&(code & 0xff)))
}
