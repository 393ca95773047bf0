//! What has to happen by itself: takeover from silent nodes, deliveries that follow their
//! subscription, expiry, and retention. Every chore is idempotent, bounded, and shared by all
//! replicas: whoever comes first does it.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::domain::Clock;
use crate::domain::event::NewEvent;
use crate::domain::labels::Labels;
use crate::domain::trace::TraceContext;
use crate::store::{Announcement, Error};

use super::queue::Queue;
use super::{Announced, Shared};

/// How often the chores are done when nothing wakes the janitor.
const INTERVAL: Duration = Duration::from_secs(1);
/// Every how many rounds the rarer chores are done.
const RARELY: u32 = 5;
/// How often old rows are removed.
const PURGE_INTERVAL: Duration = Duration::from_mins(10);
/// How long the database is left to others between two steps of that.
const PURGE_PAUSE: Duration = Duration::from_millis(20);
/// Rows that one statement changes at most.
const BATCH: u32 = 500;
/// How long the row of an endpoint is kept that is healthy again: all replicas have read it by then,
/// and its ramp is over.
const HEALTHY_KEPT: Duration = Duration::from_mins(10);
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
        for (state, count) in shared.store.take_ends() {
            shared.metrics.ended(state, count);
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
    // First, and each time: other chores must not make a silent node's deliveries wait for longer.
    let mut has_due = take_over(shared).await?;
    store.remove_ended_leases().await?;
    if with_rare {
        let now = shared.clock.now();
        let known = |delivery| queue.holds(delivery);
        let older_than = now.minus(shared.config.forgotten_after);
        let released = store.release_unknown(shared.lease.node(), older_than, known, now).await?;
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
        store.forget_health(now.minus(HEALTHY_KEPT), BATCH).await?;
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
    announce(shared).await?;
    if has_due {
        shared.due.notify_one();
    }
    Ok(())
}

/// Makes deliveries of silent nodes due; tells whether there were any.
async fn take_over(shared: &Shared) -> Result<bool, Error> {
    let mut any = false;
    loop {
        let taken = shared.store.take_over(shared.clock.now(), BATCH).await?.count;
        if taken == 0 {
            return Ok(any);
        }
        shared.metrics.interrupted.inc_by(taken as u64);
        tracing::info!(deliveries = taken, "took over deliveries of nodes that fell silent");
        any = true;
        // Claimed while the rest is being released.
        shared.due.notify_one();
    }
}

/// Emits the service's own events. Whoever is broken off in between emits them again under the same
/// key, which makes no second event.
async fn announce(shared: &Shared) -> Result<(), Error> {
    let Some(announcer) = shared.announcer.get() else { return Ok(()) };
    let mut waiting = 0;
    for announcement in shared.store.announcements(BATCH).await? {
        let trace = {
            let mut random = shared.random.lock().unwrap_or_else(PoisonError::into_inner);
            TraceContext::root(&mut *random)
        };
        fail_point!(AnnounceBeforeEmit);
        let result = announcer(own_event(&announcement, trace)).await;
        fail_point!(AnnounceAfterEmit);
        match result {
            Announced::Done => shared.store.remove_announcement(&announcement).await?,
            Announced::Later => waiting += 1,
        }
        fail_point!(AnnounceAfterRemove);
    }
    shared.metrics.announcements.set(waiting);
    Ok(())
}

fn own_event(announcement: &Announcement, trace: TraceContext) -> NewEvent {
    NewEvent {
        tenant_id: announcement.tenant_id,
        event_type: announcement.event_type.clone(),
        subject: announcement.subject.clone(),
        data_field: "data",
        data: announcement.data.clone(),
        labels: Labels::new(),
        occur_time: Some(announcement.create_time),
        deliver_time: None,
        expire_time: None,
        // Clients' keys have no control characters: none of them can stand in the way.
        idempotency_key: format!("\u{1}{}", announcement.id),
        trace,
    }
}

/// Removes what is older than its retention, until it is stopped.
pub(super) async fn purge(shared: Arc<Shared>, stop: CancellationToken) -> &'static str {
    while !stop.is_cancelled() {
        let (retention, now) = (shared.config.retention, shared.clock.now());
        let round = shared.store.purge(retention, now, PURGE_PAUSE);
        if let Some(Err(error)) = stop.run_until_cancelled(round).await {
            tracing::warn!(%error, "old rows cannot be removed; trying again");
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(PURGE_INTERVAL) => {}
        }
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::Config;

    /// What is promised of a silent node's deliveries: others have them within 15 s. The longest way
    /// is a lease that was renewed right before the end, a janitor that has just looked, and a
    /// claimer that hears of it only by its own poll. Two seconds are left for the work itself.
    #[test]
    fn by_default_a_silent_node_is_taken_over_within_15_s() {
        let config = Config::default();
        let longest = config.lease_ttl + INTERVAL + config.poll_interval;
        assert!(longest <= Duration::from_secs(15 - 2), "{longest:?}");
    }
}
