//! How often a key may call: an allowance per key, on this replica.
//!
//! A call is let in while the key owes less than a second's worth of its rate, and then costs what
//! it brings: one, or one per event. A batch that is larger than the rate is let in as well, and the
//! calls after it wait until it is paid off (the generic cell rate algorithm of ITU-T I.371, with a
//! tolerance of a second). Costs one atomic operation, and no timer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// How far a key may run ahead of its rate: bursts are normal, and a second of them harmless.
const TOLERANCE: Duration = Duration::from_secs(1);
/// The shortest wait that is asked of a client: less is lost in the network.
const SHORTEST_WAIT: Duration = Duration::from_millis(10);

/// The rate at which every key's allowance is refilled.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate {
    /// What one event or call costs.
    cost: Duration,
    /// Where the time of allowances begins. Monotonic, so that a clock that is set back locks
    /// nobody out.
    epoch: Instant,
}

/// When a key has paid for everything that it has brought, in nanoseconds of its [`Rate`]'s time.
#[derive(Debug, Default)]
pub(super) struct Allowance(AtomicU64);

impl Rate {
    pub(super) fn new(per_second: u32, epoch: Instant) -> Self {
        Self { cost: Duration::from_secs(1) / per_second.max(1), epoch }
    }

    /// Lets in one call, or says after how long it would be let in.
    pub(super) fn admit(self, allowance: &Allowance, now: Instant) -> Result<(), Duration> {
        let owed = self.owed(allowance, now);
        if owed >= TOLERANCE {
            let wait = owed.saturating_sub(TOLERANCE) + self.cost;
            return Err(wait.max(SHORTEST_WAIT));
        }
        self.charge(allowance, 1, now);
        Ok(())
    }

    /// Charges for `count` events more, without asking.
    pub(super) fn charge(self, allowance: &Allowance, count: usize, now: Instant) {
        let now = nanos(now.saturating_duration_since(self.epoch));
        let cost = nanos(self.cost).saturating_mul(count as u64);
        let paid = |paid_at: u64| Some(paid_at.max(now).saturating_add(cost));
        // The closure always gives a value.
        let _ = allowance.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, paid);
    }

    /// How long the key has to pay for what it has brought.
    fn owed(self, allowance: &Allowance, now: Instant) -> Duration {
        let paid_at = Duration::from_nanos(allowance.0.load(Ordering::Relaxed));
        paid_at.saturating_sub(now.saturating_duration_since(self.epoch))
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start() -> Instant {
        super::super::layer::now()
    }

    #[test]
    fn a_second_of_calls_is_let_in_at_once_and_then_one_by_one() {
        let start = start();
        let rate = Rate::new(10, start);
        let allowance = Allowance::default();
        for call in 0..10 {
            assert_eq!(rate.admit(&allowance, start), Ok(()), "{call}");
        }
        let wait = rate.admit(&allowance, start).expect_err("too many");
        assert_eq!(wait, Duration::from_millis(100));
        assert!(rate.admit(&allowance, start + wait / 2).is_ok(), "one call is paid off by then");
        assert!(rate.admit(&allowance, start + wait / 2).is_err());
    }

    #[test]
    fn a_large_batch_is_let_in_and_paid_off() {
        let start = start();
        let rate = Rate::new(100, start);
        let allowance = Allowance::default();
        assert_eq!(rate.admit(&allowance, start), Ok(()));
        rate.charge(&allowance, 999, start);
        let wait = rate.admit(&allowance, start).expect_err("owes ten seconds");
        assert!(wait > Duration::from_secs(8) && wait < Duration::from_secs(10), "{wait:?}");
        assert_eq!(rate.admit(&allowance, start + wait), Ok(()));
    }

    #[test]
    fn what_was_not_used_is_not_saved_up() {
        let start = start();
        let rate = Rate::new(10, start);
        let allowance = Allowance::default();
        let later = start + Duration::from_hours(1);
        let let_in = (0..100).filter(|_| rate.admit(&allowance, later).is_ok()).count();
        assert_eq!(let_in, 10);
    }

    #[test]
    fn the_wait_that_is_asked_for_is_never_too_short() {
        let start = start();
        let rate = Rate::new(1_000_000, start);
        let allowance = Allowance::default();
        rate.charge(&allowance, 1_000_000, start);
        assert_eq!(rate.admit(&allowance, start), Err(SHORTEST_WAIT));
    }
}
