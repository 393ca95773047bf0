//! A node: the product's decisions, and around them what `src/dispatch` does with tasks and locks.
//! Here it is done by events, one at a time.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use tidings::dispatch::decide::claims::{Giver, Plan, Round};
use tidings::dispatch::decide::endpoints::Known;
use tidings::dispatch::decide::lanes::{Lanes, Place};
use tidings::dispatch::decide::lease::Tenure;
use tidings::dispatch::decide::places::{Given, Owner, Places};
use tidings::dispatch::decide::wants::Want;
use tidings::domain::Timestamp;
use tidings::domain::attempt::{Attempt, Report, Trigger};
use tidings::domain::delivery::Delivery;
use tidings::domain::event::Event;
use tidings::domain::id::{DeliveryId, NodeId, SubscriptionId};
use tidings::domain::subscription::Subscription;
use tidings::domain::trace::TraceContext;
use tidings::store::{Ended, Observed, SubscriptionRef};

use super::scenario::Config;

/// A clock that follows the database's, with an error and a drift of its own.
#[derive(Clone, Copy)]
pub(crate) struct Clock {
    read_at: Timestamp,
    said: Timestamp,
    drift_ppm: i64,
}

impl Clock {
    pub(crate) fn new(drift_ppm: i64) -> Self {
        let zero = Timestamp::from_micros(0);
        Self { read_at: zero, said: zero, drift_ppm }
    }

    pub(crate) fn now(&self, true_time: Timestamp) -> Timestamp {
        let passed = true_time.as_micros() - self.read_at.as_micros();
        let drifted = passed + passed * self.drift_ppm / 1_000_000;
        Timestamp::from_micros(self.said.as_micros() + drifted)
    }

    pub(crate) fn synchronize(&mut self, true_time: Timestamp, said: Timestamp) {
        (self.read_at, self.said) = (true_time, said);
    }
}

/// A place in the lanes; given back when dropped.
pub(crate) struct Permit {
    lanes: Rc<RefCell<Lanes<Job>>>,
    pub(crate) place: Place,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.lanes.borrow_mut().give_back(&self.place);
    }
}

/// A delivery that is leased to a node.
pub(crate) struct Job {
    pub(crate) delivery: Delivery,
    pub(crate) event: Arc<Event>,
    pub(crate) subscription: Option<Arc<Subscription>>,
    pub(crate) settings_time: Timestamp,
    pub(crate) permit: Permit,
    /// The name under which it is leased.
    pub(crate) name: NodeId,
}

/// Where a worker is with its job.
pub(crate) enum Worker {
    /// It waits for its rate, or for a place.
    Waits(Job),
    /// Its request is under way.
    Attempts {
        job: Job,
        subscription: Arc<Subscription>,
        report: Box<Report>,
        number: u32,
        given: Given,
    },
}

/// A result on its way into the database.
pub(crate) struct Finished {
    pub(crate) ended: Ended,
    pub(crate) seen: Option<Observed>,
    pub(crate) permit: Permit,
}

/// What the recorder is writing.
pub(crate) struct Batch {
    pub(crate) ended: Vec<Ended>,
    pub(crate) seen: Vec<Observed>,
    #[expect(dead_code, reason = "held until the batch is recorded")]
    pub(crate) permits: Vec<Permit>,
    pub(crate) pause: Duration,
    /// Those that were fenced and are still to be looked at.
    pub(crate) late: Vec<Attempt>,
}

pub(crate) struct Manual {
    pub(crate) delivery: Delivery,
    pub(crate) due: Option<Timestamp>,
    pub(crate) of: SubscriptionRef,
    pub(crate) attempt: Option<Attempt>,
}

pub(crate) struct Node {
    /// Counts its lives: what was begun in an earlier one ends with it.
    pub(crate) life: u32,
    pub(crate) stalled_until: Timestamp,
    pub(crate) clock: Clock,
    /// Its lease; none while it is dead.
    pub(crate) tenure: Option<Tenure>,
    pub(crate) lanes: Rc<RefCell<Lanes<Job>>>,
    pub(crate) places: Places<u64>,
    pub(crate) known: Known,
    pub(crate) workers: BTreeMap<u64, Worker>,
    pub(crate) next_worker: u64,
    pub(crate) finished: Vec<Finished>,
    pub(crate) batch: Option<Batch>,
    pub(crate) manual: BTreeMap<u64, Manual>,
    pub(crate) claim_ticket: u64,
    pub(crate) is_claiming: bool,
    /// When the last claim began; before when there is no round over everything, and when the next one
    /// is to be; before when nothing is claimed for those that have room again (true time).
    pub(crate) claim_begin: Timestamp,
    pub(crate) earliest_round: Timestamp,
    pub(crate) next_round: Timestamp,
    pub(crate) next_claim: Timestamp,
    pub(crate) chores: u32,
    /// When it last read what others know (true time).
    pub(crate) look_time: Timestamp,
    /// When an attempt of its own last succeeded (true time).
    pub(crate) success_time: HashMap<SubscriptionId, Timestamp>,
    pub(crate) random: StdRng,
}

impl Node {
    pub(crate) fn new(config: &Config, random: StdRng) -> Self {
        let zero = Timestamp::from_micros(0);
        Self {
            life: 0,
            stalled_until: zero,
            clock: Clock::new(0),
            tenure: None,
            lanes: Rc::new(RefCell::new(Lanes::new(config.queue_size, config.queue_bytes))),
            places: Places::new(config.max_in_flight),
            known: Known::new(config.health),
            workers: BTreeMap::new(),
            next_worker: 0,
            finished: Vec::new(),
            batch: None,
            manual: BTreeMap::new(),
            claim_ticket: 0,
            is_claiming: false,
            claim_begin: zero,
            earliest_round: zero,
            next_round: zero,
            next_claim: zero,
            chores: 0,
            look_time: zero,
            success_time: HashMap::new(),
            random,
        }
    }

    /// Loses everything that is in memory.
    pub(crate) fn forget(&mut self, config: &Config) {
        // What waits in the lanes has places in them: it would keep them in memory.
        let waiting = self.lanes.borrow_mut().close();
        drop(waiting);
        let random = StdRng::from_rng(&mut self.random);
        *self = Self { life: self.life + 1, ..Self::new(config, random) };
    }

    pub(crate) fn name(&self) -> Option<NodeId> {
        self.tenure.map(|tenure| tenure.node())
    }

    /// Whether nothing is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.workers.is_empty() && self.batch.is_none() && self.manual.is_empty()
    }

    /// Deliveries whose automatic attempt was begun and is not known to be recorded.
    pub(crate) fn attempted(&self) -> Vec<DeliveryId> {
        let under_way = self.workers.values().filter_map(|worker| match worker {
            Worker::Waits(_) => None,
            Worker::Attempts { job, .. } => Some(job.delivery.id),
        });
        let ended = self.finished.iter().map(|finished| &finished.ended);
        let ended = ended.chain(self.batch.iter().flat_map(|batch| &batch.ended));
        let ended = ended.filter(|ended| ended.attempt.is_some()).map(|ended| ended.after.id);
        under_way.chain(ended).collect()
    }

    /// Something is due for which there was no room.
    pub(crate) fn want(
        &self,
        want: Want,
        subscription: Option<&Subscription>,
        now: Timestamp,
    ) -> bool {
        let allowance = self.known.allowance(want.of.id, subscription, now);
        self.lanes.borrow_mut().want(want, allowance, now)
    }

    /// How many automatic attempts are under way.
    pub(crate) fn attempting(&self) -> usize {
        self.workers.values().filter(|worker| matches!(worker, Worker::Attempts { .. })).count()
    }

    pub(crate) fn attempt(
        &mut self,
        job: &Delivery,
        number: u32,
        trigger: Trigger,
        report: Report,
    ) -> Attempt {
        let trace = TraceContext { trace_id: 1, span_id: self.random.random(), sampled: false };
        Attempt { delivery_id: job.id, number, trigger, report, trace }
    }

    /// Reserves up to `wanted` places.
    pub(crate) fn reserve(
        &self,
        of: SubscriptionRef,
        subscription: Option<&Subscription>,
        wanted: usize,
        now: Timestamp,
    ) -> Vec<Permit> {
        let allowance = self.known.allowance(of.id, subscription, now);
        let tenant = subscription.map(|subscription| subscription.tenant_id);
        let places = self.lanes.borrow_mut().reserve((of.id, tenant), wanted, allowance, now);
        places.into_iter().map(|place| Permit { lanes: Rc::clone(&self.lanes), place }).collect()
    }
}

pub(crate) fn weigh(permit: &mut Permit, bytes: usize) -> bool {
    permit.lanes.borrow_mut().weigh(&mut permit.place, bytes)
}

pub(crate) fn owner(delivery: &Delivery) -> Owner {
    Owner { tenant: delivery.tenant_id, subscription: delivery.subscription_id }
}

/// What a claim has read of the settings.
pub(crate) type Read = BTreeMap<SubscriptionRef, Option<Arc<Subscription>>>;

/// Gives a node's places to its claim.
pub(crate) struct Giving<'a> {
    pub(crate) node: &'a Node,
    pub(crate) settings: &'a Read,
    pub(crate) now: Timestamp,
}

impl Giver<Permit> for Giving<'_> {
    fn reserve(&mut self, of: SubscriptionRef, wanted: usize) -> Vec<Permit> {
        let subscription = self.settings.get(&of).and_then(Option::as_deref);
        self.node.reserve(of, subscription, wanted, self.now)
    }

    fn reserve_probe(&mut self, of: SubscriptionRef) -> Option<Permit> {
        let subscription = self.settings.get(&of).and_then(Option::as_deref);
        let tenant = subscription.map(|subscription| subscription.tenant_id);
        let place = self.node.lanes.borrow_mut().reserve_probe((of.id, tenant))?;
        Some(Permit { lanes: Rc::clone(&self.node.lanes), place })
    }

    fn weigh(&mut self, place: &mut Permit, bytes: usize) -> bool {
        weigh(place, bytes)
    }
}

/// A claim on its way.
pub(crate) struct Claiming {
    pub(crate) plan: Plan<Permit>,
    pub(crate) round: Round,
    pub(crate) settings: Read,
    pub(crate) now: Timestamp,
    pub(crate) name: NodeId,
    /// Whether it looked at everything, and not only for those that have room again.
    pub(crate) is_of_all: bool,
}
