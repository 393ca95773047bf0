//! This node's lease: one row that is renewed while the node lives. When it runs out, the node's
//! deliveries are given to others, and the node goes on under a new name.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rand::Rng;
use tokio_util::sync::CancellationToken;

use crate::domain::id::NodeId;
use crate::domain::{Clock, Timestamp};
use crate::store::{Error, Store, Update};

use super::Shared;

/// How often a lease is renewed within its time: two renewals may fail.
const RENEWALS: u32 = 3;

#[derive(Debug)]
pub(super) struct Lease {
    node: RwLock<NodeId>,
    /// Until when the lease surely holds, in microseconds.
    held_until_us: AtomicI64,
}

impl Lease {
    /// Registers a new node.
    pub(super) async fn acquire(
        store: &Store,
        clock: &impl Clock,
        ttl: Duration,
        random: &mut impl Rng,
    ) -> Result<Self, Error> {
        let now = clock.now();
        let node = NodeId::new(now, random);
        store.register_node(node, ttl).await?;
        let held_until_us = AtomicI64::new(now.plus(ttl).as_micros());
        Ok(Self { node: RwLock::new(node), held_until_us })
    }

    /// The name under which the node leases now.
    pub(super) fn node(&self) -> NodeId {
        *self.node.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the lease surely holds at `now`.
    pub(super) fn is_held(&self, now: Timestamp) -> bool {
        now.as_micros() < self.held_until_us.load(Ordering::Relaxed)
    }

    fn renewed(&self, at: Timestamp, ttl: Duration) {
        self.held_until_us.store(at.plus(ttl).as_micros(), Ordering::Relaxed);
    }
}

/// Renews the lease, and follows the database's clock, until it is stopped.
pub(super) async fn keep(shared: Arc<Shared>, stop: CancellationToken) -> &'static str {
    let ttl = shared.config.lease_ttl;
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(ttl / RENEWALS) => {}
        }
        if let Err(error) = renew(&shared, ttl).await {
            tracing::warn!(%error, "the node's lease cannot be renewed; trying again");
        }
    }
    std::future::pending().await
}

async fn renew(shared: &Shared, ttl: Duration) -> Result<(), Error> {
    shared.clock.synchronize(&shared.store).await?;
    let now = shared.clock.now();
    let node = shared.lease.node();
    if shared.store.renew_node(node, ttl).await? == Update::Stale {
        let successor = {
            let mut random = shared.random.lock().unwrap_or_else(PoisonError::into_inner);
            NodeId::new(now, &mut *random)
        };
        shared.store.register_node(successor, ttl).await?;
        *shared.lease.node.write().unwrap_or_else(PoisonError::into_inner) = successor;
        tracing::warn!(node.id = %node, node.successor = %successor, "the node's lease had run out; going on under a new name");
    }
    shared.lease.renewed(now, ttl);
    Ok(())
}
