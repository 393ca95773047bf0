//! How a subscription's endpoint fares, and what that allows: the breaker, the slow-down, the ramp.
//!
//! Pure: [`Health::after`] decides what an attempt says about the endpoint, [`Health::gate`] what may
//! be sent now. Nothing here is counted per replica: whoever has the same health and the same time
//! decides the same, so neither a restart nor another replica forgets that an endpoint is down.

use std::time::Duration;

use serde::Serialize;

use super::attempt::{Attempt, ErrorKind, Outcome, Trigger};
use super::channel::MAX_MAX_IN_FLIGHT;
use super::id::SubscriptionId;
use super::subscription::DisableReason;
use super::{Timestamp, endpoint};

/// How long the ramp stays on a step before it doubles: 1, 2, 4, … requests at once.
pub const RAMP_STEP: Duration = Duration::from_secs(1);
/// Steps after which the ramp allows more than any subscription may ask for.
const RAMP_STEPS: u32 = MAX_MAX_IN_FLIGHT.ilog2() + 1;
/// The spread of our own pauses: ±10 %, so that endpoints that failed together are not probed
/// together.
const JITTER: f64 = 0.1;
/// The statuses that ask for fewer requests: too many requests, and the three of a gateway whose
/// service is away or busy.
const SLOWING: [u16; 4] = [429, 502, 503, 504];

/// The type of the event by which a tenant hears that a subscription was disabled.
pub const DISABLED_EVENT: &str = "tidings.subscription.disabled";

/// The payload of [`DISABLED_EVENT`].
#[derive(Clone, Debug, Serialize)]
pub struct Disabled<'a> {
    /// Which subscription.
    pub subscription_id: SubscriptionId,
    /// What people call it.
    pub display_name: &'a str,
    /// Why: `GONE` or `FAILING`.
    pub reason: &'static str,
    /// The endpoint's origin, without its path and query, which may be secrets: `https://host/***`.
    pub url: String,
    /// RFC 3339: since when there was no success.
    pub failing_since: Option<String>,
    /// What the last attempt came to, for example `HTTP_STATUS`.
    pub last_error_kind: Option<String>,
}

impl<'a> Disabled<'a> {
    /// Tells of a subscription whose endpoint, at `url`, fared as `health` says.
    pub fn new(
        subscription_id: SubscriptionId,
        display_name: &'a str,
        reason: DisableReason,
        url: &str,
        health: &Health,
    ) -> Self {
        Self {
            subscription_id,
            display_name,
            reason: reason.as_str(),
            url: endpoint::redacted(url),
            failing_since: health.failing_since.map(|since| since.to_string()),
            last_error_kind: health.last_error.map(|kind| kind.as_str().to_ascii_uppercase()),
        }
    }
}

/// When the breaker opens, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Failures in a row that open the breaker.
    pub failures_to_open: u32,
    /// The time until the first probe. It doubles with each probe that fails.
    pub first_cool_down: Duration,
    /// The longest time between two probes.
    pub longest_cool_down: Duration,
    /// How long a probe may be under way before it counts as lost with its node. Longer than any
    /// attempt, so that there are never two.
    pub probe_lease: Duration,
    /// The pause after a status that asks for fewer requests. It doubles while that goes on.
    pub first_pause: Duration,
    /// The longest such pause of ours.
    pub longest_pause: Duration,
    /// The longest pause of the whole endpoint that its `Retry-After` may ask for. The delivery that
    /// got it may wait longer.
    pub longest_retry_after: Duration,
    /// How long nothing but failures disables the subscription; `None` for never.
    pub disable_after: Option<Duration>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            failures_to_open: 10,
            first_cool_down: Duration::from_secs(5),
            longest_cool_down: Duration::from_mins(5),
            probe_lease: Duration::from_mins(1),
            first_pause: Duration::from_secs(1),
            longest_pause: Duration::from_mins(1),
            longest_retry_after: Duration::from_mins(5),
            disable_after: Some(Duration::from_hours(5 * 24)),
        }
    }
}

/// An open breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Breaker {
    /// Until when nothing is sent. Then one request, the probe, may go.
    pub open_until: Timestamp,
    /// The pause before the next probe, without its jitter.
    pub cool_down: Duration,
    /// When the probe was taken that is under way.
    pub probe_time: Option<Timestamp>,
}

/// A slow-down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slow {
    /// Until when nothing is sent.
    pub until: Timestamp,
    /// How many pauses have followed each other, from 1.
    pub level: u32,
}

/// What is remembered of an endpoint. The default is a healthy one, of which nothing is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Automatic attempts that failed since the last success.
    pub consecutive_failures: u32,
    /// When the first of them failed.
    pub failing_since: Option<Timestamp>,
    /// What the last of them came to.
    pub last_error: Option<ErrorKind>,
    /// The breaker, when it is open.
    pub breaker: Option<Breaker>,
    /// The slow-down, when there is one. It outlives its time until a request has succeeded.
    pub slow: Option<Slow>,
    /// Since when the number of requests at once grows again.
    pub recover_time: Option<Timestamp>,
}

/// What one attempt says about the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    /// When the attempt began.
    pub start_time: Timestamp,
    /// When it ended.
    pub end_time: Timestamp,
    /// The failure; `None` for a success.
    pub failure: Option<Failed>,
}

/// A failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed {
    /// What went wrong.
    pub kind: ErrorKind,
    /// The endpoint asks for fewer requests.
    pub is_slowing: bool,
    /// The endpoint's wish.
    pub retry_after: Option<Duration>,
    /// The endpoint is gone for good.
    pub is_gone: bool,
}

impl Observation {
    /// What an attempt says about its endpoint. A fault of ours says nothing; neither does the
    /// failure of an attempt that a person asked for, whose success however counts.
    pub fn of(attempt: &Attempt) -> Option<Self> {
        let report = &attempt.report;
        let failure = match &report.outcome {
            Outcome::Delivered => None,
            outcome => {
                let kind = report.failure.as_ref().map_or(ErrorKind::Internal, |f| f.kind);
                let is_ours = matches!(kind, ErrorKind::Internal | ErrorKind::Configuration);
                if is_ours || attempt.trigger != Trigger::Automatic {
                    return None;
                }
                Some(Failed {
                    kind,
                    is_slowing: report.http_status.is_some_and(|s| SLOWING.contains(&s)),
                    retry_after: match outcome {
                        Outcome::Retry { retry_after } => *retry_after,
                        _ => None,
                    },
                    is_gone: *outcome == Outcome::Gone,
                })
            }
        };
        let start_time = report.start_time;
        Some(Self { start_time, end_time: start_time.plus(report.duration), failure })
    }
}

/// What may be sent to an endpoint now, over all replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// Nothing before this time.
    Closed {
        /// When to look again.
        until: Timestamp,
    },
    /// One request, for whoever takes the probe first.
    Probe,
    /// So many requests at once.
    Open {
        /// At least 1.
        in_flight: u32,
    },
}

/// An endpoint's condition in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Requests go as the subscription's own limits allow.
    Healthy,
    /// It asked for fewer requests: there is a pause.
    Slowed,
    /// The breaker is open: there is one probe per cool-down.
    Open,
    /// The number of requests at once grows again.
    Recovering,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::Healthy, Self::Slowed, Self::Open, Self::Recovering];

    /// The state as a label of metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Slowed => "slowed",
            Self::Open => "open",
            Self::Recovering => "recovering",
        }
    }
}

impl Health {
    /// The health after an attempt, and why the subscription is to be disabled, if it is. `random`
    /// is uniform in [0, 1).
    #[must_use]
    pub fn after(
        &self,
        seen: &Observation,
        policy: &Policy,
        now: Timestamp,
        random: f64,
    ) -> (Self, Option<DisableReason>) {
        match &seen.failure {
            None => (self.after_success(seen, now), None),
            Some(failed) => self.after_failure(seen, failed, policy, now, random),
        }
    }

    /// The health after several attempts, each with its random number, in the order in which they
    /// ended.
    #[must_use]
    pub fn after_all(
        self,
        seen: impl IntoIterator<Item = (Observation, f64)>,
        policy: &Policy,
        now: Timestamp,
    ) -> (Self, Option<DisableReason>) {
        let mut seen: Vec<_> = seen.into_iter().collect();
        seen.sort_by_key(|(observation, _)| observation.end_time);
        seen.iter().fold((self, None), |(health, disabled), (observation, random)| {
            let (health, reason) = health.after(observation, policy, now, *random);
            (health, reason.or(disabled))
        })
    }

    fn after_success(&self, seen: &Observation, now: Timestamp) -> Self {
        let is_older = self.failing_since.is_some_and(|since| seen.start_time < since);
        if self.breaker.is_some() && is_older {
            // It began before the endpoint failed, so it does not say that it works again.
            return *self;
        }
        // A request that began before the pause says nothing about what is after it.
        let slow = self.slow.filter(|slow| seen.start_time < slow.until);
        let slowed_until = self.slow.filter(|_| slow.is_none()).map(|slow| slow.until);
        let recover_time = match self.breaker {
            Some(_) => Some(now),
            None => slowed_until.max(self.recover_time),
        };
        Self { slow, recover_time, ..Self::default() }
    }

    fn after_failure(
        &self,
        seen: &Observation,
        failed: &Failed,
        policy: &Policy,
        now: Timestamp,
        random: f64,
    ) -> (Self, Option<DisableReason>) {
        let consecutive_failures = self.consecutive_failures.saturating_add(1);
        let failing_since = self.failing_since.unwrap_or(seen.end_time);
        let breaker = match self.breaker {
            None if consecutive_failures >= policy.failures_to_open => {
                Some(Breaker::opened(policy.first_cool_down, now, random))
            }
            Some(open) if open.probe_time.is_some_and(|probe| seen.start_time >= probe) => {
                let cool_down = (open.cool_down * 2).min(policy.longest_cool_down);
                Some(Breaker::opened(cool_down, now, random))
            }
            // An attempt that began before the breaker opened is no probe.
            breaker => breaker,
        };
        let slow = if failed.is_slowing {
            Some(self.slower(seen, failed, policy, now, random))
        } else {
            self.slow
        };
        let health = Self {
            consecutive_failures,
            failing_since: Some(failing_since),
            last_error: Some(failed.kind),
            recover_time: self.recover_time.filter(|_| breaker.is_none()),
            breaker,
            slow,
        };
        let is_over = |limit: &Duration| seen.end_time.since(failing_since) >= *limit;
        let reason = if failed.is_gone {
            Some(DisableReason::Gone)
        } else {
            policy.disable_after.filter(is_over).map(|_| DisableReason::Failing)
        };
        (health, reason)
    }

    fn slower(
        &self,
        seen: &Observation,
        failed: &Failed,
        policy: &Policy,
        now: Timestamp,
        random: f64,
    ) -> Slow {
        let wish = failed.retry_after.map(|wish| wish.min(policy.longest_retry_after));
        if let Some(slow) = self.slow.filter(|slow| seen.start_time < slow.until) {
            // Of many requests that were under way together only the first makes the pause longer.
            let until = wish.map_or(slow.until, |wish| slow.until.max(seen.end_time.plus(wish)));
            return Slow { until, ..slow };
        }
        let level = self.slow.map_or(0, |slow| slow.level).saturating_add(1);
        let factor = 2_u32.saturating_pow(level - 1);
        let ours = policy.first_pause.saturating_mul(factor).min(policy.longest_pause);
        // Jitter never undercuts the endpoint's wish.
        let pause = wish.map_or(jittered(ours, random), |wish| wish.max(policy.first_pause));
        Slow { until: now.plus(pause), level }
    }

    /// What may be sent at `now` to an endpoint that takes `max_in_flight` requests at once.
    pub fn gate(&self, max_in_flight: u32, now: Timestamp) -> Gate {
        let slowed = self.slow.map(|slow| slow.until);
        let until = slowed.max(self.breaker.map(|breaker| breaker.open_until));
        if let Some(until) = until.filter(|until| now < *until) {
            return Gate::Closed { until };
        }
        if self.breaker.is_some() {
            return Gate::Probe;
        }
        let ramp = slowed.max(self.recover_time).map_or(u32::MAX, |start| ramp(start, now));
        Gate::Open { in_flight: ramp.min(max_in_flight).max(1) }
    }

    /// The condition in a word.
    pub fn state(&self, max_in_flight: u32, now: Timestamp) -> State {
        if self.breaker.is_some() {
            return State::Open;
        }
        match self.gate(max_in_flight, now) {
            Gate::Closed { .. } => State::Slowed,
            Gate::Open { in_flight } if in_flight < max_in_flight => State::Recovering,
            Gate::Probe | Gate::Open { .. } => State::Healthy,
        }
    }

    /// Whether a success would change something.
    pub const fn awaits_success(&self) -> bool {
        self.consecutive_failures > 0 || self.breaker.is_some() || self.slow.is_some()
    }

    /// Whether nothing is left that matters at `now`.
    pub fn is_over(&self, now: Timestamp) -> bool {
        let ramp_end = |start: Timestamp| start.plus(RAMP_STEP * RAMP_STEPS);
        let started = self.slow.map(|slow| slow.until).max(self.recover_time);
        self.consecutive_failures == 0
            && self.breaker.is_none()
            && started.is_none_or(|start| ramp_end(start) <= now)
    }
}

impl Breaker {
    fn opened(cool_down: Duration, now: Timestamp, random: f64) -> Self {
        Self { open_until: now.plus(jittered(cool_down, random)), cool_down, probe_time: None }
    }
}

fn jittered(pause: Duration, random: f64) -> Duration {
    pause.mul_f64(1.0 + JITTER * (2.0 * random - 1.0))
}

/// Requests at once, so long after the start of a ramp: 1, doubling with each step.
fn ramp(start: Timestamp, now: Timestamp) -> u32 {
    let steps = now.since(start).as_micros() / RAMP_STEP.as_micros();
    u32::try_from(steps).ok().and_then(|steps| 1_u32.checked_shl(steps)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
