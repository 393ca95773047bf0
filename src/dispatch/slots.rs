//! The places of attempts under way, as tasks wait for them. Who has the next turn is decided in
//! [`super::decide::places`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::oneshot;

use crate::channel::Counted;
use crate::domain::Clock;

use super::decide::places::{Given, Owner, Places};

/// The places. Cheap to clone.
#[derive(Clone)]
pub(super) struct Slots {
    places: Arc<Mutex<Places<oneshot::Sender<Slot>>>>,
    clock: Arc<dyn Clock>,
    waiting: Gauge,
}

/// A place; given back when dropped.
pub(super) struct Slot {
    slots: Slots,
    given: Given,
    is_silent: bool,
}

impl Slot {
    /// Takes note that the endpoint did not answer.
    pub(super) const fn silent(&mut self) {
        self.is_silent = true;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.give(|places| places.give_back(&self.given, self.is_silent));
    }
}

impl Slots {
    /// So many places. `waiting` says how many wait for one.
    pub(super) fn new(size: usize, clock: Arc<dyn Clock>, waiting: Gauge) -> Self {
        Self { places: Arc::new(Mutex::new(Places::new(size))), clock, waiting }
    }

    fn lock(&self) -> MutexGuard<'_, Places<oneshot::Sender<Slot>>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self, given: Given) -> Slot {
        Slot { slots: self.clone(), given, is_silent: false }
    }

    /// Gives free places to those who have their turn, after `change`.
    fn give(&self, change: impl FnOnce(&mut Places<oneshot::Sender<Slot>>)) {
        let now = self.clock.now();
        let mut turns = Vec::new();
        {
            let mut places = self.lock();
            change(&mut places);
            while let Some(turn) = places.give_next(now, |waiter| !waiter.is_closed()) {
                turns.push(turn);
            }
        }
        for (given, waiter) in turns {
            // Whoever has stopped waiting this very moment drops the slot, which gives it to the next.
            drop(waiter.send(self.slot(given)));
        }
    }

    /// Waits for a place. `is_prompt` says whether the endpoint is a prompt one.
    pub(super) async fn acquire(&self, owner: Owner, is_prompt: bool) -> Slot {
        let now = self.clock.now();
        let mut waits = {
            let mut places = self.lock();
            if let Some(given) = places.take(owner, is_prompt, now) {
                return self.slot(given);
            }
            let (reply, waits) = oneshot::channel();
            places.wait(owner, is_prompt, reply);
            waits
        };
        let _counted = Counted::new(&self.waiting);
        loop {
            let now = self.clock.now();
            let alarm = self.lock().alarm(is_prompt, now);
            let slot = match alarm {
                None => (&mut waits).await,
                Some(alarm) => tokio::select! {
                    slot = &mut waits => slot,
                    () = tokio::time::sleep(alarm.since(now)) => {
                        self.give(|_| ());
                        continue;
                    }
                },
            };
            match slot {
                Ok(slot) => return slot,
                // Waiters are dropped only with the places themselves.
                Err(_) => std::future::pending().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};
    use std::time::Duration;

    use futures::FutureExt;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use crate::domain::Timestamp;
    use crate::domain::id::{SubscriptionId, TenantId};

    use super::*;

    fn ids(count: usize) -> Vec<(TenantId, SubscriptionId)> {
        let mut random = StdRng::seed_from_u64(5);
        let now = Timestamp::from_micros(0);
        (0..count)
            .map(|_| (TenantId::new(now, &mut random), SubscriptionId::new(now, &mut random)))
            .collect()
    }

    /// Time flies: whoever looks at the clock again finds that another attempt may begin.
    struct Flying(AtomicI64);

    impl Clock for Flying {
        fn now(&self) -> Timestamp {
            Timestamp::from_micros(self.0.fetch_add(100_000, Ordering::Relaxed))
        }
    }

    fn slots(size: usize) -> Slots {
        let clock = Flying(AtomicI64::new(1_770_283_800_000_000));
        Slots::new(size, Arc::new(clock), Gauge::default())
    }

    /// Time moves when it is told to.
    struct Set(Arc<AtomicI64>);

    impl Clock for Set {
        fn now(&self) -> Timestamp {
            Timestamp::from_micros(self.0.load(Ordering::Relaxed))
        }
    }

    fn still() -> Arc<dyn Clock> {
        Arc::new(Set(Arc::new(AtomicI64::new(1_770_283_800_000_000))))
    }

    fn owner((tenant, subscription): (TenantId, SubscriptionId)) -> Owner {
        Owner { tenant, subscription }
    }

    /// What is given at once.
    fn take(slots: &Slots, of: (TenantId, SubscriptionId), wanted: usize) -> Vec<Slot> {
        (0..wanted).filter_map(|_| slots.acquire(owner(of), false).now_or_never()).collect()
    }

    #[test]
    fn no_tenant_takes_the_last_places() {
        let ids = ids(3);
        let slots = slots(4_096);
        let first = take(&slots, ids[0], 10_000);
        assert_eq!(first.len(), 2_304, "three quarters of what is not kept");
        let second = take(&slots, ids[1], 10_000);
        assert_eq!(second.len(), 576, "three quarters of the rest");
        assert!(!take(&slots, ids[2], 1).is_empty(), "something is always left");
    }

    #[test]
    fn however_many_hang_a_prompt_endpoint_finds_a_place() {
        let ids = ids(2_000);
        let slots = slots(64);
        let hanging: Vec<_> = ids.iter().flat_map(|of| take(&slots, *of, 2)).collect();
        assert_eq!(hanging.len(), 48);
        let own = owner((ids[0].0, ids[1].1));
        let prompt: Vec<_> =
            (0..9).filter_map(|_| slots.acquire(own, true).now_or_never()).collect();
        assert_eq!(prompt.len(), 9, "although its tenant has others that hang");
        assert!(take(&slots, ids[1], 1).is_empty(), "what is kept is not for others");
    }

    #[test]
    fn a_place_that_nobody_else_may_have_goes_to_a_prompt_endpoint() {
        let ids = ids(100);
        let slots = slots(8);
        let mut hanging: Vec<_> = ids.iter().flat_map(|of| take(&slots, *of, 2)).collect();
        let mut answering: Vec<_> = ids[90..]
            .iter()
            .filter_map(|of| slots.acquire(owner(*of), true).now_or_never())
            .collect();
        assert_eq!((hanging.len(), answering.len()), (6, 2));
        let mut first = Box::pin(slots.acquire(owner(ids[50]), false));
        let mut second = Box::pin(slots.acquire(owner(ids[51]), true));
        assert!(first.as_mut().now_or_never().is_none());
        assert!(second.as_mut().now_or_never().is_none());
        assert_eq!(slots.waiting.get(), 2);
        answering.pop();
        let second = second.as_mut().now_or_never();
        assert!(second.is_some(), "the other one came first, but this place is kept");
        hanging.pop();
        assert!(first.as_mut().now_or_never().is_none(), "two are kept, and prompt ones have two");
        drop((answering, second));
        assert!(first.as_mut().now_or_never().is_some());
        assert_eq!(slots.waiting.get(), 0);
        drop(slots.acquire(owner(ids[50]), false).now_or_never());
        assert_eq!(slots.waiting.get(), 0, "who stops waiting does not wait");
    }

    #[tokio::test]
    async fn attempts_that_may_hang_begin_one_after_another() {
        let ids = ids(1);
        let slots = Slots::new(4_096, still(), Gauge::default());
        let mut silent = take(&slots, ids[0], 1_000);
        assert_eq!(silent.len(), 128, "a thirty-second part");
        let answering = slots.acquire(owner(ids[0]), true).now_or_never();
        assert!(answering.is_some(), "prompt ones do not wait for others");
        for slot in &mut silent {
            slot.silent();
        }
        drop((silent, answering));
        assert!(
            take(&slots, ids[0], 1_000).is_empty(),
            "no time has passed, and nobody has answered"
        );
        let slots = Slots::new(4_096, still(), Gauge::default());
        for _ in 0..1_000 {
            assert_eq!(take(&slots, ids[0], 1).len(), 1, "it was answered");
        }
    }

    #[tokio::test]
    async fn whoever_waits_for_others_that_may_hang_begins_in_time() {
        let ids = ids(1);
        let time = Arc::new(AtomicI64::new(1_770_283_800_000_000));
        let slots = Slots::new(4_096, Arc::new(Set(Arc::clone(&time))), Gauge::default());
        let hanging = take(&slots, ids[0], 1_000);
        let mut next = Box::pin(slots.acquire(owner(ids[0]), false));
        assert!(next.as_mut().now_or_never().is_none());
        time.fetch_add(10_000, Ordering::Relaxed);
        let given = tokio::time::timeout(Duration::from_secs(30), next).await;
        assert!(given.is_ok(), "nobody has given a place back, and there are others");
        drop(hanging);
    }

    #[test]
    fn one_place_is_enough_to_go_on() {
        let ids = ids(2);
        let slots = slots(1);
        let held = take(&slots, ids[0], 2);
        assert_eq!(held.len(), 1);
        assert!(take(&slots, ids[1], 1).is_empty());
        drop(held);
        assert_eq!(take(&slots, ids[1], 1).len(), 1, "those who stopped waiting are passed over");
    }

    #[tokio::test]
    async fn a_free_place_goes_to_whom_has_the_fewest() {
        let ids = ids(3);
        let slots = slots(8);
        let mut hanging = take(&slots, ids[0], 6);
        assert_eq!(hanging.len(), 5, "two are kept");
        let quiet_one = (ids[0].0, ids[2].1);
        let (loud, quiet, other) = (
            tokio::spawn({
                let (slots, of) = (slots.clone(), ids[0]);
                async move { slots.acquire(owner(of), false).await }
            }),
            async { slots.acquire(owner(quiet_one), false).await },
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
