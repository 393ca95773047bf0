//! What this process writes to the feeds that somebody follows here: he need not read it again. A short cut
//! and no more. What others write, and what of it came late or was too much, stands in the database alone.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::domain::delivery::Delivery;
use crate::domain::id::TenantId;

use super::super::Store;
use super::FeedRow;

/// Most changes that are kept for whoever does not take them.
const MAX_CHANGES: usize = 8_192;

/// Which tenants are followed. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(in super::super) struct Follows(Arc<Mutex<HashMap<TenantId, Weak<Inbox>>>>);

#[derive(Debug, Default)]
struct Inbox(Mutex<Rows>);

/// Rows by their positions.
#[derive(Debug, Default)]
struct Rows {
    rows: BTreeMap<i64, Vec<Delivery>>,
    changes: usize,
}

/// Whoever follows a tenant's feed, until this is dropped.
#[derive(Debug)]
pub struct Follower(Arc<Inbox>);

impl Follower {
    /// Takes the rows that join on to `position`, in order.
    pub fn take(&self, position: i64) -> Vec<FeedRow> {
        let mut inbox = self.0.lock();
        let mut taken = Vec::new();
        let mut next = position + 1;
        while let Some(row) = inbox.rows.first_entry()
            && *row.key() <= next
        {
            let (position, changes) = row.remove_entry();
            inbox.changes -= changes.len();
            // What stands before it has been read from the database.
            if position == next {
                taken.push(FeedRow { position, changes });
                next += 1;
            }
        }
        taken
    }
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Rows> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Follows {
    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Adds a row for who follows the tenant, if anybody does.
    pub(super) fn add(&self, tenant_id: TenantId, position: i64, changes: &[&Delivery]) {
        let Some(inbox) = self.lock().get(&tenant_id).and_then(Weak::upgrade) else { return };
        let mut inbox = inbox.lock();
        if inbox.changes + changes.len() > MAX_CHANGES {
            *inbox = Rows::default();
        }
        inbox.changes += changes.len();
        inbox.rows.insert(position, changes.iter().copied().cloned().collect());
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TenantId, Weak<Inbox>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// Follows the tenant's feed: from now on what this process writes to it on the hot path is kept. One
    /// at a time does.
    pub fn follow(&self, tenant_id: TenantId) -> Follower {
        let mut follows = self.follows.lock();
        follows.retain(|_, inbox| inbox.strong_count() > 0);
        let inbox = Arc::<Inbox>::default();
        follows.insert(tenant_id, Arc::downgrade(&inbox));
        Follower(inbox)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::store::sample::delivery;

    fn positions(rows: &[FeedRow]) -> Vec<i64> {
        rows.iter().map(|row| row.position).collect()
    }

    /// Follows the tenant of the sample.
    fn followed() -> (Follows, Follower, Delivery) {
        let (follows, inbox, delivery) = (Follows::default(), Arc::default(), delivery(1));
        follows.lock().insert(delivery.tenant_id, Arc::downgrade(&inbox));
        (follows, Follower(inbox), delivery)
    }

    #[test]
    fn rows_are_taken_in_order_and_without_gaps() {
        let (follows, follower, delivery) = followed();
        for position in [4, 3, 6] {
            follows.add(delivery.tenant_id, position, &[&delivery]);
        }
        assert_eq!(positions(&follower.take(1)), [0; 0], "2 is missing");
        let taken = follower.take(2);
        assert_eq!(positions(&taken), [3, 4]);
        assert_eq!(taken[0].changes, std::slice::from_ref(&delivery));
        // 5 and 6 were read elsewhere.
        follows.add(delivery.tenant_id, 7, &[&delivery]);
        assert_eq!(positions(&follower.take(6)), [7]);
        let left = follower.0.lock();
        assert_eq!((left.rows.len(), left.changes), (0, 0));
    }

    #[test]
    fn what_nobody_takes_is_bounded() {
        let (follows, follower, delivery) = followed();
        let changes = vec![&delivery; 1_000];
        for position in 1..=20 {
            follows.add(delivery.tenant_id, position, &changes);
            assert!(follower.0.lock().changes <= MAX_CHANGES);
        }
        assert_eq!(positions(&follower.take(16)), [17, 18, 19, 20]);
        // The only row with more than that has a place, too.
        follows.add(delivery.tenant_id, 21, &vec![&delivery; MAX_CHANGES + 1]);
        assert_eq!(positions(&follower.take(20)), [21]);
    }

    #[test]
    fn nothing_is_kept_for_whoever_has_gone() {
        let (follows, follower, delivery) = followed();
        drop(follower);
        follows.add(delivery.tenant_id, 1, &[&delivery]);
        assert!(follows.lock().values().all(|inbox| inbox.strong_count() == 0));
    }
}
