//! How many attempts on request one tenant may have under way on this node.
//!
//! A manual retry and a test are made at once: they pass the lanes, and with them `max_in_flight`
//! and `max_requests_per_second`. Without a bound of their own a tenant could have Tidings send as
//! many requests to one endpoint as it can make calls.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::domain::id::TenantId;

/// Most manual attempts and tests of one tenant that are under way at once on one node: enough for
/// people and their scripts, few enough that no endpoint is flooded.
pub const MAX_ON_REQUEST: usize = 16;

/// Counts what is under way, by tenant. Holds nothing of a tenant that has nothing under way.
#[derive(Clone, Debug, Default)]
pub(super) struct Turns {
    taken: Arc<Mutex<HashMap<TenantId, usize>>>,
}

/// One attempt that may be made; dropping it makes room for the next.
#[derive(Debug)]
pub(super) struct Turn {
    turns: Turns,
    tenant_id: TenantId,
}

impl Turns {
    /// A turn, unless the tenant has [`MAX_ON_REQUEST`] already.
    pub(super) fn take(&self, tenant_id: TenantId) -> Option<Turn> {
        let mut taken = self.lock();
        let count = taken.entry(tenant_id).or_default();
        if *count >= MAX_ON_REQUEST {
            return None;
        }
        *count += 1;
        drop(taken);
        Some(Turn { turns: self.clone(), tenant_id })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TenantId, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut taken = self.turns.lock();
        if let Some(count) = taken.get_mut(&self.tenant_id) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.tenant_id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;
    use crate::domain::Timestamp;

    #[test]
    fn a_tenant_has_so_many_turns_and_gives_them_back() {
        let mut random = StdRng::seed_from_u64(7);
        let [one, other] = [(); 2].map(|()| TenantId::new(Timestamp::default(), &mut random));
        let turns = Turns::default();
        let mut held: Vec<_> = (0..MAX_ON_REQUEST).map(|_| turns.take(one)).collect();
        assert!(held.iter().all(Option::is_some));
        assert!(turns.take(one).is_none(), "no more than the limit");
        assert!(turns.take(other).is_some(), "another tenant has its own");
        held.pop();
        assert!(turns.take(one).is_some(), "what has ended makes room");
        held.clear();
        assert!(turns.lock().is_empty(), "nothing is kept of who has nothing under way");
    }
}
