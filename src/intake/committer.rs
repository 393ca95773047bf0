//! The group commit: a task takes what has arrived, stores it in one transaction, and answers.
//!
//! There are two of them. One takes what has arrived at once when the other one's group was full, and so more is
//! waiting; otherwise when that is stored, or on SQLite as soon as it is written and waits for the disk. To
//! begin earlier would only make two small groups out of one.

use std::collections::HashMap;
use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::{Mutex, OwnedMutexGuard, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::dispatch::{Job, Permit, Queue};
use crate::domain::Clock;
use crate::domain::id::TenantId;
use crate::store::{AcceptResult, Catalog, CatalogCache, Error as StoreError, Store};

use super::batch::{Answer, Batch, Leased};
use super::metrics::Metrics;
use super::{Error, Parts, Pending};

/// How many groups are committed at a time.
const COMMITTERS: usize = 2;
/// Most events in one transaction.
const MAX_EVENTS: usize = 512;
/// Most deliveries in one transaction, unless a single event has more.
const MAX_DELIVERIES: usize = 10_000;
/// Most payload bytes in one transaction: a few large events make a batch of their own.
const MAX_BYTES: usize = 8 * 1024 * 1024;
/// How often a batch is tried again because settings or keys have changed meanwhile.
const MAX_TRIES: usize = 32;

/// The right to take what has arrived, unless it has been given up since the group is written.
type Turn = Option<OwnedMutexGuard<mpsc::Receiver<Pending>>>;

/// What has become of a group.
struct Committed {
    answers: Vec<Answer>,
    /// What is to be attempted, once the callers have their answers.
    leased: Vec<(Leased, Permit)>,
    catalogs: HashMap<TenantId, Catalog>,
}

/// Commits what arrives until every sender is gone and nothing is left. When one committer fails, so does
/// the other one, and the receiver is gone.
pub(super) async fn run(parts: Parts, metrics: Arc<Metrics>, receiver: mpsc::Receiver<Pending>) {
    let receiver = Arc::new(Mutex::new(receiver));
    let mut random = StdRng::seed_from_u64(parts.seed);
    let mut tasks = JoinSet::new();
    for _ in 0..COMMITTERS {
        let random = StdRng::from_rng(&mut random);
        let committer = Committer::new(&parts, random, Arc::clone(&metrics));
        tasks.spawn(committer.run(Arc::clone(&receiver)));
    }
    drop((parts, receiver));
    while let Some(ended) = tasks.join_next().await {
        if ended.is_err() {
            return;
        }
    }
}

struct Committer {
    store: Store,
    clock: Arc<dyn Clock>,
    catalog: Arc<CatalogCache>,
    queue: Queue,
    random: StdRng,
    metrics: Arc<Metrics>,
    /// Whether the last batch repeated earlier requests. Then the next one probably does too, and
    /// looks before it tries.
    expects_repeats: bool,
}

impl Committer {
    fn new(parts: &Parts, random: StdRng, metrics: Arc<Metrics>) -> Self {
        let (store, clock) = (parts.store.clone(), Arc::clone(&parts.clock));
        let (catalog, queue) = (Arc::clone(&parts.catalog), parts.queue.clone());
        Self { store, clock, catalog, queue, random, metrics, expects_repeats: false }
    }

    /// Commits until every sender is gone and nothing is left.
    async fn run(mut self, arriving: Arc<Mutex<mpsc::Receiver<Pending>>>) {
        let mut arrived = Vec::with_capacity(MAX_EVENTS);
        loop {
            let mut turn = Arc::clone(&arriving).lock_owned().await;
            let count = turn.recv_many(&mut arrived, MAX_EVENTS).await;
            if count == 0 {
                return;
            }
            // Full, and another full one behind it.
            self.queue.make_way(count == MAX_EVENTS && turn.len() >= MAX_EVENTS);
            let mut turn = (count < MAX_EVENTS).then_some(turn);
            for group in groups(arrived.drain(..)) {
                self.commit_group(group, &mut turn).await;
            }
        }
    }

    async fn commit_group(&mut self, mut group: Vec<Pending>, turn: &mut Turn) {
        #[expect(
            clippy::disallowed_methods,
            reason = "a client's deadline is an instant of the runtime"
        )]
        let now = Instant::now();
        // Whoever has gone, or whose time is up, gets nothing stored.
        group.retain(|pending| !pending.reply.is_closed());
        let (late, mut group): (Vec<_>, Vec<_>) = group
            .into_iter()
            .partition(|pending| pending.deadline.is_some_and(|deadline| deadline <= now));
        for pending in late {
            let _ = pending.reply.send(Err(Error::DeadlineExceeded));
        }
        if group.is_empty() {
            return;
        }
        self.metrics.batch(group.len());
        match self.commit(&group, turn).await {
            Ok(None) => {
                let rest = group.split_off(group.len() / 2);
                Box::pin(self.commit_group(group, turn)).await;
                Box::pin(self.commit_group(rest, turn)).await;
            }
            Ok(Some(Committed { answers, leased, catalogs })) => {
                for (pending, answer) in group.into_iter().zip(answers) {
                    // A client that has gone meanwhile asks again with its idempotency key.
                    let _ = pending.reply.send(answer);
                }
                // Callers come first: what they emit now is the next group, while this one is attempted.
                tokio::task::yield_now().await;
                self.hand_over(leased, &catalogs).await;
            }
            Err(error) if error.is_full() => {
                tracing::error!(%error, events = group.len(), "the disk of the database is full: events are refused");
                refuse(group, &Error::StorageFull);
            }
            Err(StoreError::Unavailable(error)) => {
                tracing::warn!(%error, events = group.len(), "events cannot be committed");
                refuse(group, &Error::Unavailable);
            }
            // One event that the database refuses must not take the others with it.
            Err(error) if group.len() > 1 => {
                tracing::error!(%error, "an event in a batch is refused; committing one by one");
                for pending in group {
                    Box::pin(self.commit_group(vec![pending], turn)).await;
                }
            }
            Err(error) => {
                tracing::error!(%error, "an event is refused by the database");
                refuse(group, &Error::Internal);
            }
        }
    }

    /// Commits a group; `None`, and nothing is stored, when it has too many deliveries for one transaction.
    async fn commit(
        &mut self,
        group: &[Pending],
        turn: &mut Turn,
    ) -> Result<Option<Committed>, StoreError> {
        let now = self.clock.now();
        let mut tenants: Vec<TenantId> =
            group.iter().map(|pending| pending.event.tenant_id).collect();
        tenants.sort_unstable();
        tenants.dedup();
        let mut uses = HashMap::new();
        let mut catalogs = self.catalog.believed(&self.store, &tenants).await?;
        for _ in 0..MAX_TRIES {
            let look = self.store.look();
            let mut batch = Batch::prepare(group, &catalogs, now, &mut self.random);
            if batch.delivery_count() > MAX_DELIVERIES && group.len() > 1 {
                return Ok(None);
            }
            if self.expects_repeats {
                uses.extend(self.store.key_uses(batch.keys()).await?);
            }
            batch.settle_keys(&uses);
            let permits = batch.reserve(&self.queue, &catalogs, now, &mut self.random);
            let node = self.queue.node();
            let written = || drop(turn.take());
            match self.store.accept(&batch.acceptance(&catalogs, node, now), written).await? {
                AcceptResult::Stored => {
                    self.expects_repeats = !uses.is_empty();
                    self.metrics.judged_again(batch.judged_again());
                    let wanting = batch.take_wanting();
                    let (answers, leased) = batch.finish();
                    let leased = leased.into_iter().zip(permits).collect();
                    // It has compared their versions.
                    self.catalog.confirm(&catalogs, look);
                    for (subscription, is_heavy) in wanting {
                        self.queue.want(&subscription, is_heavy);
                    }
                    return Ok(Some(Committed { answers, leased, catalogs }));
                }
                AcceptResult::SettingsChanged => {
                    catalogs = self.catalog.current(&self.store, &tenants).await?;
                }
                AcceptResult::KeysTaken => {
                    uses.extend(self.store.key_uses(batch.keys()).await?);
                }
            }
        }
        Err(StoreError::unavailable("settings and idempotency keys changed with every try"))
    }

    #[cfg_attr(
        not(feature = "failpoints"),
        expect(clippy::unused_async, reason = "a fail point waits")
    )]
    async fn hand_over(
        &self,
        leased: Vec<(Leased, Permit)>,
        catalogs: &HashMap<TenantId, Catalog>,
    ) {
        for ((delivery, event), permit) in leased {
            fail_point!(AcceptHandOver, continue);
            let Some(catalog) = catalogs.get(&delivery.tenant_id).cloned() else { continue };
            self.queue.push(Job { delivery, event, catalog, permit });
        }
    }
}

fn refuse(group: Vec<Pending>, error: &Error) {
    for pending in group {
        let _ = pending.reply.send(Err(error.clone()));
    }
}

/// Cuts what arrived into groups of a bounded size.
fn groups(arrived: impl Iterator<Item = Pending>) -> Vec<Vec<Pending>> {
    let mut groups = Vec::with_capacity(1);
    let mut group = Vec::new();
    let mut bytes = 0;
    for pending in arrived {
        let size = pending.event.data.len();
        if !group.is_empty() && bytes + size > MAX_BYTES {
            groups.push(std::mem::take(&mut group));
            bytes = 0;
        }
        bytes += size;
        group.push(pending);
    }
    if !group.is_empty() {
        groups.push(group);
    }
    groups
}
