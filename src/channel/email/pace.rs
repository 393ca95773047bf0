//! Gives each message its turn, so that no more than a rate go out.
//!
//! Guarantees: two turns of one name are no closer together than the rate allows; nothing is saved
//! up for a burst; memory is bounded. The limit holds on this node; it is no promise to a server.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::domain::Timestamp;

/// Most names that are remembered; when there are more, those whose turn is over are forgotten.
const MAX_NAMES: usize = 10_000;

/// The turns of names: domains, or one relay.
pub(super) struct Pace {
    /// `None` for no limit.
    interval: Option<Duration>,
    next: Mutex<HashMap<String, Timestamp>>,
}

impl Pace {
    /// `rate` turns a second; 0 for no limit.
    pub(super) fn new(rate: f64) -> Self {
        let interval = Duration::try_from_secs_f64(1.0 / rate).ok().filter(|it| !it.is_zero());
        Self { interval, next: Mutex::default() }
    }

    /// Takes the next turn of `name`: how long to wait for it.
    ///
    /// # Errors
    /// How long it would take, when that is longer than `max_wait`. No turn is taken then.
    pub(super) fn turn(
        &self,
        name: &str,
        now: Timestamp,
        max_wait: Duration,
    ) -> Result<Duration, Duration> {
        let Some(interval) = self.interval else { return Ok(Duration::ZERO) };
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        if next.len() >= MAX_NAMES && !next.contains_key(name) {
            next.retain(|_, turn| *turn > now);
        }
        let turn = next.get(name).copied().unwrap_or(now).max(now);
        let wait = turn.since(now);
        if wait > max_wait || next.len() >= MAX_NAMES && !next.contains_key(name) {
            return Err(wait.max(interval));
        }
        next.insert(name.to_owned(), turn.plus(interval));
        Ok(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_micros(1_000_000_000);
    const LONG: Duration = Duration::from_secs(1);

    #[test]
    fn turns_keep_their_distance_by_name() {
        let pace = Pace::new(4.0);
        let quarter = Duration::from_millis(250);
        for turn in 0..=4 {
            assert_eq!(pace.turn("a", NOW, LONG), Ok(quarter * turn));
        }
        assert_eq!(pace.turn("a", NOW, LONG), Err(quarter * 5), "too long, and none is taken");
        assert_eq!(pace.turn("a", NOW, LONG * 2), Ok(quarter * 5));
        assert_eq!(pace.turn("b", NOW, LONG), Ok(Duration::ZERO));
        // Nothing is saved up meanwhile.
        let later = NOW.plus(LONG * 60);
        assert_eq!(pace.turn("a", later, LONG), Ok(Duration::ZERO));
        assert_eq!(pace.turn("a", later, LONG), Ok(quarter));
    }

    #[test]
    fn without_a_rate_nobody_waits_and_nobody_is_remembered() {
        let pace = Pace::new(0.0);
        for _ in 0..3 {
            assert_eq!(pace.turn("a", NOW, Duration::ZERO), Ok(Duration::ZERO));
        }
        assert!(pace.next.lock().expect("lock").is_empty());
    }

    #[test]
    fn names_are_bounded() {
        let pace = Pace::new(1.0);
        for name in 0..MAX_NAMES {
            assert!(pace.turn(&name.to_string(), NOW, LONG).is_ok());
        }
        assert!(pace.turn("one more", NOW, LONG).is_err());
        assert!(pace.turn("one more", NOW.plus(LONG * 2), LONG).is_ok());
        assert_eq!(pace.next.lock().expect("lock").len(), 1);
    }
}
