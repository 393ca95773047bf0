//! Under which name a node leases, and until when that name surely holds.

use std::time::Duration;

use crate::domain::Timestamp;
use crate::domain::id::NodeId;

/// A node's lease, as the node itself may believe in it: never longer than the database does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tenure {
    node: NodeId,
    held_until: Timestamp,
}

impl Tenure {
    /// The lease of `node` for `ttl`. `asked_at` is an instant before the database was asked for it:
    /// the database's lease begins later, and ends later.
    pub fn new(node: NodeId, asked_at: Timestamp, ttl: Duration) -> Self {
        Self { node, held_until: asked_at.plus(ttl) }
    }

    /// The name under which the node leases now.
    pub const fn node(&self) -> NodeId {
        self.node
    }

    /// Whether what was leased under the name `node` is surely this node's at `now`. What it leased
    /// under an earlier name is not: others may have it by now.
    pub fn covers(&self, node: NodeId, now: Timestamp) -> bool {
        node == self.node && now < self.held_until
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    #[test]
    fn a_lease_covers_what_was_leased_under_its_own_name_while_it_holds() {
        let mut random = StdRng::seed_from_u64(3);
        let now = Timestamp::from_micros(1_770_283_800_000_000);
        let [earlier, own] = [(); 2].map(|()| NodeId::new(now, &mut random));
        let ttl = Duration::from_secs(15);
        let tenure = Tenure::new(own, now, ttl);
        assert!(tenure.covers(own, now.plus(ttl).minus(Duration::from_micros(1))));
        assert!(!tenure.covers(own, now.plus(ttl)), "it has run out");
        assert!(!tenure.covers(earlier, now), "others may have taken that over");
    }
}
