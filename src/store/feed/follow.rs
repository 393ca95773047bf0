//! What this process writes to the feeds that somebody follows here, and need not read again. A short cut
//! and no more. What others write, and what of it came late or was too much, stands in the database alone.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::domain::delivery::Delivery;
use crate::domain::id::TenantId;

use super::super::Store;
use super::{FeedRow, Tiding};

/// Most changes that are kept for whoever does not take them.
const MAX_CHANGES: usize = 8_192;

/// Which tenants are followed. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(in super::super) struct Follows(Arc<Mutex<HashMap<TenantId, Arc<Inbox>>>>);

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
pub struct Follower {
    tenant_id: TenantId,
    inbox: Arc<Inbox>,
    follows: Follows,
}

impl Follower {
    /// Takes the rows that join on to `position`, in order.
    pub fn take(&self, position: i64) -> Vec<FeedRow> {
        let mut inbox = self.inbox.lock();
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

impl Drop for Follower {
    fn drop(&mut self) {
        let mut follows = self.follows.lock();
        // Somebody else may follow meanwhile.
        if follows.get(&self.tenant_id).is_some_and(|inbox| Arc::ptr_eq(inbox, &self.inbox)) {
            follows.remove(&self.tenant_id);
        }
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
    pub(super) fn add(&self, tenant_id: TenantId, position: i64, tidings: &[Tiding<'_>]) {
        let Some(inbox) = self.lock().get(&tenant_id).cloned() else { return };
        let changes: Vec<_> = tidings.iter().flat_map(|tiding| tiding.unfold()).collect();
        let mut inbox = inbox.lock();
        if inbox.changes + changes.len() > MAX_CHANGES {
            *inbox = Rows::default();
        }
        inbox.changes += changes.len();
        let replaced = inbox.rows.insert(position, changes);
        inbox.changes -= replaced.map_or(0, |changes| changes.len());
    }

    fn follow(&self, tenant_id: TenantId) -> Follower {
        let inbox = Arc::<Inbox>::default();
        self.lock().insert(tenant_id, Arc::clone(&inbox));
        Follower { tenant_id, inbox, follows: self.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TenantId, Arc<Inbox>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// Follows the tenant's feed: from now on what this process writes to it on the hot path is kept. One
    /// at a time does; to another one nothing is handed over any more.
    pub fn follow(&self, tenant_id: TenantId) -> Follower {
        self.follows.follow(tenant_id)
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
        let (follows, delivery) = (Follows::default(), delivery(1));
        let follower = follows.follow(delivery.tenant_id);
        (follows, follower, delivery)
    }

    #[test]
    fn rows_are_taken_in_order_and_without_gaps() {
        let (follows, follower, delivery) = followed();
        for position in [4, 3, 6] {
            follows.add(delivery.tenant_id, position, &[Tiding::from(&delivery)]);
        }
        assert_eq!(positions(&follower.take(1)), [0; 0], "2 is missing");
        let taken = follower.take(2);
        assert_eq!(positions(&taken), [3, 4]);
        assert_eq!(taken[0].changes, std::slice::from_ref(&delivery));
        // 5 and 6 were read elsewhere.
        follows.add(delivery.tenant_id, 7, &[Tiding::from(&delivery)]);
        assert_eq!(positions(&follower.take(6)), [7]);
        let left = follower.inbox.lock();
        assert_eq!((left.rows.len(), left.changes), (0, 0));
    }

    #[test]
    fn what_nobody_takes_is_bounded() {
        let (follows, follower, delivery) = followed();
        let changes = vec![Tiding::from(&delivery); 1_000];
        for position in 1..=20 {
            follows.add(delivery.tenant_id, position, &changes);
            assert!(follower.inbox.lock().changes <= MAX_CHANGES);
        }
        assert_eq!(positions(&follower.take(16)), [17, 18, 19, 20]);
        // The only row with more than that has a place, too.
        follows.add(delivery.tenant_id, 21, &vec![Tiding::from(&delivery); MAX_CHANGES + 1]);
        assert_eq!(positions(&follower.take(20)), [21]);
    }

    #[test]
    fn nothing_is_kept_for_whoever_has_gone() {
        let (follows, first, delivery) = followed();
        let second = follows.follow(delivery.tenant_id);
        drop(first);
        follows.add(delivery.tenant_id, 1, &[Tiding::from(&delivery)]);
        assert_eq!(positions(&second.take(0)), [1], "the second one still follows");
        drop(second);
        assert!(follows.is_empty());
    }
}
