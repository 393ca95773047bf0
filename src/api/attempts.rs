//! Attempts that a client asks for. `dispatch` makes them, which `api` does not know: `app` puts
//! the two together.

use futures::future::BoxFuture;

use crate::domain::attempt::Attempt;
use crate::domain::delivery::{Delivery, State};
use crate::domain::id::{DeliveryId, EventId, SubscriptionId, TenantId};

use super::Reason;
use super::status::Failure;

/// Makes attempts at once, and answers when they have ended.
pub trait Attempts: Send + Sync {
    /// Makes one manual attempt at a delivery.
    fn retry(
        &self,
        tenant_id: TenantId,
        delivery_id: DeliveryId,
    ) -> BoxFuture<'_, Result<RetryResult, AttemptError>>;

    /// Sends a `tidings.ping` to a subscription's endpoint. Nothing of it is kept.
    fn test(
        &self,
        tenant_id: TenantId,
        subscription_id: SubscriptionId,
    ) -> BoxFuture<'_, Result<TestResult, AttemptError>>;
}

/// What became of a manual attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryResult {
    /// The delivery as it is after the attempt.
    pub delivery: Delivery,
    /// The attempt, as it was recorded.
    pub attempt: Attempt,
}

/// What became of a test.
#[derive(Clone, Debug, PartialEq)]
pub struct TestResult {
    /// The event's id that the receiver saw.
    pub event_id: EventId,
    /// The attempt.
    pub attempt: Attempt,
}

/// Why no attempt was made. An attempt that fails is none of these: it is a result.
#[derive(Clone, Debug, PartialEq)]
pub enum AttemptError {
    /// The tenant has no such delivery, or no such subscription.
    NotFound,
    /// The delivery is in a state that allows none, or has ended and its subscription is gone.
    NotRetryable(State),
    /// Too many of this tenant are under way.
    Overloaded,
    /// The process is stopping.
    ShuttingDown,
    /// The database does not answer.
    Unavailable,
    /// A fault of ours, which was logged where it happened.
    Internal,
}

impl AttemptError {
    /// What is told to the client; `not_found` says what was not found.
    pub(super) fn failure(self, not_found: Reason) -> Failure {
        match self {
            Self::NotFound => Failure::of(not_found),
            Self::NotRetryable(state) if state.is_terminal() => Failure::new(
                Reason::DeliveryNotRetryable,
                "The delivery cannot be retried: its subscription was deleted.",
            ),
            Self::NotRetryable(state) => {
                let state = state.as_str();
                let message = format!("The delivery cannot be retried while it is {state}.");
                Failure::new(Reason::DeliveryNotRetryable, message)
            }
            Self::Overloaded => Failure::new(
                Reason::Overloaded,
                "Too many manual attempts and tests of this tenant are under way. Try again when \
                 one has ended.",
            ),
            Self::ShuttingDown => Failure::of(Reason::ShuttingDown),
            Self::Unavailable => Failure::of(Reason::DatabaseUnavailable),
            Self::Internal => Failure::of(Reason::Internal),
        }
    }
}
