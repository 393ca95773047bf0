//! Accepting on SQLite: a few statements in one transaction. The connection is the only one that
//! writes, so nothing can change between them.

use sea_orm::DatabaseTransaction;

use crate::domain::Timestamp;
use crate::domain::delivery::{Delivery, State};
use crate::domain::event::Event;
use crate::domain::id::NodeId;

use super::super::bulk::{Rows, Type, bigint, bytes, int, text, time_or_zero};
use super::super::leases::Lease;
use super::super::rows::{channel_code, json};
use super::super::{Error, Store};
use super::{AcceptResult, Acceptance, IdempotencyKey};

impl Store {
    pub(super) async fn accept_in_transaction(
        &self,
        new: &Acceptance<'_>,
        leases: &[Lease],
    ) -> Result<AcceptResult, Error> {
        let transaction = self.dialect.begin(&self.write).await?;
        let refused = if !self.settings_stand(&transaction, new).await? {
            Some(AcceptResult::SettingsChanged)
        } else if !self.take_keys(&transaction, &new.ordered_keys(), new.now).await? {
            Some(AcceptResult::KeysTaken)
        } else {
            None
        };
        if let Some(refused) = refused {
            // Dropping it would keep the writer locked until the connection is used again.
            transaction.rollback().await?;
            return Ok(refused);
        }
        self.insert_events(&transaction, &new.events).await?;
        self.insert_deliveries(&transaction, new.deliveries, new.node).await?;
        self.insert_leases(&transaction, leases, new.node, new.now).await?;
        self.tell(&transaction, new.deliveries.iter(), new.now).await?;
        fail_point!(AcceptBeforeCommit);
        transaction.commit().await?;
        Ok(AcceptResult::Stored)
    }

    async fn settings_stand(
        &self,
        transaction: &DatabaseTransaction,
        new: &Acceptance<'_>,
    ) -> Result<bool, Error> {
        let (tenants, versions) = new.versions();
        let columns = [("tenant_id", Type::Text), ("version", Type::BigInt)];
        let mut rows = Rows::new(self.dialect, columns, tenants.len());
        for (tenant_id, version) in tenants.iter().zip(versions) {
            rows.push([text(*tenant_id), bigint(version)]);
        }
        let sql = " SELECT count(*) FROM r
            JOIN tenant_config c ON c.tenant_id = r.tenant_id AND c.version = r.version";
        let mut standing = 0;
        for row in rows.query(transaction, sql, &[]).await? {
            standing += usize::try_from(row.try_get_by_index::<i64>(0)?).unwrap_or(0);
        }
        Ok(standing == tenants.len())
    }

    /// Takes the keys; `false` when one of them was taken before.
    async fn take_keys(
        &self,
        transaction: &DatabaseTransaction,
        keys: &[&IdempotencyKey],
        now: Timestamp,
    ) -> Result<bool, Error> {
        let columns = [
            ("tenant_id", Type::Text),
            ("idempotency_key", Type::Text),
            ("fingerprint", Type::Bytes),
            ("event_id", Type::Text),
            ("delivery_count", Type::Int),
        ];
        let mut rows = Rows::new(self.dialect, columns, keys.len());
        for key in keys {
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
        let taken = rows.execute(transaction, sql, &[bigint(now.as_micros())]).await?;
        Ok(taken == keys.len() as u64)
    }

    async fn insert_events(
        &self,
        transaction: &DatabaseTransaction,
        events: &[&Event],
    ) -> Result<(), Error> {
        let columns = [
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
        ];
        let mut rows = Rows::new(self.dialect, columns, events.len());
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
        rows.execute(transaction, sql, &[]).await?;
        Ok(())
    }

    async fn insert_deliveries(
        &self,
        transaction: &DatabaseTransaction,
        deliveries: &[Delivery],
        node: NodeId,
    ) -> Result<(), Error> {
        let columns = [
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
        ];
        let mut rows = Rows::new(self.dialect, columns, deliveries.len());
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
                leased_by, hold_time, trace_id, revision, create_time, update_time)
            SELECT tenant_id, id, event_id, event_type, subscription_id, channel,
                recipient, state, 0, 0, NULLIF(next_attempt_time, 0), NULLIF(expire_time, 0),
                CASE WHEN state = $1 THEN $2 END, CASE WHEN state = 8 THEN create_time END, trace_id, 1, create_time, create_time FROM r";
        let leased = [int(i32::from(State::Delivering.code())), text(node.as_str())];
        rows.execute(transaction, sql, &leased).await?;
        Ok(())
    }
}
