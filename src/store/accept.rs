//! The transaction in which events are accepted: versions, idempotency keys, events, deliveries,
//! feed. Whoever commits it may acknowledge.

use std::collections::HashMap;

use sea_orm::DatabaseTransaction;

use crate::domain::Timestamp;
use crate::domain::delivery::{Delivery, State};
use crate::domain::event::Event;
use crate::domain::id::{EventId, NodeId, TenantId};

use super::bulk::{Rows, Type, bigint, bytes, int, text};
use super::rows::{channel_code, json};
use super::{Catalog, CatalogCache, Error, Store};

/// An idempotency key on its way into the database.
#[derive(Clone, Debug)]
pub struct IdempotencyKey {
    /// Whose key it is.
    pub tenant_id: TenantId,
    /// The client's key.
    pub key: String,
    /// Which request it stands for.
    pub fingerprint: [u8; 32],
    /// The event that the request makes, when the key is new.
    pub event_id: EventId,
    /// How many deliveries it makes.
    pub delivery_count: u32,
}

/// Which request a key already stood for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyUse {
    /// The fingerprint of the first request.
    pub fingerprint: Vec<u8>,
    /// The event that it made.
    pub event_id: EventId,
    /// How many deliveries it made.
    pub delivery_count: u32,
}

/// An open transaction. Dropped without a commit it leaves nothing behind.
pub struct AcceptTx<'a> {
    store: &'a Store,
    transaction: DatabaseTransaction,
}

impl Store {
    /// Begins to accept events.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn begin_accept(&self) -> Result<AcceptTx<'_>, Error> {
        let transaction = self.dialect.begin(&self.write).await?;
        Ok(AcceptTx { store: self, transaction })
    }
}

impl AcceptTx<'_> {
    /// The catalogs of these tenants, exact as of this transaction.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn catalogs(
        &self,
        cache: &CatalogCache,
        tenants: &[TenantId],
    ) -> Result<HashMap<TenantId, Catalog>, Error> {
        let versions = self.store.versions(&self.transaction, tenants).await?;
        cache.at(self.store, &versions).await
    }

    /// Takes the keys and returns, for each that was taken before, by whom. No key may occur twice
    /// in `keys`. Waits for another transaction that is about to take the same key.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn take_keys(
        &self,
        keys: &[IdempotencyKey],
        now: Timestamp,
    ) -> Result<HashMap<(TenantId, String), KeyUse>, Error> {
        if keys.is_empty() {
            return Ok(HashMap::new());
        }
        let mut rows = Rows::new(
            self.store.dialect,
            [
                ("tenant_id", Type::Text),
                ("idempotency_key", Type::Text),
                ("fingerprint", Type::Bytes),
                ("event_id", Type::Text),
                ("delivery_count", Type::Int),
            ],
            keys.len(),
        );
        // One order for all transactions: two that take the same keys wait, but never in a circle.
        let mut ordered: Vec<_> = keys.iter().collect();
        ordered.sort_unstable_by_key(|key| (key.tenant_id, &key.key));
        for key in ordered {
            rows.push([
                text(key.tenant_id.as_str()),
                text(&key.key),
                bytes(key.fingerprint),
                text(key.event_id.as_str()),
                int(i32::try_from(key.delivery_count).unwrap_or(i32::MAX)),
            ]);
        }
        let sql = " INSERT INTO idempotency_keys
                (tenant_id, idempotency_key, fingerprint, event_id, delivery_count, create_time)
            -- WHERE true: without it SQLite takes ON for part of a join.
            SELECT tenant_id, idempotency_key, fingerprint, event_id, delivery_count, $1 FROM r WHERE true
            ON CONFLICT (tenant_id, idempotency_key) DO NOTHING";
        let taken = rows.execute(&self.transaction, sql, &[bigint(now.as_micros())]).await?;
        if taken == keys.len() as u64 {
            return Ok(HashMap::new());
        }
        let mut uses = self.key_uses(keys).await?;
        // A key whose event is the one of this transaction was taken just now.
        for key in keys {
            let place = (key.tenant_id, key.key.clone());
            if uses.get(&place).is_some_and(|taken| taken.event_id == key.event_id) {
                uses.remove(&place);
            }
        }
        Ok(uses)
    }

    async fn key_uses(
        &self,
        keys: &[IdempotencyKey],
    ) -> Result<HashMap<(TenantId, String), KeyUse>, Error> {
        let columns = [("tenant_id", Type::Text), ("idempotency_key", Type::Text)];
        let mut rows = Rows::new(self.store.dialect, columns, keys.len());
        for key in keys {
            rows.push([text(key.tenant_id.as_str()), text(&key.key)]);
        }
        let sql =
            " SELECT k.tenant_id, k.idempotency_key, k.fingerprint, k.event_id, k.delivery_count
            FROM r JOIN idempotency_keys k
              ON k.tenant_id = r.tenant_id AND k.idempotency_key = r.idempotency_key";
        let mut uses = HashMap::new();
        for row in rows.query(&self.transaction, sql, &[]).await? {
            let tenant_id = super::rows::id(&row.try_get_by_index::<String>(0)?)?;
            let count: i32 = row.try_get_by_index(4)?;
            let key_use = KeyUse {
                fingerprint: row.try_get_by_index(2)?,
                event_id: super::rows::id(&row.try_get_by_index::<String>(3)?)?,
                delivery_count: u32::try_from(count).unwrap_or(0),
            };
            uses.insert((tenant_id, row.try_get_by_index(1)?), key_use);
        }
        Ok(uses)
    }

    /// Stores events with all their deliveries, and tells the feed. Deliveries that are DELIVERING
    /// are leased to `node`.
    ///
    /// # Errors
    /// When the database does not take them.
    pub async fn insert<'e>(
        &self,
        events: impl ExactSizeIterator<Item = &'e Event>,
        deliveries: &[Delivery],
        node: NodeId,
        now: Timestamp,
    ) -> Result<(), Error> {
        self.insert_events(events).await?;
        self.insert_deliveries(deliveries, node).await?;
        self.store.tell(&self.transaction, deliveries.iter(), now).await
    }

    async fn insert_events<'e>(
        &self,
        events: impl ExactSizeIterator<Item = &'e Event>,
    ) -> Result<(), Error> {
        let mut rows = Rows::new(
            self.store.dialect,
            [
                ("tenant_id", Type::Text),
                ("id", Type::Text),
                ("type", Type::Text),
                ("subject", Type::Text),
                ("data", Type::Bytes),
                ("labels", Type::Text),
                ("occur_time", Type::BigInt),
                ("create_time", Type::BigInt),
                ("deliver_time", Type::BigInt),
                ("expire_time", Type::BigInt),
                ("trace", Type::Text),
            ],
            events.len(),
        );
        for event in events {
            rows.push([
                text(event.tenant_id.as_str()),
                text(event.id.as_str()),
                text(&event.event_type),
                text(&event.subject),
                bytes(event.data.as_ref()),
                text(json(&event.labels)?),
                bigint(event.occur_time.as_micros()),
                bigint(event.create_time.as_micros()),
                time_or_zero(event.deliver_time),
                time_or_zero(event.expire_time),
                text(event.trace.to_string()),
            ]);
        }
        let sql = " INSERT INTO events (tenant_id, id, type, subject, data, labels, occur_time,
                create_time, deliver_time, expire_time, trace)
            SELECT tenant_id, id, type, subject, data, labels, occur_time,
                create_time, NULLIF(deliver_time, 0), NULLIF(expire_time, 0), trace FROM r";
        rows.execute(&self.transaction, sql, &[]).await?;
        Ok(())
    }

    async fn insert_deliveries(&self, deliveries: &[Delivery], node: NodeId) -> Result<(), Error> {
        let mut rows = Rows::new(
            self.store.dialect,
            [
                ("tenant_id", Type::Text),
                ("id", Type::Text),
                ("event_id", Type::Text),
                ("event_type", Type::Text),
                ("subscription_id", Type::Text),
                ("channel", Type::Int),
                ("recipient", Type::Text),
                ("state", Type::Int),
                ("next_attempt_time", Type::BigInt),
                ("expire_time", Type::BigInt),
                ("trace_id", Type::Text),
                ("create_time", Type::BigInt),
            ],
            deliveries.len(),
        );
        for delivery in deliveries {
            rows.push([
                text(delivery.tenant_id.as_str()),
                text(delivery.id.as_str()),
                text(delivery.event_id.as_str()),
                text(&delivery.event_type),
                text(delivery.subscription_id.as_str()),
                int(channel_code(delivery.channel)),
                text(&delivery.recipient),
                int(i32::from(delivery.state.code())),
                time_or_zero(delivery.next_attempt_time),
                time_or_zero(delivery.expire_time),
                text(&delivery.trace_id),
                bigint(delivery.create_time.as_micros()),
            ]);
        }
        let sql = " INSERT INTO deliveries (tenant_id, id, event_id, event_type, subscription_id, channel,
                recipient, state, attempt_count, automatic_count, next_attempt_time, expire_time,
                lease_node, trace_id, revision, create_time, update_time)
            SELECT tenant_id, id, event_id, event_type, subscription_id, channel,
                recipient, state, 0, 0, NULLIF(next_attempt_time, 0), NULLIF(expire_time, 0),
                CASE WHEN state = $1 THEN $2 END, trace_id, 1, create_time, create_time FROM r";
        let leased = [int(i32::from(State::Delivering.code())), text(node.as_str())];
        rows.execute(&self.transaction, sql, &leased).await?;
        Ok(())
    }

    /// Makes everything durable.
    ///
    /// # Errors
    /// When the database does not confirm. The transaction may have been committed all the same:
    /// the client has to ask again, with an idempotency key.
    pub async fn commit(self) -> Result<(), Error> {
        self.transaction.commit().await?;
        self.store.wakes.wake();
        Ok(())
    }
}

pub(super) fn time_or_zero(time: Option<Timestamp>) -> sea_orm::Value {
    bigint(time.map_or(0, Timestamp::as_micros))
}
