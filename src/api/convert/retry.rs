//! Retry policies.

use std::time::Duration;

use crate::api::proto as pb;
use crate::domain::Violations;
use crate::domain::retry::{Backoff, DEFAULT_JITTER, MAX_INTERVAL, MAX_RETRIES, RetryPolicy};

use super::{count_to_proto, duration, duration_to_proto};

/// What each exponential wait is multiplied by unless the policy says otherwise.
const DEFAULT_MULTIPLIER: f64 = 2.0;
/// The longest exponential wait unless the policy says otherwise, or begins with a longer one.
const DEFAULT_MAX_INTERVAL: Duration = Duration::from_hours(24);

/// A policy of the contract with its gaps filled. Violations stand below `field`. What could not be
/// read is filled with what the domain has nothing against, so that its rules for the rest are
/// checked, and told, together with these violations.
pub(crate) fn policy(
    policy: &pb::RetryPolicy,
    field: &str,
    violations: &mut Violations,
) -> RetryPolicy {
    let built_in = RetryPolicy::built_in();
    let mut found = Violations::new();
    let mut max_retries = built_in.max_retries;
    let backoff = match &policy.backoff {
        None => built_in.backoff,
        Some(pb::retry_policy::Backoff::Exponential(waits)) => exponential(waits, &mut found),
        Some(pb::retry_policy::Backoff::Schedule(schedule)) => {
            let waits = intervals(schedule, &mut found);
            // A schedule that is too long is told as such.
            max_retries = u32::try_from(waits.len()).unwrap_or(MAX_RETRIES).min(MAX_RETRIES);
            Backoff::Schedule(waits)
        }
    };
    if let Some(wish) = policy.max_retries {
        match u32::try_from(wish) {
            Ok(wish) => max_retries = wish,
            Err(_) => found.add("max_retries", "must not be negative; 0 means sent once"),
        }
    }
    violations.nest(field, found);
    RetryPolicy { max_retries, backoff, jitter: policy.jitter.unwrap_or(DEFAULT_JITTER) }
}

fn exponential(waits: &pb::retry_policy::Exponential, violations: &mut Violations) -> Backoff {
    if waits.initial_interval.is_none() {
        violations.add("exponential.initial_interval", "must be set, for example 5s");
    }
    let initial = waits.initial_interval.as_ref();
    let max = waits.max_interval.as_ref();
    let initial = duration(initial, "exponential.initial_interval", violations).unwrap_or_default();
    // Nobody is told that a wait is wrong which they did not choose.
    let default_max = DEFAULT_MAX_INTERVAL.max(initial.min(MAX_INTERVAL));
    Backoff::Exponential {
        initial,
        multiplier: if waits.multiplier == 0.0 { DEFAULT_MULTIPLIER } else { waits.multiplier },
        max: duration(max, "exponential.max_interval", violations).unwrap_or(default_max),
    }
}

fn intervals(schedule: &pb::retry_policy::Schedule, violations: &mut Violations) -> Vec<Duration> {
    if schedule.intervals.is_empty() {
        violations.add("schedule.intervals", "must not be empty");
    }
    let waits = schedule.intervals.iter().enumerate();
    waits
        .map(|(index, wait)| {
            let field = format!("schedule.intervals[{index}]");
            // Each keeps its place: the domain tells by it what is wrong.
            duration(Some(wait), &field, violations).unwrap_or_default()
        })
        .collect()
}

/// A policy as the contract writes it, with nothing left to defaults.
pub(crate) fn policy_to_proto(policy: &RetryPolicy) -> pb::RetryPolicy {
    let backoff = match &policy.backoff {
        Backoff::Exponential { initial, multiplier, max } => {
            pb::retry_policy::Backoff::Exponential(pb::retry_policy::Exponential {
                initial_interval: Some(duration_to_proto(*initial)),
                multiplier: *multiplier,
                max_interval: Some(duration_to_proto(*max)),
            })
        }
        Backoff::Schedule(waits) => {
            pb::retry_policy::Backoff::Schedule(pb::retry_policy::Schedule {
                intervals: waits.iter().copied().map(duration_to_proto).collect(),
            })
        }
    };
    pb::RetryPolicy {
        max_retries: Some(count_to_proto(policy.max_retries)),
        backoff: Some(backoff),
        jitter: Some(policy.jitter),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(message: &pb::RetryPolicy) -> (RetryPolicy, Violations) {
        let mut violations = Violations::new();
        let read = policy(message, "retry_policy", &mut violations);
        (read, violations)
    }

    /// The fields that the conversion and the domain name together.
    fn wrong_fields(message: &pb::RetryPolicy) -> Vec<String> {
        let (read, mut violations) = read(message);
        let mut found = Violations::new();
        read.check("retry_policy", &mut found);
        crate::api::convert::merge(&mut violations, &found);
        violations.iter().map(|violation| violation.field.clone()).collect()
    }

    fn seconds(seconds: i64) -> prost_types::Duration {
        prost_types::Duration { seconds, nanos: 0 }
    }

    #[test]
    fn what_cannot_be_read_does_not_hide_what_is_not_allowed() {
        let exponential = |initial, multiplier, max| {
            Some(pb::retry_policy::Backoff::Exponential(pb::retry_policy::Exponential {
                initial_interval: Some(seconds(initial)),
                multiplier,
                max_interval: Some(seconds(max)),
            }))
        };
        let message = |backoff, jitter| pb::RetryPolicy { backoff, jitter, ..Default::default() };
        let (initial, max) =
            ("retry_policy.exponential.initial_interval", "retry_policy.exponential.max_interval");
        let (multiplier, jitter) = ("retry_policy.exponential.multiplier", "retry_policy.jitter");
        let all = message(exponential(1, 0.5, 999_999_999), Some(3.0));
        assert_eq!(wrong_fields(&all), [jitter, max, multiplier]);
        let negative = message(exponential(-1, 0.1, 5), None);
        assert_eq!(wrong_fields(&negative), [initial, multiplier]);
        let negative = message(exponential(5, 2.0, -1), Some(f64::NAN));
        assert_eq!(wrong_fields(&negative), [max, jitter]);

        let intervals = [-1, 999_999_999, 5, 999_999_999].map(seconds);
        let schedule = pb::retry_policy::Schedule { intervals: intervals.to_vec() };
        let schedule = message(Some(pb::retry_policy::Backoff::Schedule(schedule)), None);
        let named = [0, 1, 3].map(|index| format!("retry_policy.schedule.intervals[{index}]"));
        assert_eq!(wrong_fields(&schedule), named);
    }

    #[test]
    fn only_what_was_sent_is_blamed() {
        let hours = |hours: i64| prost_types::Duration { seconds: hours * 3_600, nanos: 0 };
        let fields = |backoff| {
            let message = pb::RetryPolicy { backoff: Some(backoff), ..Default::default() };
            wrong_fields(&message)
        };
        let exponential = |hours_initial| {
            pb::retry_policy::Backoff::Exponential(pb::retry_policy::Exponential {
                initial_interval: Some(hours(hours_initial)),
                ..Default::default()
            })
        };
        assert_eq!(fields(exponential(48)), [""; 0]);
        assert!(
            fields(exponential(200))
                .contains(&"retry_policy.exponential.initial_interval".to_owned())
        );
        let long = pb::retry_policy::Schedule { intervals: vec![hours(1); 101] };
        let long = fields(pb::retry_policy::Backoff::Schedule(long));
        assert_eq!(long, ["retry_policy.schedule.intervals"]);
    }

    #[test]
    fn an_empty_policy_is_the_built_in_one() {
        assert_eq!(read(&pb::RetryPolicy::default()).0, RetryPolicy::built_in());
    }

    #[test]
    fn a_schedule_is_followed_to_its_end() {
        let intervals = [1, 2].map(|seconds| prost_types::Duration { seconds, nanos: 0 }).to_vec();
        let schedule = pb::retry_policy::Schedule { intervals };
        let backoff = Some(pb::retry_policy::Backoff::Schedule(schedule));
        let policy = read(&pb::RetryPolicy { backoff, ..Default::default() }).0;
        assert_eq!(policy.max_retries, 2);
    }

    #[test]
    fn policies_read_back() {
        let exponential = Backoff::Exponential {
            initial: Duration::from_millis(250),
            multiplier: 1.5,
            max: Duration::from_mins(1),
        };
        let ours = RetryPolicy { max_retries: 0, backoff: exponential, jitter: 0.0 };
        for policy in [ours, RetryPolicy::built_in()] {
            assert_eq!(read(&policy_to_proto(&policy)), (policy, Violations::new()));
        }
    }

    #[test]
    fn wrong_fields_are_named() {
        let waits = pb::retry_policy::Exponential {
            max_interval: Some(prost_types::Duration { seconds: -1, nanos: 0 }),
            ..Default::default()
        };
        let message = pb::RetryPolicy {
            max_retries: Some(-1),
            backoff: Some(pb::retry_policy::Backoff::Exponential(waits)),
            jitter: None,
        };
        assert_eq!(
            wrong_fields(&message),
            [
                "retry_policy.exponential.initial_interval",
                "retry_policy.exponential.max_interval",
                "retry_policy.max_retries"
            ]
        );
    }
}
