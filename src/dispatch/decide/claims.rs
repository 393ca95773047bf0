//! What to lease next, and when to look again.
//!
//! Guarantees: from each subscription no more than its lane has room for and than its portion; where
//! the breaker is open, one delivery at most, as its probe, and nothing of those whose gate is
//! closed: the database is not even asked for them. Looking at everything takes at most a part of the
//! time, however much there is; in between it is claimed for lanes that have room again
//! ([`super::wants`]).

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use crate::domain::Timestamp;
use crate::domain::health::Gate;
use crate::domain::id::{DeliveryId, SubscriptionId};
use crate::store::{Candidate, Room, SubscriptionRef};

use super::wants::Want;

/// Deliveries of one subscription that one claim leases at most, where many have something due. Where few
/// have, it may be as many as they can share of [`FEW`]: what a claim costs it costs once.
const PORTION: usize = 64;
const FEW: usize = 512;
/// The shortest pause between two rounds: lets results and other work get a turn.
const BREATH: Duration = Duration::from_millis(2);
/// A claim of so many deliveries is worth its transaction, and a round its look at everything.
const WORTH: usize = 32;
/// How many times as long as a round takes there is no other one: after one that was worth it, and after
/// one that was not. The first also holds for a claim in between that was not.
const REST: u32 = 8;
const LONG_REST: u32 = 24;

/// What a round over all subscriptions found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// Deliveries that were leased.
    pub claimed: usize,
    /// When the next delivery is due.
    pub next_due: Option<Timestamp>,
}

impl Round {
    /// Splits a page of subscriptions: those that have something due at `now` are returned, of the
    /// others it is remembered when they have.
    pub fn due(
        &mut self,
        page: &[(SubscriptionRef, Timestamp)],
        now: Timestamp,
    ) -> Vec<SubscriptionRef> {
        let (due, later): (Vec<_>, Vec<_>) = page.iter().partition(|(_, due)| *due <= now);
        for (_, due) in later {
            self.look_at(due);
        }
        due.into_iter().map(|(subscription, _)| subscription).collect()
    }

    /// Remembers to look again at `time`, if nothing is to be done before.
    pub fn look_at(&mut self, time: Timestamp) {
        self.next_due = self.next_due.into_iter().chain([time]).min();
    }

    /// How long to wait at least after the round, which has taken so long.
    pub fn rest(&self, took: Duration, poll_interval: Duration) -> Duration {
        rest(took, if self.claimed < WORTH { LONG_REST } else { REST }, poll_interval)
    }

    /// How long to wait until the next round when nothing wakes the node. `rest` is the least, see
    /// [`Round::rest`].
    pub fn pause(&self, now: Timestamp, rest: Duration, poll_interval: Duration) -> Duration {
        if self.claimed > 0 {
            return rest;
        }
        let until_due = self.next_due.map_or(poll_interval, |due| due.since(now));
        until_due.clamp(rest, poll_interval)
    }

    /// How long to wait after a claim for those that had room again, which has taken so long: where they
    /// are many and each has a little, they share the next one.
    pub fn breath(&self, took: Duration, poll_interval: Duration) -> Duration {
        if self.claimed < WORTH { rest(took, REST, poll_interval) } else { BREATH }
    }
}

fn rest(took: Duration, times: u32, poll_interval: Duration) -> Duration {
    (took * times).max(BREATH).min(poll_interval.max(BREATH))
}

/// Who gives places: `P` is a place.
pub trait Giver<P> {
    /// Up to `wanted` places for a subscription.
    fn reserve(&mut self, of: SubscriptionRef, wanted: usize) -> Vec<P>;
    /// The place of the probe of an open breaker.
    fn reserve_probe(&mut self, of: SubscriptionRef) -> Option<P>;
    /// Takes room for an event of so many bytes.
    fn weigh(&mut self, place: &mut P, bytes: usize) -> bool;
}

/// What to ask of the database in one claim, and the places that are reserved for it.
#[derive(Debug)]
pub struct Plan<P> {
    /// How many deliveries of which subscriptions.
    pub rooms: Vec<Room>,
    /// Of whom to take the probe.
    pub probed: Vec<SubscriptionRef>,
    reserved: HashMap<SubscriptionId, Vec<P>>,
    /// Of whom there may be more due than there was room for.
    wanting: BTreeSet<Want>,
    admitted: HashMap<DeliveryId, P>,
}

impl<P> Plan<P> {
    /// Plans for subscriptions that have something due, each with its gate.
    pub fn of(
        due: Vec<(SubscriptionRef, Gate)>,
        giver: &mut impl Giver<P>,
        round: &mut Round,
    ) -> Self {
        let (mut rooms, mut probed, mut reserved) = (Vec::new(), Vec::new(), HashMap::new());
        let mut wanting = BTreeSet::new();
        let portion = PORTION.max(FEW / due.len().max(1));
        for (subscription, gate) in due {
            match gate {
                // Nothing is asked of the database for those: they wait, however many they are.
                Gate::Closed { until } => {
                    round.look_at(until);
                    continue;
                }
                Gate::Probe => {
                    if let Some(place) = giver.reserve_probe(subscription) {
                        probed.push(subscription);
                        reserved.insert(subscription.id, vec![place]);
                    }
                    continue;
                }
                // Another replica's.
                Gate::Open { in_flight: 0 } => continue,
                Gate::Open { .. } => {}
            }
            let granted = giver.reserve(subscription, portion);
            if granted.is_empty() {
                wanting.insert(Want { of: subscription, is_heavy: false });
            } else {
                let room = u32::try_from(granted.len()).unwrap_or(u32::MAX);
                rooms.push(Room { subscription, room });
                reserved.insert(subscription.id, granted);
            }
        }
        Self { rooms, probed, reserved, wanting, admitted: HashMap::new() }
    }

    /// Whether a candidate may come into memory; if so, it has a place from now on.
    pub fn admit(&mut self, candidate: &Candidate, giver: &mut impl Giver<P>) -> bool {
        let reserved = self.reserved.get_mut(&candidate.subscription.id);
        let Some(places) = reserved else { return false };
        let weighed = places
            .pop()
            .and_then(|mut place| giver.weigh(&mut place, candidate.event_bytes).then_some(place));
        let is_heavy = weighed.is_none();
        if is_heavy || places.is_empty() {
            self.wanting.insert(Want { of: candidate.subscription, is_heavy });
        }
        let Some(place) = weighed else { return false };
        self.admitted.insert(candidate.delivery_id, place);
        true
    }

    /// Of whom there may be more due than there was room for. To be asked when the claim is over, and
    /// the plan is let go of: a place that it did not need is room.
    pub fn take_wanting(&mut self) -> BTreeSet<Want> {
        std::mem::take(&mut self.wanting)
    }

    /// The place of a delivery that was admitted.
    pub fn take(&mut self, delivery: DeliveryId) -> Option<P> {
        self.admitted.remove(&delivery)
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use crate::domain::id::TenantId;

    use super::*;

    /// Gives what is wanted.
    struct Generous;

    impl Giver<()> for Generous {
        fn reserve(&mut self, _: SubscriptionRef, wanted: usize) -> Vec<()> {
            vec![(); wanted]
        }

        fn reserve_probe(&mut self, _: SubscriptionRef) -> Option<()> {
            None
        }

        fn weigh(&mut self, (): &mut (), _: usize) -> bool {
            true
        }
    }

    #[test]
    fn few_subscriptions_have_larger_portions_and_many_have_the_same() {
        for (count, portion) in [(1, 512), (3, 170), (8, 64), (256, 64)] {
            let (mut random, now) = (StdRng::seed_from_u64(5), Timestamp::from_micros(0));
            let mut of = || SubscriptionRef {
                tenant_id: TenantId::new(now, &mut random),
                id: SubscriptionId::new(now, &mut random),
            };
            let due = (0..count).map(|_| (of(), Gate::Open { in_flight: 16 })).collect();
            let plan = Plan::of(due, &mut Generous, &mut Round::default());
            assert_eq!(plan.rooms.len(), count);
            assert!(plan.rooms.iter().all(|room| room.room == portion), "{count}: {portion}");
        }
    }
}
