//! When a failed attempt is tried again.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Violations;

/// Most retries that a policy may ask for.
pub const MAX_RETRIES: u32 = 100;
/// Longest wait between two attempts that a policy may ask for.
pub const MAX_INTERVAL: Duration = Duration::from_hours(168);
/// Longest wait that a receiver's `Retry-After` may ask for.
pub const MAX_RETRY_AFTER: Duration = Duration::from_hours(24);
/// Most intervals in a schedule.
pub const MAX_INTERVALS: usize = 100;
/// The spread of delays unless a policy says otherwise: ±10 %, so that retries do not come in waves.
pub const DEFAULT_JITTER: f64 = 0.1;

/// How the delays grow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Backoff {
    /// `initial`, then each time `multiplier` times longer, never over `max`.
    Exponential {
        /// The first delay.
        initial: Duration,
        /// The factor from one delay to the next, at least 1.
        multiplier: f64,
        /// The longest delay.
        max: Duration,
    },
    /// One delay per retry; the last one repeats.
    Schedule(Vec<Duration>),
}

/// How often, and after which delays, a failed delivery is tried again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RetryPolicy {
    /// Retries after the first attempt; zero means sent once.
    pub max_retries: u32,
    /// The delays.
    pub backoff: Backoff,
    /// Each delay is drawn from `delay × (1 ± jitter)`; from 0 to 1.
    pub jitter: f64,
}

impl RetryPolicy {
    /// After 5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 14 h, 20 h, 24 h: ten attempts in a little over
    /// three days.
    pub fn built_in() -> Self {
        const MINUTE: u64 = 60;
        const HOUR: u64 = 60 * MINUTE;
        let seconds = [
            5,
            5 * MINUTE,
            30 * MINUTE,
            2 * HOUR,
            5 * HOUR,
            10 * HOUR,
            14 * HOUR,
            20 * HOUR,
            24 * HOUR,
        ];
        Self {
            max_retries: 9,
            backoff: Backoff::Schedule(seconds.map(Duration::from_secs).to_vec()),
            jitter: DEFAULT_JITTER,
        }
    }

    /// The delay before retry number `retry` (from 1), or `None` when no retry is left.
    ///
    /// `random` is uniform in [0, 1). `retry_after` is the receiver's wish: it is honoured within
    /// [our delay, 24 h], so that jitter never undercuts it.
    pub fn delay(
        &self,
        retry: u32,
        random: f64,
        retry_after: Option<Duration>,
    ) -> Option<Duration> {
        if retry == 0 || retry > self.max_retries {
            return None;
        }
        let base = match &self.backoff {
            Backoff::Schedule(intervals) => {
                let index = (retry as usize - 1).min(intervals.len().saturating_sub(1));
                intervals.get(index).copied().unwrap_or_default()
            }
            Backoff::Exponential { initial, multiplier, max } => {
                let exponent = i32::try_from(retry - 1).unwrap_or(i32::MAX);
                let seconds = initial.as_secs_f64() * multiplier.powi(exponent);
                Duration::try_from_secs_f64(seconds).unwrap_or(*max).min(*max)
            }
        };
        let factor = 1.0 + self.jitter * (2.0 * random - 1.0);
        let ours = base.mul_f64(factor.max(0.0));
        Some(
            retry_after.map_or(ours, |wish| {
                wish.clamp(ours.min(MAX_RETRY_AFTER), MAX_RETRY_AFTER).max(ours)
            }),
        )
    }

    /// Notes in `violations` what is wrong, with paths below `field`.
    pub fn check(&self, field: &str, violations: &mut Violations) {
        if self.max_retries > MAX_RETRIES {
            violations.add(
                format!("{field}.max_retries"),
                format!("must be at most {MAX_RETRIES}, is {}", self.max_retries),
            );
        }
        if !(0.0..=1.0).contains(&self.jitter) {
            violations.add(format!("{field}.jitter"), "must be from 0 to 1");
        }
        let interval = |path: String, interval: Duration, violations: &mut Violations| {
            if interval > MAX_INTERVAL {
                violations.add(path, "must be at most 7 days (604800s)");
            }
        };
        match &self.backoff {
            Backoff::Exponential { initial, multiplier, max } => {
                interval(format!("{field}.exponential.initial_interval"), *initial, violations);
                interval(format!("{field}.exponential.max_interval"), *max, violations);
                if !(1.0..=100.0).contains(multiplier) {
                    violations
                        .add(format!("{field}.exponential.multiplier"), "must be from 1 to 100");
                }
                if max < initial && *initial <= MAX_INTERVAL {
                    violations.add(
                        format!("{field}.exponential.max_interval"),
                        "must not be shorter than initial_interval",
                    );
                }
            }
            Backoff::Schedule(intervals) => {
                if self.max_retries > 0 && intervals.is_empty() {
                    violations.add(format!("{field}.schedule.intervals"), "must not be empty");
                }
                if intervals.len() > MAX_INTERVALS {
                    violations.add(
                        format!("{field}.schedule.intervals"),
                        format!("must have at most {MAX_INTERVALS} entries"),
                    );
                }
                for (index, delay) in intervals.iter().enumerate().take(MAX_INTERVALS) {
                    interval(format!("{field}.schedule.intervals[{index}]"), *delay, violations);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIDDLE: f64 = 0.5;

    #[test]
    fn the_built_in_policy_makes_ten_attempts_in_a_little_over_three_days() {
        let policy = RetryPolicy::built_in();
        let delays: Vec<_> = (1..=20).filter_map(|n| policy.delay(n, MIDDLE, None)).collect();
        assert_eq!(delays.len(), 9);
        assert_eq!(delays[0], Duration::from_secs(5));
        let days = delays.iter().sum::<Duration>().as_secs_f64() / 86_400.0;
        assert!((3.0..3.3).contains(&days), "{days}");
    }

    #[test]
    fn a_policy_without_retries_sends_once() {
        let policy = RetryPolicy { max_retries: 0, ..RetryPolicy::built_in() };
        assert_eq!(policy.delay(1, MIDDLE, Some(Duration::from_secs(1))), None);
    }

    #[test]
    fn exponential_delays_grow_to_their_cap() {
        let backoff = Backoff::Exponential {
            initial: Duration::from_secs(1),
            multiplier: 2.0,
            max: Duration::from_secs(10),
        };
        let policy = RetryPolicy { max_retries: 100, backoff, jitter: 0.0 };
        let seconds: Vec<_> = [1, 2, 3, 4, 5, 100]
            .map(|n| policy.delay(n, MIDDLE, None).expect("left").as_secs())
            .to_vec();
        assert_eq!(seconds, [1, 2, 4, 8, 10, 10]);
    }

    #[test]
    fn jitter_stays_in_its_range_and_never_undercuts_retry_after() {
        let policy = RetryPolicy::built_in();
        for step in 0..1_000_i32 {
            let random = f64::from(step) / 1_000.0;
            let delay = policy.delay(1, random, None).expect("left").as_secs_f64();
            assert!((4.5..=5.5).contains(&delay), "{delay}");
            let wish = Duration::from_mins(1);
            assert_eq!(policy.delay(1, random, Some(wish)), Some(wish));
        }
    }

    #[test]
    fn retry_after_is_clamped_to_our_delay_and_a_day() {
        let policy = RetryPolicy { jitter: 0.0, ..RetryPolicy::built_in() };
        let asked = |seconds| policy.delay(2, MIDDLE, Some(Duration::from_secs(seconds)));
        assert_eq!(asked(1), Some(Duration::from_mins(5)));
        assert_eq!(asked(1_000_000), Some(MAX_RETRY_AFTER));
    }
}
