//! Counts deliveries that ended without an attempt of this process: canceled, expired, or gone with
//! their subscription. Whoever makes such a change may be the API, which knows no metrics of the
//! engine; here every way to do it is counted, and the engine fetches the counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::domain::delivery::{Delivery, State};

use super::Store;

/// Counts by state. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Ends(Arc<[AtomicU64; State::ALL.len()]>);

impl Ends {
    /// Counts those of the changed deliveries that have ended.
    pub(super) fn count(&self, changed: &[Delivery]) {
        for (state, count) in State::ALL.into_iter().zip(self.0.iter()) {
            let ended = changed.iter().filter(|delivery| delivery.state == state).count();
            if state.is_terminal() && ended > 0 {
                count.fetch_add(ended as u64, Ordering::Relaxed);
            }
        }
    }
}

impl Store {
    /// How many deliveries have ended in each state without an attempt of this process, since this
    /// was last asked.
    pub fn take_ends(&self) -> impl Iterator<Item = (State, u64)> {
        let take = |count: &AtomicU64| count.swap(0, Ordering::Relaxed);
        State::ALL.into_iter().zip(self.ends.0.iter().map(take)).filter(|(_, count)| *count > 0)
    }
}
