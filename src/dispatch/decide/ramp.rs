//! At which pace attempts begin that may hang.
//!
//! A thousand endpoints that hang would all be asked at once, time out at once, be recorded at once, and
//! be asked again at once: every few seconds the database and the processors would have work for
//! nothing else. So attempts to endpoints that are not known to be prompt begin one after another, some
//! ahead. Whatever is answered does not count: if all answer, nothing waits.

use std::time::Duration;

use crate::domain::Timestamp;

/// The time from one attempt to the next: a token bucket's rate, as the interval at which tokens come. In
/// the 30 s that an attempt may take at most, 3,000 begin beside those ahead: about as many as there are
/// places for them by default, so that they hardly ever have all.
const INTERVAL: Duration = Duration::from_millis(10);

/// A token bucket, as the generic cell rate algorithm has it: one instant instead of a count.
#[derive(Debug)]
pub struct Ramp {
    /// When an empty bucket would have got as many tokens as were taken.
    full_time: Timestamp,
    /// The last instant at which somebody looks again.
    alarm: Timestamp,
    /// How far ahead of that instant the last token may be.
    ahead: Duration,
}

impl Ramp {
    /// A full bucket, from which `size` attempts may begin at once.
    pub fn new(size: usize) -> Self {
        let zero = Timestamp::from_micros(0);
        let ahead = u32::try_from(size.saturating_sub(1)).unwrap_or(u32::MAX);
        Self { full_time: zero, alarm: zero, ahead: INTERVAL * ahead }
    }

    /// Whether an attempt may begin.
    pub fn may_start(&self, now: Timestamp) -> bool {
        self.full_time <= now.plus(self.ahead)
    }

    /// An attempt begins.
    pub fn start(&mut self, now: Timestamp) {
        self.full_time = self.full_time.max(now).plus(INTERVAL);
    }

    /// One that had begun was answered.
    pub fn answered(&mut self) {
        self.full_time = self.full_time.minus(INTERVAL);
    }

    /// When to look again for somebody who waits: a further attempt may begin then.
    pub fn alarm(&mut self, now: Timestamp) -> Timestamp {
        let next = self.full_time.minus(self.ahead).max(now);
        self.alarm = self.alarm.plus(INTERVAL).max(next);
        self.alarm
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_micros(1_770_283_800_000_000);

    fn started(ramp: &mut Ramp, now: Timestamp) -> u32 {
        let mut count = 0;
        while ramp.may_start(now) {
            ramp.start(now);
            count += 1;
        }
        count
    }

    #[test]
    fn a_hundred_begin_at_once_and_the_others_one_by_one() {
        let mut ramp = Ramp::new(100);
        assert_eq!(started(&mut ramp, NOW), 100);
        assert_eq!(started(&mut ramp, NOW.plus(INTERVAL / 2)), 0);
        assert_eq!(started(&mut ramp, NOW.plus(INTERVAL)), 1);
        assert_eq!(started(&mut ramp, NOW.plus(INTERVAL * 200)), 100);
        assert_eq!(started(&mut ramp, NOW.plus(INTERVAL * 200)), 0);
    }

    #[test]
    fn what_is_answered_does_not_count() {
        let mut ramp = Ramp::new(100);
        for _ in 0..10_000 {
            assert!(ramp.may_start(NOW));
            ramp.start(NOW);
            ramp.answered();
        }
        assert_eq!(started(&mut ramp, NOW), 100);
        ramp.answered();
        assert_eq!(started(&mut ramp, NOW), 1);
    }

    #[test]
    fn somebody_looks_again_whenever_one_may_begin() {
        let mut ramp = Ramp::new(100);
        started(&mut ramp, NOW);
        let mut at = NOW;
        for _ in 0..50 {
            let alarm = ramp.alarm(NOW);
            assert!(alarm > at);
            at = alarm;
            assert_eq!(started(&mut ramp, at), 1);
        }
    }
}
