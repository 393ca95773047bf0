//! Digests: what else goes out in one message.
//!
//! Guarantees: a message covers everything that is due to its recipient, as far as memory allows and
//! up to [`MAX_EVENTS`]; what does not fit goes out in the next one. Each event keeps its own
//! delivery, with a place in the queue and a record of its own.
//!
//! A subscription with a digest has one attempt under way at a time, over all replicas, so nobody else
//! collects for the same recipient meanwhile.

use std::collections::HashMap;

use crate::domain::Clock;
use crate::domain::id::DeliveryId;
use crate::store::{Candidate, SubscriptionRef};

use super::Shared;
use super::queue::{Job, Permit, Queue};

/// Most events of one message.
const MAX_EVENTS: usize = 500;

/// Leases, or takes from the queue, what is to go out in the message of `first`.
pub(super) async fn rest(shared: &Shared, queue: &Queue, first: &Job) -> Vec<Box<Job>> {
    let of =
        SubscriptionRef { tenant_id: first.delivery.tenant_id, id: first.delivery.subscription_id };
    let recipient = first.delivery.recipient.as_str();
    let subscription = first.catalog.subscription(of.id).map(AsRef::as_ref);
    let mut permits: HashMap<DeliveryId, Permit> = HashMap::new();
    let admit = |candidate: &Candidate| {
        let Some(mut permit) = queue.reserve_further(of.id, subscription) else { return false };
        let is_admitted = permit.weigh(candidate.event_bytes);
        if is_admitted {
            permits.insert(candidate.delivery_id, permit);
        }
        is_admitted
    };
    let (node, now) = (shared.lease.node(), shared.clock.now());
    let limit = MAX_EVENTS - 1;
    let claim = shared.store.claim_digest((of, recipient), limit, node, now, admit).await;
    let claimed = claim.unwrap_or_else(|error| {
        tracing::warn!(%error, "the rest of a digest cannot be leased; it goes out in another message");
        Vec::new()
    });
    shared.metrics.claimed.inc_by(claimed.len() as u64);
    let mut jobs = Vec::with_capacity(claimed.len());
    for claimed in claimed {
        let Some(mut permit) = permits.remove(&claimed.delivery.id) else { continue };
        queue.occupy(&mut permit, claimed.delivery.id);
        jobs.push(Box::new(Job {
            delivery: claimed.delivery,
            event: claimed.event,
            catalog: first.catalog.clone(),
            permit,
        }));
    }
    // Last: by now everything that a claim had leased before is in the queue.
    let is_wanted = |job: &Job| job.delivery.recipient == recipient;
    jobs.extend(queue.take_waiting(of.id, is_wanted, MAX_EVENTS - 1 - jobs.len()));
    jobs
}
