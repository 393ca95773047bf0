//! What this node has leased: a lane per subscription, all within a bounded number of permits.
//!
//! A permit is reserved before a delivery is leased, so memory is bounded by configuration, never by
//! the backlog nor by the number of subscriptions: in places, and in bytes of events. (An event that
//! several deliveries share counts for each of them, since each attempt makes a body of its own.) A
//! lane has at most as many attempts under way as the subscription, its endpoint's health and the
//! other replicas leave to this node; a slow endpoint fills its own lane and no other. One tenant
//! never takes all places, and a quarter of the places and of the bytes is kept for prompt endpoints
//! and the first few deliveries of each lane, so that slow endpoints cannot lock out a good one.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Poll;

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::domain::delivery::Delivery;
use crate::domain::event::Event;
use crate::domain::id::{DeliveryId, NodeId, SubscriptionId, TenantId};
use crate::domain::subscription::Subscription;
use crate::domain::{Clock, Timestamp};
use crate::store::{Catalog, SubscriptionRef};

use super::Config;
use super::decide::lanes::{self, Lanes, Place};
use super::decide::places::Owner;
use super::decide::wants::Want;
use super::slots::Slots;
use super::worker::{Turn, Worker};

/// A delivery that is leased to this node, and all that an attempt needs.
pub struct Job {
    /// The delivery, DELIVERING.
    pub delivery: Delivery,
    /// Its event.
    pub event: Arc<Event>,
    /// The tenant's settings as they were when it was leased.
    pub catalog: Catalog,
    /// Its place in memory, until its result is recorded.
    pub permit: Permit,
}

/// A place in the queue; given back when dropped.
pub struct Permit {
    queue: Weak<Inner>,
    pub(super) place: Place,
    /// The name under which its delivery is leased: as of the reservation, which comes first. When
    /// the name changes in between, the delivery is left to others for nothing.
    node: NodeId,
}

impl Permit {
    /// The name under which its delivery is leased.
    pub(super) const fn node(&self) -> NodeId {
        self.node
    }

    /// Takes room for an event of so many bytes; `false`, and nothing is taken, when there is none.
    /// To be asked once, before the event comes into memory.
    pub fn weigh(&mut self, bytes: usize) -> bool {
        self.queue.upgrade().is_some_and(|queue| queue.lock().weigh(&mut self.place, bytes))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Some(queue) = self.queue.upgrade() else { return };
        let is_any_ready = queue.lock().give_back(&self.place);
        if is_any_ready {
            queue.room.notify_one();
        }
    }
}

struct Inner {
    /// Jobs are large, and are handed on often.
    lanes: Mutex<Lanes<Box<Job>>>,
    in_flight: Slots,
    worker: Worker,
    /// Whether workers make way for callers.
    makes_way: AtomicBool,
    tracker: TaskTracker,
    aborted: Abort,
    /// Tells the claimer that a lane that wanted room has some.
    room: Notify,
}

/// Ends attempts. Cheap to clone, and to look at.
#[derive(Clone, Default)]
struct Abort {
    token: CancellationToken,
    is_set: Arc<AtomicBool>,
}

impl Abort {
    fn set(&self) {
        self.is_set.store(true, Ordering::Release);
        self.token.cancel();
    }

    fn is_set(&self) -> bool {
        self.is_set.load(Ordering::Acquire)
    }

    /// Waits until it is set.
    async fn ended(&self) {
        self.token.cancelled().await;
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Lanes<Box<Job>>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The queue. Cheap to clone.
#[derive(Clone)]
pub struct Queue(Arc<Inner>);

impl Queue {
    pub(super) fn new(config: &Config, worker: Worker, waiting: Gauge) -> Self {
        Self(Arc::new(Inner {
            lanes: Mutex::new(Lanes::new(config.queue_size, config.queue_bytes)),
            in_flight: Slots::new(config.max_in_flight, worker.clock().clone(), waiting),
            worker,
            makes_way: AtomicBool::new(false),
            tracker: TaskTracker::new(),
            aborted: Abort::default(),
            room: Notify::new(),
        }))
    }

    /// The node under which deliveries are leased now.
    pub fn node(&self) -> NodeId {
        self.0.worker.node()
    }

    /// Has workers make way for callers, whose events arrive faster than they can be committed, or ends that.
    pub fn make_way(&self, is_wanted: bool) {
        self.0.makes_way.store(is_wanted, Ordering::Relaxed);
    }

    /// Reserves up to `wanted` places for a subscription; fewer or none when the lane or the node
    /// is full, or the node is stopping. Each is to be weighed when its event is known.
    pub fn reserve(
        &self,
        id: SubscriptionId,
        subscription: Option<&Subscription>,
        wanted: usize,
    ) -> Vec<Permit> {
        let now = self.0.worker.clock().now();
        let allowance = self.0.worker.allowance(id, subscription, now);
        let tenant = subscription.map(|subscription| subscription.tenant_id);
        let places = self.0.lock().reserve((id, tenant), wanted, allowance, now);
        places.into_iter().map(|place| self.permit(place)).collect()
    }

    /// Reserves the place of the probe of an open breaker.
    pub(super) fn reserve_probe(
        &self,
        id: SubscriptionId,
        subscription: Option<&Subscription>,
    ) -> Option<Permit> {
        let tenant = subscription.map(|subscription| subscription.tenant_id);
        let place = self.0.lock().reserve_probe((id, tenant))?;
        Some(self.permit(place))
    }

    /// Reserves a place for one delivery more of an attempt that has its turn.
    pub(super) fn reserve_further(
        &self,
        id: SubscriptionId,
        subscription: Option<&Subscription>,
    ) -> Option<Permit> {
        let tenant = subscription.map(|subscription| subscription.tenant_id);
        let place = self.0.lock().reserve_further((id, tenant), 1).pop()?;
        Some(self.permit(place))
    }

    /// Has `permit` be the place of a delivery.
    pub(super) fn occupy(&self, permit: &mut Permit, delivery: DeliveryId) {
        self.0.lock().occupy(&mut permit.place, delivery);
    }

    /// Takes out jobs that wait in a lane, to go along with one that has its turn.
    pub(super) fn take_waiting(
        &self,
        id: SubscriptionId,
        is_wanted: impl Fn(&Job) -> bool,
        limit: usize,
    ) -> Vec<Box<Job>> {
        self.0.lock().take_waiting(id, |job| is_wanted(job), limit)
    }

    fn permit(&self, place: Place) -> Permit {
        Permit { queue: Arc::downgrade(&self.0), place, node: self.node() }
    }

    /// Takes over a leased delivery. It is attempted as soon as its lane allows.
    pub fn push(&self, job: Job) {
        let mut job = Box::new(job);
        let id = job.delivery.subscription_id;
        let limit = self.0.worker.allowed(id, job.catalog.subscription(id).map(AsRef::as_ref));
        let mut lanes = self.0.lock();
        if lanes.is_closed() {
            // The lease is given back when the node signs off.
            drop(lanes);
            return;
        }
        lanes.occupy(&mut job.permit.place, job.delivery.id);
        let starting = lanes.push(job, |job| &job.permit.place, limit);
        drop(lanes);
        self.start(starting);
    }

    fn start(&self, jobs: Vec<Box<Job>>) {
        for job in jobs {
            let (queue, aborted) = (self.clone(), self.0.aborted.clone());
            self.0.tracker.spawn(async move {
                let (mut work, mut ended) = (pin!(queue.work(job)), pin!(aborted.ended()));
                let mut is_watched = false;
                poll_fn(|context| {
                    if work.as_mut().poll(context).is_ready() {
                        return Poll::Ready(());
                    }
                    // A task keeps its waker, so it is enough to have asked once. Asking takes locks.
                    if is_watched && !aborted.is_set() {
                        return Poll::Pending;
                    }
                    is_watched = true;
                    ended.as_mut().poll(context)
                })
                .await;
            });
        }
    }

    /// Works through a lane until nothing waits in it, or it has more workers than it may have.
    async fn work(self, first: Box<Job>) {
        let id = first.delivery.subscription_id;
        let mut next = Some(first);
        while let Some(job) = next {
            // The lane has others for it.
            let Some((job, turn)) = self.turn(job).await else { return };
            let subscription = job.catalog.subscription(id).cloned();
            let is_digest = subscription.as_ref().is_some_and(|it| it.digest().is_some());
            let further = match turn {
                // Apart: it is rare, and would be most of what each task carries.
                Turn::Attempt(_) if is_digest => {
                    Box::pin(self.0.worker.rest_of_digest(&self, &job)).await
                }
                Turn::Attempt(_) | Turn::GiveBack => Vec::new(),
            };
            let is_attempt = matches!(turn, Turn::Attempt(_));
            self.0.worker.run(job, further, turn).await;
            if is_attempt && self.0.makes_way.load(Ordering::Relaxed) {
                self.0.worker.pause().await;
            }
            let limit = self.0.worker.allowed(id, subscription.as_deref());
            let now = self.0.worker.clock().now();
            let (job, more) = self.0.lock().next(id, limit, now);
            self.start(more);
            next = job;
        }
    }

    /// Waits until an attempt may begin, or no longer makes sense. Nothing comes of it when the lane may
    /// have fewer workers by then: the job waits again, and the worker has to go.
    async fn turn(&self, mut job: Box<Job>) -> Option<(Box<Job>, Turn)> {
        let id = job.delivery.subscription_id;
        loop {
            let now = self.0.worker.clock().now();
            let subscription = job.catalog.subscription(id).map(AsRef::as_ref);
            let allowance = self.0.worker.allowance(id, subscription, now);
            let rate = self.0.worker.rate(subscription);
            let next_start = rate.and_then(|_| self.0.lock().next_start(id));
            match lanes::turn(&job.permit.place, allowance.in_flight, next_start, now) {
                lanes::Turn::GiveBack => return Some((job, Turn::GiveBack)),
                lanes::Turn::Wait(start) => {
                    tokio::time::sleep(start.since(now)).await;
                    continue;
                }
                lanes::Turn::Ask => {}
            }
            let owner = Owner { tenant: job.delivery.tenant_id, subscription: id };
            let slot = self.0.in_flight.acquire(owner, allowance.is_prompt).await;
            // That may have taken long: what holds is what is true now.
            self.0.worker.refresh(&mut job, || self.tenants()).await;
            job = self.keep(job)?;
            let subscription = job.catalog.subscription(id).map(AsRef::as_ref);
            let rate = self.0.worker.rate(subscription);
            if rate.is_none_or(|rate| self.take_start(id, rate)) {
                return Some((job, Turn::Attempt(slot)));
            }
        }
    }

    /// The job, unless its worker has to go.
    fn keep(&self, job: Box<Job>) -> Option<Box<Job>> {
        let id = job.delivery.subscription_id;
        let subscription = job.catalog.subscription(id).map(AsRef::as_ref);
        let allowed = self.0.worker.allowed(id, subscription);
        let mut lanes = self.0.lock();
        if !lanes.is_surplus(&job.permit.place, allowed) {
            return Some(job);
        }
        let let_go = lanes.put_back(job, |job| &job.permit.place);
        // Its permit locks the lanes again.
        drop(lanes);
        drop(let_go);
        None
    }

    fn take_start(&self, id: SubscriptionId, rate: f64) -> bool {
        let now = self.0.worker.clock().now();
        self.0.lock().take_start(id, rate, now)
    }

    /// Ends lanes that were only kept for their rate limit, once it has no more to say.
    pub(super) fn prune(&self, now: Timestamp) {
        self.0.lock().prune(now);
    }

    /// Whose deliveries are held.
    pub(super) fn tenants(&self) -> Vec<TenantId> {
        self.0.lock().tenants()
    }

    /// Whether a delivery has a place.
    pub(super) fn holds(&self, delivery: DeliveryId) -> bool {
        self.0.lock().holds(delivery)
    }

    /// How many deliveries are held.
    pub fn len(&self) -> usize {
        self.0.lock().len()
    }

    /// How many bytes of events are held.
    pub(super) fn bytes(&self) -> usize {
        self.0.lock().bytes()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Something is due for a subscription, and found no place, or no room for its bytes
    /// (`is_heavy`): it is claimed as soon as there is some.
    pub fn want(&self, subscription: &Subscription, is_heavy: bool) {
        self.take_note(Want { of: subscription.into(), is_heavy }, Some(subscription));
    }

    /// See [`Queue::want`].
    pub(super) fn take_note(&self, want: Want, subscription: Option<&Subscription>) {
        let now = self.0.worker.clock().now();
        let allowance = self.0.worker.allowance(want.of.id, subscription, now);
        let is_any_ready = self.0.lock().want(want, allowance, now);
        if is_any_ready {
            self.0.room.notify_one();
        }
    }

    /// Waits until there is room for subscriptions that wanted some.
    pub(super) async fn ready(&self) -> Vec<SubscriptionRef> {
        self.0.room.notified().await;
        self.take_ready()
    }

    /// Those that have room now.
    pub(super) fn take_ready(&self) -> Vec<SubscriptionRef> {
        self.0.lock().take_ready()
    }

    /// Takes nothing more, and lets go of what has not begun.
    pub(super) fn close(&self) {
        let waiting = self.0.lock().close();
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
        self.0.aborted.set();
    }
}
