//! The database's clock, read now and then and carried on by the machine's steady one.
//!
//! Replicas agree on the time because they all follow the database; a machine whose own clock is
//! wrong changes nothing. Between two readings the time is the last reading plus what the
//! monotonic clock says has passed.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

use sea_orm::ConnectionTrait;

use crate::domain::{Clock, Timestamp};

use super::{Error, Store};

/// A clock that follows the database's.
#[derive(Debug)]
pub struct DatabaseClock {
    started: Instant,
    /// The database's time, in microseconds, at which this process started.
    origin_us: AtomicI64,
}

impl DatabaseClock {
    /// A clock that has read the database's time once.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn start(store: &Store) -> Result<Self, Error> {
        #[expect(clippy::disallowed_methods, reason = "this is where the steady clock comes from")]
        let clock = Self { started: Instant::now(), origin_us: AtomicI64::new(0) };
        clock.synchronize(store).await?;
        Ok(clock)
    }

    /// Reads the database's time anew.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn synchronize(&self, store: &Store) -> Result<(), Error> {
        let before = self.elapsed_us();
        let now = store.now().await?;
        // The answer was made about half way between asking and hearing.
        let middle = before + (self.elapsed_us() - before) / 2;
        self.origin_us.store(now.as_micros() - middle, Ordering::Relaxed);
        Ok(())
    }

    #[expect(clippy::disallowed_methods, reason = "this is where the steady clock comes from")]
    fn elapsed_us(&self) -> i64 {
        i64::try_from(self.started.elapsed().as_micros()).unwrap_or(i64::MAX)
    }
}

impl Clock for DatabaseClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(
            self.origin_us.load(Ordering::Relaxed).saturating_add(self.elapsed_us()),
        )
    }
}

impl Store {
    /// The database's present.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn now(&self) -> Result<Timestamp, Error> {
        let sql = format!("SELECT {}", self.dialect.now());
        let row = self.read.query_one_raw(self.dialect.statement(sql, Vec::new())).await?;
        let micros = row.ok_or_else(|| Error::Corrupt("no time".into()))?.try_get_by_index(0)?;
        Ok(Timestamp::from_micros(micros))
    }
}
