//! What has to happen by itself: takeover from silent nodes, deliveries that follow their
//! subscription, expiry, and retention. Every chore is idempotent, bounded, and shared by all
//! replicas: whoever comes first does it.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::domain::Clock;
use crate::store::Error;

use super::Shared;
use super::queue::Queue;

/// How often the chores are done when nothing wakes the janitor.
const INTERVAL: Duration = Duration::from_secs(1);
/// Every how many rounds the rarer chores are done.
const RARELY: u32 = 5;
/// How often old rows are removed.
const PURGE_INTERVAL: Duration = Duration::from_mins(10);
/// A lease that this node does not know of after this long was made by a commit whose confirmation
/// was lost, or belongs to a manual attempt that was broken off. Longer than any manual attempt.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(45);
/// Rows that one statement changes at most.
const BATCH: u32 = 500;
/// Up to how many waiting deliveries are counted for the metric.
const MAX_COUNTED: u32 = 100_000;

/// Does the chores until it is stopped.
pub(super) async fn run(
    shared: Arc<Shared>,
    queue: Queue,
    stop: CancellationToken,
) -> &'static str {
    let mut round = 0_u32;
    while !stop.is_cancelled() {
        if let Err(error) = chores(&shared, &queue, round.is_multiple_of(RARELY)).await {
            tracing::warn!(%error, "a chore failed; trying again");
        }
        round = round.wrapping_add(1);
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(INTERVAL) => {}
            () = shared.chores.notified() => {}
        }
    }
    std::future::pending().await
}

async fn chores(shared: &Shared, queue: &Queue, with_rare: bool) -> Result<(), Error> {
    let store = &shared.store;
    let mut has_due = false;
    if with_rare {
        loop {
            let taken = store.take_over(shared.clock.now(), BATCH).await?.count;
            if taken == 0 {
                break;
            }
            tracing::info!(deliveries = taken, "took over deliveries of nodes that fell silent");
            has_due = true;
        }
        let now = shared.clock.now();
        let known = |delivery| queue.holds(delivery);
        let released = store
            .release_unknown(shared.lease.node(), now.minus(FORGOTTEN_AFTER), known, now)
            .await?;
        if released.count > 0 {
            tracing::warn!(
                deliveries = released.count,
                "leases that this node had no use for were given back"
            );
            has_due = true;
        }
        let mut after = None;
        loop {
            after = store.unsettle_stragglers(after, now, BATCH).await?;
            if after.is_none() {
                break;
            }
        }
        shared.metrics.scheduled.set(store.count_scheduled(MAX_COUNTED).await?);
    }
    for subscription in store.unsettled(BATCH).await? {
        while store
            .settle(subscription.tenant_id, subscription.id, shared.clock.now(), BATCH)
            .await?
            >= BATCH as usize
        {}
        has_due = true;
    }
    while store.expire(shared.clock.now(), BATCH).await? >= BATCH as usize {}
    if has_due {
        shared.due.notify_one();
    }
    Ok(())
}

/// Removes what is older than its retention, until it is stopped.
pub(super) async fn purge(shared: Arc<Shared>, stop: CancellationToken) -> &'static str {
    while !stop.is_cancelled() {
        let pause = match shared.store.purge(shared.config.retention, shared.clock.now()).await {
            // More may be left: go on soon, but let others have the database in between.
            Ok(purged) if purged.rows > 0 => Duration::from_millis(200),
            Ok(_) => PURGE_INTERVAL,
            Err(error) => {
                tracing::warn!(%error, "old rows cannot be removed; trying again");
                PURGE_INTERVAL
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
    std::future::pending().await
}
