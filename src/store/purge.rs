//! Removing what is older than its retention, and what deleted tenants owned: in bounded steps, with
//! a pause between them, so that a large backlog of old rows is never one long transaction.

use std::time::Duration;

use sea_orm::{ConnectionTrait, Value};

use crate::domain::Timestamp;
use crate::domain::id::{DeliveryId, EventId, InvalidId};

use super::bulk::{Rows, Type, bigint, text};
use super::{Error, Store};

/// Rows that one statement removes at most.
const BATCH: u32 = 2_000;
/// Events, and deliveries, that one transaction removes at most, and those of one millisecond more.
const WINDOW: u32 = 1_000;

/// How long what is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Events, with their deliveries and attempts, once the deliveries have ended.
    pub events: Duration,
    /// The feed: how old a resume token may be.
    pub feed: Duration,
    /// Idempotency keys.
    pub idempotency_keys: Duration,
}

/// How many rows went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Purged {
    /// In all tables together.
    pub rows: u64,
}

impl Store {
    /// Removes everything that is too old. Between two steps the database is left to others for
    /// `pause`. Dropping the future loses nothing but the rest of the round.
    ///
    /// # Errors
    /// When the database does not take it; what was removed before stays removed.
    pub async fn purge(
        &self,
        retention: Retention,
        now: Timestamp,
        pause: Duration,
    ) -> Result<Purged, Error> {
        let mut purged = Purged::default();
        for tenant_id in self.tenant_ids("delete_time IS NOT NULL").await? {
            loop {
                let rows = self.purge_deleted_tenant(&tenant_id).await?;
                if rows == 0 {
                    break;
                }
                purged.rows += rows;
                fail_point!(PurgeBetween);
                tokio::time::sleep(pause).await;
            }
        }
        for tenant_id in self.tenant_ids("delete_time IS NULL").await? {
            let tenant_id = tenant_id.as_str();
            purged.rows += self.purge_events(tenant_id, now.minus(retention.events), pause).await?;
            let old = Old::Feed(tenant_id, now.minus(retention.feed));
            purged.rows += self.purge_old(old, pause).await?;
        }
        let old = Old::IdempotencyKeys(now.minus(retention.idempotency_keys));
        purged.rows += self.purge_old(old, pause).await?;
        Ok(purged)
    }

    async fn tenant_ids(&self, condition: &str) -> Result<Vec<String>, Error> {
        let sql = format!("SELECT id FROM tenants WHERE {condition} ORDER BY id");
        let rows = self.read.query_all_raw(self.dialect.statement(sql, Vec::new())).await?;
        rows.iter().map(|row| Ok(row.try_get_by_index(0)?)).collect()
    }

    /// Removes the events from before `cutoff` that have no unfinished delivery, with their
    /// deliveries and attempts. An old delivery that is held keeps its own event, and no other.
    async fn purge_events(
        &self,
        tenant_id: &str,
        cutoff: Timestamp,
        pause: Duration,
    ) -> Result<u64, Error> {
        let (mut rows, mut from) = (0, Timestamp::from_micros(0));
        while from < cutoff {
            let events = self
                .page_end("events", tenant_id, EventId::first_at(from), EventId::first_at(cutoff))
                .await?;
            let deliveries = self
                .page_end(
                    "deliveries",
                    tenant_id,
                    DeliveryId::first_at(from),
                    DeliveryId::first_at(cutoff),
                )
                .await?;
            if events == PageEnd::Empty && deliveries == PageEnd::Empty {
                break;
            }
            let until = events.or(cutoff).min(deliveries.or(cutoff));
            rows += self.purge_window(tenant_id, from, until).await?;
            from = until;
            tokio::time::sleep(pause).await;
        }
        Ok(rows)
    }

    /// Where a page of at most [`WINDOW`] rows ends that begins at `from`.
    async fn page_end<Id: Aged>(
        &self,
        table: &str,
        tenant_id: &str,
        from: Id,
        until: Id,
    ) -> Result<PageEnd, Error> {
        let sql = format!(
            "SELECT count(*), max(id) FROM (SELECT id FROM {table}
                WHERE tenant_id = $1 AND id >= $2 AND id < $3 ORDER BY id LIMIT {WINDOW}) AS page"
        );
        let values = vec![text(tenant_id), text(from.to_string()), text(until.to_string())];
        let row = self.read.query_one_raw(self.dialect.statement(sql, values)).await?;
        let row = row.ok_or_else(|| Error::Corrupt("no count".into()))?;
        let (count, last): (i64, Option<String>) =
            (row.try_get_by_index(0)?, row.try_get_by_index(1)?);
        let Some(last) = last else { return Ok(PageEnd::Empty) };
        if count < i64::from(WINDOW) {
            return Ok(PageEnd::Last);
        }
        // Rows of one millisecond are never cut apart: an event and its deliveries share it.
        let last: Id = super::rows::id(&last)?;
        Ok(PageEnd::At(last.time().plus(Duration::from_millis(1))))
    }

    /// Removes what may go of the milliseconds from `from` until `until`, all in one transaction.
    async fn purge_window(
        &self,
        tenant_id: &str,
        from: Timestamp,
        until: Timestamp,
    ) -> Result<u64, Error> {
        let transaction = self.dialect.begin(&self.write).await?;
        let tenant = text(tenant_id);
        let (first, end) = (DeliveryId::first_at(from), DeliveryId::first_at(until));
        let deliveries = [tenant.clone(), text(first.as_str()), text(end.as_str())];
        let (first, end) = (EventId::first_at(from), EventId::first_at(until));
        let events = [text(first.as_str()), text(end.as_str())];
        let both = [&deliveries[..], &events].concat();
        let mut rows = 0;
        // The first decides, the others follow what it has left. NOT IN, because SQLite reads such
        // a list once, but the query of a NOT EXISTS once per row.
        for (sql, values) in [
            (
                "DELETE FROM events WHERE tenant_id = $1 AND id >= $4 AND id < $5
                   AND id NOT IN (SELECT event_id FROM deliveries
                       WHERE tenant_id = $1 AND id >= $2 AND id < $3 AND state IN (1, 2, 8))",
                both.clone(),
            ),
            (
                "DELETE FROM deliveries WHERE tenant_id = $1 AND id >= $2 AND id < $3
                   AND event_id NOT IN (SELECT id FROM events
                       WHERE tenant_id = $1 AND id >= $4 AND id < $5)",
                both,
            ),
            (
                "DELETE FROM attempts WHERE tenant_id = $1 AND delivery_id >= $2 AND delivery_id < $3
                   AND delivery_id NOT IN (SELECT id FROM deliveries
                       WHERE tenant_id = $1 AND id >= $2 AND id < $3)",
                deliveries.to_vec(),
            ),
        ] {
            let statement = self.dialect.statement(sql, values);
            rows += transaction.execute_raw(statement).await?.rows_affected();
        }
        transaction.commit().await?;
        Ok(rows)
    }

    async fn purge_old(&self, old: Old<'_>, pause: Duration) -> Result<u64, Error> {
        let mut rows = 0;
        loop {
            let removed = match old {
                Old::Feed(tenant_id, cutoff) => self.purge_feed(tenant_id, cutoff).await?,
                Old::IdempotencyKeys(cutoff) => self.purge_keys(cutoff).await?,
            };
            rows += removed;
            if removed < u64::from(BATCH) {
                return Ok(rows);
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Removes the oldest idempotency keys, whoever's they are. (A distributed database looks for them in all
    /// shards, but would not remove them with a LIMIT there.)
    async fn purge_keys(&self, cutoff: Timestamp) -> Result<u64, Error> {
        let sql = format!(
            "SELECT tenant_id, idempotency_key FROM idempotency_keys
            WHERE create_time < $1 ORDER BY create_time LIMIT {BATCH}"
        );
        let before = [bigint(cutoff.as_micros())];
        let old = self.read.query_all_raw(self.dialect.statement(sql, before.to_vec())).await?;
        if old.is_empty() {
            return Ok(0);
        }
        let columns = [("tenant_id", Type::Text), ("idempotency_key", Type::Text)];
        let mut keys = Rows::new(self.dialect, columns, old.len());
        for key in &old {
            let (tenant_id, name): (String, String) =
                (key.try_get_by_index(0)?, key.try_get_by_index(1)?);
            keys.push([text(tenant_id), text(name)]);
        }
        // Another node may have removed one, too, and then it may have been taken again. (The sum has each
        // of them looked up by its key: by its time all old ones would be.)
        let sql = " DELETE FROM idempotency_keys WHERE create_time + 0 < $1
            AND (tenant_id, idempotency_key) IN (SELECT tenant_id, idempotency_key FROM r)";
        let transaction = self.dialect.begin(&self.write).await?;
        let rows = keys.execute(&transaction, sql, &before).await?;
        transaction.commit().await?;
        Ok(rows)
    }

    /// Raises the floor first: a token below it is refused before its rows are gone.
    async fn purge_feed(&self, tenant_id: &str, cutoff: Timestamp) -> Result<u64, Error> {
        let sql = "SELECT max(position) FROM (
                SELECT position, create_time FROM feed WHERE tenant_id = $1 ORDER BY position LIMIT $3) AS oldest
            WHERE create_time < $2";
        let values = vec![text(tenant_id), bigint(cutoff.as_micros()), bigint(i64::from(BATCH))];
        let row = self.read.query_one_raw(self.dialect.statement(sql, values)).await?;
        let Some(floor) = row.map_or(Ok(None), |row| row.try_get_by_index::<Option<i64>>(0))?
        else {
            return Ok(0);
        };
        let sql = "UPDATE feed_heads SET floor = $2 WHERE tenant_id = $1 AND floor < $2";
        let values = vec![text(tenant_id), bigint(floor)];
        self.write.execute_raw(self.dialect.statement(sql, values)).await?;
        self.remove(
            "feed",
            "position",
            "tenant_id = $1 AND position <= $2",
            tenant_id,
            vec![bigint(floor)],
        )
        .await
    }

    /// Removes a part of what a deleted tenant owned; in the end the tenant itself.
    async fn purge_deleted_tenant(&self, tenant_id: &str) -> Result<u64, Error> {
        let mut rows = 0;
        for (table, key) in [
            ("deliveries", "id"),
            ("attempts", "delivery_id"),
            ("events", "id"),
            ("idempotency_keys", "idempotency_key"),
            ("feed", "position"),
            ("subscriptions", "id"),
            ("endpoint_health", "subscription_id"),
            ("announcements", "id"),
            ("suppressions", "address"),
            ("event_types", "name"),
            ("api_keys", "id"),
        ] {
            rows += self.remove(table, key, "tenant_id = $1", tenant_id, Vec::new()).await?;
        }
        if rows > 0 {
            return Ok(rows);
        }
        // The feed's head comes last: as long as there are deliveries, results raise it.
        for sql in
            ["DELETE FROM feed_heads WHERE tenant_id = $1", "DELETE FROM tenants WHERE id = $1"]
        {
            let statement = self.dialect.statement(sql, vec![text(tenant_id)]);
            rows += self.write.execute_raw(statement).await?.rows_affected();
        }
        Ok(rows)
    }

    /// Removes at most [`BATCH`] keys' rows of a tenant.
    async fn remove(
        &self,
        table: &str,
        key: &str,
        condition: &str,
        tenant_id: &str,
        values: Vec<Value>,
    ) -> Result<u64, Error> {
        let sql = format!(
            "DELETE FROM {table} WHERE tenant_id = $1 AND {key} IN (
                SELECT {key} FROM {table} WHERE {condition} LIMIT {BATCH})"
        );
        let values = std::iter::once(text(tenant_id)).chain(values).collect();
        Ok(self.write.execute_raw(self.dialect.statement(sql, values)).await?.rows_affected())
    }
}

/// An id that tells when it was made.
trait Aged: std::fmt::Display + std::str::FromStr<Err = InvalidId> {
    fn time(&self) -> Timestamp;
}

impl Aged for EventId {
    fn time(&self) -> Timestamp {
        Self::time(self)
    }
}

impl Aged for DeliveryId {
    fn time(&self) -> Timestamp {
        Self::time(self)
    }
}

/// What goes by its time alone, from before an instant.
#[derive(Clone, Copy, Debug)]
enum Old<'t> {
    /// A tenant's.
    Feed(&'t str, Timestamp),
    /// Everybody's.
    IdempotencyKeys(Timestamp),
}

/// Where a page of old rows ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PageEnd {
    /// There are none.
    Empty,
    /// No others follow.
    Last,
    /// Others follow from here on.
    At(Timestamp),
}

impl PageEnd {
    fn or(self, end: Timestamp) -> Timestamp {
        match self {
            Self::Empty | Self::Last => end,
            Self::At(end) => end,
        }
    }
}
