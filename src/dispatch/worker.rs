//! One attempt: look whether it still makes sense, make it, decide what follows.
//!
//! No transaction is open meanwhile. Whatever happens, one result goes to the recorder; only when
//! the node has lost its lease nothing does, because then the delivery is somebody else's.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use rand::RngExt;

use crate::domain::attempt::{Attempt, ErrorKind, Failure, Outcome, Report, Task, Trigger};
use crate::domain::delivery::{
    Delivery, FailureReason, LastAttempt, Next, Standing, State, transition,
};
use crate::domain::id::NodeId;
use crate::domain::retry::RetryPolicy;
use crate::domain::subscription::{self, Subscription};
use crate::domain::trace::{FinishedSpan, TraceContext};
use crate::domain::{Clock, Timestamp};
use crate::store::{Catalog, DatabaseClock, Ended};

use super::Shared;
use super::queue::Job;
use super::recorder::{Finished, Handle};

/// Settings older than this are read anew before an attempt: another replica may have changed them.
/// Changes of this process are seen at once.
const MAX_SETTINGS_AGE: Duration = Duration::from_secs(1);

/// Makes attempts. Cheap to clone.
#[derive(Clone)]
pub(super) struct Worker {
    shared: Arc<Shared>,
    recorder: Handle,
}

impl Worker {
    pub(super) const fn new(shared: Arc<Shared>, recorder: Handle) -> Self {
        Self { shared, recorder }
    }

    pub(super) fn node(&self) -> NodeId {
        self.shared.lease.node()
    }

    pub(super) fn clock(&self) -> &DatabaseClock {
        &self.shared.clock
    }

    /// Brings one delivery a step further.
    pub(super) async fn run(&self, job: Job) {
        let now = self.shared.clock.now();
        if !self.shared.lease.is_held(now) {
            tracing::warn!(delivery.id = %job.delivery.id, "the node's lease has run out; the delivery is left to others");
            return;
        }
        let Job { delivery, event, mut catalog, settings_time, settings_seen, permit } = job;
        if now.since(settings_time) > MAX_SETTINGS_AGE
            || settings_seen != self.shared.store.settings_seen()
        {
            match self.shared.catalog.current(&self.shared.store, &[delivery.tenant_id]).await {
                Ok(mut current) => {
                    if let Some(current) = current.remove(&delivery.tenant_id) {
                        catalog = current;
                    }
                }
                // The settings of a second ago still serve.
                Err(error) => tracing::debug!(%error, "settings could not be read anew"),
            }
        }
        let subscription = catalog.subscription(delivery.subscription_id).cloned();
        let ended = if let Some((state, reason)) = verdict(&delivery, subscription.as_deref(), now)
        {
            Ended { after: ended_without_attempt(delivery, state, reason, now), attempt: None }
        } else {
            let Some(subscription) = subscription else { return };
            let task =
                self.shared.task(&delivery, &event, &catalog, subscription, Trigger::Automatic);
            let policy = || catalog.retry_policy(&task.subscription, &delivery.event_type);
            let attempt = self.shared.attempt(&task).await;
            self.shared.metrics.first_attempt(&delivery, &attempt);
            let now = self.shared.clock.now();
            let after =
                after_attempt(delivery.clone(), &attempt, policy, now, self.shared.random_unit());
            Ended { after, attempt: Some(attempt) }
        };
        self.recorder.send(Finished { ended, permit }).await;
    }
}

impl Shared {
    /// What a channel needs for the next attempt of `delivery`.
    pub(super) fn task(
        &self,
        delivery: &Delivery,
        event: &Arc<crate::domain::event::Event>,
        catalog: &Catalog,
        subscription: Arc<Subscription>,
        trigger: Trigger,
    ) -> Task {
        Task {
            delivery_id: delivery.id,
            number: delivery.attempt_count + 1,
            trigger,
            event: Arc::clone(event),
            tenant: Arc::clone(&catalog.own.tenant),
            subscription,
            trace: self.child_of(event.trace),
        }
    }

    /// Makes an attempt. A channel that panics has failed this attempt, nothing else.
    pub(super) async fn attempt(&self, task: &Task) -> Attempt {
        let start_time = self.clock.now();
        self.metrics.in_flight.inc();
        let report = AssertUnwindSafe(self.channels.attempt(task)).catch_unwind().await;
        self.metrics.in_flight.dec();
        let report = report.unwrap_or_else(|_| {
            tracing::error!(delivery.id = %task.delivery_id, "an attempt panicked");
            panicked(start_time, self.clock.now().since(start_time))
        });
        let attempt = Attempt {
            delivery_id: task.delivery_id,
            number: task.number,
            trigger: task.trigger,
            report,
            trace: task.trace,
        };
        if self.spans.is_enabled() {
            self.spans.record(span(task, &attempt));
        }
        attempt
    }

    pub(super) fn child_of(&self, trace: TraceContext) -> TraceContext {
        trace.child(&mut *self.random.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A random number, uniform in [0, 1).
    pub(super) fn random_unit(&self) -> f64 {
        self.random.lock().unwrap_or_else(PoisonError::into_inner).random()
    }
}

/// What becomes of a delivery that must not be attempted now; `None` when it may be.
fn verdict(
    delivery: &Delivery,
    subscription: Option<&Subscription>,
    now: Timestamp,
) -> Option<(State, Option<FailureReason>)> {
    let Some(subscription) = subscription else {
        return Some((State::Canceled, Some(FailureReason::SubscriptionDeleted)));
    };
    if delivery.expire_time.is_some_and(|expiry| expiry <= now) {
        return Some((State::Expired, None));
    }
    (subscription.state != subscription::State::Active).then_some((State::Held, None))
}

fn ended_without_attempt(
    delivery: Delivery,
    state: State,
    failure_reason: Option<FailureReason>,
    now: Timestamp,
) -> Delivery {
    Delivery {
        state,
        failure_reason,
        revision: delivery.revision + 1,
        update_time: now,
        ..delivery
    }
}

/// The delivery as it stands after an automatic attempt.
fn after_attempt(
    mut delivery: Delivery,
    attempt: &Attempt,
    policy: impl FnOnce() -> RetryPolicy,
    now: Timestamp,
    random: f64,
) -> Delivery {
    delivery.attempt_count = attempt.number;
    delivery.automatic_count += 1;
    delivery.last_attempt = Some(LastAttempt::of(attempt));
    delivery.revision += 1;
    delivery.update_time = now;
    let standing =
        Standing { automatic_count: delivery.automatic_count, expire_time: delivery.expire_time };
    let next = match &attempt.report.outcome {
        Outcome::Delivered => Next::Succeeded,
        outcome => transition(standing, outcome, &policy(), now, random),
    };
    (delivery.state, delivery.failure_reason, delivery.next_attempt_time) = match next {
        Next::Succeeded => (State::Succeeded, None, None),
        Next::Failed(reason) => (State::Failed, Some(reason), None),
        Next::Retry(due) => (State::Scheduled, None, Some(due)),
        Next::Expired => (State::Expired, None, None),
    };
    delivery
}

fn panicked(start_time: Timestamp, duration: Duration) -> Report {
    Report {
        outcome: Outcome::Retry { retry_after: None },
        start_time,
        duration,
        http_status: None,
        request_headers: Vec::new(),
        response_headers: Vec::new(),
        response_body: Vec::new(),
        failure: Some(Failure {
            kind: ErrorKind::Internal,
            message: "Tidings failed while it made this attempt; it is tried again.".into(),
        }),
    }
}

fn span(task: &Task, attempt: &Attempt) -> FinishedSpan {
    let report = &attempt.report;
    let mut attributes = vec![
        ("tidings.tenant.id", task.tenant.id.to_string()),
        ("tidings.event.id", task.event.id.to_string()),
        ("tidings.event.type", task.event.event_type.clone()),
        ("tidings.subscription.id", task.subscription.id.to_string()),
        ("tidings.delivery.id", task.delivery_id.to_string()),
        ("tidings.attempt.number", task.number.to_string()),
    ];
    if let Some(status) = report.http_status {
        attributes.push(("http.response.status_code", status.to_string()));
    }
    if let Some(failure) = &report.failure {
        attributes.push(("error.type", failure.kind.as_str().to_owned()));
    }
    FinishedSpan {
        name: "deliver webhook",
        context: task.trace,
        parent_span_id: Some(task.event.trace.span_id),
        is_client: true,
        start_time: report.start_time,
        end_time: report.start_time.plus(report.duration),
        error: report.failure.as_ref().map(|failure| failure.message.clone()),
        attributes,
    }
}
