//! How the live replicas share a subscription's limits, without talking to each other.
//!
//! Every replica knows who is alive, and finds its own share: the shares of all add up to exactly
//! the limit, as long as all know of the same replicas. What is left over by the division goes to
//! other replicas for every subscription, so that no replica has more to do than another.

use super::id::{NodeId, SubscriptionId};

/// This replica's place among the live ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replicas {
    /// Replicas that are ordered before this one.
    rank: u32,
    /// All of them, this one included: at least 1.
    count: u32,
}

/// Alone.
impl Default for Replicas {
    fn default() -> Self {
        Self { rank: 0, count: 1 }
    }
}

impl Replicas {
    /// The place of `own` among the `live` nodes; it counts as live even when it is not listed.
    pub fn of(own: NodeId, live: &[NodeId]) -> Self {
        let count = |is_counted: &dyn Fn(&NodeId) -> bool| {
            u32::try_from(live.iter().filter(|node| is_counted(node)).count()).unwrap_or(u32::MAX)
        };
        Self {
            rank: count(&|node| *node < own),
            count: count(&|node| *node != own).saturating_add(1),
        }
    }

    /// How many replicas live.
    pub const fn count(self) -> u32 {
        self.count
    }

    /// This replica's part of `limit`; 0 when there are more replicas than that.
    pub fn share(self, limit: u32, of: SubscriptionId) -> u32 {
        // The hash turns the order round, differently for each subscription.
        let place = (u64::from(self.rank) + u64::from(hash(of))) % u64::from(self.count);
        limit / self.count + u32::from(place < u64::from(limit % self.count))
    }

    /// This replica's part of a rate.
    pub fn share_of_rate(self, rate: f64) -> f64 {
        rate / f64::from(self.count)
    }
}

/// FNV-1a: the same in every build and on every machine, as the replicas must agree on it.
fn hash(id: SubscriptionId) -> u32 {
    id.as_str()
        .bytes()
        .fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::super::Timestamp;
    use super::*;

    #[test]
    fn the_shares_add_up_to_the_limit_and_the_rest_goes_round() {
        let mut random = StdRng::seed_from_u64(1);
        let now = Timestamp::from_micros(1_770_283_800_250_000);
        for count in 1..=7_u32 {
            let live: Vec<_> = (0..count).map(|_| NodeId::new(now, &mut random)).collect();
            let places: Vec<_> = live.iter().map(|own| Replicas::of(*own, &live)).collect();
            let mut totals = vec![0_u32; live.len()];
            for _ in 0..1_000 {
                let id = SubscriptionId::new(now, &mut random);
                for limit in [1, 2, 3, 16, 1_000] {
                    let shares: Vec<_> = places.iter().map(|own| own.share(limit, id)).collect();
                    assert_eq!(shares.iter().sum::<u32>(), limit, "{count} replicas");
                    let (least, most) = (shares.iter().min(), shares.iter().max());
                    assert!(most.copied() <= least.map(|least| least + 1), "{shares:?}");
                }
                for (total, own) in totals.iter_mut().zip(&places) {
                    *total += own.share(1, id);
                }
            }
            let fair = 1_000 / count;
            assert!(totals.iter().all(|total| (fair / 2..=fair * 2).contains(total)), "{totals:?}");
        }
    }

    #[test]
    fn one_alone_has_everything_listed_or_not() {
        let mut random = StdRng::seed_from_u64(2);
        let now = Timestamp::from_micros(0);
        let (own, id) = (NodeId::new(now, &mut random), SubscriptionId::new(now, &mut random));
        for place in [Replicas::default(), Replicas::of(own, &[]), Replicas::of(own, &[own])] {
            assert_eq!((place.share(16, id), place.count()), (16, 1));
            assert!((place.share_of_rate(5.0) - 5.0).abs() < f64::EPSILON);
        }
    }
}
