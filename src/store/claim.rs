//! Claiming what is due.
//!
//! A claim walks over the subscriptions that have something scheduled, from where the last claim
//! stopped, and takes from each no more than there is room for: one loud subscription cannot push
//! another out of the page. Both steps cost the same for ten due deliveries as for a million.

use std::collections::HashMap;
use std::sync::Arc;

use sea_orm::{ConnectionTrait, DatabaseTransaction, FromQueryResult, QueryResult};

use crate::domain::Timestamp;
use crate::domain::delivery::{Delivery, State};
use crate::domain::event::Event;
use crate::domain::id::{EventId, NodeId, SubscriptionId, TenantId};

use super::bulk::{Rows, Type, bigint, text};
use super::dialect::Dialect;
use super::entity::{delivery, event};
use super::{Error, Store};

/// Names a subscription among all tenants'.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubscriptionRef {
    /// Whose it is.
    pub tenant_id: TenantId,
    /// Which it is.
    pub id: SubscriptionId,
}

/// How many deliveries of a subscription may be claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// The subscription.
    pub subscription: SubscriptionRef,
    /// The most that may be claimed.
    pub room: u32,
}

/// A delivery that is now leased to the node that claimed it, with its event.
#[derive(Clone, Debug, PartialEq)]
pub struct Claimed {
    /// The delivery, DELIVERING.
    pub delivery: Delivery,
    /// Its event.
    pub event: Arc<Event>,
}

/// Lists the subscriptions behind `($1, $2)` that have deliveries in `state`, at most `$3`, as the
/// table `s`, whose last row may be NULL. A loose index scan: a few look-ups in the partial index of
/// the state per subscription, however many deliveries each has.
pub(super) fn subscriptions_with(state: State) -> String {
    let next = |column: &str| {
        format!(
            "(SELECT d.{column} FROM deliveries d
                WHERE d.state = {state} AND (d.tenant_id, d.subscription_id) > (s.tenant_id, s.subscription_id)
                ORDER BY d.tenant_id, d.subscription_id LIMIT 1)",
            state = state.code()
        )
    };
    format!(
        "WITH RECURSIVE s(tenant_id, subscription_id, n) AS (
            SELECT * FROM (SELECT tenant_id, subscription_id, 1 FROM deliveries
                WHERE state = {state} AND (tenant_id, subscription_id) > ($1, $2)
                ORDER BY tenant_id, subscription_id LIMIT 1) AS first
            UNION ALL
            SELECT {tenant}, {subscription}, s.n + 1 FROM s WHERE s.tenant_id IS NOT NULL AND s.n < $3)",
        state = state.code(),
        tenant = next("tenant_id"),
        subscription = next("subscription_id"),
    )
}

impl Store {
    /// At most `limit` subscriptions that have scheduled deliveries, each with the time at which its
    /// first one is due, in order from behind `after`.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn scheduled(
        &self,
        after: Option<SubscriptionRef>,
        limit: u32,
    ) -> Result<Vec<(SubscriptionRef, Timestamp)>, Error> {
        let sql = format!(
            "{} SELECT s.tenant_id, s.subscription_id,
                (SELECT min(d.next_attempt_time) FROM deliveries d
                    WHERE d.state = 1 AND d.tenant_id = s.tenant_id AND d.subscription_id = s.subscription_id)
            FROM s WHERE s.tenant_id IS NOT NULL",
            subscriptions_with(State::Scheduled)
        );
        let (tenant, subscription) =
            after.map_or_else(Default::default, |a| (a.tenant_id.to_string(), a.id.to_string()));
        let values = vec![text(tenant), text(subscription), bigint(i64::from(limit))];
        let rows = self.read.query_all_raw(self.dialect.statement(sql, values)).await?;
        let mut subscriptions = Vec::with_capacity(rows.len());
        for row in rows {
            let subscription = SubscriptionRef {
                tenant_id: super::rows::id(&row.try_get_by_index::<String>(0)?)?,
                id: super::rows::id(&row.try_get_by_index::<String>(1)?)?,
            };
            // Nothing is left when somebody claimed it since.
            if let Some(due) = row.try_get_by_index::<Option<i64>>(2)? {
                subscriptions.push((subscription, Timestamp::from_micros(due)));
            }
        }
        Ok(subscriptions)
    }

    /// How many deliveries wait for an attempt, counted up to `limit`.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn count_scheduled(&self, limit: u32) -> Result<i64, Error> {
        let sql =
            "SELECT count(*) FROM (SELECT 1 FROM deliveries WHERE state = 1 LIMIT $1) AS scheduled";
        let statement = self.dialect.statement(sql, vec![bigint(i64::from(limit))]);
        let row = self.read.query_one_raw(statement).await?;
        Ok(row.map_or(Ok(0), |row| row.try_get_by_index(0))?)
    }

    /// Leases what is due at `now` to `node`, within the rooms.
    ///
    /// # Errors
    /// When the database does not answer; then nothing is claimed.
    pub async fn claim(
        &self,
        rooms: &[Room],
        node: NodeId,
        now: Timestamp,
    ) -> Result<Vec<Claimed>, Error> {
        if rooms.is_empty() {
            return Ok(Vec::new());
        }
        let transaction = self.dialect.begin(&self.write).await?;
        let rows = match self.dialect {
            Dialect::Postgres => self.lease_postgres(&transaction, rooms, node, now).await?,
            Dialect::Sqlite => self.lease_sqlite(&transaction, rooms, node, now).await?,
        };
        let mut deliveries: Vec<Delivery> = Vec::with_capacity(rows.len());
        for row in rows {
            deliveries.push(delivery::Model::from_query_result(&row, "")?.try_into()?);
        }
        let events = self.events_of(&transaction, &deliveries).await?;
        self.tell(&transaction, deliveries.iter(), now).await?;
        transaction.commit().await?;
        self.wakes.wake();
        let mut claimed = Vec::with_capacity(deliveries.len());
        for delivery in deliveries {
            if let Some(event) = events.get(&(delivery.tenant_id, delivery.event_id)) {
                claimed.push(Claimed { delivery, event: Arc::clone(event) });
            }
        }
        Ok(claimed)
    }

    async fn lease_postgres(
        &self,
        transaction: &DatabaseTransaction,
        rooms: &[Room],
        node: NodeId,
        now: Timestamp,
    ) -> Result<Vec<QueryResult>, Error> {
        let columns =
            [("tenant_id", Type::Text), ("subscription_id", Type::Text), ("room", Type::BigInt)];
        let mut rows = Rows::new(self.dialect, columns, rooms.len());
        for room in rooms {
            let Room { subscription, room } = room;
            rows.push([
                text(subscription.tenant_id.as_str()),
                text(subscription.id.as_str()),
                bigint(i64::from(*room)),
            ]);
        }
        // SKIP LOCKED: replicas that claim at once share the work instead of waiting for each other.
        let sql = ", due AS (
                SELECT d.tenant_id, d.id FROM r CROSS JOIN LATERAL (
                    SELECT tenant_id, id FROM deliveries
                    WHERE tenant_id = r.tenant_id AND subscription_id = r.subscription_id
                      AND state = 1 AND next_attempt_time <= $1
                    ORDER BY next_attempt_time LIMIT r.room FOR UPDATE SKIP LOCKED) d)
            UPDATE deliveries d SET state = 2, lease_node = $2, next_attempt_time = NULL,
                revision = d.revision + 1, update_time = $1
            FROM due WHERE d.tenant_id = due.tenant_id AND d.id = due.id
            RETURNING d.*";
        rows.query(transaction, sql, &[bigint(now.as_micros()), text(node.as_str())]).await
    }

    async fn lease_sqlite(
        &self,
        transaction: &DatabaseTransaction,
        rooms: &[Room],
        node: NodeId,
        now: Timestamp,
    ) -> Result<Vec<QueryResult>, Error> {
        let sql = "UPDATE deliveries SET state = 2, lease_node = $2, next_attempt_time = NULL,
                revision = revision + 1, update_time = $1
            WHERE (tenant_id, id) IN (
                SELECT tenant_id, id FROM deliveries
                WHERE tenant_id = $3 AND subscription_id = $4 AND state = 1 AND next_attempt_time <= $1
                ORDER BY next_attempt_time LIMIT $5)
            RETURNING *";
        let mut rows = Vec::new();
        for Room { subscription, room } in rooms {
            let values = vec![
                bigint(now.as_micros()),
                text(node.as_str()),
                text(subscription.tenant_id.as_str()),
                text(subscription.id.as_str()),
                bigint(i64::from(*room)),
            ];
            rows.extend(transaction.query_all_raw(self.dialect.statement(sql, values)).await?);
        }
        Ok(rows)
    }

    async fn events_of(
        &self,
        transaction: &DatabaseTransaction,
        deliveries: &[Delivery],
    ) -> Result<HashMap<(TenantId, EventId), Arc<Event>>, Error> {
        let columns = [("tenant_id", Type::Text), ("id", Type::Text)];
        let mut rows = Rows::new(self.dialect, columns, deliveries.len());
        let mut keys: Vec<_> =
            deliveries.iter().map(|delivery| (delivery.tenant_id, delivery.event_id)).collect();
        keys.sort_unstable();
        keys.dedup();
        for (tenant_id, event_id) in keys {
            rows.push([text(tenant_id.as_str()), text(event_id.as_str())]);
        }
        let sql = " SELECT e.* FROM r JOIN events e ON e.tenant_id = r.tenant_id AND e.id = r.id";
        let rows = rows.query(transaction, sql, &[]).await?;
        let mut events = HashMap::with_capacity(rows.len());
        for row in &rows {
            let event = Event::try_from(event::Model::from_query_result(row, "")?)?;
            events.insert((event.tenant_id, event.id), Arc::new(event));
        }
        Ok(events)
    }
}
