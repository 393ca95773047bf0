//! Leases what is due, in fair turns: page by page over the subscriptions that have something
//! scheduled, and from each no more than its lane has room for.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::domain::Clock;
use crate::domain::id::TenantId;
use crate::domain::subscription::Subscription;
use crate::store::{Candidate, Catalog, Claim, Error, SubscriptionRef};

use super::Shared;
use super::decide::claims::{Giver, Plan, Round};
use super::queue::{Job, Permit, Queue};

/// Subscriptions that one turn looks at.
const PAGE: u32 = 256;
/// The pause after a database error.
const ERROR_PAUSE: Duration = Duration::from_secs(1);
/// Gives places of the queue, by the settings that the claim has read.
struct Places<'a> {
    queue: &'a Queue,
    catalogs: &'a HashMap<TenantId, Catalog>,
}

impl Places<'_> {
    fn settings(&self, of: SubscriptionRef) -> Option<&Subscription> {
        self.catalogs.get(&of.tenant_id)?.subscription(of.id).map(AsRef::as_ref)
    }
}

impl Giver<Permit> for Places<'_> {
    fn reserve(&mut self, of: SubscriptionRef, wanted: usize) -> Vec<Permit> {
        self.queue.reserve(of.id, self.settings(of), wanted)
    }

    fn reserve_probe(&mut self, of: SubscriptionRef) -> Option<Permit> {
        self.queue.reserve_probe(of.id, self.settings(of))
    }

    fn weigh(&mut self, place: &mut Permit, bytes: usize) -> bool {
        place.weigh(bytes)
    }
}

/// Claims until it is stopped, and lets go of the second part of `stop` once it leases nothing more.
pub(super) async fn run(
    shared: Arc<Shared>,
    queue: Queue,
    (stop, claiming): (CancellationToken, TaskTrackerToken),
) -> &'static str {
    while !stop.is_cancelled() {
        let begin = shared.clock.now();
        let round = match round(&shared, &queue).await {
            Ok(round) => round,
            Err(error) => {
                fail(&error, &stop).await;
                continue;
            }
        };
        shared.metrics.queue_held.set(i64::try_from(queue.len()).unwrap_or(i64::MAX));
        shared.metrics.queue_bytes.set(i64::try_from(queue.bytes()).unwrap_or(i64::MAX));
        let now = shared.clock.now();
        queue.prune(now);
        let poll_interval = shared.config.poll_interval;
        let rest = round.rest(now.since(begin), poll_interval);
        let pause = round.pause(now, rest, poll_interval);
        between_rounds(&shared, &queue, (rest, pause), &stop).await;
    }
    drop(claiming);
    std::future::pending().await
}

/// Claims for those that have room again, until the next round is to begin: after `pause`, or when it is
/// called for, but not before `rest` is over.
async fn between_rounds(
    shared: &Shared,
    queue: &Queue,
    (rest, pause): (Duration, Duration),
    stop: &CancellationToken,
) {
    let (mut rested, mut paused) =
        (pin!(tokio::time::sleep(rest)), pin!(tokio::time::sleep(pause)));
    let mut is_called = false;
    loop {
        let ready = tokio::select! {
            () = stop.cancelled() => return,
            () = &mut paused => return,
            () = &mut rested, if is_called => return,
            () = shared.due.notified(), if !is_called => {
                is_called = true;
                continue;
            }
            ready = queue.ready() => ready,
        };
        if ready.is_empty() {
            continue;
        }
        let (mut round, begin) = (Round::default(), shared.clock.now());
        if let Err(error) = claim(shared, queue, &ready, &mut round).await {
            return fail(&error, stop).await;
        }
        let took = shared.clock.now().since(begin);
        let breath = round.breath(took, shared.config.poll_interval);
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(breath) => {}
        }
    }
}

async fn fail(error: &Error, stop: &CancellationToken) {
    tracing::warn!(%error, "due deliveries cannot be claimed; trying again");
    tokio::select! {
        () = tokio::time::sleep(ERROR_PAUSE) => {}
        () = stop.cancelled() => {}
    }
}

async fn round(shared: &Shared, queue: &Queue) -> Result<Round, Error> {
    let mut round = Round::default();
    // It claims for them, too.
    drop(queue.take_ready());
    let mut cursor = None;
    loop {
        let page = shared.store.scheduled(cursor, PAGE).await?;
        let now = shared.clock.now();
        let due = round.due(&page, now);
        if !due.is_empty() {
            claim(shared, queue, &due, &mut round).await?;
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
    round: &mut Round,
) -> Result<(), Error> {
    let now = shared.clock.now();
    let mut tenants: Vec<_> = due.iter().map(|subscription| subscription.tenant_id).collect();
    tenants.dedup();
    // As they are now: something may be due for a subscription that another replica has just got.
    let catalogs = shared.catalog.readable(&shared.store, &tenants).await?;
    let mut places = Places { queue, catalogs: &catalogs };
    // A tenant that is being deleted has no catalog; its deliveries go with it. Nor has one whose settings
    // cannot be read; its deliveries wait.
    let known = due.iter().filter(|of| catalogs.contains_key(&of.tenant_id));
    let gates = known.map(|of| (*of, shared.endpoints.gate(of.id, places.settings(*of), now)));
    let gates = gates.collect();
    let mut plan = Plan::of(gates, &mut places, round);
    let (rooms, probed) = (std::mem::take(&mut plan.rooms), std::mem::take(&mut plan.probed));
    let admit = |candidate: &Candidate| plan.admit(candidate, &mut places);
    let probe_until = now.plus(shared.config.health.probe_lease);
    let node = shared.lease.node();
    let Claim { claimed, probes } =
        shared.store.claim_probing(&rooms, (&probed, probe_until), node, now, admit).await?;
    shared.endpoints.learn(probes.into_values(), now);
    round.claimed += claimed.len();
    shared.metrics.claimed.inc_by(claimed.len() as u64);
    for claimed in claimed {
        let delivery = claimed.delivery;
        let permit = plan.take(delivery.id);
        fail_point!(ClaimHandOver, continue);
        let catalog = catalogs.get(&delivery.tenant_id).cloned();
        let (Some(permit), Some(catalog)) = (permit, catalog) else { continue };
        queue.push(Job { delivery, event: claimed.event, catalog, permit });
    }
    let wanting = plan.take_wanting();
    drop(plan);
    for want in wanting {
        queue.take_note(want, places.settings(want.of));
    }
    Ok(())
}
