//! Attempts that somebody asked for: a manual retry, and the test of a subscription. They are made
//! at once, in the caller's time, and leave the automatic schedule as it was. They pass the limits of
//! the subscription on purpose; [`super::turns`] bounds how many a tenant may have under way.

use std::sync::{Arc, PoisonError};

use crate::domain::attempt::{Attempt, Trigger};
use crate::domain::channel::Channel;
use crate::domain::delivery::{Delivery, State};
use crate::domain::event::Event;
use crate::domain::health::Observation;
use crate::domain::id::{DeliveryId, EventId, SubscriptionId, TenantId};
use crate::domain::trace::TraceContext;
use crate::domain::{Clock, Timestamp};
use crate::store::{Catalog, Ended, Error, LateResult, ManualClaim, Observed, SubscriptionRef};

use super::Shared;
use super::decide::delivery::{after_manual, quarantined};
use super::mail::Standing;
use super::quarantine::Made;

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
    /// The tenant has as many under way as it may.
    #[error("the tenant has too many attempts on request under way")]
    TooMany,
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
    /// When there is nothing to attempt, or too many are under way.
    pub async fn retry(
        &self,
        tenant_id: TenantId,
        id: DeliveryId,
    ) -> Result<ManualResult, ManualError> {
        // The turn goes with the attempt: a caller that goes away does not make room for another.
        let turn = self.shared.turns.take(tenant_id).ok_or(ManualError::TooMany)?;
        let attempts = self.clone();
        let made = self.shared.manual.spawn(async move {
            let _turn = turn;
            attempts.make(tenant_id, id).await
        });
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
        if shared.standing(&delivery.recipient, &subscription).await != Standing::MayGo {
            // Whoever wants nothing more gets nothing more, also on request.
            if let Some(due) = due {
                self.put_back(*delivery, None, due).await?;
            }
            return Err(ManualError::NotRetryable(State::Suppressed));
        }
        let task =
            shared.task(&delivery, &Arc::new(event), &catalog, subscription, Trigger::Manual);
        let (attempt, is_fatal) = match shared.attempt_of(&delivery, &task, None).await {
            Made::Attempt(attempt) => (attempt, false),
            Made::Fatal(attempt) => (attempt, true),
            Made::Nothing | Made::Waits(_) => {
                if let Some(due) = due {
                    self.put_back(*delivery, None, due).await?;
                }
                return Err(ManualError::BrokenOff);
            }
        };
        let of = SubscriptionRef { tenant_id, id: task.subscription.id };
        shared.observe_request(of, delivery.id, &attempt).await;
        shared.suppress_bounced(&task, &attempt).await;
        match due {
            Some(_) if is_fatal => {
                let after = quarantined(*delivery, &attempt, shared.clock.now());
                self.record(Ended { after, attempt: Some(attempt) }).await
            }
            Some(due) => self.put_back(*delivery, Some(attempt), due).await,
            None => self.add(tenant_id, attempt).await,
        }
    }

    /// Sends a signed `tidings.ping` to a subscription, whatever its state.
    ///
    /// # Errors
    /// When the tenant has no such subscription, or too many are under way.
    pub async fn test(
        &self,
        tenant_id: TenantId,
        id: SubscriptionId,
    ) -> Result<TestResult, ManualError> {
        let shared = &self.shared;
        let _turn = shared.turns.take(tenant_id).ok_or(ManualError::TooMany)?;
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
        let recipient = match &subscription.spec.channel {
            Channel::Webhook(_) => String::new(),
            // One mail shows what all would get.
            Channel::Email(email) => email.recipients.first().cloned().unwrap_or_default(),
        };
        if shared.standing(&recipient, &subscription).await != Standing::MayGo {
            return Err(ManualError::NotRetryable(State::Suppressed));
        }
        let task = crate::domain::attempt::Task {
            delivery_id,
            number: 1,
            trigger: Trigger::Test,
            trace: shared.child_of(event.trace),
            event: Arc::new(event),
            tenant: Arc::clone(&catalog.own.tenant),
            unsubscribe_url: shared.unsubscribe_url(&subscription, &recipient),
            recipient,
            subscription,
            create_time: now,
            email_template: String::new(),
            digest: Vec::new(),
        };
        let attempt = shared.attempt(&task, None).await;
        let of = SubscriptionRef { tenant_id, id };
        shared.observe_request(of, delivery_id, &attempt).await;
        Ok(TestResult { event_id, attempt })
    }

    async fn catalog(&self, tenant_id: TenantId) -> Result<Catalog, ManualError> {
        let mut catalogs = self.shared.catalog.current(&self.shared.store, &[tenant_id]).await?;
        catalogs.remove(&tenant_id).ok_or(ManualError::NotFound)
    }

    /// Ends the lease of a delivery that waited for a retry: with success it is over, else it waits
    /// on as before.
    async fn put_back(
        &self,
        delivery: Delivery,
        attempt: Option<Attempt>,
        due: Timestamp,
    ) -> Result<ManualResult, ManualError> {
        let now = self.shared.clock.now();
        let after = after_manual(delivery, attempt.as_ref(), due, now);
        self.record(Ended { after, attempt }).await
    }

    /// Writes how the lease of a delivery ended.
    async fn record(&self, ended: Ended) -> Result<ManualResult, ManualError> {
        let now = self.shared.clock.now();
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

impl Shared {
    /// Lets an attempt on request say that its endpoint works again. Its failure says nothing: a
    /// person is looking already.
    async fn observe_request(
        &self,
        subscription: SubscriptionRef,
        delivery_id: DeliveryId,
        attempt: &Attempt,
    ) {
        let Some(observation) = Observation::of(attempt) else { return };
        let now = self.clock.now();
        let random = self.random_unit();
        let observed = Observed { delivery_id, subscription, observation, random };
        match self.store.observe_one(observed, &self.config.health, now).await {
            Ok(Some(change)) => {
                self.endpoints.learn([change.row()], now);
                self.endpoint_changed(&change);
            }
            Ok(None) => {}
            // The next probe finds out.
            Err(error) => tracing::debug!(%error, "an endpoint's health could not be written"),
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
