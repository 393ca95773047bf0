//! What a node has leased: a lane per subscription, all within a bounded number of places.
//!
//! Guarantees: never more places than there are, nor more bytes; one tenant never takes all of them,
//! and a quarter of the places and of the bytes is kept for prompt endpoints and for the first few
//! deliveries of each lane, so that slow endpoints cannot lock out a good one; a lane starts no more
//! attempts than it may have under way, but always has a worker while something waits in it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use crate::domain::Timestamp;
use crate::domain::id::{DeliveryId, SubscriptionId, TenantId};
use crate::store::SubscriptionRef;

use super::pace::Pace;
use super::places;
use super::trust::Allowance;
use super::wants::{Want, Wants};

/// Deliveries that a lane may hold per attempt that it may have under way, and if its endpoint is a
/// prompt one. Beyond that it may have as many as its endpoint answers in a [`Pace::WINDOW`], so that a
/// fast endpoint's deliveries need no claim while they wait.
const DEPTH: usize = 2;
const PROMPT_DEPTH: usize = 8;
/// Deliveries of every lane for which more of the places and bytes is there.
const GUARANTEED: usize = 2;
/// Which part of the bytes one lane may hold beyond its first deliveries: large events to a slow
/// endpoint must not take the memory of all.
const LANE_SHARE: usize = 16;

/// What must stay free of `size`, places or bytes, when a delivery comes: a quarter; half of that when
/// it is one of the first of its lane; and less for prompt endpoints.
const fn kept(size: usize, is_first: bool, is_prompt: bool) -> usize {
    match (is_prompt, is_first) {
        (false, false) => size / 4,
        (false, true) => size / 8,
        (true, false) => size / 16,
        (true, true) => 0,
    }
}

/// A place in memory. Whoever has it gives it back with [`Lanes::give_back`].
#[derive(Debug)]
pub struct Place {
    subscription: SubscriptionId,
    /// Whose place it is; unknown when the subscription is gone.
    tenant: Option<TenantId>,
    /// The delivery that has the place, once there is one.
    delivery: Option<DeliveryId>,
    /// Whether its delivery is the probe of an open breaker.
    is_probe: bool,
    /// Whether the endpoint was a prompt one when the place was given.
    is_prompt: bool,
    /// What its event takes in memory, once that is known.
    bytes: usize,
}

impl Place {
    /// Whether its delivery is the one that may be attempted although the breaker is open.
    pub const fn is_probe(&self) -> bool {
        self.is_probe
    }

    /// Whether a delivery has it.
    pub const fn is_used(&self) -> bool {
        self.delivery.is_some()
    }
}

struct Lane<J> {
    /// Places: waiting, under way, or being recorded.
    held: usize,
    /// Places among them that have bytes, and how many.
    weighed: usize,
    bytes: usize,
    /// Workers.
    active: usize,
    /// Workers that it may have, as of the last look.
    limit: usize,
    pace: Pace,
    waiting: VecDeque<J>,
    /// How many in front of it had a worker before, see [`Lanes::put_back`].
    returned: usize,
    /// Before this instant no request may start, when the subscription limits its rate. A lane outlives its
    /// deliveries, or this and its pace would be forgotten: [`Lanes::prune`] ends it.
    next_start: Option<Timestamp>,
}

impl<J> Default for Lane<J> {
    fn default() -> Self {
        Self {
            held: 0,
            weighed: 0,
            bytes: 0,
            active: 0,
            limit: 0,
            pace: Pace::default(),
            waiting: VecDeque::new(),
            returned: 0,
            next_start: None,
        }
    }
}

impl<J> Lane<J> {
    const fn is_idle(&self) -> bool {
        self.held == 0 && self.active == 0
    }

    /// Whether nothing is left to remember.
    const fn is_over(&self) -> bool {
        self.is_idle() && self.next_start.is_none() && self.pace.is_empty()
    }

    /// Takes out what may start now. What waits always has a worker: without a share it is given
    /// back by one.
    fn start(&mut self) -> Vec<J> {
        let room = self.limit.max(1).saturating_sub(self.active).min(self.waiting.len());
        self.active += room;
        self.returned = self.returned.saturating_sub(room);
        self.waiting.drain(..room).collect()
    }
}

/// What a tenant holds.
#[derive(Debug, Default)]
struct Held {
    places: usize,
    bytes: usize,
}

/// The lanes, in which jobs wait.
pub struct Lanes<J> {
    by_subscription: HashMap<SubscriptionId, Lane<J>>,
    by_tenant: HashMap<TenantId, Held>,
    /// Which deliveries have a place.
    deliveries: HashSet<DeliveryId>,
    wants: Wants,
    held: usize,
    bytes: usize,
    max_held: usize,
    max_bytes: usize,
    is_closed: bool,
}

/// What a worker does next with its delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It gives it back: the endpoint may have no request now.
    GiveBack,
    /// It waits: the subscription limits its rate.
    Wait(Timestamp),
    /// It asks for the place of an attempt.
    Ask,
}

/// What a worker does next with the delivery that has `place`, while its lane may have `allowed`
/// attempts under way and no request may start before `next_start`.
pub fn turn(place: &Place, allowed: usize, next_start: Option<Timestamp>, now: Timestamp) -> Turn {
    if !place.is_probe && allowed == 0 {
        return Turn::GiveBack;
    }
    next_start.filter(|start| now < *start).map_or(Turn::Ask, Turn::Wait)
}

impl<J> Lanes<J> {
    /// Lanes for at most `max_held` deliveries, whose events have at most `max_bytes` together.
    pub fn new(max_held: usize, max_bytes: usize) -> Self {
        Self {
            by_subscription: HashMap::new(),
            by_tenant: HashMap::new(),
            deliveries: HashSet::new(),
            wants: Wants::default(),
            held: 0,
            bytes: 0,
            max_held,
            max_bytes,
            is_closed: false,
        }
    }

    /// Who has places.
    pub fn tenants(&self) -> Vec<TenantId> {
        self.by_tenant.keys().copied().collect()
    }

    /// Reserves up to `wanted` places for a subscription that may have `allowance`; fewer or none when
    /// the lane or the node is full, or the lanes are closed.
    pub fn reserve(
        &mut self,
        of: (SubscriptionId, Option<TenantId>),
        wanted: usize,
        allowance: Allowance,
        now: Timestamp,
    ) -> Vec<Place> {
        let depth = self.depth(of.0, allowance, now);
        self.grant(of, wanted, depth, allowance.is_prompt)
    }

    /// How many deliveries a lane may hold.
    fn depth(&mut self, id: SubscriptionId, allowance: Allowance, now: Timestamp) -> usize {
        let Allowance { in_flight, is_prompt } = allowance;
        let pace = self.by_subscription.get_mut(&id).map_or(0, |lane| lane.pace.jobs(now));
        let depth = if is_prompt { PROMPT_DEPTH } else { DEPTH };
        if in_flight == 0 { 0 } else { in_flight.saturating_mul(depth).max(pace) }
    }

    /// Takes note that something is due for a lane that may have `allowance`, beyond what it holds: it is
    /// among [`Lanes::take_ready`] when it has room. What was too heavy needs more than a place: it has
    /// room when something has been given back. Tells whether there is a lane to claim for.
    pub fn want(&mut self, want: Want, allowance: Allowance, now: Timestamp) -> bool {
        let Want { of, is_heavy } = want;
        if allowance.in_flight > 0 {
            let depth = self.depth(of.id, allowance, now);
            let room = self.room((of.id, Some(of.tenant_id)), 1, depth, allowance.is_prompt);
            let holds_any = self.by_subscription.get(&of.id).is_some_and(|lane| lane.held > 0);
            self.wants.want(of, room > 0 && !is_heavy, holds_any);
        }
        self.is_any_ready()
    }

    /// Whether there is a lane to claim for.
    pub fn is_any_ready(&self) -> bool {
        self.wants.is_any_ready()
    }

    /// The lanes to claim for: they wanted room, and have some now.
    pub fn take_ready(&mut self) -> Vec<SubscriptionRef> {
        self.wants.take_ready()
    }

    /// Places for up to `wanted` further deliveries of one attempt, however many the lane has.
    pub fn reserve_further(
        &mut self,
        of: (SubscriptionId, Option<TenantId>),
        wanted: usize,
    ) -> Vec<Place> {
        self.grant(of, wanted, usize::MAX, false)
    }

    /// Reserves the place of the probe of an open breaker. Its lane may be full of deliveries that
    /// are about to be given back.
    pub fn reserve_probe(&mut self, of: (SubscriptionId, Option<TenantId>)) -> Option<Place> {
        let mut place = self.grant(of, 1, usize::MAX, false).pop()?;
        place.is_probe = true;
        Some(place)
    }

    /// How many more places of `wanted` a lane may have that may hold `depth`.
    fn room(
        &self,
        (id, tenant): (SubscriptionId, Option<TenantId>),
        wanted: usize,
        depth: usize,
        is_prompt: bool,
    ) -> usize {
        if self.is_closed || wanted == 0 || self.bytes >= self.max_bytes {
            return 0;
        }
        let left = self.max_held.saturating_sub(self.held);
        let free = |is_first| left.saturating_sub(kept(self.max_held, is_first, is_prompt));
        let of_tenant = tenant.and_then(|tenant| self.by_tenant.get(&tenant));
        let of_tenant = of_tenant.map_or(0, |of_tenant| of_tenant.places);
        let fair = places::room(of_tenant, free(false));
        let held = self.by_subscription.get(&id).map_or(0, |lane| lane.held);
        // However many lanes a tenant has: what is kept for first deliveries is for others, too.
        let first = places::room(of_tenant, free(true));
        let guaranteed = GUARANTEED.saturating_sub(held).min(first);
        wanted.min(depth.saturating_sub(held)).min(fair.max(guaranteed))
    }

    fn grant(
        &mut self,
        (id, tenant): (SubscriptionId, Option<TenantId>),
        wanted: usize,
        depth: usize,
        is_prompt: bool,
    ) -> Vec<Place> {
        let granted = self.room((id, tenant), wanted, depth, is_prompt);
        if granted == 0 {
            return Vec::new();
        }
        let lane = self.by_subscription.entry(id).or_default();
        lane.held += granted;
        self.held += granted;
        if let Some(tenant) = tenant {
            self.by_tenant.entry(tenant).or_default().places += granted;
        }
        let place = || Place {
            subscription: id,
            tenant,
            delivery: None,
            is_probe: false,
            is_prompt,
            bytes: 0,
        };
        (0..granted).map(|_| place()).collect()
    }

    /// Takes room for an event of so many bytes; `false`, and nothing is taken, when there is none.
    /// To be asked once for a place, before the event comes into memory.
    pub fn weigh(&mut self, place: &mut Place, bytes: usize) -> bool {
        let held = self.bytes;
        let of_tenant = place.tenant.and_then(|tenant| self.by_tenant.get(&tenant));
        let of_tenant = of_tenant.map_or(0, |of_tenant| of_tenant.bytes);
        let left = self.max_bytes.saturating_sub(held + bytes);
        if of_tenant > 0 && of_tenant + bytes > left.saturating_mul(places::RATIO) {
            // A tenant leaves as much of the bytes to others as it leaves of the places.
            return false;
        }
        let Some(lane) = self.by_subscription.get_mut(&place.subscription) else { return false };
        let is_first = lane.weighed < GUARANTEED;
        let limit = self.max_bytes - kept(self.max_bytes, is_first, place.is_prompt);
        let lane_limit = if is_first { usize::MAX } else { self.max_bytes / LANE_SHARE };
        if held + bytes > limit || lane.bytes + bytes > lane_limit {
            return false;
        }
        lane.weighed += 1;
        lane.bytes += bytes;
        self.bytes += bytes;
        if let Some(tenant) = place.tenant {
            self.by_tenant.entry(tenant).or_default().bytes += bytes;
        }
        place.bytes = bytes;
        true
    }

    /// Takes a place back. Tells whether there is a lane to claim for, see [`Lanes::take_ready`].
    pub fn give_back(&mut self, place: &Place) -> bool {
        self.held -= 1;
        if let Some(tenant) = place.tenant
            && let Some(held) = self.by_tenant.get_mut(&tenant)
        {
            held.places -= 1;
            held.bytes -= place.bytes;
            if held.places == 0 {
                self.by_tenant.remove(&tenant);
            }
        }
        self.bytes -= place.bytes;
        if let Some(delivery) = place.delivery {
            self.deliveries.remove(&delivery);
        }
        if let Some(lane) = self.by_subscription.get_mut(&place.subscription) {
            lane.held -= 1;
            lane.bytes -= place.bytes;
            lane.weighed -= usize::from(place.bytes > 0);
            if lane.is_over() {
                self.by_subscription.remove(&place.subscription);
            }
        }
        // One that was never used was one too many for its lane: no news to it.
        if place.is_used() {
            self.wants.given_back(place.subscription);
        }
        self.is_any_ready()
    }

    /// Notes that `delivery` has `place`.
    pub fn occupy(&mut self, place: &mut Place, delivery: DeliveryId) {
        place.delivery = Some(delivery);
        self.deliveries.insert(delivery);
    }

    /// Lets the job of `place` wait in its lane, which may have `limit` workers. Returns the jobs
    /// that start now, each with a worker of its own. A probe starts at once.
    pub fn push(&mut self, job: J, place: impl Fn(&J) -> &Place, limit: usize) -> Vec<J> {
        let Place { subscription, is_probe, .. } = *place(&job);
        let lane = self.by_subscription.entry(subscription).or_default();
        lane.limit = limit;
        if is_probe {
            lane.active += 1;
            return vec![job];
        }
        lane.waiting.push_back(job);
        lane.start()
    }

    /// Whether the worker that has `place`, and its turn, has to go before it starts anything: its lane
    /// has more of them than the `limit` that holds now. Workers wait for their turn for long where
    /// endpoints hang, and begin under limits that a new replica, a breaker or its tenant lowers
    /// meanwhile. One may always stay, whatever comes of it.
    pub fn is_surplus(&self, place: &Place, limit: usize) -> bool {
        let lane = self.by_subscription.get(&place.subscription);
        !place.is_probe && lane.is_some_and(|lane| lane.active > limit.max(1))
    }

    /// Lets the job of a worker that has to go wait again, ahead of those that never had one: another
    /// worker that ends takes it. Returns it when the lanes are closed, to be let go of.
    pub fn put_back(&mut self, job: J, place: impl Fn(&J) -> &Place) -> Option<J> {
        let lane = self.by_subscription.entry(place(&job).subscription).or_default();
        lane.active = lane.active.saturating_sub(1);
        if self.is_closed {
            return Some(job);
        }
        lane.waiting.insert(lane.returned.min(lane.waiting.len()), job);
        lane.returned += 1;
        None
    }

    /// Takes at most `limit` of the jobs that wait in a lane and that `is_wanted` chooses: they go
    /// along with the one that has its turn.
    pub fn take_waiting(
        &mut self,
        id: SubscriptionId,
        is_wanted: impl Fn(&J) -> bool,
        limit: usize,
    ) -> Vec<J> {
        let Some(lane) = self.by_subscription.get_mut(&id) else { return Vec::new() };
        let mut taken = Vec::new();
        for job in std::mem::take(&mut lane.waiting) {
            if taken.len() < limit && is_wanted(&job) {
                taken.push(job);
            } else {
                lane.waiting.push_back(job);
            }
        }
        taken
    }

    /// What follows when a worker of a lane, which may have `limit` of them now, has ended its job:
    /// its next one, and those for which the lane has room beside. Without a next one the worker is
    /// gone.
    pub fn next(
        &mut self,
        id: SubscriptionId,
        limit: usize,
        now: Timestamp,
    ) -> (Option<J>, Vec<J>) {
        let Some(lane) = self.by_subscription.get_mut(&id) else { return (None, Vec::new()) };
        lane.pace.count(now);
        lane.limit = limit;
        lane.active -= 1;
        let mut starting = if self.is_closed { Vec::new() } else { lane.start() };
        (starting.pop(), starting)
    }

    /// Before when no request may start to a subscription that limits its rate.
    pub fn next_start(&self, id: SubscriptionId) -> Option<Timestamp> {
        self.by_subscription.get(&id)?.next_start
    }

    /// Takes the right to start a request now, unless another one started too short a time ago. It is
    /// taken at the very moment of the start: whoever had to wait for a place has saved up nothing.
    pub fn take_start(&mut self, id: SubscriptionId, rate: f64, now: Timestamp) -> bool {
        let lane = self.by_subscription.entry(id).or_default();
        let may_start = lane.next_start.is_none_or(|start| start <= now);
        if may_start {
            lane.next_start = Some(now.plus(Duration::from_secs_f64(1.0 / rate)));
        }
        may_start
    }

    /// Ends lanes that were only kept for their pace or their rate limit, once these have no more to say.
    pub fn prune(&mut self, now: Timestamp) {
        self.by_subscription.retain(|_, lane| {
            !lane.is_idle()
                || lane.pace.jobs(now) > 0
                || lane.next_start.is_some_and(|next_start| next_start > now)
        });
    }

    /// Whether a delivery has a place.
    pub fn holds(&self, delivery: DeliveryId) -> bool {
        self.deliveries.contains(&delivery)
    }

    /// How many deliveries are held.
    pub const fn len(&self) -> usize {
        self.held
    }

    /// Whether nothing is held.
    pub const fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// How many bytes of events are held.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether nothing more is taken.
    pub const fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Takes nothing more, and lets go of what waits.
    pub fn close(&mut self) -> Vec<J> {
        self.is_closed = true;
        let lanes = self.by_subscription.values_mut();
        lanes.flat_map(|lane| std::mem::take(&mut lane.waiting)).collect()
    }
}

#[cfg(test)]
mod tests;
