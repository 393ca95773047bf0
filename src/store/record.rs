//! Recording what came of attempts, fenced by the revision: who has not seen a delivery's last
//! change cannot make another. A node that lost its lease therefore overwrites nothing.

use std::collections::HashSet;

use sea_orm::{ConnectionTrait, DatabaseTransaction, FromQueryResult};

use crate::domain::Timestamp;
use crate::domain::attempt::{Attempt, Outcome};
use crate::domain::delivery::{Delivery, LastAttempt, State};
use crate::domain::id::{DeliveryId, NodeId, TenantId};

use super::accept::time_or_zero;
use super::bulk::{Rows, Type, bigint, bytes, int, text};
use super::entity::delivery;
use super::rows::{json, outcome_code, trigger_code};
use super::{Error, Store};

/// How a lease ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    /// The delivery as it is to stand, one revision after the lease.
    pub after: Delivery,
    /// The attempt that was made, if one was.
    pub attempt: Option<Attempt>,
}

/// Which of the changes took effect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recorded {
    /// Deliveries that somebody else had changed first: nothing was written for them.
    pub fenced: HashSet<DeliveryId>,
}

/// What became of an attempt whose delivery was changed while it ran.
#[derive(Clone, Debug, PartialEq)]
pub enum LateResult {
    /// The delivery had ended (canceled, for example): the attempt was added to its record.
    Added(Box<Delivery>),
    /// The attempt was recorded before, by a commit that was not confirmed.
    Known,
    /// Another node has the delivery: nothing was written.
    Lost,
}

/// How many leases were given back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Release {
    /// Deliveries that are due again.
    pub count: usize,
}

impl Store {
    /// Writes how leases ended, all in one transaction.
    ///
    /// # Errors
    /// When the database does not take it; then nothing is written, unless the commit itself was
    /// not confirmed: writing the same again is then harmless, because the revisions moved on.
    pub async fn record(&self, ended: &[Ended], now: Timestamp) -> Result<Recorded, Error> {
        if ended.is_empty() {
            return Ok(Recorded::default());
        }
        let transaction = self.dialect.begin(&self.write).await?;
        let applied = self.update_deliveries(&transaction, ended).await?;
        let done = || ended.iter().filter(|change| applied.contains(&change.after.id));
        self.insert_attempts(&transaction, done()).await?;
        self.tell(&transaction, done().map(|change| &change.after), now).await?;
        transaction.commit().await?;
        self.wakes.wake();
        let fenced =
            ended.iter().map(|change| change.after.id).filter(|id| !applied.contains(id)).collect();
        Ok(Recorded { fenced })
    }

    async fn update_deliveries(
        &self,
        transaction: &DatabaseTransaction,
        ended: &[Ended],
    ) -> Result<HashSet<DeliveryId>, Error> {
        let mut rows = Rows::new(
            self.dialect,
            [
                ("tenant_id", Type::Text),
                ("id", Type::Text),
                ("revision", Type::BigInt),
                ("state", Type::Int),
                ("failure_reason", Type::Int),
                ("attempt_count", Type::Int),
                ("automatic_count", Type::Int),
                ("next_attempt_time", Type::BigInt),
                ("last_attempt", Type::Text),
                ("update_time", Type::BigInt),
            ],
            ended.len(),
        );
        for Ended { after, .. } in ended {
            rows.push([
                text(after.tenant_id.as_str()),
                text(after.id.as_str()),
                bigint(after.revision),
                int(i32::from(after.state.code())),
                int(after.failure_reason.map_or(0, |reason| i32::from(reason.code()))),
                int(i32::try_from(after.attempt_count).unwrap_or(i32::MAX)),
                int(i32::try_from(after.automatic_count).unwrap_or(i32::MAX)),
                time_or_zero(after.next_attempt_time),
                text(after.last_attempt.as_ref().map(json).transpose()?.unwrap_or_default()),
                bigint(after.update_time.as_micros()),
            ]);
        }
        let sql = " UPDATE deliveries SET state = r.state, failure_reason = NULLIF(r.failure_reason, 0),
                attempt_count = r.attempt_count, automatic_count = r.automatic_count,
                next_attempt_time = NULLIF(r.next_attempt_time, 0), lease_node = NULL,
                last_attempt = NULLIF(r.last_attempt, ''), revision = r.revision, update_time = r.update_time
            -- The fence: only the change that follows the one we know.
            FROM r WHERE deliveries.tenant_id = r.tenant_id AND deliveries.id = r.id
              AND deliveries.revision = r.revision - 1
            RETURNING deliveries.id";
        let mut applied = HashSet::with_capacity(ended.len());
        for row in rows.query(transaction, sql, &[]).await? {
            applied.insert(super::rows::id(&row.try_get_by_index::<String>(0)?)?);
        }
        Ok(applied)
    }

    async fn insert_attempts<'e>(
        &self,
        transaction: &DatabaseTransaction,
        ended: impl Iterator<Item = &'e Ended>,
    ) -> Result<(), Error> {
        let mut rows = Rows::new(
            self.dialect,
            [
                ("tenant_id", Type::Text),
                ("delivery_id", Type::Text),
                ("number", Type::Int),
                ("trigger_code", Type::Int),
                ("start_time", Type::BigInt),
                ("duration_us", Type::BigInt),
                ("http_status", Type::Int),
                ("request_headers", Type::Text),
                ("response_headers", Type::Text),
                ("response_body", Type::Bytes),
                ("failure", Type::Text),
                ("outcome", Type::Int),
                ("trace", Type::Text),
            ],
            16,
        );
        for Ended { after, attempt } in ended {
            let Some(attempt) = attempt else { continue };
            let report = &attempt.report;
            rows.push([
                text(after.tenant_id.as_str()),
                text(attempt.delivery_id.as_str()),
                int(i32::try_from(attempt.number).unwrap_or(i32::MAX)),
                int(i32::from(trigger_code(attempt.trigger))),
                bigint(report.start_time.as_micros()),
                bigint(i64::try_from(report.duration.as_micros()).unwrap_or(i64::MAX)),
                int(report.http_status.map_or(0, i32::from)),
                text(json(&report.request_headers)?),
                text(json(&report.response_headers)?),
                bytes(report.response_body.as_slice()),
                text(report.failure.as_ref().map(json).transpose()?.unwrap_or_default()),
                int(i32::from(outcome_code(&report.outcome))),
                text(attempt.trace.to_string()),
            ]);
        }
        let sql = " INSERT INTO attempts (tenant_id, delivery_id, number, trigger_code, start_time, duration_us,
                http_status, request_headers, response_headers, response_body, failure, outcome, trace)
            SELECT tenant_id, delivery_id, number, trigger_code, start_time, duration_us,
                NULLIF(http_status, 0), request_headers, response_headers, response_body,
                NULLIF(failure, ''), outcome, trace FROM r";
        rows.execute(transaction, sql, &[]).await?;
        Ok(())
    }

    /// Adds an attempt to a delivery that has ended: one that was canceled meanwhile, or one that
    /// an administrator tried again. The state stays as it is; the attempt gets the next number.
    ///
    /// # Errors
    /// When the database does not take it.
    pub async fn record_after_end(
        &self,
        tenant_id: TenantId,
        mut attempt: Attempt,
        now: Timestamp,
    ) -> Result<LateResult, Error> {
        let transaction = self.dialect.begin(&self.write).await?;
        let sql = format!(
            "SELECT * FROM deliveries WHERE tenant_id = $1 AND id = $2 {}",
            self.dialect.for_update()
        );
        let values = vec![text(tenant_id.as_str()), text(attempt.delivery_id.as_str())];
        let Some(row) = transaction.query_one_raw(self.dialect.statement(sql, values)).await?
        else {
            return Ok(LateResult::Lost);
        };
        let mut delivery = Delivery::try_from(delivery::Model::from_query_result(&row, "")?)?;
        if self.is_recorded(&transaction, tenant_id, &attempt).await? {
            return Ok(LateResult::Known);
        }
        if !delivery.state.is_terminal() {
            return Ok(LateResult::Lost);
        }
        delivery.attempt_count += 1;
        delivery.revision += 1;
        delivery.update_time = now;
        attempt.number = delivery.attempt_count;
        if attempt.report.outcome == Outcome::Delivered && delivery.state != State::Succeeded {
            delivery.recover_time.get_or_insert(now);
        }
        delivery.last_attempt = Some(LastAttempt::of(&attempt));
        let sql = "UPDATE deliveries SET attempt_count = $3, revision = $4, update_time = $5,
                recover_time = NULLIF($6, 0), last_attempt = $7
            WHERE tenant_id = $1 AND id = $2";
        let values = vec![
            text(tenant_id.as_str()),
            text(delivery.id.as_str()),
            int(i32::try_from(delivery.attempt_count).unwrap_or(i32::MAX)),
            bigint(delivery.revision),
            bigint(now.as_micros()),
            time_or_zero(delivery.recover_time),
            text(json(&delivery.last_attempt)?),
        ];
        transaction.execute_raw(self.dialect.statement(sql, values)).await?;
        let ended = Ended { after: delivery, attempt: Some(attempt) };
        self.insert_attempts(&transaction, std::iter::once(&ended)).await?;
        self.tell(&transaction, std::iter::once(&ended.after), now).await?;
        transaction.commit().await?;
        self.wakes.wake();
        Ok(LateResult::Added(Box::new(ended.after)))
    }

    /// Whether this very attempt is in the record: the same number, and the same span.
    async fn is_recorded(
        &self,
        transaction: &DatabaseTransaction,
        tenant_id: TenantId,
        attempt: &Attempt,
    ) -> Result<bool, Error> {
        let sql = "SELECT 1 FROM attempts
            WHERE tenant_id = $1 AND delivery_id = $2 AND number = $3 AND trace = $4";
        let values = vec![
            text(tenant_id.as_str()),
            text(attempt.delivery_id.as_str()),
            int(i32::try_from(attempt.number).unwrap_or(i32::MAX)),
            text(attempt.trace.to_string()),
        ];
        Ok(transaction.query_one_raw(self.dialect.statement(sql, values)).await?.is_some())
    }

    /// Gives back what `node` has leased, at most `limit` deliveries: they are due at once.
    ///
    /// # Errors
    /// When the database does not take it.
    pub async fn release(
        &self,
        node: NodeId,
        now: Timestamp,
        limit: u32,
    ) -> Result<Release, Error> {
        let changed = self
            .change(
                &format!(
                    "UPDATE deliveries SET state = 1, next_attempt_time = $1, lease_node = NULL,
                        revision = revision + 1, update_time = $1
                    WHERE (tenant_id, id) IN (SELECT tenant_id, id FROM deliveries
                        WHERE lease_node = $2 AND state = 2 LIMIT $3 {skip_locked}) RETURNING *",
                    skip_locked = self.dialect.skip_locked(),
                ),
                vec![bigint(now.as_micros()), text(node.as_str()), bigint(i64::from(limit))],
                now,
            )
            .await?;
        Ok(Release { count: changed.len() })
    }

    /// Gives back what `node` has leased since before `older_than` and no longer knows of: a commit
    /// that took effect without its confirmation, for example. `is_known` says what it knows.
    ///
    /// # Errors
    /// When the database does not take it.
    pub async fn release_unknown(
        &self,
        node: NodeId,
        older_than: Timestamp,
        is_known: impl Fn(DeliveryId) -> bool,
        now: Timestamp,
    ) -> Result<Release, Error> {
        let sql = "SELECT tenant_id, id, revision FROM deliveries
            WHERE lease_node = $1 AND state = 2 AND update_time < $2";
        let values = vec![text(node.as_str()), bigint(older_than.as_micros())];
        let leased = self.read.query_all_raw(self.dialect.statement(sql, values)).await?;
        let columns = [("tenant_id", Type::Text), ("id", Type::Text), ("revision", Type::BigInt)];
        let mut rows = Rows::new(self.dialect, columns, 0);
        for row in &leased {
            let id: String = row.try_get_by_index(1)?;
            if !is_known(super::rows::id(&id)?) {
                let tenant_id: String = row.try_get_by_index(0)?;
                rows.push([text(tenant_id), text(id), bigint(row.try_get_by_index(2)?)]);
            }
        }
        if rows.is_empty() {
            return Ok(Release::default());
        }
        let transaction = self.dialect.begin(&self.write).await?;
        let sql = " UPDATE deliveries SET state = 1, next_attempt_time = $1, lease_node = NULL,
                revision = revision + 1, update_time = $1
            WHERE (tenant_id, id, revision) IN (SELECT tenant_id, id, revision FROM r) RETURNING *";
        let changed = rows.query(&transaction, sql, &[bigint(now.as_micros())]).await?;
        let mut deliveries: Vec<Delivery> = Vec::with_capacity(changed.len());
        for row in &changed {
            deliveries.push(delivery::Model::from_query_result(row, "")?.try_into()?);
        }
        self.tell(&transaction, deliveries.iter(), now).await?;
        transaction.commit().await?;
        self.wakes.wake();
        Ok(Release { count: deliveries.len() })
    }

    /// Runs one UPDATE that returns whole deliveries, tells the feed, and commits.
    pub(super) async fn change(
        &self,
        sql: &str,
        values: Vec<sea_orm::Value>,
        now: Timestamp,
    ) -> Result<Vec<Delivery>, Error> {
        let transaction = self.dialect.begin(&self.write).await?;
        let rows = transaction.query_all_raw(self.dialect.statement(sql, values)).await?;
        let mut changed: Vec<Delivery> = Vec::with_capacity(rows.len());
        for row in &rows {
            changed.push(delivery::Model::from_query_result(row, "")?.try_into()?);
        }
        self.tell(&transaction, changed.iter(), now).await?;
        transaction.commit().await?;
        self.wakes.wake();
        Ok(changed)
    }
}
