//! The places of attempts under way, as tasks wait for them. Who has the next turn is decided in
//! [`super::decide::places`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::domain::id::{SubscriptionId, TenantId};

use super::decide::places::{Owner, Places};

/// The places. Cheap to clone.
#[derive(Clone)]
pub(super) struct Slots(Arc<Mutex<Places<oneshot::Sender<Slot>>>>);

/// A place; given back when dropped.
pub(super) struct Slot {
    slots: Slots,
    owner: Owner,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut given = Vec::new();
        {
            let mut places = self.slots.lock();
            places.give_back(self.owner);
            while let Some(next) = places.give_next(|waiter| !waiter.is_closed()) {
                given.push(next);
            }
        }
        for (owner, waiter) in given {
            // Whoever has stopped waiting this very moment drops the slot, which gives it to the next.
            drop(waiter.send(Slot { slots: self.slots.clone(), owner }));
        }
    }
}

impl Slots {
    pub(super) fn new(size: usize) -> Self {
        Self(Arc::new(Mutex::new(Places::new(size))))
    }

    fn lock(&self) -> MutexGuard<'_, Places<oneshot::Sender<Slot>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a place.
    pub(super) async fn acquire(&self, tenant: TenantId, subscription: SubscriptionId) -> Slot {
        let owner = Owner { tenant, subscription };
        let slot = {
            let mut places = self.lock();
            if places.take(owner) {
                return Slot { slots: self.clone(), owner };
            }
            let (reply, slot) = oneshot::channel();
            places.wait(owner, reply);
            slot
        };
        match slot.await {
            Ok(slot) => slot,
            // Waiters are dropped only with the places themselves.
            Err(_) => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use crate::domain::Timestamp;

    use super::*;

    fn ids(count: usize) -> Vec<(TenantId, SubscriptionId)> {
        let mut random = StdRng::seed_from_u64(5);
        let now = Timestamp::from_micros(0);
        (0..count)
            .map(|_| (TenantId::new(now, &mut random), SubscriptionId::new(now, &mut random)))
            .collect()
    }

    /// What is given at once.
    fn take(slots: &Slots, (tenant, id): (TenantId, SubscriptionId), wanted: usize) -> Vec<Slot> {
        (0..wanted).filter_map(|_| slots.acquire(tenant, id).now_or_never()).collect()
    }

    #[test]
    fn no_tenant_takes_the_last_places() {
        let ids = ids(3);
        let slots = Slots::new(4_096);
        let first = take(&slots, ids[0], 10_000);
        assert_eq!(first.len(), 3_072, "three quarters");
        let second = take(&slots, ids[1], 10_000);
        assert_eq!(second.len(), 768, "three quarters of the rest");
        assert!(!take(&slots, ids[2], 1).is_empty(), "something is always left");
    }

    #[test]
    fn one_place_is_enough_to_go_on() {
        let ids = ids(2);
        let slots = Slots::new(1);
        let held = take(&slots, ids[0], 2);
        assert_eq!(held.len(), 1);
        assert!(take(&slots, ids[1], 1).is_empty());
        drop(held);
        assert_eq!(take(&slots, ids[1], 1).len(), 1, "those who stopped waiting are passed over");
    }

    #[tokio::test]
    async fn a_free_place_goes_to_whom_has_the_fewest() {
        let ids = ids(3);
        let slots = Slots::new(8);
        let mut hanging = take(&slots, ids[0], 6);
        assert_eq!(hanging.len(), 6);
        let quiet_one = (ids[0].0, ids[2].1);
        let (loud, quiet, other) = (
            tokio::spawn({
                let (slots, of) = (slots.clone(), ids[0]);
                async move { slots.acquire(of.0, of.1).await }
            }),
            async { slots.acquire(quiet_one.0, quiet_one.1).await },
            take(&slots, ids[1], 1),
        );
        tokio::task::yield_now().await;
        assert_eq!(other.len(), 1, "another tenant finds a place at once");
        let mut quiet = Box::pin(quiet);
        assert!(quiet.as_mut().now_or_never().is_none());
        hanging.pop();
        hanging.pop();
        assert!(quiet.as_mut().now_or_never().is_some(), "before the loud one, which came first");
        loud.abort();
    }
}
