//! Wake-ups: something may have changed, go and look. They carry no data and may be lost; whoever
//! waits for one also looks by itself now and then.
//!
//! Within the process a wake-up is a counter. On PostgreSQL replicas wake each other with NOTIFY,
//! sent outside the transactions (inside it would take a global lock at commit) and at most once
//! per batch.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sea_orm::sqlx::postgres::PgListener;
use sea_orm::{ConnectionTrait, DatabaseTransaction};
use tokio::sync::watch;

use super::connect::not_connected;
use super::dialect::Dialect;
use super::pooler::Sessions;
use super::{Error, Store};

/// The channel of NOTIFY.
const CHANNEL: &str = "tidings_feed";

/// Counts the commits that changed a delivery.
#[derive(Clone, Debug)]
pub(super) struct Wakes {
    feed: Arc<watch::Sender<u64>>,
    /// Counts the commits that changed settings.
    settings: Arc<AtomicU64>,
}

impl Default for Wakes {
    fn default() -> Self {
        Self { feed: Arc::new(watch::Sender::new(0)), settings: Arc::default() }
    }
}

impl Wakes {
    pub(super) fn wake(&self) {
        self.feed.send_modify(|count| *count = count.wrapping_add(1));
    }
}

/// Which settings somebody has seen: those of this process's changes up to a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SettingsSeen(u64);

/// Hears the wake-ups of other replicas.
#[derive(Debug)]
pub struct Listener(PgListener);

impl Listener {
    /// Waits for the next wake-up.
    ///
    /// # Errors
    /// When the connection broke: wake-ups may have been missed; listen anew and look.
    pub async fn next(&mut self) -> Result<(), Error> {
        self.0.recv().await.map(drop).map_err(not_connected)
    }
}

impl Store {
    /// Changes each time this process has changed a delivery.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.wakes.feed.subscribe()
    }

    /// Which settings are to be seen now. Another value later means that this process has changed
    /// some meanwhile; changes of other replicas do not show here.
    pub(super) fn settings_seen(&self) -> SettingsSeen {
        SettingsSeen(self.wakes.settings.load(Ordering::Acquire))
    }

    /// Commits a change of settings, and has everybody in this process look at them anew.
    pub(super) async fn commit_settings(
        &self,
        transaction: DatabaseTransaction,
    ) -> Result<(), Error> {
        fail_point!(SettingsBeforeCommit);
        transaction.commit().await?;
        fail_point!(SettingsAfterCommit);
        self.wakes.settings.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// Begins to hear other replicas; `None` where there can be none, and behind a pooler that lends
    /// sessions.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn listen(&self) -> Result<Option<Listener>, Error> {
        if self.dialect == Dialect::Sqlite {
            return Ok(None);
        }
        if self.sessions == Sessions::Lent {
            tracing::info!(
                "a pooler before PostgreSQL lends its sessions: what other replicas change is found \
                 by polling"
            );
            return Ok(None);
        }
        let pool = self.read.get_postgres_connection_pool();
        let mut listener = PgListener::connect_with(pool).await.map_err(not_connected)?;
        listener.listen(CHANNEL).await.map_err(not_connected)?;
        Ok(Some(Listener(listener)))
    }

    /// Wakes the other replicas.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn notify(&self) -> Result<(), Error> {
        if self.dialect == Dialect::Postgres {
            // The commit of a transaction that notifies is written down. Nobody need wait for the disk.
            let sql = format!("SET LOCAL synchronous_commit = off; NOTIFY {CHANNEL}");
            self.write.execute_unprepared(&sql).await?;
        }
        Ok(())
    }
}
