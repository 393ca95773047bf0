//! Which lanes have more due than they had room for, so that it is claimed as soon as there is some.
//!
//! Without this a node would look at everything that is due whenever a place becomes free: thousands of
//! subscriptions for one delivery. A lane waits for a place of its own to become free; one that has
//! none, because others have taken all, for anybody's.

use std::collections::{BTreeSet, HashMap, VecDeque};

use crate::domain::id::SubscriptionId;
use crate::store::SubscriptionRef;

/// Something is due for a subscription that found no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Want {
    /// The subscription.
    pub of: SubscriptionRef,
    /// There was a place, but no room for so many bytes.
    pub is_heavy: bool,
}

/// Lanes that want room, and those that have some now.
#[derive(Debug, Default)]
pub struct Wants {
    waiting: HashMap<SubscriptionId, SubscriptionRef>,
    /// Those of the waiting that hold nothing themselves, in the order in which they came. May name some
    /// that no longer wait.
    others: VecDeque<SubscriptionRef>,
    ready: BTreeSet<SubscriptionRef>,
}

impl Wants {
    /// Something is due for this lane, which has room for it or not, and holds something or not.
    pub fn want(&mut self, of: SubscriptionRef, has_room: bool, holds_any: bool) {
        if has_room {
            self.waiting.remove(&of.id);
            self.ready.insert(of);
        } else if self.waiting.insert(of.id, of).is_none() && !holds_any {
            self.others.push_back(of);
        }
    }

    /// A delivery of this lane has given its place back.
    pub fn given_back(&mut self, id: SubscriptionId) {
        if let Some(of) = self.waiting.remove(&id) {
            self.ready.insert(of);
            return;
        }
        while let Some(of) = self.others.pop_front() {
            if self.waiting.remove(&of.id).is_some() {
                self.ready.insert(of);
                return;
            }
        }
    }

    /// Whether there is any to claim for.
    pub fn is_any_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Those to claim for now.
    pub fn take_ready(&mut self) -> Vec<SubscriptionRef> {
        std::mem::take(&mut self.ready).into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;
    use crate::domain::Timestamp;
    use crate::domain::id::TenantId;

    fn refs<const N: usize>() -> [SubscriptionRef; N] {
        let mut random = StdRng::seed_from_u64(17);
        let now = Timestamp::from_micros(1_770_283_800_000_000);
        let tenant_id = TenantId::new(now, &mut random);
        [(); N].map(|()| SubscriptionRef { tenant_id, id: SubscriptionId::new(now, &mut random) })
    }

    #[test]
    fn a_full_lane_is_ready_when_one_of_its_own_has_ended() {
        let [full, other, free] = refs();
        let mut wants = Wants::default();
        wants.want(full, false, true);
        wants.want(free, true, true);
        assert_eq!(wants.take_ready(), [free], "it has room already");
        wants.given_back(other.id);
        assert!(!wants.is_any_ready(), "that is no room for it");
        wants.given_back(full.id);
        assert_eq!(wants.take_ready(), [full]);
        wants.given_back(full.id);
        assert!(!wants.is_any_ready(), "once for each time that it wanted room");
    }

    #[test]
    fn lanes_without_any_place_get_those_of_others_in_their_order() {
        let [first, second, third, busy] = refs();
        let mut wants = Wants::default();
        wants.want(second, false, false);
        wants.want(first, false, false);
        wants.want(second, false, false);
        wants.want(third, false, false);
        wants.want(first, true, false);
        assert_eq!(wants.take_ready(), [first], "it waits no longer");
        let turns = [(); 3].map(|()| {
            wants.given_back(busy.id);
            wants.take_ready()
        });
        assert_eq!(turns, [vec![second], vec![third], vec![]]);
    }
}
