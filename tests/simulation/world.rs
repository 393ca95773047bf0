//! The world: virtual time, what happens in it in which order, transactions on their way, and the
//! faults. One seed decides everything.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hasher};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use tidings::domain::Timestamp;
use tidings::domain::id::{DeliveryId, NodeId};
use tidings::store::SubscriptionRef;

use super::clients;
use super::database::Database;
use super::faults::{Fired, Tally};
use super::node::Node;
use super::receiver::Receiver;
use super::scenario::{BIRTH, Scenario, Weather};
use super::transactions::{Answer, Request, Transaction};

/// Steps after which a world that has not come to rest is broken.
const MAX_STEPS: u64 = 400_000;
/// How long after the last fault everything must have ended.
const MAX_REST: Duration = Duration::from_mins(20);

/// Something that happens.
pub(crate) enum Event {
    /// A node does something, if it still lives the same life.
    Node { node: usize, life: u32, what: What },
    /// The database does what a node asked for.
    Apply(Box<Transaction>),
    /// A tenant's service emits so many events.
    Emit { tenant: usize, count: usize },
    /// A client changes something.
    Meddle,
    /// A receiver begins to misbehave.
    Disturb,
    /// A node or the database fails.
    Strike,
    /// A node starts.
    Start { node: usize },
    /// Bounds are looked at.
    Inspect,
    /// The faults end.
    Rest,
}

/// What a node does.
pub(crate) enum What {
    Claim(u64),
    /// A worker that waits for a place looks again.
    AlarmRings(u64),
    Look,
    Chores,
    Renew,
    TurnWakes(u64),
    AttemptEnds(u64),
    ManualEnds(u64),
    /// What it attempts brings it down.
    Dies,
    RecordAgain,
    /// The database has answered.
    Answer(Box<Answer>),
}

/// What becomes of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Confirmed,
    Failed,
    /// It takes effect, but nobody hears of it.
    Unconfirmed,
}

struct Entry {
    time: Timestamp,
    order: u64,
    event: Event,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.time, self.order).cmp(&(other.time, other.order))
    }
}

/// What the checks remember of the requests that were made.
#[derive(Default)]
pub(crate) struct Requests {
    /// By delivery and the revision of its lease.
    pub(crate) by_lease: HashSet<(DeliveryId, i64)>,
    /// How many automatic ones there were, and how many the receiver took.
    pub(crate) automatic: HashMap<DeliveryId, u32>,
    pub(crate) taken: HashMap<DeliveryId, u32>,
    /// Automatic ones that died with their node before they were recorded.
    pub(crate) died: HashMap<DeliveryId, u32>,
    /// How many nodes died of a delivery that had not ended.
    pub(crate) fatal: HashMap<DeliveryId, u32>,
    /// The last probe: in which episode of the breaker, and when (the database's time).
    pub(crate) probes: HashMap<SubscriptionRef, (u64, Timestamp)>,
    /// The last one of each node to each subscription (true time).
    pub(crate) starts: HashMap<(usize, SubscriptionRef), Timestamp>,
    /// The live nodes as of the last attempt, and since when (true time).
    pub(crate) live: Vec<NodeId>,
    pub(crate) live_since: Timestamp,
}

pub(crate) struct World {
    pub(crate) scenario: Scenario,
    pub(crate) now: Timestamp,
    queue: BinaryHeap<Reverse<Entry>>,
    order: u64,
    pub(crate) nodes: Vec<Node>,
    pub(crate) database: Database,
    /// By how much the database's clock is off.
    pub(crate) offset_us: i64,
    pub(crate) away_until: Timestamp,
    pub(crate) receivers: BTreeMap<SubscriptionRef, Receiver>,
    pub(crate) random: StdRng,
    pub(crate) tally: Tally,
    pub(crate) requests: Requests,
    /// When something last failed that excuses delays, and when a clock last jumped (true time).
    pub(crate) trouble_time: Timestamp,
    pub(crate) jump_time: Timestamp,
    pub(crate) jumped: Duration,
    pub(crate) is_resting: bool,
    broken: Option<String>,
    hash: DefaultHasher,
    pub(crate) trace: Option<Vec<String>>,
}

/// How a world ended.
pub(crate) struct Ending {
    pub(crate) tally: Tally,
    pub(crate) steps: u64,
    /// Of everything that happened, in its order.
    pub(crate) hash: u64,
    pub(crate) trace: Vec<String>,
    /// What broke an invariant.
    pub(crate) broken: Option<String>,
    pub(crate) deliveries: usize,
}

/// Notes what happens, when somebody reads it.
macro_rules! say {
    ($world:expr, $($words:tt)*) => {
        if let Some(trace) = &mut $world.trace {
            let seconds = $world.now.since($crate::scenario::BIRTH).as_secs_f64();
            trace.push(format!("{seconds:>11.6}  {}", format_args!($($words)*)));
        }
    };
}
pub(crate) use say;

/// Lives through what `seed` stands for.
pub(crate) fn live(seed: u64, with_trace: bool) -> Ending {
    let mut world = World::new(seed, with_trace);
    let mut steps = 0;
    while world.broken.is_none() && world.step() {
        steps += 1;
        if steps > MAX_STEPS {
            world.breaks("it does not come to rest".into());
        }
    }
    if world.broken.is_none() {
        world.check_end();
    }
    for node in &mut world.nodes {
        node.forget(&world.scenario.config);
    }
    Ending {
        steps,
        hash: world.hash.finish(),
        trace: world.trace.unwrap_or_default(),
        broken: world.broken,
        deliveries: world.database.rows.len(),
        tally: world.tally,
    }
}

impl World {
    fn new(seed: u64, with_trace: bool) -> Self {
        let scenario = Scenario::of(seed);
        let mut random = StdRng::seed_from_u64(seed ^ 0x5eed);
        let mut database = Database::new(scenario.config.health);
        let mut receivers = BTreeMap::new();
        for subscription in scenario.tenants.iter().flat_map(|tenant| &tenant.subscriptions) {
            let of = database.subscribe(subscription.clone());
            receivers.insert(of, Receiver::new(&mut random));
        }
        let nodes = (0..scenario.nodes)
            .map(|_| Node::new(&scenario.config, StdRng::seed_from_u64(random.random())))
            .collect();
        let mut world = Self {
            now: BIRTH,
            queue: BinaryHeap::new(),
            order: 0,
            nodes,
            database,
            offset_us: random.random_range(-600_000_000..600_000_000),
            away_until: BIRTH,
            receivers,
            random,
            tally: Tally::default(),
            requests: Requests::default(),
            trouble_time: BIRTH,
            jump_time: Timestamp::from_micros(0),
            jumped: Duration::ZERO,
            is_resting: false,
            broken: None,
            hash: DefaultHasher::new(),
            trace: with_trace.then(Vec::new),
            scenario,
        };
        world.follow_clock();
        for node in 0..world.nodes.len() {
            let delay = world.millis(0..=300);
            world.after(delay, Event::Start { node });
        }
        clients::begin(&mut world);
        world
    }

    /// Does the next thing. `false` when there is nothing left to do.
    fn step(&mut self) -> bool {
        let Some(Reverse(Entry { time, order, event })) = self.queue.pop() else { return false };
        self.now = time.max(self.now);
        self.follow_clock();
        self.hash.write_i64(self.now.as_micros());
        match event {
            Event::Node { node, life, what } => {
                let Node { life: own, stalled_until, .. } = self.nodes[node];
                if own != life {
                    return true;
                }
                if stalled_until > self.now {
                    // In the order in which it would have happened.
                    let event = Event::Node { node, life, what };
                    self.queue.push(Reverse(Entry { time: stalled_until, order, event }));
                    return true;
                }
                self.act(node, what);
                self.check_memory(node);
            }
            Event::Apply(transaction) => self.apply(*transaction),
            Event::Emit { tenant, count } => self.emit(tenant, count),
            Event::Meddle => self.meddle(),
            Event::Disturb => self.disturb(),
            Event::Strike => self.strike(),
            Event::Start { node } => self.start(node),
            Event::Inspect => self.inspect(),
            Event::Rest => self.rest(),
        }
        if let Some(broken) = self.database.broken.take() {
            self.breaks(broken);
        }
        let rested = self.now.since(BIRTH) > self.scenario.storm + MAX_REST;
        if rested && !self.database.open.is_empty() {
            self.breaks(self.lost());
        }
        !(self.is_resting && self.database.open.is_empty() && self.nodes.iter().all(Node::is_idle))
    }

    fn follow_clock(&mut self) {
        self.database.true_time = self.now;
        let now = self.now.as_micros() + self.offset_us;
        self.database.now = Timestamp::from_micros(now);
    }

    /// Notes that an invariant is broken. The first one counts.
    pub(crate) fn breaks(&mut self, what: String) {
        say!(self, "BROKEN: {what}");
        self.broken.get_or_insert(what);
    }

    pub(crate) fn note(&mut self, fired: Fired) {
        self.tally.note(fired);
        self.hash.write_usize(fired as usize);
    }

    pub(crate) fn after(&mut self, delay: Duration, event: Event) {
        self.order += 1;
        let entry = Entry { time: self.now.plus(delay), order: self.order, event };
        self.queue.push(Reverse(entry));
    }

    /// Has a node do something, in this life.
    pub(crate) fn later(&mut self, node: usize, delay: Duration, what: What) {
        let life = self.nodes[node].life;
        self.after(delay, Event::Node { node, life, what });
    }

    pub(crate) fn millis(&mut self, range: std::ops::RangeInclusive<u64>) -> Duration {
        Duration::from_millis(self.random.random_range(range))
    }

    pub(crate) fn is_stormy(&self) -> bool {
        self.scenario.weather == Weather::Stormy && !self.is_resting
    }

    /// What a node takes for the time.
    pub(crate) fn clock(&self, node: usize) -> Timestamp {
        self.nodes[node].clock.now(self.now)
    }

    /// Whether the database answers; to be asked when it is needed.
    pub(crate) fn is_reachable(&mut self) -> bool {
        let is_away = self.now < self.away_until;
        if is_away {
            self.note(Fired::DatabaseAway);
        }
        !is_away
    }

    /// Sends a transaction to the database.
    pub(crate) fn send(&mut self, node: usize, request: Request) {
        let (mut fate, mut back) = (Fate::Confirmed, self.millis(1..=4));
        let mut there = self.millis(1..=4);
        if self.is_stormy() {
            match self.random.random_range(0..60) {
                0 => fate = Fate::Failed,
                1 => fate = Fate::Unconfirmed,
                2 => there = self.millis(5..=2_000),
                3 => back = self.millis(5..=2_000),
                _ => {}
            }
        }
        if fate != Fate::Confirmed || there + back > Duration::from_millis(8) {
            self.trouble_time = self.now.plus(there + back);
        }
        let life = self.nodes[node].life;
        let transaction = Transaction { node, life, request, fate, back };
        self.after(there, Event::Apply(Box::new(transaction)));
    }

    /// Nodes that serve clients now.
    pub(crate) fn serving(&self) -> Vec<usize> {
        let serves = |node: &Node| node.tenure.is_some() && node.stalled_until <= self.now;
        (0..self.nodes.len()).filter(|node| serves(&self.nodes[*node])).collect()
    }

    /// One of the nodes that serve clients now.
    pub(crate) fn any_serving(&mut self) -> Option<usize> {
        let serving = self.serving();
        if serving.is_empty() {
            return None;
        }
        Some(serving[self.random.random_range(0..serving.len())])
    }

    fn lost(&self) -> String {
        let open: Vec<_> = self.database.open.iter().map(|at| &self.database.rows[*at]).collect();
        let Some(first) = open.first() else { return String::new() };
        let (delivery, lease) = (&first.delivery, first.lease);
        let name = delivery.state.as_str();
        format!(
            "lost: {} deliveries have not ended, the first {} is {name}, due {:?}, leased to \
             {lease:?}; acknowledged: {}",
            open.len(),
            delivery.id,
            delivery.next_attempt_time,
            first.acknowledged,
        )
    }
}
