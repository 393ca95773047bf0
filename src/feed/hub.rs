//! The hub keeps the latest rows of each watched tenant's feed in a ring, for all watchers of the tenant.
//! What this process has written is handed over by the store; the rest is read, once.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{Notify, watch};

use crate::domain::id::TenantId;
use crate::store::{Error, FeedRow, Follower, Store};

/// Rows that a ring keeps: what a watcher may lag behind before it reads from the database.
const RING_ROWS: usize = 2_048;
/// Changes that a ring keeps at most, over all its rows.
const RING_CHANGES: usize = 8_192;
/// Changes that all rings keep at most, of about a kilobyte each: many watched tenants have small rings.
const ALL_CHANGES: usize = 65_536;
/// Rows that one read takes at most.
const PAGE: u32 = 512;
/// How often to look when nothing wakes the hub: for replicas that cannot hear each other.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// The shortest time between two looks: many commits share one. Each wakes every watcher of the tenant, so
/// it grows with how many there are, up to [`LONGEST_BREATH`].
const BREATH: Duration = Duration::from_millis(5);
const BREATH_PER_WATCHER: Duration = Duration::from_micros(250);
const LONGEST_BREATH: Duration = Duration::from_millis(50);
/// The pause after a database error.
const ERROR_PAUSE: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Ring {
    rows: VecDeque<Arc<FeedRow>>,
    changes: usize,
}

/// A watched tenant.
pub(super) struct Topic {
    tenant_id: TenantId,
    /// What this process writes itself need not be read.
    own: Follower,
    ring: Mutex<Ring>,
    /// The position up to which the ring reaches.
    position: watch::Sender<i64>,
}

impl Topic {
    /// Changes when there are new rows.
    pub(super) fn position(&self) -> watch::Receiver<i64> {
        self.position.subscribe()
    }

    fn reached(&self) -> i64 {
        *self.position.borrow()
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rows behind `position`, when the ring reaches back that far.
    pub(super) fn rows_after(&self, position: i64, limit: usize) -> Option<Vec<Arc<FeedRow>>> {
        let ring = self.lock();
        let first = ring.rows.front()?.position;
        let skip = usize::try_from(position + 1 - first).ok()?;
        Some(ring.rows.iter().skip(skip).take(limit).cloned().collect())
    }

    /// Adds rows, and keeps at most so many changes.
    fn extend(&self, rows: Vec<FeedRow>, most: usize) {
        let last = rows.last().map(|row| row.position);
        let mut ring = self.lock();
        for row in rows {
            ring.changes += row.changes.len();
            ring.rows.push_back(Arc::new(row));
        }
        while ring.rows.len() > RING_ROWS || ring.changes > most {
            let Some(row) = ring.rows.pop_front() else { break };
            ring.changes -= row.changes.len();
        }
        drop(ring);
        if let Some(last) = last {
            self.position.send_replace(last);
        }
    }

    /// Goes on behind `position`. Whoever has not come so far reads from the database, and finds out by himself
    /// what there is.
    fn skip_to(&self, position: i64) {
        *self.lock() = Ring::default();
        self.position.send_replace(position);
    }
}

pub(super) struct Hub {
    pub(super) store: Store,
    topics: Mutex<HashMap<TenantId, Weak<Topic>>>,
    /// Counts the watchers.
    pub(super) watchers: Gauge,
    wake: Notify,
}

impl Hub {
    pub(super) fn new(store: Store, watchers: Gauge) -> Self {
        Self { store, topics: Mutex::default(), watchers, wake: Notify::new() }
    }

    /// Has the hub look at once.
    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    /// The topic of a tenant, which lives as long as somebody holds it. `position` is where a new
    /// one begins.
    pub(super) fn topic(&self, tenant_id: TenantId, position: i64) -> Arc<Topic> {
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(topic) = topics.get(&tenant_id).and_then(Weak::upgrade) {
            return topic;
        }
        let topic = Arc::new(Topic {
            tenant_id,
            own: self.store.follow(tenant_id),
            ring: Mutex::default(),
            position: watch::Sender::new(position),
        });
        topics.insert(tenant_id, Arc::downgrade(&topic));
        topic
    }

    fn topics(&self) -> Vec<Arc<Topic>> {
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        topics.retain(|_, topic| topic.strong_count() > 0);
        topics.values().filter_map(Weak::upgrade).collect()
    }

    /// Reads what is new for every watched tenant.
    async fn look(&self) -> Result<(), Error> {
        let topics: HashMap<_, _> =
            self.topics().into_iter().map(|topic| (topic.tenant_id, topic)).collect();
        let tenants: Vec<_> = topics.keys().copied().collect();
        let most = RING_CHANGES.min(ALL_CHANGES / tenants.len().max(1));
        for (tenant_id, head) in self.store.feed_positions(&tenants).await? {
            let Some(topic) = topics.get(&tenant_id) else { continue };
            match self.advance(topic, head, most).await {
                Ok(()) => {}
                Err(error) if error.is_unavailable() => return Err(error),
                // It must not keep the other tenants' watchers waiting. Its own read it themselves, and are told.
                Err(error) => {
                    tracing::error!(tenant.id = %tenant_id, %error, "the tenant's feed cannot be read; its watchers are told, and can watch what comes after it");
                    topic.skip_to(head);
                }
            }
        }
        Ok(())
    }

    /// Reads what is new for one tenant, up to `head` at least.
    async fn advance(&self, topic: &Topic, head: i64, most: usize) -> Result<(), Error> {
        loop {
            topic.extend(topic.own.take(topic.reached()), most);
            let position = topic.reached();
            if position >= head {
                return Ok(());
            }
            let rows = self.store.read_feed(topic.tenant_id, position, PAGE).await?;
            if rows.is_empty() {
                // They were removed.
                topic.skip_to(head);
                return Ok(());
            }
            topic.extend(rows, most);
        }
    }
}

/// How long to wait before the next look, so that many watchers are not woken for each commit.
fn breath(watchers: i64) -> Duration {
    let watchers = u32::try_from(watchers).unwrap_or(0);
    (BREATH_PER_WATCHER * watchers).clamp(BREATH, LONGEST_BREATH)
}

/// Follows the feeds of all watched tenants.
pub(super) async fn run(hub: Arc<Hub>) {
    let mut changes = hub.store.changes();
    loop {
        if let Err(error) = hub.look().await {
            tracing::warn!(%error, "the feed cannot be read; trying again");
            tokio::time::sleep(ERROR_PAUSE).await;
        }
        tokio::select! {
            // The store lives as long as the hub.
            _ = changes.changed() => {}
            () = hub.wake.notified() => {}
            () = tokio::time::sleep(POLL_INTERVAL) => {}
        }
        tokio::time::sleep(breath(hub.watchers.get())).await;
        changes.mark_unchanged();
    }
}
