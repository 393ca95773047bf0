//! Lets the API make attempts, although it does not know the engine.

use futures::FutureExt;
use futures::future::BoxFuture;

use crate::api::{AttemptError, Attempts, RetryResult, TestResult};
use crate::dispatch::{ManualAttempts, ManualError};
use crate::domain::id::{DeliveryId, SubscriptionId, TenantId};

/// The engine, as the API sees it.
pub(super) struct Manual(ManualAttempts);

impl Manual {
    pub(super) fn new(attempts: ManualAttempts) -> Self {
        Self(attempts)
    }
}

impl Attempts for Manual {
    fn retry(
        &self,
        tenant_id: TenantId,
        delivery_id: DeliveryId,
    ) -> BoxFuture<'_, Result<RetryResult, AttemptError>> {
        async move {
            let result = self.0.retry(tenant_id, delivery_id).await.map_err(error)?;
            Ok(RetryResult { delivery: result.delivery, attempt: result.attempt })
        }
        .boxed()
    }

    fn test(
        &self,
        tenant_id: TenantId,
        subscription_id: SubscriptionId,
    ) -> BoxFuture<'_, Result<TestResult, AttemptError>> {
        async move {
            let result = self.0.test(tenant_id, subscription_id).await.map_err(error)?;
            Ok(TestResult { event_id: result.event_id, attempt: result.attempt })
        }
        .boxed()
    }
}

fn error(error: ManualError) -> AttemptError {
    match error {
        ManualError::NotFound => AttemptError::NotFound,
        ManualError::NotRetryable(state) => AttemptError::NotRetryable(state),
        ManualError::TooMany => AttemptError::Overloaded,
        ManualError::BrokenOff => AttemptError::Internal,
        ManualError::Store(error) if error.is_unavailable() => AttemptError::Unavailable,
        ManualError::Store(error) => {
            tracing::error!(%error, "an attempt on request was not recorded");
            AttemptError::Internal
        }
    }
}
