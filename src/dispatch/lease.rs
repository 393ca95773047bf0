//! This node's lease: one row that is renewed while the node lives. When it runs out, the node's
//! deliveries are given to others, and the node goes on under a new name.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rand::Rng;
use tokio_util::sync::CancellationToken;

use crate::domain::Clock;
use crate::domain::id::NodeId;
use crate::store::{Error, Store, Update};

use super::Shared;
use super::decide::lease::Tenure;

/// How often a lease is renewed within its time: two renewals may fail.
const RENEWALS: u32 = 3;

#[derive(Debug)]
pub(super) struct Lease(RwLock<Tenure>);

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
        Ok(Self(RwLock::new(Tenure::new(node, now, ttl))))
    }

    /// The lease as it is now.
    pub(super) fn tenure(&self) -> Tenure {
        *self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The name under which the node leases now.
    pub(super) fn node(&self) -> NodeId {
        self.tenure().node()
    }

    fn set(&self, tenure: Tenure) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = tenure;
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
    let mut node = shared.lease.node();
    if shared.store.renew_node(node, ttl).await? == Update::Stale {
        let successor = {
            let mut random = shared.random.lock().unwrap_or_else(PoisonError::into_inner);
            NodeId::new(now, &mut *random)
        };
        shared.store.register_node(successor, ttl).await?;
        tracing::warn!(node.id = %node, node.successor = %successor, "the node's lease had run out; going on under a new name");
        node = successor;
    }
    shared.lease.set(Tenure::new(node, now, ttl));
    Ok(())
}
