//! Attempts that somebody asked for: a manual retry, and the test of a subscription. They are made
//! at once, in the caller's time, and leave the automatic schedule as it was.

use std::sync::{Arc, PoisonError};

use crate::domain::attempt::{Attempt, Outcome, Trigger};
use crate::domain::delivery::{Delivery, LastAttempt, State};
use crate::domain::event::Event;
use crate::domain::id::{DeliveryId, EventId, SubscriptionId, TenantId};
use crate::domain::trace::TraceContext;
use crate::domain::{Clock, Timestamp};
use crate::store::{Catalog, Ended, Error, LateResult, ManualClaim};

use super::Shared;

/// The event type of a test.
const PING: &str = "tidings.ping";

/// Makes attempts on request. Cheap to clone.
#[derive(Clone)]
pub struct ManualAttempts {
    shared: Arc<Shared>,
}

/// A manual retry, recorded.
#[derive(Clone, Debug, PartialEq)]
pub struct ManualResult {
    /// The delivery after it.
    pub delivery: Delivery,
    /// The attempt.
    pub attempt: Attempt,
}

/// A test, which leaves no record.
#[derive(Clone, Debug, PartialEq)]
pub struct TestResult {
    /// The id of the event that was sent.
    pub event_id: EventId,
    /// The attempt.
    pub attempt: Attempt,
}

/// Why there was no attempt, or no record of it.
#[derive(Debug, thiserror::Error)]
pub enum ManualError {
    /// The tenant has no such delivery or subscription.
    #[error("not found")]
    NotFound,
    /// The delivery is under way, or held.
    #[error("the delivery is {}", .0.as_str())]
    NotRetryable(State),
    /// The attempt was broken off.
    #[error("the attempt was broken off")]
    BrokenOff,
    /// The database did not take it.
    #[error(transparent)]
    Store(#[from] Error),
}

impl ManualAttempts {
    pub(super) const fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Makes one attempt of a delivery that waits for a retry or has ended. Once begun, it is ended
    /// and recorded even if nobody waits for it any more.
    ///
    /// # Errors
    /// When there is nothing to attempt.
    pub async fn retry(
        &self,
        tenant_id: TenantId,
        id: DeliveryId,
    ) -> Result<ManualResult, ManualError> {
        let attempts = self.clone();
        let made = self.shared.manual.spawn(async move { attempts.make(tenant_id, id).await });
        // It ends early only when it panicked, which has been reported, or with the process.
        made.await.unwrap_or(Err(ManualError::BrokenOff))
    }

    async fn make(&self, tenant_id: TenantId, id: DeliveryId) -> Result<ManualResult, ManualError> {
        let shared = &self.shared;
        let catalog = self.catalog(tenant_id).await?;
        let now = shared.clock.now();
        let claim = shared.store.claim_manual(tenant_id, id, shared.lease.node(), now).await?;
        let (delivery, due) = match claim {
            ManualClaim::NotFound => return Err(ManualError::NotFound),
            ManualClaim::Busy(state) => return Err(ManualError::NotRetryable(state)),
            ManualClaim::Ended(delivery) => (delivery, None),
            ManualClaim::Leased(delivery, due) => (delivery, Some(due)),
        };
        let subscription = catalog.subscription(delivery.subscription_id).cloned();
        let event = shared.store.event(tenant_id, delivery.event_id).await?;
        let (Some(subscription), Some(event)) = (subscription, event) else {
            // The subscription is deleted: whatever waits is about to be canceled.
            let state = delivery.state;
            if let Some(due) = due {
                self.put_back(*delivery, None, due).await?;
            }
            return Err(ManualError::NotRetryable(state));
        };
        let task =
            shared.task(&delivery, &Arc::new(event), &catalog, subscription, Trigger::Manual);
        let attempt = shared.attempt(&task).await;
        match due {
            Some(due) => self.put_back(*delivery, Some(attempt), due).await,
            None => self.add(tenant_id, attempt).await,
        }
    }

    /// Sends a signed `tidings.ping` to a subscription, whatever its state.
    ///
    /// # Errors
    /// When the tenant has no such subscription.
    pub async fn test(
        &self,
        tenant_id: TenantId,
        id: SubscriptionId,
    ) -> Result<TestResult, ManualError> {
        let shared = &self.shared;
        let catalog = self.catalog(tenant_id).await?;
        let subscription = catalog.subscription(id).cloned().ok_or(ManualError::NotFound)?;
        let now = shared.clock.now();
        let (event, delivery_id) = {
            let mut random = shared.random.lock().unwrap_or_else(PoisonError::into_inner);
            let event = ping(
                tenant_id,
                id,
                EventId::new(now, &mut *random),
                TraceContext::root(&mut *random),
                now,
            );
            (event, DeliveryId::new(now, &mut *random))
        };
        let event_id = event.id;
        let task = crate::domain::attempt::Task {
            delivery_id,
            number: 1,
            trigger: Trigger::Test,
            trace: shared.child_of(event.trace),
            event: Arc::new(event),
            tenant: Arc::clone(&catalog.own.tenant),
            subscription,
        };
        Ok(TestResult { event_id, attempt: shared.attempt(&task).await })
    }

    async fn catalog(&self, tenant_id: TenantId) -> Result<Catalog, ManualError> {
        let mut catalogs = self.shared.catalog.current(&self.shared.store, &[tenant_id]).await?;
        catalogs.remove(&tenant_id).ok_or(ManualError::NotFound)
    }

    /// Ends the lease of a delivery that waited for a retry: with success it is over, else it waits
    /// on as before.
    async fn put_back(
        &self,
        mut delivery: Delivery,
        attempt: Option<Attempt>,
        due: Timestamp,
    ) -> Result<ManualResult, ManualError> {
        let now = self.shared.clock.now();
        delivery.revision += 1;
        delivery.update_time = now;
        (delivery.state, delivery.next_attempt_time) = (State::Scheduled, Some(due));
        if let Some(attempt) = &attempt {
            delivery.attempt_count = attempt.number;
            delivery.last_attempt = Some(LastAttempt::of(attempt));
            if attempt.report.outcome == Outcome::Delivered {
                (delivery.state, delivery.next_attempt_time) = (State::Succeeded, None);
            }
        }
        let ended = Ended { after: delivery, attempt };
        let recorded = self.shared.store.record(std::slice::from_ref(&ended), now).await?;
        let Some(attempt) = ended.attempt else { return Err(ManualError::NotFound) };
        if recorded.fenced.is_empty() {
            self.shared.metrics.recorded(&ended.after);
            return Ok(ManualResult { delivery: ended.after, attempt });
        }
        // It was canceled meanwhile.
        self.add(ended.after.tenant_id, attempt).await
    }

    /// Adds an attempt to a delivery that has ended.
    async fn add(
        &self,
        tenant_id: TenantId,
        mut attempt: Attempt,
    ) -> Result<ManualResult, ManualError> {
        let now = self.shared.clock.now();
        match self.shared.store.record_after_end(tenant_id, attempt.clone(), now).await? {
            LateResult::Added(delivery) => {
                attempt.number = delivery.attempt_count;
                Ok(ManualResult { delivery: *delivery, attempt })
            }
            LateResult::Known | LateResult::Lost => Err(ManualError::NotFound),
        }
    }
}

fn ping(
    tenant_id: TenantId,
    subscription_id: SubscriptionId,
    id: EventId,
    trace: TraceContext,
    now: Timestamp,
) -> Event {
    Event {
        id,
        tenant_id,
        event_type: PING.into(),
        subject: String::new(),
        data: format!(r#"{{"subscription_id":"{subscription_id}","message":"This is a test."}}"#)
            .into(),
        labels: crate::domain::labels::Labels::new(),
        occur_time: now,
        create_time: now,
        deliver_time: None,
        expire_time: None,
        trace,
    }
}
