//! Connections of their own for the hot path: accepting groups of events, and recording groups of
//! results. Everything else goes through the pools.

pub(super) mod postgres;
pub(super) mod sqlite;

use super::Error;

/// The hot path's connections. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) enum Lines {
    /// One for each of the two statements.
    Postgres(postgres::Lines),
    /// One for both: SQLite has one writer.
    Sqlite(sqlite::Line),
}

impl Lines {
    /// Waits until all is on the disk that anybody can have read by now. PostgreSQL shows nothing before that.
    pub(super) async fn settled(&self) -> Result<(), Error> {
        match self {
            Self::Postgres(_) => Ok(()),
            Self::Sqlite(line) => line.settled().await,
        }
    }

    /// Closes them. The pools come first: on SQLite nobody may be at work any more.
    pub(super) async fn close(&self) {
        match self {
            Self::Postgres(lines) => lines.close().await,
            Self::Sqlite(line) => line.close(),
        }
    }
}
