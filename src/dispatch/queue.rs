//! What this node has leased: a lane per subscription, all within a bounded number of permits.
//!
//! A permit is reserved before a delivery is leased, so memory is bounded by configuration, never by
//! the backlog. A lane has at most the subscription's `max_in_flight` attempts under way; a slow
//! endpoint fills its own lane and no other. Even when the node is full a lane may have a few
//! deliveries, so that many slow endpoints cannot lock out a good one.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use tokio_util::task::TaskTracker;

use crate::domain::channel::{Channel, DEFAULT_MAX_IN_FLIGHT};
use crate::domain::delivery::Delivery;
use crate::domain::event::Event;
use crate::domain::id::{DeliveryId, SubscriptionId};
use crate::domain::subscription::Subscription;
use crate::domain::{Clock, Timestamp};
use crate::store::{Catalog, SettingsSeen};

use super::Config;
use super::worker::Worker;

/// Deliveries that a lane may hold per attempt that it may have under way: enough that a fast
/// endpoint never waits for the next claim.
const DEPTH: usize = 8;
/// Deliveries that every lane may hold even when the node is full.
const GUARANTEED: usize = 2;

/// A delivery that is leased to this node, and all that an attempt needs.
pub struct Job {
    /// The delivery, DELIVERING.
    pub delivery: Delivery,
    /// Its event.
    pub event: Arc<Event>,
    /// The tenant's settings as they were when it was leased.
    pub catalog: Catalog,
    /// When the settings were read, and which of this process's changes they hold.
    pub settings_time: Timestamp,
    /// See [`Job::settings_time`].
    pub settings_seen: SettingsSeen,
    /// Its place in memory, until its result is recorded.
    pub permit: Permit,
}

/// A place in the queue; given back when dropped.
pub struct Permit {
    queue: Weak<Inner>,
    subscription: SubscriptionId,
    /// The delivery that has the place, once there is one.
    delivery: Option<DeliveryId>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Some(queue) = self.queue.upgrade() else { return };
        let mut lanes = queue.lock();
        lanes.held -= 1;
        if let Some(delivery) = self.delivery {
            lanes.deliveries.remove(&delivery);
        }
        if let Some(lane) = lanes.by_subscription.get_mut(&self.subscription) {
            lane.held -= 1;
            if lane.is_over() {
                lanes.by_subscription.remove(&self.subscription);
            }
        }
        drop(lanes);
        queue.room.notify_one();
    }
}

#[derive(Default)]
struct Lane {
    /// Permits: waiting, under way, or being recorded.
    held: usize,
    /// Workers.
    active: usize,
    waiting: VecDeque<Job>,
    /// Before this instant no request may start, when the subscription limits its rate. Such a lane
    /// outlives its deliveries, or the limit would be forgotten: [`Queue::prune`] ends it.
    next_start: Option<Timestamp>,
}

impl Lane {
    const fn is_idle(&self) -> bool {
        self.held == 0 && self.active == 0
    }

    /// Whether nothing is left to remember.
    const fn is_over(&self) -> bool {
        self.is_idle() && self.next_start.is_none()
    }
}

#[derive(Default)]
struct Lanes {
    by_subscription: HashMap<SubscriptionId, Lane>,
    /// Which deliveries have a place.
    deliveries: HashSet<DeliveryId>,
    held: usize,
    is_closed: bool,
}

struct Inner {
    lanes: Mutex<Lanes>,
    size: usize,
    in_flight: Semaphore,
    worker: Worker,
    tracker: TaskTracker,
    aborted: tokio_util::sync::CancellationToken,
    /// Tells the claimer that there is room again.
    room: Notify,
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The queue. Cheap to clone.
#[derive(Clone)]
pub struct Queue(Arc<Inner>);

/// How many attempts may be under way to a subscription.
fn max_in_flight(subscription: Option<&Subscription>) -> usize {
    let limit = match subscription.map(|subscription| &subscription.spec.channel) {
        Some(Channel::Webhook(webhook)) => webhook.max_in_flight,
        Some(Channel::Email(_)) | None => DEFAULT_MAX_IN_FLIGHT,
    };
    usize::try_from(limit.max(1)).unwrap_or(1)
}

impl Queue {
    pub(super) fn new(config: &Config, worker: Worker) -> Self {
        Self(Arc::new(Inner {
            lanes: Mutex::default(),
            size: config.queue_size,
            in_flight: Semaphore::new(config.max_in_flight),
            worker,
            tracker: TaskTracker::new(),
            aborted: tokio_util::sync::CancellationToken::new(),
            room: Notify::new(),
        }))
    }

    /// The node under which deliveries are leased now.
    pub fn node(&self) -> crate::domain::id::NodeId {
        self.0.worker.node()
    }

    /// Reserves up to `wanted` places for a subscription; fewer or none when the lane or the node
    /// is full, or the node is stopping.
    pub fn reserve(
        &self,
        id: SubscriptionId,
        subscription: Option<&Subscription>,
        wanted: usize,
    ) -> Vec<Permit> {
        let depth = max_in_flight(subscription).saturating_mul(DEPTH);
        let mut lanes = self.0.lock();
        if lanes.is_closed || wanted == 0 {
            return Vec::new();
        }
        let free = self.0.size.saturating_sub(lanes.held);
        let lane = lanes.by_subscription.entry(id).or_default();
        let guaranteed = GUARANTEED.saturating_sub(lane.held);
        let granted = wanted.min(depth.saturating_sub(lane.held)).min(free.max(guaranteed));
        lane.held += granted;
        if lane.is_over() {
            lanes.by_subscription.remove(&id);
        }
        lanes.held += granted;
        drop(lanes);
        (0..granted)
            .map(|_| Permit { queue: Arc::downgrade(&self.0), subscription: id, delivery: None })
            .collect()
    }

    /// Takes over a leased delivery. It is attempted as soon as its lane allows.
    pub fn push(&self, mut job: Job) {
        let id = job.delivery.subscription_id;
        let limit = max_in_flight(job.catalog.subscription(id).map(AsRef::as_ref));
        let mut lanes = self.0.lock();
        if lanes.is_closed {
            // The lease is given back when the node signs off.
            drop(lanes);
            return;
        }
        job.permit.delivery = Some(job.delivery.id);
        lanes.deliveries.insert(job.delivery.id);
        let lane = lanes.by_subscription.entry(id).or_default();
        if lane.active >= limit {
            lane.waiting.push_back(job);
            return;
        }
        lane.active += 1;
        drop(lanes);
        let queue = self.clone();
        let aborted = self.0.aborted.clone();
        self.0.tracker.spawn(async move {
            tokio::select! {
                () = aborted.cancelled() => {}
                () = queue.work(job) => {}
            }
        });
    }

    /// Works through a lane until nothing waits in it.
    async fn work(self, first: Job) {
        let id = first.delivery.subscription_id;
        let mut next = Some(first);
        while let Some(job) = next {
            self.pace(&job).await;
            // The semaphore is never closed.
            if let Ok(_slot) = self.0.in_flight.acquire().await {
                self.0.worker.run(job).await;
            }
            next = self.next(id);
        }
    }

    /// The next delivery of a lane; without one the worker is gone.
    fn next(&self, id: SubscriptionId) -> Option<Job> {
        let mut lanes = self.0.lock();
        let is_closed = lanes.is_closed;
        let lane = lanes.by_subscription.get_mut(&id)?;
        if let Some(job) = lane.waiting.pop_front().filter(|_| !is_closed) {
            return Some(job);
        }
        lane.active -= 1;
        if lane.is_over() {
            lanes.by_subscription.remove(&id);
        }
        None
    }

    /// Waits until the subscription's rate allows another request.
    async fn pace(&self, job: &Job) {
        let id = job.delivery.subscription_id;
        let rate = match job.catalog.subscription(id).map(|subscription| &subscription.spec.channel)
        {
            Some(Channel::Webhook(webhook)) => webhook.max_requests_per_second,
            _ => None,
        };
        let Some(rate) = rate else { return };
        let now = self.0.worker.clock().now();
        let start = {
            let mut lanes = self.0.lock();
            let lane = lanes.by_subscription.entry(id).or_default();
            let start = lane.next_start.unwrap_or(now).max(now);
            lane.next_start = Some(start.plus(Duration::from_secs_f64(1.0 / rate)));
            start
        };
        tokio::time::sleep(start.since(now)).await;
    }

    /// Ends lanes that were only kept for their rate limit, once it has no more to say.
    pub(super) fn prune(&self, now: Timestamp) {
        self.0.lock().by_subscription.retain(|_, lane| {
            !lane.is_idle() || lane.next_start.is_some_and(|next_start| next_start > now)
        });
    }

    /// Whether a delivery has a place.
    pub(super) fn holds(&self, delivery: DeliveryId) -> bool {
        self.0.lock().deliveries.contains(&delivery)
    }

    /// How many deliveries are held.
    pub fn len(&self) -> usize {
        self.0.lock().held
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits until a place may have become free.
    pub(super) async fn room(&self) {
        self.0.room.notified().await;
    }

    /// Takes nothing more, and lets go of what has not begun.
    pub(super) fn close(&self) {
        let mut lanes = self.0.lock();
        lanes.is_closed = true;
        let waiting: Vec<Job> = lanes
            .by_subscription
            .values_mut()
            .flat_map(|lane| std::mem::take(&mut lane.waiting))
            .collect();
        drop(lanes);
        // Their permits lock the lanes again.
        drop(waiting);
        self.0.tracker.close();
    }

    /// Waits, once closed, until every attempt that was under way has ended.
    pub(super) async fn idle(&self) {
        self.0.tracker.wait().await;
    }

    /// Ends the attempts that are still under way.
    pub(super) fn abort(&self) {
        self.0.aborted.cancel();
    }
}
