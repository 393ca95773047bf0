//! Whether a relay is in order: one that is not comes last for a while, and then one message finds
//! out whether it is again.
//!
//! Guarantees: a relay that hangs, or cannot be reached, holds up one message a cool-down, however
//! many there are; the cool-down grows while it stays so, up to [`LONGEST`]. It is a preference, not a
//! breaker: where no other relay is left, it is asked.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::domain::Timestamp;

use super::reply::{Problem, Stage};

/// How long a relay that was out of order comes last, the first time.
const SHORTEST: Duration = Duration::from_secs(30);
/// The same when it stays out of order.
const LONGEST: Duration = Duration::from_mins(5);

/// What an attempt says about its relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sign {
    Works,
    OutOfOrder,
    /// Nothing.
    None,
}

impl Sign {
    /// What the end of an attempt at `stage` says.
    pub(super) const fn of(stage: Stage, problem: Option<&Problem>) -> Self {
        match (problem, stage) {
            (None, _) => Self::Works,
            // It hung up on this content, perhaps; when it is down, the next connection tells.
            (Some(Problem::Unsupported(_)), _)
            | (Some(Problem::Connection | Problem::Protocol), Stage::Content) => Self::None,
            // What it says of a recipient or of a content, it says because it works.
            (Some(Problem::Refused(_)), Stage::Recipient | Stage::Data | Stage::Content) => {
                Self::Works
            }
            // It is silent, gone, or has nothing to do with us.
            _ => Self::OutOfOrder,
        }
    }
}

#[derive(Clone, Copy, Default)]
struct Known {
    /// Times in a row that it was out of order.
    failures: u32,
    /// Until when it comes last.
    until: Option<Timestamp>,
    /// Whether a message is finding out.
    is_probed: bool,
}

impl Known {
    fn cool_down(self) -> Duration {
        let doubled = 1_u32.checked_shl(self.failures.saturating_sub(1)).unwrap_or(u32::MAX);
        SHORTEST.saturating_mul(doubled).min(LONGEST)
    }
}

/// What is known of a relay.
#[derive(Default)]
pub(super) struct Health(Mutex<Known>);

impl Health {
    /// Whether a message may go to it before those that are in order were asked: it is in order, or
    /// its cool-down is over. Then this message is the one that finds out, and the next has to wait
    /// for another cool-down or for its success.
    pub(super) fn takes_messages(&self, now: Timestamp) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(until) = known.until else { return true };
        let is_over = until <= now;
        if is_over {
            known.until = Some(now.plus(known.cool_down()));
            known.is_probed = true;
        }
        is_over
    }

    /// Takes note of a sign.
    pub(super) fn note(&self, sign: Sign, now: Timestamp) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match sign {
            Sign::Works => *known = Known::default(),
            // What was under way when it went out of order says the same thing once more.
            Sign::OutOfOrder
                if !known.is_probed && known.until.is_some_and(|until| now < until) => {}
            Sign::OutOfOrder => {
                known.is_probed = false;
                known.failures = known.failures.saturating_add(1);
                known.until = Some(now.plus(known.cool_down()));
            }
            Sign::None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_micros(1_000_000_000);

    #[test]
    fn one_message_a_cool_down_finds_out() {
        let health = Health::default();
        assert!(health.takes_messages(NOW));
        health.note(Sign::OutOfOrder, NOW);
        // The others that hung there at the same time do not count again.
        health.note(Sign::OutOfOrder, NOW);
        assert!(!health.takes_messages(NOW.plus(SHORTEST / 2)));
        let then = NOW.plus(SHORTEST);
        assert!(health.takes_messages(then), "it is tried again");
        assert!(!health.takes_messages(then), "by one message alone");
        health.note(Sign::Works, then);
        assert!(health.takes_messages(then) && health.takes_messages(then));
    }

    #[test]
    fn the_cool_down_grows_to_its_limit() {
        let health = Health::default();
        let mut now = NOW;
        for cool_down in [30, 60, 120, 240, 300, 300].map(Duration::from_secs) {
            health.note(Sign::OutOfOrder, now);
            assert!(!health.takes_messages(now.plus(cool_down / 2)));
            now = now.plus(cool_down);
            assert!(health.takes_messages(now));
        }
    }

    #[test]
    fn what_says_something_about_a_relay() {
        let refused = Problem::Refused(super::super::reply::Reply::new(550, "5.1.1 no"));
        for (stage, problem, sign) in [
            (Stage::Content, None, Sign::Works),
            (Stage::Sender, Some(&refused), Sign::OutOfOrder),
            (Stage::Recipient, Some(&refused), Sign::Works),
            (Stage::Content, Some(&refused), Sign::Works),
            (Stage::Recipient, Some(&Problem::Timeout), Sign::OutOfOrder),
            (Stage::Content, Some(&Problem::Timeout), Sign::OutOfOrder),
            (Stage::Data, Some(&Problem::Connection), Sign::OutOfOrder),
            (Stage::Content, Some(&Problem::Connection), Sign::None),
            (Stage::Sender, Some(&Problem::Unsupported("")), Sign::None),
            (Stage::Connect, Some(&Problem::Dns), Sign::OutOfOrder),
        ] {
            assert_eq!(Sign::of(stage, problem), sign, "{stage:?} {problem:?}");
        }
    }
}
