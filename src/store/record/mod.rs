//! Recording what came of attempts, fenced by the revision: who has not seen a delivery's last
//! change cannot make another. A node that lost its lease therefore overwrites nothing.

mod postgres;
mod sqlite;

use std::borrow::Cow;
use std::collections::HashSet;

use sea_orm::{ConnectionTrait, DatabaseTransaction, FromQueryResult, QueryResult};

use crate::domain::Timestamp;
use crate::domain::attempt::{Attempt, Outcome};
use crate::domain::delivery::{Delivery, LastAttempt, State};
use crate::domain::header_list::HeaderList;
use crate::domain::health::Policy;
use crate::domain::id::{DeliveryId, TenantId};

use super::bulk::{Rows, Type, bigint, bytes, int, text, time_or_zero};
use super::entity::delivery;
use super::feed::Tiding;
use super::line::Lines;
use super::rows::{json, micros, outcome_code, trigger_code};
use super::{Error, HealthChange, Observed, Store};

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
    /// How the health of endpoints changed with them.
    pub health: Vec<HealthChange>,
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

impl Store {
    /// Writes how leases ended, all in one transaction.
    ///
    /// # Errors
    /// When the database does not take it; then nothing is written, unless the commit itself was
    /// not confirmed: writing the same again is then harmless, because the revisions moved on.
    pub async fn record(&self, ended: &[Ended], now: Timestamp) -> Result<Recorded, Error> {
        self.record_observed(ended, &[], &Policy::default(), now).await
    }

    /// Like [`Store::record`], together with what the attempts said about their endpoints.
    ///
    /// # Errors
    /// As above.
    pub async fn record_observed(
        &self,
        ended: &[Ended],
        seen: &[Observed],
        policy: &Policy,
        now: Timestamp,
    ) -> Result<Recorded, Error> {
        if ended.is_empty() {
            return Ok(Recorded::default());
        }
        let births = self.births.take(ended).await;
        let recorded = self.record_with_births(ended, &births, seen, policy, now).await;
        if recorded.is_err() {
            let untold = std::iter::zip(ended, &births).filter(|(_, is_untold)| **is_untold);
            self.births.add(untold.map(|(ended, _)| &ended.after));
        }
        recorded
    }

    async fn record_with_births(
        &self,
        ended: &[Ended],
        births: &[bool],
        seen: &[Observed],
        policy: &Policy,
        now: Timestamp,
    ) -> Result<Recorded, Error> {
        if seen.is_empty()
            && let Some(fenced) = self.record_on_line(ended, births, now).await?
        {
            fail_point!(RecordAfterCommit);
            self.recorded(ended);
            return Ok(Recorded { fenced, health: Vec::new() });
        }
        let transaction = self.dialect.begin(&self.write).await?;
        let applied = self.update_deliveries(&transaction, ended).await?;
        let done = || ended.iter().filter(|change| applied.contains(&change.after.id));
        self.insert_attempts(&transaction, done()).await?;
        let seen = seen.iter().filter(|seen| applied.contains(&seen.delivery_id)).copied();
        let health = self.observe(&transaction, seen, policy, now).await?;
        let told = told(ended, births, |id| applied.contains(&id));
        self.tell(&transaction, told, now).await?;
        fail_point!(RecordBeforeCommit);
        if health.iter().any(|change| change.disabled.is_some()) {
            self.commit_settings(transaction).await?;
        } else {
            transaction.commit().await?;
        }
        fail_point!(RecordAfterCommit);
        self.recorded(ended);
        let fenced =
            ended.iter().map(|change| change.after.id).filter(|id| !applied.contains(id)).collect();
        Ok(Recorded { fenced, health })
    }

    /// What follows the commit. A delivery that others have changed is leased by us no more, either.
    fn recorded(&self, ended: &[Ended]) {
        self.births.learn(ended);
        self.leases.ended(ended.iter().map(|ended| (ended.after.id, ended.after.revision)));
        self.wakes.wake();
    }

    /// Writes how leases ended, and returns which were fenced; `None`, and nothing is written, when the
    /// longer way has to be taken.
    async fn record_on_line(
        &self,
        ended: &[Ended],
        births: &[bool],
        now: Timestamp,
    ) -> Result<Option<HashSet<DeliveryId>>, Error> {
        match &self.lines {
            Lines::Postgres(lines) => {
                let is_done =
                    postgres::record(&lines.recording, ended, births, now, &self.follows).await?;
                Ok(is_done.then(HashSet::new))
            }
            Lines::Sqlite(line) => {
                sqlite::record(line, ended, births, now, &self.follows).await.map(Some)
            }
        }
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
                -- Whoever has a result was not interrupted.
                interrupted_count = CASE WHEN r.attempt_count > deliveries.attempt_count
                    THEN 0 ELSE deliveries.interrupted_count END,
                next_attempt_time = NULLIF(r.next_attempt_time, 0), leased_by = NULL, due_time = NULL,
                hold_time = CASE WHEN r.state = 8 THEN r.update_time END,
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
                ("timings", Type::Text),
                ("smtp_reply", Type::Text),
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
                bigint(micros(report.duration)),
                int(report.http_status.map_or(0, i32::from)),
                text(json(&report.request_headers)?),
                text(json(&report.response_headers)?),
                bytes(report.response_body.as_slice()),
                text(report.failure.as_ref().map(json).transpose()?.unwrap_or_default()),
                int(i32::from(outcome_code(&report.outcome))),
                text(attempt.trace.to_string()),
                text(report.timings.as_ref().map(json).transpose()?.unwrap_or_default()),
                text(report.smtp_reply.as_str()),
            ]);
        }
        let sql = " INSERT INTO attempts (tenant_id, delivery_id, number, trigger_code, start_time, duration_us,
                http_status, request_headers, response_headers, response_body, failure, outcome, trace,
                timings, smtp_reply)
            SELECT tenant_id, delivery_id, number, trigger_code, start_time, duration_us,
                NULLIF(http_status, 0), request_headers, response_headers, response_body,
                NULLIF(failure, ''), outcome, trace, NULLIF(timings, ''), smtp_reply FROM r";
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
        let row = transaction.query_one_raw(self.dialect.statement(sql, values)).await?;
        let ended = match &row {
            Some(_) if self.is_recorded(&transaction, tenant_id, &attempt).await? => {
                Err(LateResult::Known)
            }
            Some(row) => {
                let delivery = Delivery::try_from(delivery::Model::from_query_result(row, "")?)?;
                if delivery.state.is_terminal() { Ok(delivery) } else { Err(LateResult::Lost) }
            }
            None => Err(LateResult::Lost),
        };
        let mut delivery = match ended {
            Ok(delivery) => delivery,
            Err(result) => {
                // Dropping it would keep the row locked until the connection is used again.
                transaction.rollback().await?;
                return Ok(result);
            }
        };
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
        fail_point!(LateBeforeCommit);
        transaction.commit().await?;
        fail_point!(LateAfterCommit);
        self.wakes.wake();
        Ok(LateResult::Added(Box::new(ended.after)))
    }

    /// Whether this very attempt is in the record: the same span. Its number may be another, when it
    /// was added after the end by a commit that was not confirmed.
    async fn is_recorded(
        &self,
        transaction: &DatabaseTransaction,
        tenant_id: TenantId,
        attempt: &Attempt,
    ) -> Result<bool, Error> {
        let sql = "SELECT 1 FROM attempts
            WHERE tenant_id = $1 AND delivery_id = $2 AND trace = $3";
        let values = vec![
            text(tenant_id.as_str()),
            text(attempt.delivery_id.as_str()),
            text(attempt.trace.to_string()),
        ];
        Ok(transaction.query_one_raw(self.dialect.statement(sql, values)).await?.is_some())
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
        self.finish_change(transaction, &rows, now).await
    }

    /// Tells the feed of the whole deliveries that an UPDATE returned, and commits.
    pub(super) async fn finish_change(
        &self,
        transaction: DatabaseTransaction,
        rows: &[QueryResult],
        now: Timestamp,
    ) -> Result<Vec<Delivery>, Error> {
        let mut changed: Vec<Delivery> = Vec::with_capacity(rows.len());
        let mut untold = Vec::with_capacity(rows.len());
        for row in rows {
            let row = delivery::Model::from_query_result(row, "")?;
            untold.push(row.untold != 0 && row.revision == 2);
            changed.push(row.try_into()?);
        }
        let tidings = std::iter::zip(&changed, untold)
            .map(|(delivery, after_birth)| Tiding { delivery, after_birth });
        self.tell(&transaction, tidings, now).await?;
        fail_point!(ChangeBeforeCommit);
        transaction.commit().await?;
        fail_point!(ChangeAfterCommit);
        self.wakes.wake();
        self.ends.count(&changed);
        Ok(changed)
    }
}

/// What the feed is told of those changes that took effect.
fn told<'e>(
    ended: &'e [Ended],
    births: &'e [bool],
    is_done: impl Fn(DeliveryId) -> bool,
) -> impl Iterator<Item = Tiding<'e>> {
    std::iter::zip(ended, births)
        .map(|(Ended { after, .. }, birth)| Tiding { delivery: after, after_birth: *birth })
        .filter(move |tiding| is_done(tiding.delivery.id))
}

/// The document of an attempt's headers.
fn headers(headers: &HeaderList) -> Result<Cow<'static, str>, Error> {
    Ok(if headers.is_empty() { Cow::Borrowed("[]") } else { Cow::Owned(json(headers)?) })
}
