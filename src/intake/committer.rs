//! The group commit: one task that takes what has arrived, stores it in one transaction, and
//! answers.

use std::sync::Arc;

use rand::rngs::StdRng;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::dispatch::{Job, Queue};
use crate::domain::Clock;
use crate::domain::id::TenantId;
use crate::store::{CatalogCache, Error as StoreError, Store};

use super::batch::{Answer, Batch};
use super::metrics::Metrics;
use super::{Error, Parts, Pending};

/// Most events in one transaction.
const MAX_EVENTS: usize = 512;
/// Most deliveries in one transaction, unless a single event has more.
const MAX_DELIVERIES: usize = 10_000;
/// Most payload bytes in one transaction: a few large events make a batch of their own.
const MAX_BYTES: usize = 8 * 1024 * 1024;

pub(super) struct Committer {
    store: Store,
    clock: Arc<dyn Clock>,
    catalog: Arc<CatalogCache>,
    queue: Queue,
    random: StdRng,
    metrics: Arc<Metrics>,
}

impl Committer {
    pub(super) fn new(parts: Parts, random: StdRng, metrics: Arc<Metrics>) -> Self {
        let Parts { store, clock, catalog, queue, .. } = parts;
        Self { store, clock, catalog, queue, random, metrics }
    }

    /// Commits until every sender is gone and nothing is left.
    pub(super) async fn run(mut self, mut receiver: mpsc::Receiver<Pending>) {
        let mut arrived = Vec::with_capacity(MAX_EVENTS);
        while receiver.recv_many(&mut arrived, MAX_EVENTS).await > 0 {
            for group in groups(arrived.drain(..)) {
                self.commit_group(group).await;
            }
        }
    }

    async fn commit_group(&mut self, mut group: Vec<Pending>) {
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
        match self.commit(&group).await {
            Ok(None) => {
                let rest = group.split_off(group.len() / 2);
                Box::pin(self.commit_group(group)).await;
                Box::pin(self.commit_group(rest)).await;
            }
            Ok(Some(results)) => {
                for (pending, result) in group.into_iter().zip(results) {
                    // A client that has gone meanwhile asks again with its idempotency key.
                    let _ = pending.reply.send(result);
                }
            }
            Err(StoreError::Unavailable(error)) => {
                tracing::warn!(%error, events = group.len(), "events cannot be committed");
                refuse(group, &Error::Unavailable);
            }
            // One event that the database refuses must not take the others with it.
            Err(error) if group.len() > 1 => {
                tracing::error!(%error, "an event in a batch is refused; committing one by one");
                for pending in group {
                    Box::pin(self.commit_group(vec![pending])).await;
                }
            }
            Err(error) => {
                tracing::error!(%error, "an event is refused by the database");
                refuse(group, &Error::Internal);
            }
        }
    }

    /// Commits a group and returns its answers; `None`, and nothing is stored, when it has too many
    /// deliveries for one transaction.
    async fn commit(&mut self, group: &[Pending]) -> Result<Option<Vec<Answer>>, StoreError> {
        let now = self.clock.now();
        let mut tenants: Vec<TenantId> =
            group.iter().map(|pending| pending.event.tenant_id).collect();
        tenants.sort_unstable();
        tenants.dedup();
        let settings_seen = self.store.settings_seen();
        let transaction = self.store.begin_accept().await?;
        let catalogs = transaction.catalogs(&self.catalog, &tenants).await?;
        let mut batch = Batch::prepare(group, &catalogs, now, &mut self.random);
        if group.len() > 1 && batch.delivery_count() > MAX_DELIVERIES {
            return Ok(None);
        }
        let uses = transaction.take_keys(batch.keys(), now).await?;
        batch.settle_keys(&uses);
        let permits = batch.reserve(&self.queue, &catalogs, now, &mut self.random);
        let node = self.queue.node();
        transaction.insert(batch.events(), batch.deliveries(), node, now).await?;
        transaction.commit().await?;
        let (results, leased) = batch.finish();
        for ((delivery, event), permit) in leased.into_iter().zip(permits) {
            if let Some(catalog) = catalogs.get(&delivery.tenant_id).cloned() {
                self.queue.push(Job {
                    delivery,
                    event,
                    catalog,
                    settings_time: now,
                    settings_seen,
                    permit,
                });
            }
        }
        Ok(Some(results))
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
