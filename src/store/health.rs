//! What is remembered of endpoints that fail, for all replicas and over restarts.
//!
//! A healthy endpoint has no row and costs no statement. What attempts say about the others is
//! written in the transaction that records their results: a row is locked, read, decided on and
//! written there, so that no failure of another replica is lost. Rows are locked in order of their
//! keys, after the deliveries and before the feed's heads, like everywhere.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use sea_orm::{ConnectionTrait, DatabaseTransaction, QueryResult};

use crate::domain::Timestamp;
use crate::domain::attempt::ErrorKind;
use crate::domain::channel::Channel;
use crate::domain::health::{Breaker, DISABLED_EVENT, Disabled, Health, Observation, Policy, Slow};
use crate::domain::id::{DeliveryId, SubscriptionId, TenantId};
use crate::domain::subscription::DisableReason;

use super::bulk::{Rows, Type, bigint, int, text, time_or_zero};
use super::rows::{disable_code, json, micros};
use super::{Announcement, Error, Store, SubscriptionRef};

/// What an attempt said about its endpoint.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Observed {
    /// The attempt's delivery: what is fenced is not counted.
    pub delivery_id: DeliveryId,
    /// Whose endpoint it is.
    pub subscription: SubscriptionRef,
    /// What it said.
    pub observation: Observation,
    /// Uniform in [0, 1), for jitter.
    pub random: f64,
}

/// How an endpoint's health changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthChange {
    /// Whose endpoint it is.
    pub subscription: SubscriptionRef,
    /// How it was.
    pub before: Health,
    /// How it is.
    pub after: Health,
    /// See [`EndpointHealth::update_time`].
    pub update_time: Timestamp,
    /// Why the subscription was disabled by this change.
    pub disabled: Option<DisableReason>,
}

/// What is remembered of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointHealth {
    /// Whose endpoint it is.
    pub subscription: SubscriptionRef,
    /// How it is.
    pub health: Health,
    /// When it was written: later for every change of the same endpoint, whoever made it.
    pub update_time: Timestamp,
}

impl HealthChange {
    /// What is remembered now.
    pub const fn row(&self) -> EndpointHealth {
        let Self { subscription, after: health, update_time, .. } = *self;
        EndpointHealth { subscription, health, update_time }
    }
}

/// The columns in the order in which [`read`] expects them behind the two of the key.
const COLUMNS: &str = "consecutive_failures, failing_since, last_error, open_until, cool_down_us,
    probe_time, slow_until, slow_level, recover_time, update_time";

/// A later time for a row that is changed at `$1`, even if the clock of who changed it last was
/// ahead of ours.
const LATER: &str = "CASE WHEN endpoint_health.update_time >= $1
    THEN endpoint_health.update_time + 1 ELSE $1 END";

impl Store {
    /// Decides what `seen` says about its endpoints, and writes it.
    pub(super) async fn observe(
        &self,
        transaction: &DatabaseTransaction,
        seen: impl Iterator<Item = Observed>,
        policy: &Policy,
        now: Timestamp,
    ) -> Result<Vec<HealthChange>, Error> {
        let mut by_endpoint: BTreeMap<SubscriptionRef, Vec<Observed>> = BTreeMap::new();
        for observed in seen {
            by_endpoint.entry(observed.subscription).or_default().push(observed);
        }
        if by_endpoint.is_empty() {
            return Ok(Vec::new());
        }
        let stored = self.lock_health(transaction, by_endpoint.keys(), now).await?;
        let mut changes = Vec::with_capacity(by_endpoint.len());
        for (subscription, seen) in by_endpoint {
            // A deleted subscription has no health.
            let Some(EndpointHealth { health: before, update_time, .. }) =
                stored.get(&subscription).copied()
            else {
                continue;
            };
            let seen = seen.iter().map(|observed| (observed.observation, observed.random));
            let (after, disabled) = before.after_all(seen, policy, now);
            changes.push(HealthChange { subscription, before, after, update_time, disabled });
        }
        self.write_health(transaction, &changes).await?;
        let mut announcements = Vec::new();
        for change in changes.iter_mut().filter(|change| change.disabled.is_some()) {
            match self.disable(transaction, change, now).await? {
                Some(announcement) => announcements.push(announcement),
                None => change.disabled = None,
            }
        }
        // After all subscriptions: who changes one locks it before its tenant's version.
        for announcement in &announcements {
            self.bump_version(transaction, announcement.tenant_id.as_str()).await?;
            self.announce(transaction, announcement).await?;
        }
        Ok(changes)
    }

    /// Locks the rows of these subscriptions, and makes those that are missing.
    async fn lock_health<'s>(
        &self,
        transaction: &DatabaseTransaction,
        subscriptions: impl ExactSizeIterator<Item = &'s SubscriptionRef>,
        now: Timestamp,
    ) -> Result<HashMap<SubscriptionRef, EndpointHealth>, Error> {
        let sql = format!(
            " INSERT INTO endpoint_health (tenant_id, subscription_id, consecutive_failures,
                cool_down_us, slow_level, update_time)
            SELECT s.tenant_id, s.id, 0, 0, 0, $1 FROM r
            JOIN subscriptions s ON s.tenant_id = r.tenant_id AND s.id = r.subscription_id
            WHERE s.delete_time IS NULL
            -- One order for all transactions: they wait for each other, but never in a circle.
            ORDER BY s.tenant_id, s.id
            ON CONFLICT (tenant_id, subscription_id) DO UPDATE SET update_time = {LATER}
            RETURNING tenant_id, subscription_id, {COLUMNS}"
        );
        let rows = keys(self, subscriptions);
        read_all(&rows.query(transaction, &sql, &[bigint(now.as_micros())]).await?)
    }

    async fn write_health(
        &self,
        transaction: &DatabaseTransaction,
        changes: &[HealthChange],
    ) -> Result<(), Error> {
        let mut rows = Rows::new(
            self.dialect,
            [
                ("tenant_id", Type::Text),
                ("subscription_id", Type::Text),
                ("consecutive_failures", Type::Int),
                ("failing_since", Type::BigInt),
                ("last_error", Type::Text),
                ("open_until", Type::BigInt),
                ("cool_down_us", Type::BigInt),
                ("probe_time", Type::BigInt),
                ("slow_until", Type::BigInt),
                ("slow_level", Type::Int),
                ("recover_time", Type::BigInt),
            ],
            changes.len(),
        );
        for HealthChange { subscription, after, .. } in changes {
            let Health { breaker, slow, .. } = after;
            rows.push([
                text(subscription.tenant_id.as_str()),
                text(subscription.id.as_str()),
                int(i32::try_from(after.consecutive_failures).unwrap_or(i32::MAX)),
                time_or_zero(after.failing_since),
                text(after.last_error.map_or("", ErrorKind::as_str)),
                time_or_zero(breaker.map(|breaker| breaker.open_until)),
                bigint(breaker.map_or(0, |breaker| micros(breaker.cool_down))),
                time_or_zero(breaker.and_then(|breaker| breaker.probe_time)),
                time_or_zero(slow.map(|slow| slow.until)),
                int(slow.map_or(0, |slow| i32::try_from(slow.level).unwrap_or(i32::MAX))),
                time_or_zero(after.recover_time),
            ]);
        }
        let sql = " UPDATE endpoint_health SET consecutive_failures = r.consecutive_failures,
                failing_since = NULLIF(r.failing_since, 0), last_error = NULLIF(r.last_error, ''),
                open_until = NULLIF(r.open_until, 0), cool_down_us = r.cool_down_us,
                probe_time = NULLIF(r.probe_time, 0), slow_until = NULLIF(r.slow_until, 0),
                slow_level = r.slow_level, recover_time = NULLIF(r.recover_time, 0)
            FROM r WHERE endpoint_health.tenant_id = r.tenant_id
              AND endpoint_health.subscription_id = r.subscription_id";
        rows.execute(transaction, sql, &[]).await?;
        Ok(())
    }

    /// Disables a subscription, and returns what the tenant is to be told; `None` when it is not
    /// active.
    async fn disable(
        &self,
        transaction: &DatabaseTransaction,
        change: &HealthChange,
        now: Timestamp,
    ) -> Result<Option<Announcement>, Error> {
        let Some(reason) = change.disabled else { return Ok(None) };
        let SubscriptionRef { tenant_id, id } = change.subscription;
        let sql = "UPDATE subscriptions SET state = 3, disable_reason = $3, settled = 0,
                revision = revision + 1, update_time = $4
            WHERE tenant_id = $1 AND id = $2 AND state = 1 AND delete_time IS NULL
            RETURNING display_name, channel, revision";
        let values = vec![
            text(tenant_id.as_str()),
            text(id.as_str()),
            int(i32::from(disable_code(reason))),
            bigint(now.as_micros()),
        ];
        let Some(row) = transaction.query_one_raw(self.dialect.statement(sql, values)).await?
        else {
            return Ok(None);
        };
        let (display_name, channel): (String, String) =
            (row.try_get_by_index(0)?, row.try_get_by_index(1)?);
        let url = self.url_of(transaction, tenant_id, &channel).await?;
        let told = Disabled::new(id, &display_name, reason, &url, &change.after);
        // A subscription is disabled once per revision.
        Ok(Some(Announcement {
            tenant_id,
            id: format!("{id}:{}", row.try_get_by_index::<i64>(2)?),
            event_type: DISABLED_EVENT.into(),
            subject: id.to_string(),
            data: json(&told)?.into(),
            create_time: now,
        }))
    }

    /// The URL of a subscription with this channel: its own, or the tenant's.
    async fn url_of(
        &self,
        transaction: &DatabaseTransaction,
        tenant_id: TenantId,
        channel: &str,
    ) -> Result<String, Error> {
        match serde_json::from_str(channel)? {
            Channel::Webhook(webhook) if webhook.url.is_empty() => {
                let sql = "SELECT webhook_url FROM tenants WHERE id = $1";
                let statement = self.dialect.statement(sql, vec![text(tenant_id.as_str())]);
                let row = transaction.query_one_raw(statement).await?;
                Ok(row.map_or(Ok(String::new()), |row| row.try_get_by_index(0))?)
            }
            Channel::Webhook(webhook) => Ok(webhook.url),
            Channel::Email(_) => Ok(String::new()),
        }
    }

    /// What attempts on request said of an endpoint of which something is remembered. Anything else
    /// changes nothing.
    ///
    /// # Errors
    /// When the database does not take it.
    pub async fn observe_one(
        &self,
        observed: Observed,
        policy: &Policy,
        now: Timestamp,
    ) -> Result<Option<HealthChange>, Error> {
        let SubscriptionRef { tenant_id, id } = observed.subscription;
        if self.health_of(tenant_id, &[id]).await?.is_empty() {
            return Ok(None);
        }
        let transaction = self.dialect.begin(&self.write).await?;
        let change = self.observe(&transaction, std::iter::once(observed), policy, now).await?;
        fail_point!(HealthBeforeCommit);
        transaction.commit().await?;
        fail_point!(HealthAfterCommit);
        Ok(change.first().copied())
    }

    /// Takes the probes of those of `subscriptions` whose breakers let one through at `now`: until
    /// `until` nobody else gets one. Returns what is remembered of those that were taken.
    pub(super) async fn take_probes(
        &self,
        transaction: &DatabaseTransaction,
        subscriptions: &[SubscriptionRef],
        now: Timestamp,
        until: Timestamp,
    ) -> Result<HashMap<SubscriptionRef, EndpointHealth>, Error> {
        if subscriptions.is_empty() {
            return Ok(HashMap::new());
        }
        let sql = format!(
            " UPDATE endpoint_health SET probe_time = $1, open_until = $2, update_time = {LATER}
            WHERE (tenant_id, subscription_id) IN (
                SELECT h.tenant_id, h.subscription_id FROM endpoint_health h
                WHERE (h.tenant_id, h.subscription_id) IN (SELECT tenant_id, subscription_id FROM r)
                  AND h.open_until <= $1
                -- Whoever has the row is taking the probe, or records what came of one.
                {skip_locked})
              AND open_until <= $1
            RETURNING tenant_id, subscription_id, {COLUMNS}",
            skip_locked = self.dialect.skip_locked(),
        );
        let rows = keys(self, subscriptions.iter());
        let values = [bigint(now.as_micros()), bigint(until.as_micros())];
        read_all(&rows.query(transaction, &sql, &values).await?)
    }

    /// What was written behind `after`, a row's time and key, in that order; at most `limit`. What
    /// changes meanwhile comes once more, behind all others.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn health_changes(
        &self,
        after: (Timestamp, Option<SubscriptionRef>),
        limit: u32,
    ) -> Result<Vec<EndpointHealth>, Error> {
        let (time, key) = after;
        let (tenant, subscription) =
            key.map_or_else(Default::default, |a| (a.tenant_id.to_string(), a.id.to_string()));
        let sql = format!(
            "SELECT tenant_id, subscription_id, {COLUMNS} FROM endpoint_health
            WHERE (update_time, tenant_id, subscription_id) > ($1, $2, $3)
            ORDER BY update_time, tenant_id, subscription_id LIMIT $4"
        );
        let values = vec![
            bigint(time.as_micros()),
            text(tenant),
            text(subscription),
            bigint(i64::from(limit)),
        ];
        let rows = self.read.query_all_raw(self.dialect.statement(sql, values)).await?;
        rows.iter().map(read).collect()
    }

    /// What is remembered of these subscriptions' endpoints. Healthy ones are missing.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn health_of(
        &self,
        tenant_id: TenantId,
        ids: &[SubscriptionId],
    ) -> Result<HashMap<SubscriptionId, Health>, Error> {
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        let places: Vec<_> = (2..ids.len() + 2).map(|place| format!("${place}")).collect();
        let sql = format!(
            "SELECT tenant_id, subscription_id, {COLUMNS} FROM endpoint_health
            WHERE tenant_id = $1 AND subscription_id IN ({})",
            places.join(", ")
        );
        let values = std::iter::once(text(tenant_id.as_str()))
            .chain(ids.iter().map(|id| text(id.as_str())))
            .collect();
        let rows = self.read.query_all_raw(self.dialect.statement(sql, values)).await?;
        rows.iter().map(|row| read(row).map(|row| (row.subscription.id, row.health))).collect()
    }

    /// Forgets how an endpoint fared: its subscription was resumed, or has another endpoint. The row
    /// stays for a while, so that other replicas see it.
    ///
    /// # Errors
    /// When the database does not take it.
    pub async fn reset_health(
        &self,
        tenant_id: TenantId,
        id: SubscriptionId,
        now: Timestamp,
    ) -> Result<(), Error> {
        let sql = format!(
            "UPDATE endpoint_health SET consecutive_failures = 0, failing_since = NULL,
                last_error = NULL, open_until = NULL, cool_down_us = 0, probe_time = NULL,
                slow_until = NULL, slow_level = 0, recover_time = NULL, update_time = {LATER}
            WHERE tenant_id = $2 AND subscription_id = $3"
        );
        let values = vec![bigint(now.as_micros()), text(tenant_id.as_str()), text(id.as_str())];
        self.write.execute_raw(self.dialect.statement(sql, values)).await?;
        Ok(())
    }

    /// Removes the rows of endpoints that have been healthy since before `before`, and of
    /// subscriptions that are gone.
    ///
    /// # Errors
    /// When the database does not take it.
    pub async fn forget_health(&self, before: Timestamp, limit: u32) -> Result<u64, Error> {
        let sql = format!(
            "DELETE FROM endpoint_health WHERE (tenant_id, subscription_id) IN (
                SELECT h.tenant_id, h.subscription_id FROM endpoint_health h
                WHERE h.update_time < $1 AND (h.consecutive_failures = 0 OR NOT EXISTS (
                    SELECT 1 FROM subscriptions s
                    WHERE s.tenant_id = h.tenant_id AND s.id = h.subscription_id))
                LIMIT $2 {skip_locked})",
            skip_locked = self.dialect.skip_locked(),
        );
        let values = vec![bigint(before.as_micros()), bigint(i64::from(limit))];
        Ok(self.write.execute_raw(self.dialect.statement(sql, values)).await?.rows_affected())
    }
}

fn keys<'s>(
    store: &Store,
    subscriptions: impl ExactSizeIterator<Item = &'s SubscriptionRef>,
) -> Rows<2> {
    let columns = [("tenant_id", Type::Text), ("subscription_id", Type::Text)];
    let mut rows = Rows::new(store.dialect, columns, subscriptions.len());
    for SubscriptionRef { tenant_id, id } in subscriptions {
        rows.push([text(tenant_id.as_str()), text(id.as_str())]);
    }
    rows
}

fn read_all(rows: &[QueryResult]) -> Result<HashMap<SubscriptionRef, EndpointHealth>, Error> {
    rows.iter().map(|row| read(row).map(|row| (row.subscription, row))).collect()
}

fn read(row: &QueryResult) -> Result<EndpointHealth, Error> {
    let time = |index: usize| -> Result<Option<Timestamp>, Error> {
        Ok(row.try_get_by_index::<Option<i64>>(index)?.map(Timestamp::from_micros))
    };
    let count = |index: usize| -> Result<u32, Error> {
        Ok(u32::try_from(row.try_get_by_index::<i32>(index)?).unwrap_or(0))
    };
    let cool_down = u64::try_from(row.try_get_by_index::<i64>(6)?).unwrap_or(0);
    let probe_time = time(7)?;
    let breaker = time(5)?.map(|open_until| Breaker {
        open_until,
        cool_down: Duration::from_micros(cool_down),
        probe_time,
    });
    let level = count(9)?;
    let last_error = row.try_get_by_index::<Option<String>>(4)?.map(|name| {
        // A kind of a later version: this one has no better word for it.
        ErrorKind::ALL.into_iter().find(|kind| kind.as_str() == name).unwrap_or(ErrorKind::Internal)
    });
    let health = Health {
        consecutive_failures: count(2)?,
        failing_since: time(3)?,
        last_error,
        breaker,
        slow: time(8)?.map(|until| Slow { until, level }),
        recover_time: time(10)?,
    };
    let update_time = Timestamp::from_micros(row.try_get_by_index(11)?);
    Ok(EndpointHealth { subscription: SubscriptionRef::read(row)?, health, update_time })
}
