//! The feed: every change of a delivery, in order of commit, for watchers on every replica.
//!
//! A transaction takes its position by raising the tenant's head, whose row stays locked until the
//! commit. So positions become visible in their order and without gaps: who has read up to N has
//! missed nothing before N. See `docs/adr/0003-feed-order.md`.

use std::collections::BTreeMap;

use sea_orm::{ConnectionTrait, DatabaseTransaction, FromQueryResult};

use crate::domain::Timestamp;
use crate::domain::delivery::{Delivery, State};
use crate::domain::id::{DeliveryId, SubscriptionId, TenantId};

use super::bulk::{Rows, Type, bigint, bytes, text};
use super::entity::delivery;
use super::{Error, Store};

/// Most changes in one row: bounds what a slow reader holds at once.
const MAX_CHANGES_PER_ROW: usize = 128;

/// What one transaction changed, in part or in whole.
#[derive(Clone, Debug, PartialEq)]
pub struct FeedRow {
    /// Its position in the tenant's feed.
    pub position: i64,
    /// The deliveries as they stood after the change.
    pub changes: Vec<Delivery>,
}

/// Where a tenant's feed ends and begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeedHead {
    /// The position of the latest row.
    pub position: i64,
    /// Rows up to this position have been removed.
    pub floor: i64,
}

/// Some of a tenant's deliveries as of one position of its feed.
#[derive(Clone, Debug)]
pub struct SnapshotPage {
    /// All changes up to this position are in the deliveries, and none after it.
    pub position: i64,
    /// The deliveries in order of their ids.
    pub deliveries: Vec<Delivery>,
}

impl Store {
    /// Writes what changed, as the last statements of a transaction.
    pub(super) async fn tell<'d>(
        &self,
        transaction: &DatabaseTransaction,
        deliveries: impl Iterator<Item = &'d Delivery>,
        now: Timestamp,
    ) -> Result<(), Error> {
        let mut by_tenant: BTreeMap<TenantId, Vec<&Delivery>> = BTreeMap::new();
        for delivery in deliveries {
            by_tenant.entry(delivery.tenant_id).or_default().push(delivery);
        }
        if by_tenant.is_empty() {
            return Ok(());
        }
        let columns = [("tenant_id", Type::Text), ("n", Type::BigInt)];
        let mut heads = Rows::new(self.dialect, columns, by_tenant.len());
        for (tenant_id, changes) in &by_tenant {
            let rows = changes.len().div_ceil(MAX_CHANGES_PER_ROW);
            heads.push([text(tenant_id.as_str()), bigint(i64::try_from(rows).unwrap_or(i64::MAX))]);
        }
        // Heads are locked in order of their tenants, so that two transactions never wait for each
        // other.
        let sql = format!(
            ", locked AS (
                SELECT h.tenant_id FROM feed_heads h
                WHERE h.tenant_id IN (SELECT tenant_id FROM r) ORDER BY h.tenant_id {lock})
            UPDATE feed_heads SET position = position + r.n
            FROM r WHERE r.tenant_id = feed_heads.tenant_id
              AND feed_heads.tenant_id IN (SELECT tenant_id FROM locked)
            RETURNING feed_heads.tenant_id, feed_heads.position",
            lock = self.dialect.for_update(),
        );
        let mut rows = Rows::new(
            self.dialect,
            [("tenant_id", Type::Text), ("position", Type::BigInt), ("changes", Type::Bytes)],
            by_tenant.len(),
        );
        for head in heads.query(transaction, &sql, &[]).await? {
            let tenant_id: String = head.try_get_by_index(0)?;
            let last: i64 = head.try_get_by_index(1)?;
            let Some(changes) = super::rows::id(&tenant_id).ok().and_then(|id| by_tenant.get(&id))
            else {
                continue;
            };
            let chunks = changes.chunks(MAX_CHANGES_PER_ROW);
            let first = last - i64::try_from(chunks.len()).unwrap_or(0) + 1;
            for (position, chunk) in (first..).zip(chunks) {
                rows.push([text(&tenant_id), bigint(position), bytes(serde_json::to_vec(chunk)?)]);
            }
        }
        let sql = " INSERT INTO feed (tenant_id, position, create_time, changes)
            SELECT tenant_id, position, $1, changes FROM r";
        rows.execute(transaction, sql, &[bigint(now.as_micros())]).await?;
        Ok(())
    }

    /// Where the tenant's feed ends and begins; `None` for an unknown tenant.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn feed_head(&self, tenant_id: TenantId) -> Result<Option<FeedHead>, Error> {
        let sql = "SELECT position, floor FROM feed_heads WHERE tenant_id = $1";
        let statement = self.dialect.statement(sql, vec![text(tenant_id.as_str())]);
        let row = self.read.query_one_raw(statement).await?;
        row.map(|row| {
            Ok(FeedHead { position: row.try_get_by_index(0)?, floor: row.try_get_by_index(1)? })
        })
        .transpose()
    }

    /// Where the feeds of these tenants end.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn feed_positions(
        &self,
        tenants: &[TenantId],
    ) -> Result<Vec<(TenantId, i64)>, Error> {
        if tenants.is_empty() {
            return Ok(Vec::new());
        }
        let ids = tenants.iter().map(|id| text(id.as_str())).collect();
        let sql = "SELECT tenant_id, position FROM feed_heads WHERE tenant_id ";
        let rows = self.read.query_all_raw(super::bulk::any(self.dialect, sql, ids)).await?;
        rows.iter()
            .map(|row| {
                Ok((
                    super::rows::id(&row.try_get_by_index::<String>(0)?)?,
                    row.try_get_by_index(1)?,
                ))
            })
            .collect()
    }

    /// At most `limit` rows of the tenant's feed behind the position `after`, in order.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn read_feed(
        &self,
        tenant_id: TenantId,
        after: i64,
        limit: u32,
    ) -> Result<Vec<FeedRow>, Error> {
        let sql = "SELECT position, changes FROM feed
            WHERE tenant_id = $1 AND position > $2 ORDER BY position LIMIT $3";
        let values = vec![text(tenant_id.as_str()), bigint(after), bigint(i64::from(limit))];
        let rows = self.read.query_all_raw(self.dialect.statement(sql, values)).await?;
        rows.into_iter()
            .map(|row| {
                let changes: Vec<u8> = row.try_get_by_index(1)?;
                Ok(FeedRow {
                    position: row.try_get_by_index(0)?,
                    changes: serde_json::from_slice(&changes)?,
                })
            })
            .collect()
    }

    /// At most `limit` of the tenant's deliveries behind `after`, together with the position of
    /// the feed that they stand for: one statement, so one snapshot.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn snapshot_page(
        &self,
        tenant_id: TenantId,
        subscription_id: Option<SubscriptionId>,
        states: &[State],
        after: Option<DeliveryId>,
        limit: u32,
    ) -> Result<SnapshotPage, Error> {
        let mut filter = String::new();
        let mut values = vec![
            text(tenant_id.as_str()),
            text(after.as_ref().map_or("", DeliveryId::as_str)),
            bigint(i64::from(limit)),
        ];
        if let Some(subscription_id) = subscription_id {
            values.push(text(subscription_id.as_str()));
            filter.push_str(" AND d.subscription_id = $4");
        }
        if !states.is_empty() {
            let codes: Vec<_> = states.iter().map(|state| state.code().to_string()).collect();
            filter.push_str(" AND d.state IN (");
            filter.push_str(&codes.join(", "));
            filter.push(')');
        }
        let sql = format!(
            "SELECT h.position AS feed_position, d.* FROM feed_heads h
             LEFT JOIN (SELECT * FROM deliveries d
                WHERE d.tenant_id = $1 AND d.id > $2{filter} ORDER BY d.id LIMIT $3) d ON true
             WHERE h.tenant_id = $1 ORDER BY d.id"
        );
        let rows = self.read.query_all_raw(self.dialect.statement(sql, values)).await?;
        let Some(first) = rows.first() else {
            return Err(Error::Corrupt("the tenant has no feed".into()));
        };
        let position = first.try_get("", "feed_position")?;
        let mut deliveries = Vec::with_capacity(rows.len());
        for row in &rows {
            if row.try_get::<Option<String>>("", "id")?.is_some() {
                deliveries.push(delivery::Model::from_query_result(row, "")?.try_into()?);
            }
        }
        Ok(SnapshotPage { position, deliveries })
    }
}
