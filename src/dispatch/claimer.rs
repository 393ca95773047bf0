//! Leases what is due, in fair turns: page by page over the subscriptions that have something
//! scheduled, and from each no more than its lane has room for.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::domain::{Clock, Timestamp};
use crate::store::{Error, Room, SubscriptionRef};

use super::Shared;
use super::queue::{Job, Permit, Queue};

/// Subscriptions that one turn looks at.
const PAGE: u32 = 256;
/// Deliveries of one subscription that one turn leases at most.
const PORTION: usize = 64;
/// The pause after a database error.
const ERROR_PAUSE: Duration = Duration::from_secs(1);
/// The shortest pause between two rounds: lets results and other work get a turn.
const BREATH: Duration = Duration::from_millis(2);

/// What a round over all subscriptions found.
struct Round {
    claimed: usize,
    /// Something was due that found no room.
    is_full: bool,
    /// When the next delivery is due.
    next_due: Option<Timestamp>,
}

/// Claims until it is stopped.
pub(super) async fn run(
    shared: Arc<Shared>,
    queue: Queue,
    stop: CancellationToken,
) -> &'static str {
    while !stop.is_cancelled() {
        let round = match round(&shared, &queue).await {
            Ok(round) => round,
            Err(error) => {
                tracing::warn!(%error, "due deliveries cannot be claimed; trying again");
                tokio::select! {
                    () = tokio::time::sleep(ERROR_PAUSE) => {}
                    () = stop.cancelled() => {}
                }
                continue;
            }
        };
        shared.metrics.queue_held.set(i64::try_from(queue.len()).unwrap_or(i64::MAX));
        let now = shared.clock.now();
        queue.prune(now);
        let until_due = round.next_due.map_or(shared.config.poll_interval, |due| due.since(now));
        let pause = if round.claimed > 0 {
            BREATH
        } else {
            until_due.clamp(BREATH, shared.config.poll_interval)
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
            () = shared.due.notified() => {}
            () = queue.room(), if round.is_full => tokio::time::sleep(BREATH).await,
        }
    }
    std::future::pending().await
}

async fn round(shared: &Shared, queue: &Queue) -> Result<Round, Error> {
    let mut round = Round { claimed: 0, is_full: false, next_due: None };
    let mut cursor = None;
    loop {
        let page = shared.store.scheduled(cursor, PAGE).await?;
        let now = shared.clock.now();
        let (due, later): (Vec<_>, Vec<_>) = page.iter().partition(|(_, due)| *due <= now);
        let soonest = later.iter().map(|(_, due)| *due).min();
        round.next_due = round.next_due.into_iter().chain(soonest).min();
        if !due.is_empty() {
            let due: Vec<_> = due.into_iter().map(|(subscription, _)| subscription).collect();
            claim(shared, queue, &due, now, &mut round).await?;
        }
        cursor = page.last().map(|(subscription, _)| *subscription);
        if page.len() < PAGE as usize {
            return Ok(round);
        }
    }
}

async fn claim(
    shared: &Shared,
    queue: &Queue,
    due: &[SubscriptionRef],
    now: Timestamp,
    round: &mut Round,
) -> Result<(), Error> {
    let mut tenants: Vec<_> = due.iter().map(|subscription| subscription.tenant_id).collect();
    tenants.dedup();
    let settings_seen = shared.store.settings_seen();
    let catalogs = shared.catalog.current(&shared.store, &tenants).await?;
    let mut rooms = Vec::with_capacity(due.len());
    let mut permits: std::collections::HashMap<_, Vec<Permit>> = std::collections::HashMap::new();
    for subscription in due {
        // A tenant that is being deleted has no catalog; its deliveries go with it.
        let Some(catalog) = catalogs.get(&subscription.tenant_id) else { continue };
        let settings = catalog.subscription(subscription.id).map(AsRef::as_ref);
        let granted = queue.reserve(subscription.id, settings, PORTION);
        if granted.len() < PORTION {
            round.is_full = true;
        }
        if !granted.is_empty() {
            rooms.push(Room {
                subscription: *subscription,
                room: u32::try_from(granted.len()).unwrap_or(u32::MAX),
            });
            permits.insert(subscription.id, granted);
        }
    }
    let claimed = shared.store.claim(&rooms, shared.lease.node(), now).await?;
    round.claimed += claimed.len();
    shared.metrics.claimed.inc_by(claimed.len() as u64);
    for claimed in claimed {
        let delivery = claimed.delivery;
        let permit = permits.get_mut(&delivery.subscription_id).and_then(Vec::pop);
        let catalog = catalogs.get(&delivery.tenant_id).cloned();
        let (Some(permit), Some(catalog)) = (permit, catalog) else { continue };
        queue.push(Job {
            delivery,
            event: claimed.event,
            catalog,
            settings_time: now,
            settings_seen,
            permit,
        });
    }
    Ok(())
}
