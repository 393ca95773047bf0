//! Connections of their own to PostgreSQL, for the two statements that every event goes through:
//! accepting a group of events, and recording a group of results.
//!
//! A pool lends its connections in turn, and each is a process of the server that has to plan the
//! statement and to map the tables' pages for itself. The one that serves a line has both at hand.
//! Keeping the connection also saves the pool's question after each use whether it is still there.
//!
//! What breaks is replaced at the next use. A future that is dropped leaves the connection usable: the
//! driver reads what is left of the answer first.

use std::sync::Arc;
use std::time::Duration;

use sea_orm::sqlx::postgres::{PgConnectOptions, PgConnection, PgDatabaseError, PgSeverity};
use sea_orm::sqlx::{self, Connection, Executor};
use tokio::sync::Mutex;

use super::super::feed::{PgQuery, PgTold};

/// Has PostgreSQL plan a statement once: the plans of ours do not depend on their values.
const PLAN_ONCE: &str = "SET plan_cache_mode = force_generic_plan";
/// Has it read by keys in their order, not in that of pages: rows are locked in an order that all have in
/// common.
const IN_ORDER: &str = "SET enable_bitmapscan = off";

/// For each of the two statements its own. Cheap to clone.
#[derive(Clone, Debug)]
pub(in super::super) struct Lines {
    /// The second one is for when events arrive in full groups. Then the next group is taken while one commits.
    accepting: [Line; 2],
    pub(in super::super) recording: Line,
}

impl Lines {
    /// How many connections they have at most.
    pub(in super::super) const COUNT: u32 = 3;

    /// Lines that connect when they are first used; `settings` is what a new connection is told, and
    /// `patience` how long connecting may take.
    pub(in super::super) fn new(
        options: &PgConnectOptions,
        settings: &'static [&'static str],
        patience: Duration,
    ) -> Self {
        let line = || {
            let (options, connection) = (options.clone(), Mutex::new(None));
            Line(Arc::new(Inner { options, settings, patience, connection }))
        };
        Self { accepting: [line(), line()], recording: line() }
    }

    /// One that accepts, and is free if any is: the first one if it is, whose plans are at hand.
    pub(in super::super) fn accepting(&self) -> &Line {
        let [first, second] = &self.accepting;
        if first.is_free() { first } else { second }
    }

    /// Says goodbye to the server.
    pub(super) async fn close(&self) {
        for line in &self.accepting {
            line.close().await;
        }
        self.recording.close().await;
    }
}

/// A connection. Cheap to clone.
#[derive(Clone, Debug)]
pub(in super::super) struct Line(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    options: PgConnectOptions,
    settings: &'static [&'static str],
    patience: Duration,
    connection: Mutex<Option<PgConnection>>,
}

impl Line {
    /// Runs a statement, when those before it have ended.
    pub(in super::super) async fn fetch(&self, query: PgQuery<'_>) -> Result<PgTold, sqlx::Error> {
        let mut place = self.0.connection.lock().await;
        let connection = match place.as_mut() {
            Some(connection) => connection,
            None => place.insert(self.0.connect().await?),
        };
        let result = query.fetch_one(connection).await;
        if let Err(error) = &result
            && is_broken(error)
        {
            *place = None;
        }
        result
    }

    fn is_free(&self) -> bool {
        self.0.connection.try_lock().is_ok()
    }

    async fn close(&self) {
        if let Some(connection) = self.0.connection.lock().await.take() {
            // It is gone either way.
            let _ = connection.close().await;
        }
    }
}

impl Inner {
    async fn connect(&self) -> Result<PgConnection, sqlx::Error> {
        let connecting = async {
            let mut connection = PgConnection::connect_with(&self.options).await?;
            for setting in self.settings.iter().chain([&PLAN_ONCE, &IN_ORDER]) {
                connection.execute(*setting).await?;
            }
            Ok(connection)
        };
        let connected = tokio::time::timeout(self.patience, connecting).await;
        connected.unwrap_or(Err(sqlx::Error::PoolTimedOut))
    }
}

/// Whether the connection is of no more use: a statement that the server refuses leaves it as it was,
/// unless it ends the session.
fn is_broken(error: &sqlx::Error) -> bool {
    let refused = error.as_database_error().and_then(|error| error.try_downcast_ref());
    refused.is_none_or(|refused: &PgDatabaseError| {
        matches!(refused.severity(), PgSeverity::Fatal | PgSeverity::Panic)
    })
}
