//! The places of attempts under way, over all subscriptions: given in fair turns.
//!
//! One tenant never takes the last places. It may have [`RATIO`] times as many as are free, so that
//! with every place it takes it leaves less for itself and something for everybody else: a tenant
//! whose endpoints all hang stops at three quarters of the places, a second one at three quarters of
//! the rest. A place that becomes free goes to the tenant that has the fewest, there to the
//! subscription that has the fewest, and there to whoever has waited longest.
//!
//! A quarter of the places is kept for prompt endpoints (see [`super::trust`]), so that those that hang
//! hold up none that answer, however many they are. The others' attempts begin no faster than
//! [`super::ramp`] says.

use std::collections::VecDeque;
use std::collections::hash_map::{Entry, HashMap};
use std::hash::Hash;

use crate::domain::Timestamp;
use crate::domain::id::{SubscriptionId, TenantId};

use super::ramp::Ramp;

/// How many times the free places a tenant may have.
pub const RATIO: usize = 3;
/// Which part of the places is kept for prompt endpoints.
const KEPT: usize = 4;
/// Which part of the places attempts may take at once that may hang.
const AHEAD: usize = 32;

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
    kept: usize,
    /// Of attempts to endpoints that are not prompt.
    ramp: Ramp,
    by_tenant: HashMap<TenantId, usize>,
    by_subscription: HashMap<SubscriptionId, usize>,
    waiting: Waiting<W>,
    /// Those for whom the kept places are, too.
    prompt: Waiting<W>,
    /// Counts the waiters, so that of two with the same right the first comes first.
    count: u64,
}

type Waiting<W> = HashMap<TenantId, HashMap<SubscriptionId, VecDeque<Waiter<W>>>>;

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

/// A place that was given. Whoever has it gives it back with [`Places::give_back`].
#[derive(Debug)]
#[must_use]
pub struct Given {
    owner: Owner,
    is_prompt: bool,
}

impl<W> Places<W> {
    /// So many places.
    pub fn new(size: usize) -> Self {
        Self {
            free: size,
            kept: size / KEPT,
            ramp: Ramp::new((size / AHEAD).max(2)),
            by_tenant: HashMap::new(),
            by_subscription: HashMap::new(),
            waiting: HashMap::new(),
            prompt: HashMap::new(),
            count: 0,
        }
    }

    /// Takes a place, if one may be had at once. `is_prompt` says whether the endpoint is a prompt one.
    pub fn take(&mut self, owner: Owner, is_prompt: bool, now: Timestamp) -> Option<Given> {
        let is_next = !self.waiting(is_prompt).contains_key(&owner.tenant);
        let may_take = is_next && may_take(self.held(owner.tenant), self.free(is_prompt, now));
        may_take.then(|| self.give(owner, is_prompt, now))
    }

    /// Lets `who` wait for a place.
    pub fn wait(&mut self, owner: Owner, is_prompt: bool, who: W) {
        self.count += 1;
        let waiter = Waiter { number: self.count, who };
        let lanes = self.waiting_mut(is_prompt).entry(owner.tenant).or_default();
        lanes.entry(owner.subscription).or_default().push_back(waiter);
    }

    /// When somebody who waits is to call [`Places::give_next`], besides whoever gives a place back.
    pub fn alarm(&mut self, is_prompt: bool, now: Timestamp) -> Option<Timestamp> {
        (!is_prompt && !self.ramp.may_start(now)).then(|| self.ramp.alarm(now))
    }

    /// Takes a place back. [`Places::give_next`] is to follow. `is_silent` says that the endpoint did not
    /// answer.
    pub fn give_back(&mut self, given: &Given, is_silent: bool) {
        let Given { owner, is_prompt } = *given;
        if !is_prompt && !is_silent {
            self.ramp.answered();
        }
        self.free += 1;
        decrease(&mut self.by_tenant, owner.tenant);
        decrease(&mut self.by_subscription, owner.subscription);
    }

    /// Gives a free place to whoever has the next turn. Those who no longer wait are passed over.
    pub fn give_next(
        &mut self,
        now: Timestamp,
        still_waits: impl Fn(&W) -> bool,
    ) -> Option<(Given, W)> {
        while let Some((owner, is_prompt)) = self.next_turn(now) {
            // Nobody is left when all have stopped waiting: then it is somebody else's turn.
            if let Some(who) = self.take_waiter(owner, is_prompt, &still_waits) {
                return Some((self.give(owner, is_prompt, now), who));
            }
        }
        None
    }

    const fn waiting(&self, is_prompt: bool) -> &Waiting<W> {
        if is_prompt { &self.prompt } else { &self.waiting }
    }

    const fn waiting_mut(&mut self, is_prompt: bool) -> &mut Waiting<W> {
        if is_prompt { &mut self.prompt } else { &mut self.waiting }
    }

    fn held(&self, tenant: TenantId) -> usize {
        self.by_tenant.get(&tenant).copied().unwrap_or(0)
    }

    /// How many places there are for prompt endpoints or for the others.
    fn free(&self, is_prompt: bool, now: Timestamp) -> usize {
        match is_prompt {
            true => self.free,
            false if self.ramp.may_start(now) => self.free.saturating_sub(self.kept),
            false => 0,
        }
    }

    fn give(&mut self, owner: Owner, is_prompt: bool, now: Timestamp) -> Given {
        if !is_prompt {
            self.ramp.start(now);
        }
        self.free -= 1;
        *self.by_tenant.entry(owner.tenant).or_default() += 1;
        *self.by_subscription.entry(owner.subscription).or_default() += 1;
        Given { owner, is_prompt }
    }

    /// Whose turn it is, when somebody waits who may have a place.
    fn next_turn(&self, now: Timestamp) -> Option<(Owner, bool)> {
        let turn = |is_prompt| {
            let (right, owner) = self.next_of(is_prompt, self.free(is_prompt, now))?;
            Some((right, (owner, is_prompt)))
        };
        let turns = [true, false].into_iter().filter_map(turn);
        turns.min_by_key(|(right, _)| *right).map(|(_, turn)| turn)
    }

    /// The same among the prompt ones or the others, for whom so many places are free; with how many the
    /// tenant has, and since when it waits.
    fn next_of(&self, is_prompt: bool, free: usize) -> Option<((usize, Option<u64>), Owner)> {
        if free == 0 {
            return None;
        }
        let first = |lanes: &HashMap<SubscriptionId, VecDeque<Waiter<W>>>| {
            lanes.values().filter_map(VecDeque::front).map(|waiter| waiter.number).min()
        };
        // Whoever has the fewest may have one if anybody may.
        let (right, tenant, lanes) = self
            .waiting(is_prompt)
            .iter()
            .map(|(tenant, lanes)| ((self.held(*tenant), first(lanes)), *tenant, lanes))
            .min_by_key(|(right, ..)| *right)?;
        if !may_take(right.0, free) {
            return None;
        }
        let held = |id: &SubscriptionId| self.by_subscription.get(id).copied().unwrap_or(0);
        let (subscription, _) = lanes
            .iter()
            .min_by_key(|(id, waiters)| (held(id), waiters.front().map(|waiter| waiter.number)))?;
        Some((right, Owner { tenant, subscription: *subscription }))
    }

    fn take_waiter(
        &mut self,
        owner: Owner,
        is_prompt: bool,
        still_waits: impl Fn(&W) -> bool,
    ) -> Option<W> {
        let waiting = self.waiting_mut(is_prompt);
        let lanes = waiting.get_mut(&owner.tenant)?;
        let waiters = lanes.get_mut(&owner.subscription)?;
        let mut waiter = None;
        while waiter.is_none() && !waiters.is_empty() {
            waiter = waiters.pop_front().map(|waiter| waiter.who).filter(&still_waits);
        }
        if waiters.is_empty() {
            lanes.remove(&owner.subscription);
        }
        if lanes.is_empty() {
            waiting.remove(&owner.tenant);
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
