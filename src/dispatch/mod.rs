//! The engine: it takes what is due and has it delivered.
//!
//! | part | does |
//! |---|---|
//! | [`decide`] | all decisions, pure; the others act on them |
//! | [`Queue`] | holds what this node has leased, a lane per subscription, within permits |
//! | `worker` | makes one attempt and decides what follows |
//! | `recorder` | writes results in group commits, fenced by revisions |
//! | `births` | has the feed told of what is under way for longer than a moment |
//! | `claimer` | leases what is due, in fair turns |
//! | `janitor` | takes over from silent nodes, settles, expires, purges |
//! | `lease` | keeps this node's own lease |
//! | `endpoints` | knows which endpoints are not healthy, and this node's share of their limits |
//! | `slots` | gives the places of attempts in fair turns |
//! | `quarantine` | has deliveries attempted apart whose attempts may bring down the process |
//! | [`ManualAttempts`] | attempts that somebody asked for |
//!
//! The database is the truth. Everything here may be lost at any moment: what was leased becomes
//! due again when the node's lease has run out.

mod births;
mod claimer;
pub mod decide;
mod digest;
mod endpoints;
mod janitor;
mod lease;
mod mail;
mod manual;
mod metrics;
mod quarantine;
mod queue;
mod recorder;
mod slots;
mod turns;
mod worker;

pub use manual::{ManualAttempts, ManualError, ManualResult, TestResult};
pub use queue::{Job, Permit, Queue};
pub use turns::MAX_ON_REQUEST;

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use futures::future::BoxFuture;
use prometheus_client::registry::Registry;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::channel::Channels;
use crate::domain::channel::MAX_TIMEOUT;
use crate::domain::event::NewEvent;
use crate::domain::id::NodeId;
use crate::domain::trace::SpanSink;
use crate::domain::{Clock, health};
use crate::store::{CatalogCache, DatabaseClock, Error, Retention, Store};

use endpoints::Endpoints;
use lease::Lease;
use metrics::Metrics;
use turns::Turns;
use worker::Worker;

/// Leases that one transaction gives back at the end, how often that is tried again, and after how long.
const RELEASED_AT_ONCE: u32 = 1_000;
const RELEASE_RETRIES: u32 = 4;
const RELEASE_PAUSE: Duration = Duration::from_millis(50);

/// How the engine is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where recipients of mail reach the HTTP port from outside; `None`: messages have no link to
    /// unsubscribe.
    pub public_url: Option<String>,
    /// Attempts under way at once, over all subscriptions.
    pub max_in_flight: usize,
    /// Deliveries that this node holds in memory, waiting or under way.
    pub queue_size: usize,
    /// Bytes of events that those deliveries may have together. An event counts for each of its
    /// deliveries. Several times the largest event.
    pub queue_bytes: usize,
    /// How long a silent node keeps its deliveries.
    pub lease_ttl: Duration,
    /// A lease that this node does not know of after this long was made by a commit whose
    /// confirmation was lost, or belongs to a manual attempt that was broken off. Longer than any
    /// manual attempt, which nobody else knows of.
    pub forgotten_after: Duration,
    /// How often to look for due deliveries when nothing wakes the node.
    pub poll_interval: Duration,
    /// How long what is kept.
    pub retention: Retention,
    /// When an endpoint is spared.
    pub health: health::Policy,
}

impl Default for Config {
    fn default() -> Self {
        const HOUR: u64 = 60 * 60;
        Self {
            public_url: None,
            max_in_flight: 4_096,
            queue_size: 8_192,
            queue_bytes: 128 * 1024 * 1024,
            lease_ttl: Duration::from_secs(10),
            // Beside the attempt itself, its record has to be written.
            forgotten_after: MAX_TIMEOUT + Duration::from_secs(15),
            poll_interval: Duration::from_millis(500),
            retention: Retention {
                events: Duration::from_secs(30 * 24 * HOUR),
                feed: Duration::from_secs(3 * 24 * HOUR),
                idempotency_keys: Duration::from_secs(48 * HOUR),
            },
            health: health::Policy::default(),
        }
    }
}

/// What the engine works with.
pub struct Parts {
    /// The database.
    pub store: Store,
    /// Its clock.
    pub clock: Arc<DatabaseClock>,
    /// The tenants' settings.
    pub catalog: Arc<CatalogCache>,
    /// The ways to deliver.
    pub channels: Arc<Channels>,
    /// Who collects spans.
    pub spans: Arc<dyn SpanSink>,
    /// Where randomness (ids, jitter) starts.
    pub seed: u64,
}

/// What became of an event of the service itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announced {
    /// It is durable, was so before, or its tenant is gone: nothing is left to do.
    Done,
    /// It was not taken now.
    Later,
}

/// Emits the service's own events; the engine does not know how. The same event under the same
/// idempotency key must make no second one.
pub type Announcer = Box<dyn Fn(NewEvent) -> BoxFuture<'static, Announced> + Send + Sync>;

/// What every part of the engine shares.
struct Shared {
    config: Config,
    store: Store,
    clock: Arc<DatabaseClock>,
    catalog: Arc<CatalogCache>,
    channels: Arc<Channels>,
    spans: Arc<dyn SpanSink>,
    random: Mutex<StdRng>,
    lease: Lease,
    metrics: Metrics,
    endpoints: Endpoints,
    announcer: OnceLock<Announcer>,
    /// Manual attempts under way.
    manual: TaskTracker,
    /// How many of them, and of tests, each tenant may have.
    turns: Turns,
    /// Wakes the claimer.
    due: Notify,
    /// Wakes the janitor.
    chores: Notify,
}

/// The running engine.
pub struct Dispatch {
    shared: Arc<Shared>,
    queue: Queue,
    tasks: JoinSet<&'static str>,
    /// Waits for the claim that is under way when the engine is stopped.
    claims: TaskTracker,
    /// Ends the claimer and the janitor.
    claiming: CancellationToken,
    /// Ends the recorder and the lease keeper, once nothing is under way.
    recording: CancellationToken,
    recorder: recorder::Handle,
}

/// How the engine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Leases that were given back because their attempt had not begun or not ended in time.
    pub released: usize,
}

impl Dispatch {
    /// Registers this node, takes over what its predecessors left (on an embedded database), and
    /// starts to work.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn start(
        config: Config,
        parts: Parts,
        registry: &mut Registry,
    ) -> Result<Self, Error> {
        let mut random = StdRng::seed_from_u64(parts.seed);
        let metrics = Metrics::new(registry);
        let lease =
            Lease::acquire(&parts.store, &*parts.clock, config.lease_ttl, &mut random).await?;
        if parts.store.is_embedded() {
            // No other process serves the file: whoever had leases is gone.
            parts.store.remove_other_nodes(lease.node()).await?;
        }
        let shared = Arc::new(Shared {
            store: parts.store,
            clock: parts.clock,
            catalog: parts.catalog,
            channels: parts.channels,
            spans: parts.spans,
            random: Mutex::new(random),
            lease,
            metrics,
            endpoints: Endpoints::new(config.health),
            announcer: OnceLock::new(),
            manual: TaskTracker::new(),
            turns: Turns::default(),
            due: Notify::new(),
            chores: Notify::new(),
            config,
        });
        // Before the first attempt: a restart must not forget which endpoints are down.
        shared.endpoints.reload(&shared.store, shared.clock.now()).await?;
        endpoints::look_for_replicas(&shared).await?;
        let (recorder, results) = recorder::channel(shared.config.queue_size);
        let worker = Worker::new(Arc::clone(&shared), recorder.clone());
        let queue = Queue::new(&shared.config, worker, shared.metrics.waiting.clone());
        let claiming = CancellationToken::new();
        let recording = CancellationToken::new();
        let claims = TaskTracker::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(recorder::run(Arc::clone(&shared), results));
        tasks.spawn(lease::keep(Arc::clone(&shared), recording.clone()));
        let stop = (claiming.clone(), claims.token());
        tasks.spawn(claimer::run(Arc::clone(&shared), queue.clone(), stop));
        tasks.spawn(endpoints::follow(Arc::clone(&shared), claiming.clone()));
        tasks.spawn(janitor::run(Arc::clone(&shared), queue.clone(), claiming.clone()));
        tasks.spawn(janitor::purge(Arc::clone(&shared), claiming.clone()));
        tasks.spawn(births::tell(Arc::clone(&shared)));
        Ok(Self { shared, queue, tasks, claims, claiming, recording, recorder })
    }

    /// Where deliveries are handed over.
    pub fn queue(&self) -> Queue {
        self.queue.clone()
    }

    /// Attempts that somebody asks for.
    pub fn attempts(&self) -> ManualAttempts {
        ManualAttempts::new(Arc::clone(&self.shared))
    }

    /// Has the service's own events emitted by `announcer`. Until then they wait.
    pub fn announce_by(&self, announcer: Announcer) {
        // The first one stays: nobody has a second.
        let _ = self.shared.announcer.set(announcer);
        self.shared.chores.notify_one();
    }

    /// Makes a function that has deliveries follow a changed subscription at once.
    pub fn kick(&self) -> impl Fn() + Send + Sync + use<> {
        let shared = Arc::clone(&self.shared);
        move || {
            shared.chores.notify_one();
            shared.due.notify_one();
        }
    }

    /// Claims nothing more, and begins no attempt that has not begun.
    pub fn stop_claiming(&self) {
        self.claiming.cancel();
        self.queue.close();
    }

    /// Waits until one of the engine's tasks has ended by itself, which is a fault; tells which.
    pub async fn failed(&mut self) -> &'static str {
        match self.tasks.join_next().await {
            Some(Ok(name)) => name,
            Some(Err(_)) => "a task that panicked",
            None => std::future::pending().await,
        }
    }

    /// Lets what is under way end and be recorded, until `deadline`; gives back all other leases.
    pub async fn drain(mut self, deadline: Instant) -> Drained {
        self.stop_claiming();
        // What is not over by then is given back below; its result is fenced.
        self.shared.manual.close();
        self.claims.close();
        let idle = async {
            // A claim that commits after the leases were given back would leave some behind.
            tokio::join!(self.queue.idle(), self.shared.manual.wait(), self.claims.wait())
        };
        let _ = tokio::time::timeout_at(deadline, idle).await;
        self.queue.abort();
        self.recorder.close();
        let _ = tokio::time::timeout_at(deadline, self.recorder.drained()).await;
        self.recording.cancel();
        let node = self.shared.lease.node();
        let released = self.shared.give_back(node).await;
        if let Err(error) = self.shared.store.remove_node(node).await {
            tracing::warn!(%error, "the node could not be signed off; its lease runs out by itself");
        }
        self.tasks.shutdown().await;
        Drained { released }
    }
}

impl Shared {
    /// Gives back what `node` has leased; returns how many. Whatever crosses it, a deadlock with a change of
    /// settings for example, is soon over.
    async fn give_back(&self, node: NodeId) -> usize {
        let (mut released, mut failures) = (0, 0);
        loop {
            match self.store.release(node, self.clock.now(), RELEASED_AT_ONCE).await {
                Ok(batch) if batch.count > 0 => released += batch.count,
                Ok(_) => return released,
                Err(error) if error.is_unavailable() && failures < RELEASE_RETRIES => {
                    failures += 1;
                    tokio::time::sleep(RELEASE_PAUSE).await;
                }
                Err(error) => {
                    tracing::warn!(%error, "leases could not be given back; they run out by themselves");
                    return released;
                }
            }
        }
    }
}
