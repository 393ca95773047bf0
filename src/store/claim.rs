//! Claiming what is due.
//!
//! A claim walks over the subscriptions that have something scheduled, from where the last claim
//! stopped, and takes from each no more than there is room for: one loud subscription cannot push
//! another out of the page. Both steps cost the same for ten due deliveries as for a million.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use sea_orm::{ConnectionTrait, DatabaseTransaction, FromQueryResult, QueryResult, Value};

use crate::domain::Timestamp;
use crate::domain::delivery::Delivery;
use crate::domain::event::{self, Event};
use crate::domain::id::{DeliveryId, EventId, NodeId, SubscriptionId, TenantId};
use crate::domain::subscription::Subscription;

use super::bulk::{Rows, Type, bigint, text};
use super::dialect::Dialect;
use super::entity::{delivery, event as event_row};
use super::{EndpointHealth, Error, Store};

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

/// What came of a claim.
#[derive(Debug, Default)]
pub struct Claim {
    /// What was leased.
    pub claimed: Vec<Claimed>,
    /// What is remembered now of the endpoints whose probes were taken.
    pub probes: HashMap<SubscriptionRef, EndpointHealth>,
}

/// The bytes of the event of the delivery `due`. Neither database reads a large payload for this.
const CONTENT_BYTES: &str =
    "COALESCE((SELECT octet_length(e.data) + octet_length(e.labels) + octet_length(e.subject)
    FROM events e WHERE e.tenant_id = due.tenant_id AND e.id = due.event_id), 0)";

/// A delivery that may be claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Whose it is.
    pub subscription: SubscriptionRef,
    /// Which it is.
    pub delivery_id: DeliveryId,
    /// Since when it is due.
    pub due_time: Timestamp,
    /// About how many bytes its event takes in memory.
    pub event_bytes: usize,
}

impl Candidate {
    fn read(row: &QueryResult) -> Result<Self, Error> {
        // PostgreSQL's lengths have 32 bits, SQLite's integers are as long as they must be.
        let content = match row.try_get_by_index::<i32>(4) {
            Ok(content) => i64::from(content),
            Err(_) => row.try_get_by_index(4)?,
        };
        Ok(Self {
            subscription: SubscriptionRef::read(row)?,
            delivery_id: super::rows::id(&row.try_get_by_index::<String>(2)?)?,
            due_time: Timestamp::from_micros(row.try_get_by_index(3)?),
            event_bytes: event::weight(usize::try_from(content).unwrap_or(0)),
        })
    }
}

/// Those that are admitted, asked in fair turns: the first ones of all subscriptions, then the second
/// ones, and so on.
pub fn admitted(
    mut candidates: Vec<Candidate>,
    mut admit: impl FnMut(&Candidate) -> bool,
) -> Vec<Candidate> {
    candidates.sort_unstable_by_key(|candidate| {
        (candidate.subscription, candidate.due_time, candidate.delivery_id)
    });
    let mut turns = Vec::with_capacity(candidates.len());
    for lane in candidates.chunk_by(|one, next| one.subscription == next.subscription) {
        turns.extend(lane.iter().copied().enumerate());
    }
    // Stable: within a turn the subscriptions keep their order.
    turns.sort_by_key(|(turn, _)| *turn);
    let mut refused = HashSet::new();
    turns.retain(|(_, candidate)| {
        let subscription = candidate.subscription;
        let is_admitted = !refused.contains(&subscription) && admit(candidate);
        if !is_admitted {
            refused.insert(subscription);
        }
        is_admitted
    });
    turns.into_iter().map(|(_, candidate)| candidate).collect()
}

/// SCHEDULED, and so due at some time: in the words of the index, which does not name the state.
pub(super) const DUE: &str = "next_attempt_time IS NOT NULL";
/// HELD, in the words of its index.
pub(super) const HELD: &str = "hold_time IS NOT NULL";

/// Lists the subscriptions behind `($1, $2)` that have deliveries of this condition ([`DUE`] or
/// [`HELD`]), at most `$3`, as the table `s`, whose last row may be NULL. A loose index scan: a few
/// look-ups in a partial index per subscription, however many deliveries each has.
///
/// The next one is the tenant's own next one, or else the next tenant's first. A comparison of both columns
/// at once would say the same, but SQLite looks up the first one alone by the index, and then reads all of
/// the tenant's deliveries up to the next subscription.
pub(super) fn subscriptions_with(condition: &str) -> String {
    let next = |column: &str, tenant: &str, subscription: &str| {
        let first = |of: &str| {
            format!(
                "(SELECT d.{column} FROM deliveries d WHERE d.{condition} AND {of}
                    ORDER BY d.tenant_id, d.subscription_id LIMIT 1)"
            )
        };
        let own = format!("d.tenant_id = {tenant} AND d.subscription_id > {subscription}");
        format!("COALESCE({}, {})", first(&own), first(&format!("d.tenant_id > {tenant}")))
    };
    let row = |tenant: &str, subscription: &str| {
        let next = |column: &str| next(column, tenant, subscription);
        format!("{}, {}", next("tenant_id"), next("subscription_id"))
    };
    format!(
        "WITH RECURSIVE s(tenant_id, subscription_id, n) AS (
            SELECT {}, 1
            UNION ALL
            SELECT {}, s.n + 1 FROM s WHERE s.tenant_id IS NOT NULL AND s.n < $3)",
        row("$1", "$2"),
        row("s.tenant_id", "s.subscription_id"),
    )
}

/// Lists the subscriptions behind `($1, $2)` that have something scheduled, at most `$3`, each with the
/// time at which its first delivery is due.
fn scheduled(dialect: Dialect) -> String {
    match dialect {
        Dialect::Postgres => SCHEDULED_POSTGRES.to_owned(),
        Dialect::Sqlite => format!(
            "{} SELECT s.tenant_id, s.subscription_id,
                (SELECT min(d.next_attempt_time) FROM deliveries d
                    WHERE d.{DUE} AND d.tenant_id = s.tenant_id AND d.subscription_id = s.subscription_id)
            FROM s WHERE s.tenant_id IS NOT NULL",
            subscriptions_with(DUE)
        ),
    }
}

/// Like [`subscriptions_with`], but with one look-up for a subscription instead of three. SQLite has no
/// LATERAL.
const SCHEDULED_POSTGRES: &str = "WITH RECURSIVE s AS (
        (SELECT tenant_id, subscription_id, next_attempt_time, 1 AS n FROM deliveries
            WHERE next_attempt_time IS NOT NULL AND (tenant_id, subscription_id) > ($1, $2)
            ORDER BY tenant_id, subscription_id, next_attempt_time LIMIT 1)
        UNION ALL
        SELECT next.* FROM s CROSS JOIN LATERAL (
            SELECT d.tenant_id, d.subscription_id, d.next_attempt_time, s.n + 1 FROM deliveries d
                WHERE d.next_attempt_time IS NOT NULL
                    AND (d.tenant_id, d.subscription_id) > (s.tenant_id, s.subscription_id)
                ORDER BY d.tenant_id, d.subscription_id, d.next_attempt_time LIMIT 1) AS next
            WHERE s.n < $3)
    SELECT tenant_id, subscription_id, next_attempt_time FROM s";

/// The values of [`subscriptions_with`].
pub(super) fn behind(after: Option<SubscriptionRef>, limit: u32) -> Vec<Value> {
    let (tenant, subscription) =
        after.map_or_else(Default::default, |a| (a.tenant_id.to_string(), a.id.to_string()));
    vec![text(tenant), text(subscription), bigint(i64::from(limit))]
}

impl From<&Subscription> for SubscriptionRef {
    fn from(subscription: &Subscription) -> Self {
        Self { tenant_id: subscription.tenant_id, id: subscription.id }
    }
}

impl SubscriptionRef {
    /// Reads the tenant's id and the subscription's, the first two columns of a row.
    pub(super) fn read(row: &QueryResult) -> Result<Self, Error> {
        Ok(Self {
            tenant_id: super::rows::id(&row.try_get_by_index::<String>(0)?)?,
            id: super::rows::id(&row.try_get_by_index::<String>(1)?)?,
        })
    }
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
        let statement = self.dialect.statement(scheduled(self.dialect), behind(after, limit));
        let rows = self.read.query_all_raw(statement).await?;
        let mut subscriptions = Vec::with_capacity(rows.len());
        for row in rows {
            let subscription = SubscriptionRef::read(&row)?;
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
        let sql = "SELECT count(*) FROM (SELECT 1 FROM deliveries
            WHERE next_attempt_time IS NOT NULL LIMIT $1) AS scheduled";
        let statement = self.dialect.statement(sql, vec![bigint(i64::from(limit))]);
        let row = self.read.query_one_raw(statement).await?;
        Ok(row.map_or(Ok(0), |row| row.try_get_by_index(0))?)
    }

    /// Leases what is due at `now` to `node`, within the rooms. Of each delivery `admit` is asked
    /// whether its event may come into memory: of the first one of each subscription, then of the
    /// second ones, and so on. After a refusal the subscription's later ones wait, too, so that a
    /// large event is not overtaken for ever.
    ///
    /// # Errors
    /// When the database does not answer; then nothing is claimed.
    pub async fn claim(
        &self,
        rooms: &[Room],
        node: NodeId,
        now: Timestamp,
        admit: impl FnMut(&Candidate) -> bool,
    ) -> Result<Vec<Claimed>, Error> {
        Ok(self.claim_probing(rooms, (&[], now), node, now, admit).await?.claimed)
    }

    /// Like [`Store::claim`], and one delivery of each of `probed`, whose breakers are open: if the
    /// probe is not somebody else's, who has it then until `probe_until`.
    ///
    /// # Errors
    /// When the database does not answer; then nothing is claimed and no probe is taken.
    pub async fn claim_probing(
        &self,
        rooms: &[Room],
        (probed, probe_until): (&[SubscriptionRef], Timestamp),
        node: NodeId,
        now: Timestamp,
        admit: impl FnMut(&Candidate) -> bool,
    ) -> Result<Claim, Error> {
        if rooms.is_empty() && probed.is_empty() {
            return Ok(Claim::default());
        }
        let transaction = self.dialect.begin(&self.write).await?;
        let taken = self.take_probes(&transaction, probed, now, probe_until).await?;
        let probing = taken.keys().map(|of| Room { subscription: *of, room: 1 });
        let rooms = &rooms.iter().copied().chain(probing).collect::<Vec<_>>();
        let candidates = match self.dialect {
            Dialect::Postgres => self.candidates_postgres(&transaction, rooms, now).await?,
            Dialect::Sqlite => self.candidates_sqlite(&transaction, rooms, now).await?,
        };
        let admitted = admitted(candidates, admit);
        let claimed = self.lease_all(transaction, &admitted, node, now).await?;
        Ok(Claim { probes: if claimed.is_empty() { HashMap::new() } else { taken }, claimed })
    }

    /// Leases at most `limit` of what else is due to this recipient of a digest, in order of their
    /// ids. `admit` is asked as in [`Store::claim`].
    ///
    /// # Errors
    /// When the database does not answer; then nothing is claimed.
    pub async fn claim_digest(
        &self,
        (of, recipient): (SubscriptionRef, &str),
        limit: usize,
        node: NodeId,
        now: Timestamp,
        admit: impl FnMut(&Candidate) -> bool,
    ) -> Result<Vec<Claimed>, Error> {
        let transaction = self.dialect.begin(&self.write).await?;
        let sql = format!(
            "SELECT due.tenant_id, due.subscription_id, due.id, due.next_attempt_time, {CONTENT_BYTES}
            FROM deliveries due
            WHERE tenant_id = $2 AND subscription_id = $3 AND recipient = $4
              AND next_attempt_time <= $1
            ORDER BY id LIMIT $5 {}",
            self.dialect.skip_locked()
        );
        let values = vec![
            bigint(now.as_micros()),
            text(of.tenant_id.as_str()),
            text(of.id.as_str()),
            text(recipient),
            bigint(i64::try_from(limit).unwrap_or(i64::MAX)),
        ];
        let rows = transaction.query_all_raw(self.dialect.statement(sql, values)).await?;
        let due = rows.iter().map(Candidate::read).collect::<Result<_, _>>()?;
        self.lease_all(transaction, &admitted(due, admit), node, now).await
    }

    /// Leases the admitted candidates, tells of it, and commits.
    async fn lease_all(
        &self,
        transaction: DatabaseTransaction,
        admitted: &[Candidate],
        node: NodeId,
        now: Timestamp,
    ) -> Result<Vec<Claimed>, Error> {
        if admitted.is_empty() {
            // Dropping it would keep the rows locked until the connection is used again.
            transaction.rollback().await?;
            return Ok(Vec::new());
        }
        let deliveries = self.lease(&transaction, admitted, node, now).await?;
        let events = self.events_of(&transaction, &deliveries).await?;
        fail_point!(ClaimBeforeCommit);
        self.commit_leased(transaction, &deliveries, node, now).await?;
        fail_point!(ClaimAfterCommit);
        self.wakes.wake();
        let mut claimed = Vec::with_capacity(deliveries.len());
        for delivery in deliveries {
            if let Some(event) = events.get(&(delivery.tenant_id, delivery.event_id)) {
                claimed.push(Claimed { delivery, event: Arc::clone(event) });
            }
        }
        Ok(claimed)
    }

    async fn candidates_postgres(
        &self,
        transaction: &DatabaseTransaction,
        rooms: &[Room],
        now: Timestamp,
    ) -> Result<Vec<Candidate>, Error> {
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
        let sql = format!(
            ", due AS (
                SELECT d.* FROM r CROSS JOIN LATERAL (
                    SELECT tenant_id, subscription_id, id, event_id, next_attempt_time FROM deliveries
                    WHERE tenant_id = r.tenant_id AND subscription_id = r.subscription_id
                      AND next_attempt_time <= $1
                    ORDER BY next_attempt_time LIMIT r.room FOR UPDATE SKIP LOCKED) d)
            SELECT due.tenant_id, due.subscription_id, due.id, due.next_attempt_time, {CONTENT_BYTES}
            FROM due"
        );
        let rows = rows.query(transaction, &sql, &[bigint(now.as_micros())]).await?;
        rows.iter().map(Candidate::read).collect()
    }

    async fn candidates_sqlite(
        &self,
        transaction: &DatabaseTransaction,
        rooms: &[Room],
        now: Timestamp,
    ) -> Result<Vec<Candidate>, Error> {
        let sql = format!(
            "SELECT due.tenant_id, due.subscription_id, due.id, due.next_attempt_time, {CONTENT_BYTES}
            FROM deliveries due
            WHERE tenant_id = $2 AND subscription_id = $3 AND next_attempt_time <= $1
            ORDER BY next_attempt_time LIMIT $4"
        );
        let mut candidates = Vec::new();
        for Room { subscription, room } in rooms {
            let values = vec![
                bigint(now.as_micros()),
                text(subscription.tenant_id.as_str()),
                text(subscription.id.as_str()),
                bigint(i64::from(*room)),
            ];
            let statement = self.dialect.statement(sql.as_str(), values);
            for row in transaction.query_all_raw(statement).await? {
                candidates.push(Candidate::read(&row)?);
            }
        }
        Ok(candidates)
    }

    async fn lease(
        &self,
        transaction: &DatabaseTransaction,
        admitted: &[Candidate],
        node: NodeId,
        now: Timestamp,
    ) -> Result<Vec<Delivery>, Error> {
        let columns = [("tenant_id", Type::Text), ("id", Type::Text)];
        let mut rows = Rows::new(self.dialect, columns, admitted.len());
        for candidate in admitted {
            let tenant_id = candidate.subscription.tenant_id;
            rows.push([text(tenant_id.as_str()), text(candidate.delivery_id.as_str())]);
        }
        let sql = " UPDATE deliveries SET state = 2, leased_by = $2, next_attempt_time = NULL,
                revision = revision + 1, update_time = $1
            WHERE (tenant_id, id) IN (SELECT tenant_id, id FROM r) RETURNING *";
        let values = [bigint(now.as_micros()), text(node.as_str())];
        let rows = rows.query(transaction, sql, &values).await?;
        rows.iter()
            .map(|row| Delivery::try_from(delivery::Model::from_query_result(row, "")?))
            .collect()
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
            let event = Event::try_from(event_row::Model::from_query_result(row, "")?)?;
            events.insert((event.tenant_id, event.id), Arc::new(event));
        }
        Ok(events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Config;

    #[tokio::test]
    async fn sqlite_looks_the_next_subscription_up_and_does_not_read_up_to_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("db");
        let database_url = format!("sqlite://{}", path.display());
        Store::migrate(&Config { database_url, ..Config::default() }).await.expect("migrated");
        let connection = rusqlite::Connection::open(path).expect("opened");
        let held = format!("{} SELECT tenant_id FROM s", subscriptions_with(HELD));
        for sql in [scheduled(Dialect::Sqlite), held] {
            let explain = format!("EXPLAIN QUERY PLAN {sql}");
            let mut statement = connection.prepare(&explain).expect("prepared");
            let (mut rows, mut plan) = (statement.raw_query(), Vec::new());
            while let Some(row) = rows.next().expect("explained") {
                plan.push(row.get::<_, String>(3).expect("text"));
            }
            // For both columns, at the beginning and from each to the next.
            let by_both = |step: &&String| step.contains("(tenant_id=? AND subscription_id>?)");
            assert_eq!(plan.iter().filter(by_both).count(), 4, "{plan:#?}");
        }
    }
}
