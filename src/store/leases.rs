//! What each node has leased: where to look when it falls silent.
//!
//! `deliveries.leased_by` says who has a delivery, and no index names that column: so the usual course
//! of a delivery changes nothing that an index has (`docs/adr/0015-leases-in-groups.md`). Instead whoever leases
//! deliveries lists them in `leases`, many in one row, in the same transaction. A row may name too many
//! deliveries and never too few: it goes only when none of them is leased by its node any more.
//!
//! The node remembers its rows, so that it can remove them without reading anything. What it forgets
//! (a commit that was not confirmed, a result that the database refuses) is found in the table.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sea_orm::{ConnectionTrait, DatabaseTransaction};

use crate::domain::Timestamp;
use crate::domain::delivery::Delivery;
use crate::domain::id::{DeliveryId, NodeId, TenantId};

use super::bulk::{Rows, Type, bigint, text};
use super::rows::{MAX_ROW_BYTES, json};
use super::{Error, Store};

/// What a delivery takes of a row's bytes: its id, in quotes, and a comma.
const DELIVERY_BYTES: usize = 33;
/// What a tenant takes beside its deliveries: its id, in quotes, brackets and commas.
const TENANT_BYTES: usize = 38;
/// Most rows that are read at once.
const MAX_ROWS: u32 = 100;

/// Gives a delivery's lease back at `$1`: its schedule stays as it was before the lease.
const RELEASED: &str = "state = 1,
    next_attempt_time = CASE WHEN due_time > $1 THEN due_time ELSE $1 END,
    leased_by = NULL, due_time = NULL, revision = revision + 1, update_time = $1";

/// Like [`RELEASED`], of a lease that ended with the process that had it.
const INTERRUPTED: &str = ", interrupted_count = interrupted_count + 1";

/// How many leases were given back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Release {
    /// Deliveries that are due again.
    pub count: usize,
}

/// A row of `leases`.
#[derive(Clone, Debug)]
pub(super) struct Lease {
    pub(super) number: i64,
    /// The document of the deliveries.
    pub(super) deliveries: String,
}

/// A delivery to be listed, and its revision.
type Leased = (TenantId, DeliveryId, i64);

/// The document in a row: the deliveries by their tenants.
type Listed = Vec<(TenantId, Vec<DeliveryId>)>;

/// What this process remembers of its rows. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Leases(Arc<Mutex<Memory>>);

#[derive(Debug, Default)]
struct Memory {
    /// The number of the latest row.
    latest: i64,
    /// For each row whose it is, and how many of its deliveries have no recorded result yet.
    rows: HashMap<i64, (NodeId, usize)>,
    /// In which row each delivery is listed, and its revision under that lease.
    listed_in: HashMap<DeliveryId, Listing>,
    /// Rows that may go.
    done: Vec<(NodeId, i64)>,
}

#[derive(Clone, Copy, Debug)]
struct Listing {
    row: i64,
    revision: i64,
}

impl Leases {
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rows that list these deliveries, to be stored with their leases.
    pub(super) fn open<'d>(
        &self,
        node: NodeId,
        deliveries: impl Iterator<Item = &'d Delivery>,
    ) -> Result<Vec<Lease>, Error> {
        let mut all: Vec<Leased> = deliveries
            .map(|delivery| (delivery.tenant_id, delivery.id, delivery.revision))
            .collect();
        all.sort_unstable();
        let mut memory = self.memory();
        let mut leases = Vec::new();
        let mut rest = all.as_slice();
        while !rest.is_empty() {
            let (listed, others) = rest.split_at(fit(rest));
            rest = others;
            memory.latest += 1;
            let number = memory.latest;
            memory.rows.insert(number, (node, listed.len()));
            let listing = |revision| Listing { row: number, revision };
            memory.listed_in.extend(listed.iter().map(|(_, id, at)| (*id, listing(*at))));
            let by_tenant = listed.chunk_by(|one, next| one.0 == next.0);
            let document: Listed =
                by_tenant.map(|of| (of[0].0, of.iter().map(|(_, id, _)| *id).collect())).collect();
            leases.push(Lease { number, deliveries: json(&document)? });
        }
        Ok(leases)
    }

    /// Forgets rows that were removed or not stored, or perhaps not: if they were, they are found in the
    /// table. Of these deliveries those that are listed elsewhere by now stay.
    pub(super) fn forget(
        &self,
        numbers: impl Iterator<Item = i64>,
        deliveries: impl Iterator<Item = DeliveryId>,
    ) {
        let mut memory = self.memory();
        let Memory { rows, listed_in, .. } = &mut *memory;
        for number in numbers {
            rows.remove(&number);
        }
        for id in deliveries {
            if listed_in.get(&id).is_some_and(|listing| !rows.contains_key(&listing.row)) {
                listed_in.remove(&id);
            }
        }
    }

    /// Notes that the leases before these revisions have ended: that is committed. Whoever leased a
    /// delivery anew right after the commit may have been quicker; its lease is another one.
    pub(super) fn ended(&self, deliveries: impl Iterator<Item = (DeliveryId, i64)>) {
        let mut memory = self.memory();
        let Memory { rows, listed_in, done, .. } = &mut *memory;
        for (id, revision) in deliveries {
            let Some(listing) = listed_in.get(&id) else { continue };
            if listing.revision + 1 != revision {
                continue;
            }
            let number = listing.row;
            listed_in.remove(&id);
            let Some((node, left)) = rows.get_mut(&number) else { continue };
            *left -= 1;
            if *left == 0 {
                done.push((*node, number));
                rows.remove(&number);
            }
        }
    }
}

/// How many of these, which are in order of their tenants, have room in one row: at least one.
fn fit(all: &[Leased]) -> usize {
    let (mut bytes, mut last) = (0, None);
    for (count, (tenant_id, ..)) in all.iter().enumerate() {
        bytes += DELIVERY_BYTES;
        if last.replace(*tenant_id) != Some(*tenant_id) {
            bytes += TENANT_BYTES;
        }
        if bytes > MAX_ROW_BYTES {
            return count;
        }
    }
    all.len()
}

impl Store {
    /// Stores rows as part of the transaction that leases what they list.
    async fn insert_leases(
        &self,
        transaction: &DatabaseTransaction,
        leases: &[Lease],
        node: NodeId,
        now: Timestamp,
    ) -> Result<(), Error> {
        let columns = [("number", Type::BigInt), ("deliveries", Type::Text)];
        let mut rows = Rows::new(self.dialect, columns, leases.len());
        for lease in leases {
            rows.push([bigint(lease.number), text(&lease.deliveries)]);
        }
        let sql = " INSERT INTO leases (node, number, create_time, deliveries)
            SELECT $1, number, $2, deliveries FROM r";
        let values = [text(node.as_str()), bigint(now.as_micros())];
        rows.execute(transaction, sql, &values).await?;
        Ok(())
    }

    /// Commits a transaction that leases these deliveries, with the rows that list them.
    pub(super) async fn commit_leased(
        &self,
        transaction: DatabaseTransaction,
        deliveries: &[Delivery],
        node: NodeId,
        now: Timestamp,
    ) -> Result<(), Error> {
        let leases = self.leases.open(node, deliveries.iter())?;
        let committed = async {
            self.insert_leases(&transaction, &leases, node, now).await?;
            self.tell(&transaction, deliveries.iter(), now).await?;
            Ok(transaction.commit().await?)
        };
        let committed = committed.await;
        if committed.is_err() {
            let ids = deliveries.iter().map(|delivery| delivery.id);
            self.leases.forget(leases.iter().map(|lease| lease.number), ids);
        }
        committed
    }

    /// Removes the rows whose deliveries all have a recorded result.
    ///
    /// # Errors
    /// When the database does not take it; the rows are removed the next time, then.
    pub async fn remove_ended_leases(&self) -> Result<(), Error> {
        let done = std::mem::take(&mut self.leases.memory().done);
        if done.is_empty() {
            return Ok(());
        }
        let removed = async {
            let transaction = self.dialect.begin(&self.write).await?;
            self.remove_leases(&transaction, &done).await?;
            fail_point!(LeasesBefore);
            transaction.commit().await?;
            fail_point!(LeasesAfter);
            Ok(())
        };
        let removed = removed.await;
        if removed.is_err() {
            self.leases.memory().done.extend(done);
        }
        removed
    }

    async fn remove_leases(
        &self,
        transaction: &DatabaseTransaction,
        leases: &[(NodeId, i64)],
    ) -> Result<(), Error> {
        let columns = [("node", Type::Text), ("number", Type::BigInt)];
        let mut rows = Rows::new(self.dialect, columns, leases.len());
        for (node, number) in leases {
            rows.push([text(node.as_str()), bigint(*number)]);
        }
        let sql = " DELETE FROM leases WHERE (node, number) IN (SELECT node, number FROM r)";
        rows.execute(transaction, sql, &[]).await?;
        Ok(())
    }

    /// Gives back what `node` has leased, in steps of about `limit` deliveries. They are due at once,
    /// unless they were leased for a manual attempt before they were due.
    ///
    /// # Errors
    /// When the database does not take it.
    pub async fn release(
        &self,
        node: NodeId,
        now: Timestamp,
        limit: u32,
    ) -> Result<Release, Error> {
        self.give_back(node, "", now, limit).await
    }

    /// Like [`Store::release`], because `node` has fallen silent: what it had was interrupted.
    pub(super) async fn interrupt(
        &self,
        node: NodeId,
        now: Timestamp,
        limit: u32,
    ) -> Result<Release, Error> {
        self.give_back(node, INTERRUPTED, now, limit).await
    }

    /// Goes on until something was given back, or until nothing is listed any more: rows whose
    /// deliveries have all ended are passed over.
    async fn give_back(
        &self,
        node: NodeId,
        further: &str,
        now: Timestamp,
        limit: u32,
    ) -> Result<Release, Error> {
        let set = format!("{RELEASED}{further}");
        loop {
            let transaction = self.dialect.begin(&self.write).await?;
            let sql = format!(
                "SELECT number, deliveries FROM leases WHERE node = $1 ORDER BY number LIMIT $2 {}",
                self.dialect.skip_locked()
            );
            let values = vec![text(node.as_str()), bigint(i64::from(limit.min(MAX_ROWS)))];
            let found = transaction.query_all_raw(self.dialect.statement(sql, values)).await?;
            if found.is_empty() {
                // Dropping it would keep a lock until the connection is used again.
                transaction.rollback().await?;
                return Ok(Release::default());
            }
            let mut numbers = Vec::with_capacity(found.len());
            let mut listed = Vec::new();
            for row in &found {
                if listed.len() >= limit as usize {
                    break;
                }
                numbers.push((node, row.try_get_by_index(0)?));
                listed.extend(read(&row.try_get_by_index::<String>(1)?)?);
            }
            let all = (set.as_str(), "");
            let released = self.release_listed(&transaction, node, all, &listed, now).await?;
            self.remove_leases(&transaction, &numbers).await?;
            let count = self.finish_change(transaction, &released, now).await?.len();
            if count > 0 {
                return Ok(Release { count });
            }
        }
    }

    /// Makes those of the listed deliveries due that `node` has leased.
    async fn release_listed(
        &self,
        transaction: &DatabaseTransaction,
        node: NodeId,
        (set, condition): (&str, &str),
        listed: &[(TenantId, DeliveryId)],
        now: Timestamp,
    ) -> Result<Vec<sea_orm::QueryResult>, Error> {
        let columns = [("tenant_id", Type::Text), ("id", Type::Text)];
        let mut rows = Rows::new(self.dialect, columns, listed.len());
        for (tenant_id, id) in listed {
            rows.push([text(tenant_id.as_str()), text(id.as_str())]);
        }
        let sql = format!(
            " UPDATE deliveries SET {set}
            WHERE (tenant_id, id) IN (SELECT tenant_id, id FROM r)
              AND state = 2 AND leased_by = $2{condition} RETURNING *"
        );
        rows.query(transaction, &sql, &[bigint(now.as_micros()), text(node.as_str())]).await
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
        let mut total = Release::default();
        let mut after = 0_i64;
        loop {
            let sql = "SELECT number, deliveries FROM leases
                WHERE node = $1 AND number > $2 AND create_time < $3 ORDER BY number LIMIT $4";
            let values = vec![
                text(node.as_str()),
                bigint(after),
                bigint(older_than.as_micros()),
                bigint(i64::from(MAX_ROWS)),
            ];
            let found = self.read.query_all_raw(self.dialect.statement(sql, values)).await?;
            let (mut rows, mut unknown) = (Vec::new(), Vec::new());
            for row in &found {
                after = row.try_get_by_index(0)?;
                let mut listed = read(&row.try_get_by_index::<String>(1)?)?;
                let count = listed.len();
                listed.retain(|(_, id)| !is_known(*id));
                if listed.len() == count {
                    rows.push((node, after));
                }
                unknown.extend(listed);
            }
            if !unknown.is_empty() {
                let transaction = self.dialect.begin(&self.write).await?;
                // Whoever leased one of them anew, this node for example, lists it in another row.
                let before = format!(" AND update_time < {}", older_than.as_micros());
                let which = (RELEASED, before.as_str());
                let released =
                    self.release_listed(&transaction, node, which, &unknown, now).await?;
                self.remove_leases(&transaction, &rows).await?;
                total.count += self.finish_change(transaction, &released, now).await?.len();
                let numbers = rows.iter().map(|(_, number)| *number);
                self.leases.forget(numbers, unknown.iter().map(|(_, id)| *id));
            }
            if found.len() < MAX_ROWS as usize {
                return Ok(total);
            }
        }
    }
}

fn read(document: &str) -> Result<Vec<(TenantId, DeliveryId)>, Error> {
    let listed: Listed = serde_json::from_str(document)?;
    Ok(listed
        .into_iter()
        .flat_map(|(tenant, ids)| ids.into_iter().map(move |id| (tenant, id)))
        .collect())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    use crate::store::sample;

    fn leased(number: u32, revision: i64) -> Delivery {
        Delivery { revision, ..sample::delivery(number) }
    }

    fn tenant(number: u32) -> TenantId {
        TenantId::first_at(Timestamp::from_micros(i64::from(number) * 1_000))
    }

    fn node() -> NodeId {
        "nod_01m7zd34f0bnpg89v9hp0qaraq".parse().expect("an id")
    }

    fn done(leases: &Leases) -> Vec<i64> {
        leases.memory().done.iter().map(|(_, number)| *number).collect()
    }

    #[test]
    fn a_row_is_done_when_each_of_its_leases_has_ended() {
        let (leases, both) = (Leases::default(), [leased(1, 1), leased(2, 1)]);
        let rows = leases.open(node(), both.iter()).expect("rows");
        let [row] = &rows[..] else { panic!("{rows:?}") };
        let document =
            format!(r#"[["{}",["{}","{}"]]]"#, both[0].tenant_id, both[0].id, both[1].id);
        assert_eq!(row.deliveries, document);
        leases.ended([(both[1].id, 2)].into_iter());
        leases.ended([(both[1].id, 2)].into_iter());
        assert!(done(&leases).is_empty(), "one is under way");
        leases.ended([(both[0].id, 2)].into_iter());
        assert_eq!(done(&leases), [row.number]);
        let memory = leases.memory();
        assert!(memory.rows.is_empty() && memory.listed_in.is_empty(), "{memory:?}");
    }

    #[test]
    fn a_row_has_room_for_many_of_one_tenant_and_for_fewer_of_many() {
        let of_one: Vec<_> = (1..=120).map(|number| leased(number, 1)).collect();
        let of_many: Vec<_> = (1..=120)
            .map(|number| Delivery { tenant_id: tenant(number), ..leased(number, 1) })
            .collect();
        let mut counts = Vec::new();
        for deliveries in [&of_one, &of_many] {
            let rows = Leases::default().open(node(), deliveries.iter()).expect("rows");
            assert!(rows.iter().all(|row| row.deliveries.len() <= MAX_ROW_BYTES), "{rows:?}");
            let listed = |row: &Lease| -> Vec<DeliveryId> {
                let of: Listed = serde_json::from_str(&row.deliveries).expect("a document");
                of.into_iter().flat_map(|(_, ids)| ids).collect()
            };
            let all: HashSet<_> = rows.iter().flat_map(listed).collect();
            assert_eq!(all, deliveries.iter().map(|delivery| delivery.id).collect());
            counts.push(rows.len());
        }
        assert_eq!(counts, [3, 5], "rows are as full as they may be");
    }

    /// A result is committed, and before this process has noted that, another task of it has leased the
    /// delivery again.
    #[test]
    fn the_end_of_a_lease_says_nothing_of_the_next_one() {
        let leases = Leases::default();
        leases.open(node(), [leased(1, 1)].iter()).expect("a row");
        let again = leases.open(node(), [leased(1, 3)].iter()).expect("a row");
        leases.ended([(leased(1, 1).id, 2)].into_iter());
        assert!(done(&leases).is_empty(), "the second lease goes on");
        leases.ended([(leased(1, 3).id, 4)].into_iter());
        assert_eq!(done(&leases), [again[0].number]);
    }

    #[test]
    fn what_was_removed_is_forgotten() {
        let leases = Leases::default();
        let rows = leases.open(node(), [leased(1, 1)].iter()).expect("a row");
        leases.forget([rows[0].number].into_iter(), [leased(1, 1).id].into_iter());
        let memory = leases.memory();
        assert!(memory.rows.is_empty() && memory.listed_in.is_empty(), "{memory:?}");
    }
}
