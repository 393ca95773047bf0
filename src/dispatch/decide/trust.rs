//! How many attempts at once an endpoint is trusted with, by how its last ones ended on this node.
//!
//! Places of attempts are few, and an endpoint that hangs keeps each of its own until a time-out. So
//! an endpoint that has answered nothing yet begins with [`START`] attempts at once, and gets one more
//! with each attempt that ends (twice as many a round trip, like the slow start of RFC 5681); one that
//! keeps silent until the time is up falls back by half. A thousand new endpoints that all hang hold
//! two thousand places, and not sixteen thousand.
//!
//! Endpoints that end attempts at once ([`PROMPT`]) have a part of the places to themselves, in memory
//! and under way: they give it back before anybody misses it.

use std::collections::HashMap;
use std::time::Duration;

use crate::domain::Timestamp;
use crate::domain::attempt::{ErrorKind, Report};
use crate::domain::id::SubscriptionId;

/// Attempts at once to an endpoint of which nothing is known.
pub const START: u32 = 2;
/// What ends sooner counts as prompt.
pub const PROMPT: Duration = Duration::from_secs(1);
/// Endpoints that had no attempt for so long begin anew.
const FORGOTTEN_AFTER: Duration = Duration::from_mins(1);
/// How often it is noted that an endpoint is as it was.
const NOTED_EVERY: Duration = Duration::from_secs(1);

/// What a lane may have now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Attempts under way, the probe of an open breaker aside.
    pub in_flight: usize,
    /// Whether the places that are kept for prompt endpoints are for it, too.
    pub is_prompt: bool,
}

/// How long an attempt kept its place, and whether for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// It ended at once, well or badly.
    Prompt,
    /// The endpoint took its time to answer.
    Late,
    /// It took its time, and nothing came.
    Silent,
}

impl Sign {
    /// What an attempt says.
    pub fn of(report: &Report) -> Self {
        let kind = report.failure.as_ref().map(|failure| failure.kind);
        match kind {
            _ if report.duration < PROMPT => Self::Prompt,
            None | Some(ErrorKind::HttpStatus | ErrorKind::ResponseTooLarge | ErrorKind::Smtp) => {
                Self::Late
            }
            Some(_) => Self::Silent,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Trust {
    in_flight: u32,
    is_prompt: bool,
    last: Timestamp,
}

impl Trust {
    fn after(self, sign: Sign, limit: u32, now: Timestamp) -> Self {
        let in_flight = match sign {
            Sign::Prompt | Sign::Late => self.in_flight.saturating_add(1).min(limit.max(START)),
            Sign::Silent => (self.in_flight / 2).max(START),
        };
        Self { in_flight, is_prompt: sign == Sign::Prompt, last: now }
    }
}

impl Default for Trust {
    fn default() -> Self {
        Self { in_flight: START, is_prompt: false, last: Timestamp::from_micros(0) }
    }
}

/// What a node has seen of the endpoints that it sends to.
#[derive(Debug, Default)]
pub struct Trusts(HashMap<SubscriptionId, Trust>);

impl Trusts {
    /// What a lane may have that is allowed `in_flight` attempts under way.
    pub fn allowance(&self, id: SubscriptionId, in_flight: u32) -> Allowance {
        let trust = self.0.get(&id).copied().unwrap_or_default();
        let in_flight = usize::try_from(in_flight.min(trust.in_flight)).unwrap_or(usize::MAX);
        Allowance { in_flight, is_prompt: trust.is_prompt }
    }

    /// Whether [`Trusts::see`] would change anything.
    pub fn is_news(&self, id: SubscriptionId, sign: Sign, limit: u32, now: Timestamp) -> bool {
        self.0.get(&id).is_none_or(|trust| {
            let after = trust.after(sign, limit, now);
            (after.in_flight, after.is_prompt) != (trust.in_flight, trust.is_prompt)
                || now.since(trust.last) > NOTED_EVERY
        })
    }

    /// Takes note of how an attempt ended, to an endpoint that may have `limit` at once.
    pub fn see(&mut self, id: SubscriptionId, sign: Sign, limit: u32, now: Timestamp) {
        let trust = self.0.entry(id).or_default();
        *trust = trust.after(sign, limit, now);
    }

    /// Forgets endpoints that had no attempt for long.
    pub fn prune(&mut self, now: Timestamp) {
        self.0.retain(|_, trust| now.since(trust.last) < FORGOTTEN_AFTER);
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_micros(1_770_283_800_000_000).plus(Duration::from_secs(seconds))
    }

    #[test]
    fn an_endpoint_gets_more_with_each_answer_and_half_when_it_keeps_silent() {
        let id = SubscriptionId::new(at(0), &mut StdRng::seed_from_u64(3));
        let mut trusts = Trusts::default();
        let in_flight = |trusts: &Trusts| trusts.allowance(id, 16).in_flight;
        assert_eq!(trusts.allowance(id, 16), Allowance { in_flight: 2, is_prompt: false });
        trusts.see(id, Sign::Late, 16, at(0));
        assert_eq!(trusts.allowance(id, 16), Allowance { in_flight: 3, is_prompt: false });
        for _ in 0..40 {
            trusts.see(id, Sign::Prompt, 16, at(0));
        }
        assert_eq!(trusts.allowance(id, 16), Allowance { in_flight: 16, is_prompt: true });
        assert_eq!(trusts.allowance(id, 5).in_flight, 5, "never more than it may have");
        let after_silence = [8, 4, 2, 2].map(|_| {
            trusts.see(id, Sign::Silent, 16, at(0));
            in_flight(&trusts)
        });
        assert_eq!(after_silence, [8, 4, 2, 2]);
        assert!(!trusts.allowance(id, 16).is_prompt);
    }

    #[test]
    fn what_changes_nothing_is_no_news_and_what_is_idle_is_forgotten() {
        let id = SubscriptionId::new(at(0), &mut StdRng::seed_from_u64(4));
        let mut trusts = Trusts::default();
        for _ in 0..2 {
            assert!(trusts.is_news(id, Sign::Prompt, 4, at(0)));
            trusts.see(id, Sign::Prompt, 4, at(0));
        }
        assert!(!trusts.is_news(id, Sign::Prompt, 4, at(1)));
        assert!(
            trusts.is_news(id, Sign::Prompt, 4, at(2)),
            "that it was used is noted now and then"
        );
        assert!(trusts.is_news(id, Sign::Late, 4, at(1)));
        trusts.see(id, Sign::Prompt, 4, at(30));
        trusts.prune(at(80));
        assert!(trusts.allowance(id, 4).is_prompt);
        trusts.prune(at(90));
        assert!(!trusts.allowance(id, 4).is_prompt);
    }
}
