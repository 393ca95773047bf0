//! Removing what is older than its retention, and what deleted tenants owned. Each call does a
//! bounded piece of work and says how much it removed.

use std::time::Duration;

use sea_orm::{ConnectionTrait, Value};

use crate::domain::Timestamp;
use crate::domain::id::{DeliveryId, EventId};

use super::bulk::{bigint, text};
use super::{Error, Store};

/// Rows that one statement removes at most.
const BATCH: i64 = 2_000;

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
    /// Removes what is too old, one batch per tenant and table.
    ///
    /// # Errors
    /// When the database does not take it.
    pub async fn purge(&self, retention: Retention, now: Timestamp) -> Result<Purged, Error> {
        let mut purged = self.purge_deleted_tenants().await?;
        for tenant_id in self.tenant_ids("delete_time IS NULL").await? {
            purged.rows += self.purge_events(&tenant_id, now.minus(retention.events)).await?;
            purged.rows += self.purge_feed(&tenant_id, now.minus(retention.feed)).await?;
            let before = bigint(now.minus(retention.idempotency_keys).as_micros());
            purged.rows += self
                .remove(
                    "idempotency_keys",
                    "idempotency_key",
                    "tenant_id = $1 AND create_time < $2",
                    &tenant_id,
                    vec![before],
                )
                .await?;
        }
        Ok(purged)
    }

    async fn tenant_ids(&self, condition: &str) -> Result<Vec<String>, Error> {
        let sql = format!("SELECT id FROM tenants WHERE {condition} ORDER BY id");
        let rows = self.read.query_all_raw(self.dialect.statement(sql, Vec::new())).await?;
        rows.iter().map(|row| Ok(row.try_get_by_index(0)?)).collect()
    }

    async fn purge_events(&self, tenant_id: &str, cutoff: Timestamp) -> Result<u64, Error> {
        let old_delivery = text(DeliveryId::first_at(cutoff).as_str());
        let ended = "tenant_id = $1 AND id < $2 AND state IN (3, 4, 5, 6, 7)";
        let mut rows =
            self.remove("deliveries", "id", ended, tenant_id, vec![old_delivery.clone()]).await?;
        // Whatever is older than the oldest delivery that is left belongs to none.
        let sql = "SELECT min(id) FROM deliveries WHERE tenant_id = $1";
        let oldest =
            self.read.query_one_raw(self.dialect.statement(sql, vec![text(tenant_id)])).await?;
        let oldest: Option<String> = oldest.map_or(Ok(None), |row| row.try_get_by_index(0))?;
        let oldest = oldest
            .and_then(|id| id.parse::<DeliveryId>().ok())
            .map_or(cutoff, |id| id.time().min(cutoff));
        let orphan = text(DeliveryId::first_at(oldest).as_str());
        rows += self
            .remove(
                "attempts",
                "delivery_id",
                "tenant_id = $1 AND delivery_id < $2",
                tenant_id,
                vec![orphan],
            )
            .await?;
        let event = text(EventId::first_at(oldest).as_str());
        rows += self
            .remove("events", "id", "tenant_id = $1 AND id < $2", tenant_id, vec![event])
            .await?;
        Ok(rows)
    }

    /// Raises the floor first: a token below it is refused before its rows are gone.
    async fn purge_feed(&self, tenant_id: &str, cutoff: Timestamp) -> Result<u64, Error> {
        let sql = "SELECT max(position) FROM (
                SELECT position, create_time FROM feed WHERE tenant_id = $1 ORDER BY position LIMIT $3) AS oldest
            WHERE create_time < $2";
        let values = vec![text(tenant_id), bigint(cutoff.as_micros()), bigint(BATCH)];
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

    async fn purge_deleted_tenants(&self) -> Result<Purged, Error> {
        let mut purged = Purged::default();
        for tenant_id in self.tenant_ids("delete_time IS NOT NULL").await? {
            let mut rows = 0;
            for (table, key) in [
                ("deliveries", "id"),
                ("attempts", "delivery_id"),
                ("events", "id"),
                ("idempotency_keys", "idempotency_key"),
                ("feed", "position"),
                ("subscriptions", "id"),
                ("event_types", "name"),
                ("api_keys", "id"),
                ("feed_heads", "tenant_id"),
            ] {
                rows += self.remove(table, key, "tenant_id = $1", &tenant_id, Vec::new()).await?;
            }
            if rows == 0 {
                let sql = "DELETE FROM tenants WHERE id = $1";
                rows = self
                    .write
                    .execute_raw(self.dialect.statement(sql, vec![text(&tenant_id)]))
                    .await?
                    .rows_affected();
            }
            purged.rows += rows;
        }
        Ok(purged)
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
