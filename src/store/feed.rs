//! The feed: every change of a delivery, in order of commit, for watchers on every replica.
//!
//! A transaction takes its position by raising the tenant's head, whose row stays locked until the
//! commit. So positions become visible in their order and without gaps: who has read up to N has
//! missed nothing before N. See `docs/adr/0003-feed-order.md`. What is read here is told to watchers, who
//! come back with its positions, so it is on the disk by then, on SQLite, too.

mod births;
mod change;
mod follow;
mod sqlite;

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::ops::Range;

use sea_orm::{ConnectionTrait, DatabaseTransaction, FromQueryResult, sqlx};

use crate::domain::Timestamp;
use crate::domain::delivery::{Delivery, State};
use crate::domain::id::{DeliveryId, EventId, SubscriptionId, TenantId};

use super::bulk::{Rows, Type, bigint, bytes, text};
use super::entity::delivery;
use super::rows::MAX_ROW_BYTES;
use super::{Error, Store};

pub(super) use births::Births;
use births::{TOLD, born};
pub use follow::Follower;
pub(super) use follow::Follows;

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

/// A change that a transaction has to tell of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tiding<'d> {
    /// The delivery after it.
    pub(super) delivery: &'d Delivery,
    /// Whether its [birth](Births) has to be told before it.
    pub(super) after_birth: bool,
}

impl<'d> From<&'d Delivery> for Tiding<'d> {
    fn from(delivery: &'d Delivery) -> Self {
        Self { delivery, after_birth: false }
    }
}

impl Tiding<'_> {
    /// What watchers are told.
    fn unfold(self) -> impl Iterator<Item = Delivery> {
        let birth = self.after_birth.then(|| born(self.delivery));
        birth.into_iter().chain(std::iter::once(self.delivery.clone()))
    }
}

/// What a transaction has to tell.
pub(super) struct Told<'d> {
    /// How many rows each tenant's feed gets, in order of the tenants.
    tenants: Vec<(TenantId, i64)>,
    rows: Vec<ToldRow>,
    /// In order of the rows.
    tidings: Vec<Tiding<'d>>,
}

struct ToldRow {
    tenant_id: TenantId,
    /// The tenant's place among [`Told::tenants`], from 1 on.
    place: i32,
    /// How far before the tenant's last row of this transaction it stands.
    back: i64,
    changes: Vec<u8>,
    /// The same among [`Told::tidings`].
    tidings: Range<usize>,
}

impl<'d> Told<'d> {
    pub(super) fn of(tidings: impl Iterator<Item = impl Into<Tiding<'d>>>) -> Result<Self, Error> {
        let mut by_tenant: BTreeMap<TenantId, Vec<Tiding<'_>>> = BTreeMap::new();
        for tiding in tidings.map(Into::into) {
            by_tenant.entry(tiding.delivery.tenant_id).or_default().push(tiding);
        }
        let mut told = Self {
            tenants: Vec::with_capacity(by_tenant.len()),
            rows: Vec::with_capacity(by_tenant.len()),
            tidings: Vec::new(),
        };
        for (tenant_id, tidings) in by_tenant {
            // (A third of what telling costs is saved by short rows, and a slow reader holds less at once.)
            let rows = change::rows(&tidings, MAX_ROW_BYTES)?;
            let count = i64::try_from(rows.len()).unwrap_or(i64::MAX);
            told.tenants.push((tenant_id, count));
            let place = i32::try_from(told.tenants.len()).unwrap_or(i32::MAX);
            let mut end = told.tidings.len();
            for (back, (row, count)) in (0..count).rev().zip(rows) {
                let tidings = end..end + count;
                end = tidings.end;
                told.rows.push(ToldRow { tenant_id, place, back, changes: row, tidings });
            }
            told.tidings.extend(tidings);
        }
        Ok(told)
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Hands it to those who follow the tenants here, once it is committed and on the disk. `heads` are the
    /// positions of the feeds' last rows, in order of the tenants.
    pub(super) fn committed(&self, follows: &Follows, heads: &[Option<i64>]) {
        if follows.is_empty() {
            return;
        }
        let place = |row: &ToldRow| usize::try_from(row.place - 1).ok();
        for row in &self.rows {
            let Some(head) = place(row).and_then(|place| *heads.get(place)?) else { continue };
            let tidings = &self.tidings[row.tidings.clone()];
            follows.add(row.tenant_id, head - row.back, tidings);
        }
    }

    /// A statement that ends in [`feed_tail`], with `$1` to `$6` bound.
    pub(super) fn query<'q>(&'q self, sql: &'static str, now: Timestamp) -> PgQuery<'q> {
        let query = sqlx::query_as(sql);
        let (tenants, counts): (Vec<_>, Vec<_>) =
            self.tenants.iter().map(|(tenant_id, count)| (tenant_id.as_str(), *count)).unzip();
        let places: Vec<_> = self.rows.iter().map(|row| row.place).collect();
        let back: Vec<_> = self.rows.iter().map(|row| row.back).collect();
        let changes: Vec<_> = self.rows.iter().map(|row| row.changes.as_slice()).collect();
        let query = query.bind(tenants).bind(counts).bind(places).bind(back).bind(changes);
        query.bind(now.as_micros())
    }
}

/// What such a statement returns: whether anything was changed, and where the tenants' feeds end now, in their
/// order.
pub(super) type PgTold = (bool, Option<Vec<Option<i64>>>);

/// A statement of PostgreSQL's that ends in [`feed_tail`].
pub(super) type PgQuery<'q> =
    sqlx::query::QueryAs<'q, sqlx::Postgres, PgTold, sqlx::postgres::PgArguments>;

/// The end of a statement of PostgreSQL's that changes deliveries: what it tells the feed. Before it
/// stands a `ready(is_ready)`, whose one row says whether anything was changed. The statement returns a
/// [`PgTold`]. Parameters `$1` to `$6` are those of [`Told::query`].
macro_rules! feed_tail {
    () => {
        ",
    heads AS (
        -- The heads are there: this raises them, in the order of the array, which is that of the tenants, so
        -- that two transactions never wait in a circle. An UPDATE does the same, but when it has waited for
        -- another transaction it prepares the whole plan a second time, to look at one row again.
        INSERT INTO feed_heads AS head (tenant_id, position, floor)
        SELECT unnest($1::text[]), unnest($2::bigint[]), 0 WHERE (SELECT is_ready FROM ready)
        ON CONFLICT (tenant_id) DO UPDATE SET position = head.position + excluded.position
        RETURNING tenant_id, position),
    positions AS (SELECT array_agg(position ORDER BY tenant_id) AS positions FROM heads),
    told AS (
        -- By its tenant's place in $1: a join would compare each row with each head.
        INSERT INTO feed (tenant_id, position, create_time, changes)
        SELECT ($1::text[])[c.place], (SELECT positions FROM positions)[c.place] - c.back,
            $6::bigint, c.changes
        FROM (SELECT unnest($3::int[]) AS place, unnest($4::bigint[]) AS back,
                unnest($5::bytea[]) AS changes) AS c
        WHERE (SELECT is_ready FROM ready))
    SELECT is_ready, (SELECT positions FROM positions) FROM ready"
    };
}
pub(super) use feed_tail;

impl Store {
    /// Writes what changed, as the last statements of a transaction.
    pub(super) async fn tell<'d>(
        &self,
        transaction: &DatabaseTransaction,
        tidings: impl Iterator<Item = impl Into<Tiding<'d>>>,
        now: Timestamp,
    ) -> Result<(), Error> {
        let Told { tenants, mut rows, .. } = Told::of(tidings)?;
        if tenants.is_empty() {
            return Ok(());
        }
        let columns = [("tenant_id", Type::Text), ("n", Type::BigInt)];
        let mut heads = Rows::new(self.dialect, columns, tenants.len());
        for (tenant_id, count) in &tenants {
            heads.push([text(tenant_id.as_str()), bigint(*count)]);
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
        let mut heads_at = HashMap::with_capacity(tenants.len());
        for head in heads.query(transaction, &sql, &[]).await? {
            let tenant_id: TenantId = super::rows::id(&head.try_get_by_index::<String>(0)?)?;
            let position: i64 = head.try_get_by_index(1)?;
            heads_at.insert(tenant_id, position);
        }
        // A tenant that is gone has no feed.
        rows.retain(|row| heads_at.contains_key(&row.tenant_id));
        let columns =
            [("tenant_id", Type::Text), ("position", Type::BigInt), ("changes", Type::Bytes)];
        let mut values = Rows::new(self.dialect, columns, rows.len());
        for row in rows {
            let position = heads_at.get(&row.tenant_id).map_or(0, |head| head - row.back);
            values.push([text(row.tenant_id.as_str()), bigint(position), bytes(row.changes)]);
        }
        let sql = " INSERT INTO feed (tenant_id, position, create_time, changes)
            SELECT tenant_id, position, $1, changes FROM r";
        values.execute(transaction, sql, &[bigint(now.as_micros())]).await?;
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
        self.lines.settled().await?;
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
        self.lines.settled().await?;
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
        self.lines.settled().await?;
        rows.into_iter()
            .map(|row| {
                let changes: Vec<u8> = row.try_get_by_index(1)?;
                Ok(FeedRow { position: row.try_get_by_index(0)?, changes: change::read(&changes)? })
            })
            .collect()
    }

    /// At most `limit` of the tenant's deliveries behind `after`, of the subscription, of the event
    /// and in the states that are given, together with the position of the feed that they stand for:
    /// one statement, so one snapshot.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn snapshot_page(
        &self,
        tenant_id: TenantId,
        subscription_id: Option<SubscriptionId>,
        event_id: Option<EventId>,
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
        if let Some(event_id) = event_id {
            let (first, end) = DeliveryId::range_of(event_id);
            let place = values.len();
            values.extend([text(event_id.as_str()), text(first.as_str()), text(end.as_str())]);
            let _ = write!(
                filter,
                " AND d.event_id = ${} AND d.id >= ${} AND d.id < ${}",
                place + 1,
                place + 2,
                place + 3
            );
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
                WHERE d.tenant_id = $1 AND d.id > $2 AND {TOLD}{filter} ORDER BY d.id LIMIT $3) d ON true
             WHERE h.tenant_id = $1 ORDER BY d.id"
        );
        let rows = self.read.query_all_raw(self.dialect.statement(sql, values)).await?;
        self.lines.settled().await?;
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
