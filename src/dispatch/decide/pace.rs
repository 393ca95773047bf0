//! How fast a lane works.

use std::time::Duration;

use crate::domain::Timestamp;

/// How many jobs end in a window.
#[derive(Debug, Default)]
pub struct Pace {
    since: Option<Timestamp>,
    /// Jobs that have ended since then, and in the window before.
    now: usize,
    before: usize,
}

impl Pace {
    /// Over how long it is counted.
    pub const WINDOW: Duration = Duration::from_secs(1);

    fn roll(&mut self, now: Timestamp) {
        let age = self.since.map_or(Duration::MAX, |since| now.since(since));
        if age >= Self::WINDOW {
            self.before = if age < 2 * Self::WINDOW { self.now } else { 0 };
            (self.since, self.now) = (Some(now), 0);
        }
    }

    /// A job has ended.
    pub fn count(&mut self, now: Timestamp) {
        self.roll(now);
        self.now += 1;
    }

    /// Whether nothing is counted, as of the last look.
    pub const fn is_empty(&self) -> bool {
        self.now == 0 && self.before == 0
    }

    /// Jobs in a window.
    pub fn jobs(&mut self, now: Timestamp) -> usize {
        self.roll(now);
        self.now.max(self.before)
    }
}
