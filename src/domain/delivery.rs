//! A delivery: one event on its way to one subscription, and the decision what becomes of it.
//!
//! Guarantees: terminal states absorb; whatever an attempt brings, exactly one next state follows.
//! The same rules stand as CHECK constraints in the schema.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Timestamp;
use super::attempt::{Attempt, Failure, Outcome, Trigger};
use super::event_type::ChannelKind;
use super::id::{DeliveryId, EventId, SubscriptionId, TenantId};
use super::retry::RetryPolicy;

/// Where a delivery stands. The numbers are those of the database and of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(i16)]
pub enum State {
    /// Waits for its next attempt.
    Scheduled = 1,
    /// Leased to a node that attempts it.
    Delivering = 2,
    /// The receiver has it.
    Succeeded = 3,
    /// Given up.
    Failed = 4,
    /// Stopped through the API, or its subscription is gone.
    Canceled = 5,
    /// The event's `expire_time` came first.
    Expired = 6,
    /// The address is unsubscribed or has bounced.
    Suppressed = 7,
    /// Kept while its subscription is paused or disabled.
    Held = 8,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 8] = [
        Self::Scheduled,
        Self::Delivering,
        Self::Succeeded,
        Self::Failed,
        Self::Canceled,
        Self::Expired,
        Self::Suppressed,
        Self::Held,
    ];

    /// Whether nothing follows.
    pub const fn is_terminal(self) -> bool {
        !matches!(self, Self::Scheduled | Self::Delivering | Self::Held)
    }

    /// The state's number in the database.
    pub const fn code(self) -> i16 {
        self as i16
    }

    /// The state with this number.
    pub fn from_code(code: i16) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.code() == code)
    }

    /// The state's name, for example `SCHEDULED`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "SCHEDULED",
            Self::Delivering => "DELIVERING",
            Self::Succeeded => "SUCCEEDED",
            Self::Failed => "FAILED",
            Self::Canceled => "CANCELED",
            Self::Expired => "EXPIRED",
            Self::Suppressed => "SUPPRESSED",
            Self::Held => "HELD",
        }
    }
}

/// Why a delivery ended without success. The numbers are those of the database and the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(i16)]
pub enum FailureReason {
    /// No retry was left.
    Exhausted = 1,
    /// A retry would not have helped.
    Permanent = 2,
    /// The subscription was deleted.
    SubscriptionDeleted = 3,
    /// The recipient wants no more mail.
    Unsubscribed = 4,
    /// Mail to the recipient came back for good.
    Bounced = 5,
    /// Its attempts have ended the process that made them.
    Quarantined = 6,
}

impl FailureReason {
    /// Every reason.
    pub const ALL: [Self; 6] = [
        Self::Exhausted,
        Self::Permanent,
        Self::SubscriptionDeleted,
        Self::Unsubscribed,
        Self::Bounced,
        Self::Quarantined,
    ];

    /// The reason's number in the database.
    pub const fn code(self) -> i16 {
        self as i16
    }

    /// The reason with this number.
    pub fn from_code(code: i16) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.code() == code)
    }
}

/// The latest attempt in short, as it is shown with its delivery.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LastAttempt {
    /// Its number, from 1.
    pub number: u32,
    /// Why it was made.
    pub trigger: Trigger,
    /// When it began.
    pub start_time: Timestamp,
    /// How long it took.
    pub duration: Duration,
    /// The HTTP status, when there was one.
    pub http_status: Option<u16>,
    /// What went wrong, when something did.
    pub failure: Option<Failure>,
    /// Its span, in hexadecimal digits.
    pub span_id: String,
}

impl LastAttempt {
    /// `attempt` in short.
    pub fn of(attempt: &Attempt) -> Self {
        Self {
            number: attempt.number,
            trigger: attempt.trigger,
            start_time: attempt.report.start_time,
            duration: attempt.report.duration,
            http_status: attempt.report.http_status,
            failure: attempt.report.failure.clone(),
            span_id: attempt.trace.span_id_hex(),
        }
    }
}

/// A delivery as it is stored and told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Delivery {
    /// Its id.
    pub id: DeliveryId,
    /// Whose it is.
    pub tenant_id: TenantId,
    /// The event.
    pub event_id: EventId,
    /// The event's type.
    pub event_type: String,
    /// The subscription.
    pub subscription_id: SubscriptionId,
    /// Through which channel.
    pub channel: ChannelKind,
    /// The address, for an email; else empty.
    pub recipient: String,
    /// Where it stands.
    pub state: State,
    /// Why it ended without success.
    pub failure_reason: Option<FailureReason>,
    /// Attempts that were recorded, of every trigger.
    pub attempt_count: u32,
    /// Automatic attempts among them: what the retry policy counts.
    pub automatic_count: u32,
    /// Leases in a row that have ended with the process that had them, and without a result.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub interrupted_count: u32,
    /// When the next attempt is due; only while SCHEDULED.
    pub next_attempt_time: Option<Timestamp>,
    /// From when on it is not to be delivered.
    pub expire_time: Option<Timestamp>,
    /// When a manual attempt succeeded after the delivery had ended without success.
    pub recover_time: Option<Timestamp>,
    /// The latest attempt.
    pub last_attempt: Option<LastAttempt>,
    /// The trace, in hexadecimal digits.
    pub trace_id: String,
    /// Counts the changes, from 1.
    pub revision: i64,
    /// When it was created.
    pub create_time: Timestamp,
    /// When it was last changed.
    pub update_time: Timestamp,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
const fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// What is known of a delivery when an automatic attempt has ended.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    /// Automatic attempts so far, this one included.
    pub automatic_count: u32,
    /// From when on it is not to be delivered.
    pub expire_time: Option<Timestamp>,
}

/// What becomes of a delivery after an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The receiver has it.
    Succeeded,
    /// Given up.
    Failed(FailureReason),
    /// Tried again at this instant.
    Retry(Timestamp),
    /// Too late for another attempt.
    Expired,
}

/// Decides what follows an automatic attempt that ended at `now`. `random` is uniform in [0, 1).
pub fn transition(
    standing: Standing,
    outcome: &Outcome,
    policy: &RetryPolicy,
    now: Timestamp,
    random: f64,
) -> Next {
    let retry_after = match outcome {
        Outcome::Delivered => return Next::Succeeded,
        Outcome::Permanent | Outcome::Gone | Outcome::Bounced => {
            return Next::Failed(FailureReason::Permanent);
        }
        Outcome::Retry { retry_after } => *retry_after,
    };
    let Some(delay) = policy.delay(standing.automatic_count, random, retry_after) else {
        return Next::Failed(FailureReason::Exhausted);
    };
    let due = now.plus(delay);
    match standing.expire_time {
        Some(expiry) if expiry <= now => Next::Expired,
        // The wait would outlast the event: it ends at its expiry, not before.
        Some(expiry) if expiry < due => Next::Retry(expiry),
        _ => Next::Retry(due),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_micros(1_770_283_800_000_000);

    fn after(automatic_count: u32, outcome: &Outcome) -> Next {
        let standing = Standing { automatic_count, expire_time: None };
        transition(standing, outcome, &RetryPolicy::built_in(), NOW, 0.5)
    }

    #[test]
    fn success_and_permanent_failure_end_a_delivery() {
        assert_eq!(after(1, &Outcome::Delivered), Next::Succeeded);
        assert_eq!(after(1, &Outcome::Permanent), Next::Failed(FailureReason::Permanent));
        assert_eq!(after(1, &Outcome::Gone), Next::Failed(FailureReason::Permanent));
        assert_eq!(after(1, &Outcome::Bounced), Next::Failed(FailureReason::Permanent));
    }

    #[test]
    fn failures_are_retried_until_the_policy_is_exhausted() {
        let failed = Outcome::Retry { retry_after: None };
        assert_eq!(after(1, &failed), Next::Retry(NOW.plus(Duration::from_secs(5))));
        assert!(matches!(after(9, &failed), Next::Retry(_)));
        assert_eq!(after(10, &failed), Next::Failed(FailureReason::Exhausted));
    }

    #[test]
    fn a_retry_never_outlasts_the_event() {
        let failed = Outcome::Retry { retry_after: None };
        let expiring = |expire_time| {
            let standing = Standing { automatic_count: 1, expire_time: Some(expire_time) };
            transition(standing, &failed, &RetryPolicy::built_in(), NOW, 0.5)
        };
        let soon = NOW.plus(Duration::from_secs(1));
        assert_eq!(expiring(soon), Next::Retry(soon));
        assert_eq!(expiring(NOW), Next::Expired);
    }

    #[test]
    fn codes_read_back() {
        for state in State::ALL {
            assert_eq!(State::from_code(state.code()), Some(state));
        }
        for reason in FailureReason::ALL {
            assert_eq!(FailureReason::from_code(reason.code()), Some(reason));
        }
        assert_eq!(State::from_code(0), None);
    }
}
