//! Gives each message its turn, so that no more than a rate go out.
//!
//! Guarantees: two turns of one name are no closer together than the rate allows; nothing is saved
//! up for a burst; memory is bounded. The limit holds on this node; it is no promise to a server.
//!
//! Whoever would wait too long gets no turn, and is told when to come again: behind those who were told
//! so before. Otherwise a long backlog would come again all at once, every few seconds.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::domain::Timestamp;

/// Most names that are remembered; when there are more, those whose turn is over are forgotten.
const MAX_NAMES: usize = 10_000;

/// The longest that somebody is told to stay away: what is ahead may have been canceled meanwhile.
const MAX_AWAY: Duration = Duration::from_mins(5);

/// The turns of names: domains, or one relay.
pub(super) struct Pace {
    /// `None` for no limit.
    interval: Option<Duration>,
    names: Mutex<HashMap<String, Line>>,
}

/// Where the turns of a name are.
#[derive(Clone, Copy)]
struct Line {
    /// The next turn that is free.
    next: Timestamp,
    /// Behind the last one that was told to come again.
    end: Timestamp,
}

impl Pace {
    /// `rate` turns a second; 0 for no limit.
    pub(super) fn new(rate: f64) -> Self {
        let interval = Duration::try_from_secs_f64(1.0 / rate).ok().filter(|it| !it.is_zero());
        Self { interval, names: Mutex::default() }
    }

    /// Takes the next turn of `name`: how long to wait for it.
    ///
    /// # Errors
    /// When that is longer than `max_wait`: after how long to come again. No turn is taken then.
    pub(super) fn turn(
        &self,
        name: &str,
        now: Timestamp,
        max_wait: Duration,
    ) -> Result<Duration, Duration> {
        let Some(interval) = self.interval else { return Ok(Duration::ZERO) };
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if names.len() >= MAX_NAMES && !names.contains_key(name) {
            names.retain(|_, line| line.next > now || line.end > now);
            if names.len() >= MAX_NAMES {
                return Err(interval.min(MAX_AWAY));
            }
        }
        let line = names.entry(name.to_owned()).or_insert(Line { next: now, end: now });
        let turn = line.next.max(now);
        let wait = turn.since(now);
        if wait > max_wait {
            let again = line.end.max(turn);
            let away = again.since(now).min(MAX_AWAY);
            line.end = now.plus(away + interval);
            return Err(away.max(Duration::from_millis(1)));
        }
        line.next = turn.plus(interval);
        Ok(wait)
    }

    /// Gives back the turn that was taken at `turn`, when nobody has taken one after it.
    pub(super) fn give_back(&self, name: &str, turn: Timestamp) {
        let Some(interval) = self.interval else { return };
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(line) = names.get_mut(name).filter(|line| line.next == turn.plus(interval)) {
            line.next = turn;
        }
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
        assert_eq!(pace.turn("a", NOW, LONG), Err(quarter * 6), "behind the one before");
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
        assert!(pace.names.lock().expect("lock").is_empty());
    }

    #[test]
    fn a_backlog_comes_again_in_line() {
        let pace = Pace::new(1.0);
        assert_eq!(pace.turn("a", NOW, LONG), Ok(Duration::ZERO));
        assert_eq!(pace.turn("a", NOW, LONG), Ok(LONG));
        let away: Vec<_> = (0..1_000).map(|_| pace.turn("a", NOW, LONG)).collect();
        assert_eq!((away[0], away[1], away[100]), (Err(LONG * 2), Err(LONG * 3), Err(LONG * 102)));
        assert_eq!(away[999], Err(MAX_AWAY), "nobody is sent away for ever");
        // Who comes when told finds a turn, and what was taken for nothing is given back.
        let then = NOW.plus(LONG * 2);
        assert_eq!(pace.turn("a", then, LONG), Ok(Duration::ZERO));
        pace.give_back("a", then);
        assert_eq!(pace.turn("a", then, LONG), Ok(Duration::ZERO));
        assert_eq!(pace.turn("a", then, LONG), Ok(LONG));
        pace.give_back("a", then);
        assert_eq!(pace.turn("a", then, LONG * 2), Ok(LONG * 2), "somebody has the one after it");
    }

    #[test]
    fn names_are_bounded() {
        let pace = Pace::new(1.0);
        for name in 0..MAX_NAMES {
            assert!(pace.turn(&name.to_string(), NOW, LONG).is_ok());
        }
        assert!(pace.turn("one more", NOW, LONG).is_err());
        assert!(pace.turn("one more", NOW.plus(LONG * 2), LONG).is_ok());
        assert_eq!(pace.names.lock().expect("lock").len(), 1);
    }
}
