//! What follows by itself: deliveries follow their subscription's state, and expire with their
//! event. The janitor calls these; each does a bounded piece of work.

use sea_orm::{ConnectionTrait, EntityTrait, QueryResult};

use crate::domain::Timestamp;
use crate::domain::delivery::FailureReason;
use crate::domain::id::{SubscriptionId, TenantId};

use super::bulk::{Rows, Type, bigint, int, text};
use super::claim::{DUE, HELD, behind, subscriptions_with};
use super::entity::subscription;
use super::{Error, Store, SubscriptionRef};

/// What waits, in the very words of the index of what expires.
const WAITING: &str = "(next_attempt_time IS NOT NULL OR hold_time IS NOT NULL)";

impl Store {
    /// Subscriptions whose deliveries have not yet followed a change.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn unsettled(&self, limit: u32) -> Result<Vec<SubscriptionRef>, Error> {
        let sql = "SELECT tenant_id, id FROM subscriptions WHERE settled = 0 ORDER BY tenant_id, id LIMIT $1";
        let rows = self
            .read
            .query_all_raw(self.dialect.statement(sql, vec![bigint(i64::from(limit))]))
            .await?;
        references(&rows)
    }

    /// Lets at most `limit` deliveries follow their subscription: held when it is paused or
    /// disabled, due when it is active, canceled when it is deleted. Returns how many followed;
    /// fewer than `limit` means that all have.
    ///
    /// # Errors
    /// When the database does not take it.
    pub async fn settle(
        &self,
        tenant_id: TenantId,
        id: SubscriptionId,
        now: Timestamp,
        limit: u32,
    ) -> Result<usize, Error> {
        let key = (tenant_id.to_string(), id.to_string());
        let Some(row) = subscription::Entity::find_by_id(key).one(&self.write).await? else {
            return Ok(0);
        };
        let (from, set) = match (row.delete_time, row.state) {
            (Some(_), _) => {
                (
                    WAITING,
                    "state = 5, failure_reason = $5, next_attempt_time = NULL, hold_time = NULL",
                )
            }
            (None, 1) => (
                HELD,
                "state = 1, hold_time = NULL, next_attempt_time = COALESCE((SELECT e.deliver_time FROM events e
                    WHERE e.tenant_id = deliveries.tenant_id AND e.id = deliveries.event_id
                      AND e.deliver_time > $3), $3)",
            ),
            (None, _) => (
                DUE,
                "state = 8, next_attempt_time = NULL, hold_time = $3",
            ),
        };
        let mut values = vec![
            text(tenant_id.as_str()),
            text(id.as_str()),
            bigint(now.as_micros()),
            bigint(i64::from(limit)),
        ];
        if row.delete_time.is_some() {
            values.push(int(i32::from(FailureReason::SubscriptionDeleted.code())));
        }
        let sql = format!(
            "UPDATE deliveries SET {set}, revision = revision + 1, update_time = $3
            WHERE (tenant_id, id) IN (SELECT tenant_id, id FROM deliveries
                WHERE tenant_id = $1 AND subscription_id = $2 AND {from} LIMIT $4 {skip_locked})
            RETURNING *",
            skip_locked = self.dialect.skip_locked(),
        );
        let followed = self.change(&sql, values, now).await?.len();
        fail_point!(SettleBeforeMark);
        if followed < limit as usize {
            self.settled(&row).await?;
        }
        Ok(followed)
    }

    /// Notes that all deliveries have followed, unless the subscription changed again meanwhile. A
    /// deleted subscription's row goes.
    async fn settled(&self, row: &subscription::Model) -> Result<(), Error> {
        let sql = match row.delete_time {
            Some(_) => {
                "DELETE FROM subscriptions WHERE tenant_id = $1 AND id = $2 AND revision = $3"
            }
            None => {
                "UPDATE subscriptions SET settled = 1
                 WHERE tenant_id = $1 AND id = $2 AND revision = $3 AND delete_time IS NULL"
            }
        };
        let values = vec![text(&row.tenant_id), text(&row.id), bigint(row.revision)];
        self.write.execute_raw(self.dialect.statement(sql, values)).await?;
        Ok(())
    }

    /// Finds held deliveries whose subscription is active, and has them released: an Emit that
    /// read the subscription before it was resumed may have committed after the release. Those of a
    /// subscription that is gone are canceled. Looks at `limit` subscriptions with held deliveries,
    /// from behind `after`, and returns the last one when there may be more.
    ///
    /// # Errors
    /// When the database does not take it.
    pub async fn unsettle_stragglers(
        &self,
        after: Option<SubscriptionRef>,
        now: Timestamp,
        limit: u32,
    ) -> Result<Option<SubscriptionRef>, Error> {
        let sql = format!(
            "{} SELECT tenant_id, subscription_id FROM s WHERE tenant_id IS NOT NULL",
            subscriptions_with(HELD)
        );
        let statement = self.dialect.statement(sql, behind(after, limit));
        let held = references(&self.read.query_all_raw(statement).await?)?;
        if held.is_empty() {
            return Ok(None);
        }
        let transaction = self.dialect.begin(&self.write).await?;
        let sql = " UPDATE subscriptions SET settled = 0 FROM r
            WHERE subscriptions.tenant_id = r.tenant_id AND subscriptions.id = r.id
              AND state = 1 AND settled = 1 AND delete_time IS NULL";
        self.rows_of(&held).execute(&transaction, sql, &[]).await?;
        let sql = " SELECT r.tenant_id, r.id FROM r
            LEFT JOIN subscriptions s ON s.tenant_id = r.tenant_id AND s.id = r.id
            WHERE s.id IS NULL";
        let orphans = references(&self.rows_of(&held).query(&transaction, sql, &[]).await?)?;
        transaction.commit().await?;
        for orphan in orphans {
            self.cancel_held(orphan, now, limit).await?;
        }
        Ok(held.last().copied().filter(|_| held.len() >= limit as usize))
    }

    fn rows_of(&self, subscriptions: &[SubscriptionRef]) -> Rows<2> {
        let columns = [("tenant_id", Type::Text), ("id", Type::Text)];
        let mut rows = Rows::new(self.dialect, columns, subscriptions.len());
        for subscription in subscriptions {
            rows.push([text(subscription.tenant_id.as_str()), text(subscription.id.as_str())]);
        }
        rows
    }

    /// Cancels held deliveries of a subscription that is gone.
    async fn cancel_held(
        &self,
        of: SubscriptionRef,
        now: Timestamp,
        limit: u32,
    ) -> Result<(), Error> {
        let sql = "UPDATE deliveries SET state = 5, failure_reason = $5, hold_time = NULL,
                revision = revision + 1, update_time = $3
            WHERE (tenant_id, id) IN (SELECT tenant_id, id FROM deliveries
                WHERE tenant_id = $1 AND subscription_id = $2 AND hold_time IS NOT NULL LIMIT $4)
              AND state = 8
            RETURNING *";
        let values = vec![
            text(of.tenant_id.as_str()),
            text(of.id.as_str()),
            bigint(now.as_micros()),
            bigint(i64::from(limit)),
            int(i32::from(FailureReason::SubscriptionDeleted.code())),
        ];
        self.change(sql, values, now).await?;
        Ok(())
    }

    /// Ends at most `limit` waiting deliveries whose event has expired.
    ///
    /// # Errors
    /// When the database does not take it.
    pub async fn expire(&self, now: Timestamp, limit: u32) -> Result<usize, Error> {
        let sql = format!(
            "UPDATE deliveries SET state = 6, next_attempt_time = NULL, hold_time = NULL,
                revision = revision + 1, update_time = $1
            WHERE (tenant_id, id) IN (SELECT tenant_id, id FROM deliveries
                WHERE expire_time IS NOT NULL AND expire_time <= $1 AND {WAITING}
                LIMIT $2 {skip_locked})
            RETURNING *",
            skip_locked = self.dialect.skip_locked(),
        );
        let values = vec![bigint(now.as_micros()), bigint(i64::from(limit))];
        Ok(self.change(&sql, values, now).await?.len())
    }
}

fn references(rows: &[QueryResult]) -> Result<Vec<SubscriptionRef>, Error> {
    rows.iter().map(SubscriptionRef::read).collect()
}
