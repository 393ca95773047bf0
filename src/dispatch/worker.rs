//! One attempt: look whether it still makes sense, make it, decide what follows.
//!
//! Whoever finds its endpoint's breaker open is given back without an attempt, in its old place.
//! No transaction is open meanwhile. Whatever happens, one result goes to the recorder; only when
//! the node has lost its lease nothing does, because then the delivery is somebody else's.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use rand::RngExt;

use crate::channel;
use crate::domain::attempt::{
    Attempt, DigestItem, ErrorKind, Failure, Outcome, Report, Task, Trigger,
};
use crate::domain::channel::Channel;
use crate::domain::delivery::{Delivery, State};
use crate::domain::event::Event;
use crate::domain::health::Gate;
use crate::domain::id::{NodeId, SubscriptionId, TenantId};
use crate::domain::subscription::Subscription;
use crate::domain::trace::{FinishedSpan, TraceContext};
use crate::domain::{Clock, Timestamp};
use crate::store::{Catalog, DatabaseClock, Ended};

use super::Shared;
use super::decide::delivery::{
    after_attempt, ended_without_attempt, given_back, may_attempt, postponed, quarantined, verdict,
};
use super::decide::trust::{Allowance, Sign};
use super::digest;
use super::mail::Standing;
use super::quarantine::{self, Made};
use super::queue::{Job, Permit, Queue};
use super::recorder::{Finished, Handle};
use super::slots::Slot;

/// A pause after an attempt, when callers wait: the least that the runtime's timer knows, and little to an endpoint
/// that takes its time.
const PAUSE: Duration = Duration::from_millis(1);

/// What a delivery gets when its turn has come.
pub(super) enum Turn {
    /// An attempt, in this place.
    Attempt(Slot),
    /// Nothing: its endpoint may have no request now.
    GiveBack,
}

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

    pub(super) fn clock(&self) -> &Arc<DatabaseClock> {
        &self.shared.clock
    }

    /// Attempts that this node may have under way at once, the probe of an open breaker aside.
    pub(super) fn allowed(&self, id: SubscriptionId, subscription: Option<&Subscription>) -> usize {
        self.allowance(id, subscription, self.shared.clock.now()).in_flight
    }

    /// The same, and whether the endpoint is a prompt one.
    pub(super) fn allowance(
        &self,
        id: SubscriptionId,
        subscription: Option<&Subscription>,
        now: Timestamp,
    ) -> Allowance {
        self.shared.endpoints.allowance(id, subscription, now)
    }

    /// What this node may send to a subscription's endpoint now.
    fn gate(
        &self,
        id: SubscriptionId,
        subscription: Option<&Subscription>,
        now: Timestamp,
    ) -> Gate {
        self.shared.endpoints.gate(id, subscription, now)
    }

    /// This node's part of a subscription's rate, in requests per second.
    pub(super) fn rate(&self, subscription: Option<&Subscription>) -> Option<f64> {
        self.shared.endpoints.rate(subscription)
    }

    /// Leaves the processors to whoever accepts events.
    pub(super) async fn pause(&self) {
        self.shared.metrics.paused.inc();
        tokio::time::sleep(PAUSE).await;
    }

    /// What else goes out in the message of `first`.
    pub(super) async fn rest_of_digest(&self, queue: &Queue, first: &Job) -> Vec<Box<Job>> {
        digest::rest(&self.shared, queue, first).await
    }

    /// Brings one delivery a step further, and with it those that go out in the same message.
    pub(super) async fn run(&self, mut first: Box<Job>, further: Vec<Box<Job>>, mut turn: Turn) {
        let Some(catalog) = self.settings(&mut first).await else { return };
        let subscription = catalog.subscription(first.delivery.subscription_id).cloned();
        let may_attempt =
            self.may_attempt(&first.delivery, subscription.as_deref(), &turn, &first.permit);
        let standing = match &subscription {
            Some(subscription) if may_attempt => {
                self.shared.standing(&first.delivery.recipient, subscription).await
            }
            Some(_) => Standing::Waits,
            // Nothing is attempted then.
            None => Standing::MayGo,
        };
        let mut going = Vec::with_capacity(1 + further.len());
        for job in std::iter::once(first).chain(further) {
            let now = self.shared.clock.now();
            if !self.shared.lease.tenure().covers(job.permit.node(), now) {
                tracing::warn!(delivery.id = %job.delivery.id, "the lease of the delivery has run out; it is left to others");
                continue;
            }
            let end = verdict(&job.delivery, subscription.as_deref(), now);
            if end.is_none() && standing == Standing::MayGo {
                going.push(job);
                continue;
            }
            let Job { delivery, event, permit, .. } = *job;
            let after = match (end, standing) {
                (Some((state, reason)), _) => ended_without_attempt(delivery, state, reason, now),
                (None, Standing::Suppressed(reason)) => {
                    ended_without_attempt(delivery, State::Suppressed, Some(reason), now)
                }
                (None, Standing::Waits | Standing::MayGo) => given_back(delivery, &event, now),
            };
            self.record(Ended { after, attempt: None }, permit).await;
        }
        if let Some(subscription) = subscription {
            let sign = self.attempt(going, &catalog, &subscription).await;
            if let (Turn::Attempt(slot), Some(Sign::Silent)) = (&mut turn, sign) {
                slot.silent();
            }
        }
    }

    /// The tenant's settings, not older than they may be; `None` when the lease has run out.
    async fn settings(&self, job: &mut Job) -> Option<Catalog> {
        let now = self.shared.clock.now();
        if !self.shared.lease.tenure().covers(job.permit.node(), now) {
            tracing::warn!(delivery.id = %job.delivery.id, "the lease of the delivery has run out; it is left to others");
            return None;
        }
        self.refresh(job, Vec::new).await;
        Some(job.catalog.clone())
    }

    /// Has the job's settings not be older than they may be. If they have to be read, so are those of
    /// `along`.
    pub(super) async fn refresh(&self, job: &mut Job, along: impl FnOnce() -> Vec<TenantId>) {
        let (cache, store) = (&self.shared.catalog, &self.shared.store);
        let tenant_id = job.delivery.tenant_id;
        let renewed = match cache.recent(store, tenant_id) {
            Some(recent) => Ok(Some(recent)),
            None => Box::pin(cache.renewed(store, tenant_id, along)).await,
        };
        match renewed {
            Ok(Some(renewed)) => job.catalog = renewed,
            Ok(None) => {}
            // The settings of a second ago still serve.
            Err(error) => tracing::debug!(%error, "settings could not be read anew"),
        }
    }

    /// Makes one attempt for all of `jobs`, and records it for each. Tells how it ended, if there was one.
    async fn attempt(
        &self,
        mut jobs: Vec<Box<Job>>,
        catalog: &Catalog,
        subscription: &Arc<Subscription>,
    ) -> Option<Sign> {
        // The same order, and so the same message, over all attempts.
        jobs.sort_unstable_by_key(|job| job.delivery.id);
        let mut jobs = jobs.into_iter();
        let first = jobs.next()?;
        let task_of = |job: &Job| {
            let subscription = Arc::clone(subscription);
            self.shared.task(&job.delivery, &job.event, catalog, subscription, Trigger::Automatic)
        };
        let mut task = task_of(&first);
        task.digest = jobs.as_slice().iter().map(|job| digest_item(job)).collect();
        let made = self.shared.attempt_in_turn(&first.delivery, &task).await;
        let mut sign = None;
        if let Made::Attempt(attempt) = &made {
            let (ended, now) = (Sign::of(&attempt.report), self.shared.clock.now());
            self.shared.endpoints.trust(subscription, ended, now);
            sign = Some(ended);
            self.shared.suppress_bounced(&task, attempt).await;
        }
        let random = self.shared.random_unit();
        for job in jobs {
            let now = self.shared.clock.now();
            let made = match &made {
                Made::Attempt(Attempt { report, .. }) => {
                    let start_time = report.start_time;
                    let report = Some(report.clone());
                    Made::Attempt(self.shared.attempted(&task_of(&job), report, start_time))
                }
                // The first one is to blame, or nobody.
                Made::Fatal(_) | Made::Nothing => Made::Nothing,
                Made::Waits(wait) => Made::Waits(*wait),
            };
            let Job { delivery, permit, .. } = *job;
            let ended = self.ended(delivery, made, catalog, subscription, (now, random));
            self.record(ended, permit).await;
        }
        let now = self.shared.clock.now();
        let Job { delivery, permit, .. } = *first;
        let ended = self.ended(delivery, made, catalog, subscription, (now, random));
        self.record(ended, permit).await;
        sign
    }

    /// How a delivery stands after an attempt, or without one.
    fn ended(
        &self,
        delivery: Delivery,
        made: Made,
        catalog: &Catalog,
        subscription: &Subscription,
        (now, random): (Timestamp, f64),
    ) -> Ended {
        match made {
            Made::Attempt(attempt) => {
                self.shared.metrics.first_attempt(&delivery, &attempt);
                let event_type = delivery.event_type.clone();
                let policy = || catalog.retry_policy(subscription, &event_type);
                let after = after_attempt(delivery, &attempt, policy, now, random);
                Ended { after, attempt: Some(attempt) }
            }
            Made::Fatal(attempt) => {
                let after = quarantined(delivery, &attempt, now);
                Ended { after, attempt: Some(attempt) }
            }
            Made::Nothing => {
                Ended { after: postponed(delivery, quarantine::PAUSE, now), attempt: None }
            }
            Made::Waits(wait) => Ended { after: postponed(delivery, wait, now), attempt: None },
        }
    }

    /// Hands over a result. It is large: nobody who waits is to carry it along.
    fn record(&self, ended: Ended, permit: Permit) -> impl Future<Output = ()> + Send + '_ {
        let seen = self.shared.seen(&ended);
        self.recorder.send(Box::new(Finished { ended, seen, permit }))
    }

    /// Whether the endpoint may have a request: what was true when the delivery was leased may not
    /// be any more.
    fn may_attempt(
        &self,
        delivery: &Delivery,
        subscription: Option<&Subscription>,
        turn: &Turn,
        permit: &Permit,
    ) -> bool {
        let id = delivery.subscription_id;
        let gate = self.gate(id, subscription, self.shared.clock.now());
        let awaits_probe = self.shared.endpoints.awaits_probe(id);
        matches!(turn, Turn::Attempt(_)) && may_attempt(&permit.place, gate, awaits_probe)
    }
}

impl Shared {
    /// What a channel needs for the next attempt of `delivery`.
    pub(super) fn task(
        &self,
        delivery: &Delivery,
        event: &Arc<Event>,
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
            recipient: delivery.recipient.clone(),
            create_time: delivery.create_time,
            email_template: email_template(catalog, &event.event_type),
            unsubscribe_url: self.unsubscribe_url(&subscription, &delivery.recipient),
            digest: Vec::new(),
            trace: self.child_of(event.trace),
            subscription,
        }
    }

    /// Makes an attempt. A channel that panics has failed this attempt, nothing else.
    pub(super) async fn attempt(&self, task: &Task, turn: Option<channel::Turn>) -> Attempt {
        let start_time = self.clock.now();
        self.metrics.in_flight.inc();
        fail_point!(AttemptBefore, {});
        let report = AssertUnwindSafe(self.channels.attempt(task, turn)).catch_unwind().await;
        fail_point!(AttemptAfter, {});
        self.metrics.in_flight.dec();
        self.attempted(task, report.ok(), start_time)
    }

    /// The record of an attempt that was made as `task` says; without a report it panicked.
    pub(super) fn attempted(
        &self,
        task: &Task,
        report: Option<Report>,
        start_time: Timestamp,
    ) -> Attempt {
        let report = report.unwrap_or_else(|| {
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

/// The template that an event type has for mails; empty for none.
pub(super) fn email_template(catalog: &Catalog, event_type: &str) -> String {
    let info = catalog.event_type(event_type);
    info.map(|info| info.event_type.spec.email_template.clone()).unwrap_or_default()
}

fn digest_item(job: &Job) -> DigestItem {
    DigestItem { delivery_id: job.delivery.id, event: Arc::clone(&job.event) }
}

fn panicked(start_time: Timestamp, duration: Duration) -> Report {
    Report {
        duration,
        failure: Some(Failure {
            kind: ErrorKind::Internal,
            message: "Tidings failed while it made this attempt; it is tried again.".into(),
        }),
        ..Report::new(Outcome::Retry { retry_after: None }, start_time)
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
        name: match task.subscription.spec.channel {
            Channel::Webhook(_) => "deliver webhook",
            Channel::Email(_) => "deliver email",
        },
        context: task.trace,
        parent_span_id: Some(task.event.trace.span_id),
        is_client: true,
        start_time: report.start_time,
        end_time: report.start_time.plus(report.duration),
        error: report.failure.as_ref().map(|failure| failure.message.clone()),
        attributes,
    }
}
