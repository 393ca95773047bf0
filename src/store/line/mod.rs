//! Connections of their own for the hot path: accepting groups of events, and recording groups of
//! results. Everything else goes through the pools.

pub(super) mod postgres;
pub(super) mod sqlite;

/// The hot path's connections. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) enum Lines {
    /// One for each of the two statements.
    Postgres(postgres::Lines),
    /// One for both: SQLite has one writer.
    Sqlite(sqlite::Line),
}

impl Lines {
    /// Closes them. The pools come first: on SQLite nobody may be at work any more.
    pub(super) async fn close(&self) {
        match self {
            Self::Postgres(lines) => lines.close().await,
            Self::Sqlite(line) => line.close(),
        }
    }
}
