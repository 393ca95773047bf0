//! Retry policies as options, and as a sentence. Shared by tenants, subscriptions and event types.

use std::time::Duration;

use super::super::output::time;
use crate::api::proto::RetryPolicy;
use crate::api::proto::retry_policy::{Backoff, Exponential, Schedule};

/// How often, and after which waits, a failed delivery is tried again.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct RetryOptions {
    /// How many attempts may follow the first; 0 means sent once
    #[arg(help_heading = "Retries", long, value_name = "COUNT")]
    max_retries: Option<i32>,
    /// The waits one by one, such as `5s,1m,10m`
    #[arg(help_heading = "Retries", long, value_name = "DURATIONS", value_delimiter = ',', value_parser = time::parse_duration,
        conflicts_with_all = ["retry_initial", "retry_multiplier", "retry_max"])]
    retry_schedule: Vec<Duration>,
    /// Growing waits: the first
    #[arg(help_heading = "Retries", long, value_name = "DURATION", value_parser = time::parse_duration)]
    retry_initial: Option<Duration>,
    /// Growing waits: what each is multiplied by [default: 2]
    #[arg(help_heading = "Retries", long, value_name = "FACTOR", requires = "retry_initial")]
    retry_multiplier: Option<f64>,
    /// Growing waits: the longest [default: 24h]
    #[arg(help_heading = "Retries", long, value_name = "DURATION", value_parser = time::parse_duration,
        requires = "retry_initial")]
    retry_max: Option<Duration>,
    /// How far a wait varies at random, from 0 to 1 [default: 0.1]
    #[arg(help_heading = "Retries", long, value_name = "PART")]
    retry_jitter: Option<f64>,
}

impl RetryOptions {
    /// The policy; `None` when no option is given.
    pub fn policy(&self) -> Option<RetryPolicy> {
        let backoff = match (self.retry_initial, self.retry_schedule.as_slice()) {
            (Some(initial), _) => Some(Backoff::Exponential(Exponential {
                initial_interval: Some(time::duration_to_proto(initial)),
                multiplier: self.retry_multiplier.unwrap_or_default(),
                max_interval: self.retry_max.map(time::duration_to_proto),
            })),
            (None, []) => None,
            (None, waits) => Some(Backoff::Schedule(schedule(waits))),
        };
        let given = backoff.is_some() || self.max_retries.is_some() || self.retry_jitter.is_some();
        given.then_some(RetryPolicy {
            max_retries: self.max_retries,
            backoff,
            jitter: self.retry_jitter,
        })
    }
}

/// Waits that are listed one by one.
pub fn schedule(waits: &[Duration]) -> Schedule {
    Schedule { intervals: waits.iter().copied().map(time::duration_to_proto).collect() }
}

/// The policy in a sentence: `3 retries, after 200ms, 400ms and so on, ±10 %`.
pub fn describe(policy: Option<&RetryPolicy>) -> String {
    let Some(policy) = policy else {
        return String::new();
    };
    let mut parts = Vec::new();
    match policy.max_retries {
        Some(0) => return "sent once, no retry".to_owned(),
        Some(1) => parts.push("1 retry".to_owned()),
        Some(count) => parts.push(format!("{count} retries")),
        None => {}
    }
    let exact = |duration: &prost_types::Duration| time::exact(time::duration_from_proto(duration));
    match &policy.backoff {
        Some(Backoff::Schedule(schedule)) => {
            let waits: Vec<_> = schedule.intervals.iter().map(exact).collect();
            parts.push(format!("after {}", waits.join(", ")));
        }
        Some(Backoff::Exponential(growing)) => {
            let initial = growing.initial_interval.as_ref().map(exact).unwrap_or_default();
            let multiplier = if growing.multiplier == 0.0 { 2.0 } else { growing.multiplier };
            let mut text = format!("after {initial}, then × {multiplier}");
            if let Some(max) = &growing.max_interval {
                text = format!("{text} up to {}", exact(max));
            }
            parts.push(text);
        }
        None => parts.push("after the built-in waits".to_owned()),
    }
    if let Some(jitter) = policy.jitter {
        parts.push(format!("±{:.0} %", jitter * 100.0));
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_option_is_no_policy() {
        assert_eq!(RetryOptions::default().policy(), None);
        let once = RetryOptions { max_retries: Some(0), ..RetryOptions::default() };
        assert_eq!(describe(once.policy().as_ref()), "sent once, no retry");
    }

    #[test]
    fn a_policy_reads_as_a_sentence() {
        let listed = RetryOptions {
            max_retries: Some(3),
            retry_schedule: vec![Duration::from_millis(200), Duration::from_secs(90)],
            retry_jitter: Some(0.1),
            ..RetryOptions::default()
        };
        assert_eq!(describe(listed.policy().as_ref()), "3 retries, after 200ms, 1m30s, ±10 %");
        let growing = RetryOptions {
            retry_initial: Some(Duration::from_secs(1)),
            retry_max: Some(Duration::from_mins(1)),
            ..RetryOptions::default()
        };
        assert_eq!(describe(growing.policy().as_ref()), "after 1s, then × 2 up to 1m");
    }
}
