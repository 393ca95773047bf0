//! The places of attempts under way, over all subscriptions: given in fair turns.
//!
//! One tenant never takes the last places. It may have [`RATIO`] times as many as are free, so that
//! with every place it takes it leaves less for itself and something for everybody else: a tenant
//! whose endpoints all hang stops at three quarters of the places, a second one at three quarters of
//! the rest. A place that becomes free goes to the tenant that has the fewest, there to the
//! subscription that has the fewest, and there to whoever has waited longest.

use std::collections::VecDeque;
use std::collections::hash_map::{Entry, HashMap};
use std::hash::Hash;

use crate::domain::id::{SubscriptionId, TenantId};

/// How many times the free places a tenant may have.
pub const RATIO: usize = 3;

/// Whether a tenant that has `held` places may have another one while `free` are left. Everybody may
/// have one.
pub const fn may_take(held: usize, free: usize) -> bool {
    free > 0 && (held == 0 || held < free.saturating_mul(RATIO))
}

/// How many more places of `free` a tenant may have that has `held`.
pub const fn room(held: usize, free: usize) -> usize {
    // The most `n` whose last one is within the ratio: held + n - 1 < RATIO * (free - n + 1).
    free.saturating_add(1).saturating_mul(RATIO).saturating_sub(held) / (RATIO + 1)
}

/// Who has a place and who waits for one, each known as a `W`.
pub struct Places<W> {
    free: usize,
    by_tenant: HashMap<TenantId, usize>,
    by_subscription: HashMap<SubscriptionId, usize>,
    waiting: HashMap<TenantId, HashMap<SubscriptionId, VecDeque<Waiter<W>>>>,
    /// Counts the waiters, so that of two with the same right the first comes first.
    count: u64,
}

struct Waiter<W> {
    number: u64,
    who: W,
}

/// Whose place it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The tenant.
    pub tenant: TenantId,
    /// Its subscription.
    pub subscription: SubscriptionId,
}

impl<W> Places<W> {
    /// So many places.
    pub fn new(size: usize) -> Self {
        Self {
            free: size,
            by_tenant: HashMap::new(),
            by_subscription: HashMap::new(),
            waiting: HashMap::new(),
            count: 0,
        }
    }

    /// Takes a place, if one may be had at once.
    pub fn take(&mut self, owner: Owner) -> bool {
        let is_free = !self.waiting.contains_key(&owner.tenant) && self.may_have(owner.tenant);
        if is_free {
            self.give(owner);
        }
        is_free
    }

    /// Lets `who` wait for a place.
    pub fn wait(&mut self, owner: Owner, who: W) {
        self.count += 1;
        let waiter = Waiter { number: self.count, who };
        let lanes = self.waiting.entry(owner.tenant).or_default();
        lanes.entry(owner.subscription).or_default().push_back(waiter);
    }

    /// Takes a place back. [`Places::give_next`] is to follow.
    pub fn give_back(&mut self, owner: Owner) {
        self.free += 1;
        decrease(&mut self.by_tenant, owner.tenant);
        decrease(&mut self.by_subscription, owner.subscription);
    }

    /// Gives a free place to whoever has the next turn. Those who no longer wait are passed over.
    pub fn give_next(&mut self, still_waits: impl Fn(&W) -> bool) -> Option<(Owner, W)> {
        while let Some(owner) = self.next_turn() {
            // Nobody is left when all have stopped waiting: then it is somebody else's turn.
            if let Some(who) = self.take_waiter(owner, &still_waits) {
                self.give(owner);
                return Some((owner, who));
            }
        }
        None
    }

    fn may_have(&self, tenant: TenantId) -> bool {
        may_take(self.by_tenant.get(&tenant).copied().unwrap_or(0), self.free)
    }

    fn give(&mut self, owner: Owner) {
        self.free -= 1;
        *self.by_tenant.entry(owner.tenant).or_default() += 1;
        *self.by_subscription.entry(owner.subscription).or_default() += 1;
    }

    /// Whose turn it is, when somebody waits who may have a place.
    fn next_turn(&self) -> Option<Owner> {
        let held = |tenant: &TenantId| self.by_tenant.get(tenant).copied().unwrap_or(0);
        let first = |lanes: &HashMap<SubscriptionId, VecDeque<Waiter<W>>>| {
            lanes.values().filter_map(VecDeque::front).map(|waiter| waiter.number).min()
        };
        // Whoever has the fewest may have one if anybody may.
        let (tenant, lanes) =
            self.waiting.iter().min_by_key(|(tenant, lanes)| (held(tenant), first(lanes)))?;
        if !self.may_have(*tenant) {
            return None;
        }
        let held = |id: &SubscriptionId| self.by_subscription.get(id).copied().unwrap_or(0);
        let (subscription, _) = lanes
            .iter()
            .min_by_key(|(id, waiters)| (held(id), waiters.front().map(|waiter| waiter.number)))?;
        Some(Owner { tenant: *tenant, subscription: *subscription })
    }

    fn take_waiter(&mut self, owner: Owner, still_waits: impl Fn(&W) -> bool) -> Option<W> {
        let lanes = self.waiting.get_mut(&owner.tenant)?;
        let waiters = lanes.get_mut(&owner.subscription)?;
        let mut waiter = None;
        while waiter.is_none() && !waiters.is_empty() {
            waiter = waiters.pop_front().map(|waiter| waiter.who).filter(&still_waits);
        }
        if waiters.is_empty() {
            lanes.remove(&owner.subscription);
        }
        if lanes.is_empty() {
            self.waiting.remove(&owner.tenant);
        }
        waiter
    }
}

fn decrease<K: Hash + Eq>(counts: &mut HashMap<K, usize>, key: K) {
    if let Entry::Occupied(mut count) = counts.entry(key) {
        *count.get_mut() -= 1;
        if *count.get() == 0 {
            count.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_what_one_by_one_would_be_taken() {
        for (held, free) in (0..40).flat_map(|held| (0..40).map(move |free| (held, free))) {
            let mut one_by_one = 0;
            while may_take(held + one_by_one, free - one_by_one) {
                one_by_one += 1;
            }
            assert_eq!(room(held, free), one_by_one, "{held} held, {free} free");
        }
    }
}
