//! A batch of events on its way through one transaction: who is refused, who repeats an earlier
//! request, and which deliveries each event has.

use std::collections::HashMap;
use std::sync::Arc;

use rand::rngs::StdRng;

use crate::dispatch::{Permit, Queue};
use crate::domain::Timestamp;
use crate::domain::channel::Channel;
use crate::domain::delivery::{Delivery, State};
use crate::domain::event::{Event, NewEvent};
use crate::domain::id::{DeliveryId, EventId, NodeId, SubscriptionId, TenantId};
use crate::domain::subscription::{self, Subscription};
use crate::store::{Acceptance, Catalog, IdempotencyKey, KeyUse};

use super::judge::judge_again;
use super::{Accepted, Error, Pending};

/// What a request is answered.
pub(super) type Answer = Result<Accepted, Error>;
/// A delivery that is born leased, and its event.
pub(super) type Leased = (Delivery, Arc<Event>);
/// Who has something due for which there was no place, or for whose bytes there was no room: then it
/// says `true`.
pub(super) type Wanting = (Arc<Subscription>, bool);

/// What is known of one request of the batch.
enum Fate {
    /// It is stored: its place among the events.
    New(usize),
    /// It repeats the request at this place in the batch.
    Same(usize),
    /// It was answered before, or is refused.
    Known(Result<Accepted, Error>),
}

struct NewRow {
    event: Arc<Event>,
    subscriptions: Vec<Arc<Subscription>>,
    delivery_count: u32,
    /// Another transaction had its key first.
    is_dropped: bool,
}

pub(super) struct Batch {
    fates: Vec<Fate>,
    rows: Vec<NewRow>,
    keys: Vec<IdempotencyKey>,
    /// For each key, the place in the batch of the request that took it.
    key_owners: Vec<usize>,
    deliveries: Vec<Delivery>,
    leased: Vec<Leased>,
    /// Who has something due for which there was no place.
    wanting: HashMap<SubscriptionId, Wanting>,
    /// Events whose schema had changed since they were judged.
    judged_again: u64,
}

impl Batch {
    /// Judges each request by its tenant's settings, and gives ids to those that are good.
    pub(super) fn prepare(
        group: &[Pending],
        catalogs: &HashMap<TenantId, Catalog>,
        now: Timestamp,
        random: &mut StdRng,
    ) -> Self {
        let mut batch = Self {
            fates: Vec::with_capacity(group.len()),
            rows: Vec::with_capacity(group.len()),
            keys: Vec::new(),
            key_owners: Vec::new(),
            deliveries: Vec::new(),
            leased: Vec::new(),
            wanting: HashMap::new(),
            judged_again: 0,
        };
        let mut seen: HashMap<(TenantId, &str), (usize, usize)> = HashMap::new();
        for (place, pending) in group.iter().enumerate() {
            let new = &pending.event;
            let Some(catalog) = catalogs.get(&new.tenant_id) else {
                batch.fates.push(Fate::Known(Err(Error::UnknownTenant)));
                continue;
            };
            if !pending.verdict.stands(catalog, &new.event_type) {
                batch.judged_again += 1;
                if let Err(violations) = judge_again(new, catalog) {
                    batch.fates.push(Fate::Known(Err(Error::Invalid(violations))));
                    continue;
                }
            }
            let mut fingerprint = None;
            if !new.idempotency_key.is_empty() {
                let own = new.fingerprint();
                if let Some((first, key)) = seen.get(&(new.tenant_id, new.idempotency_key.as_str()))
                {
                    let is_same = batch.keys[*key].fingerprint == own;
                    batch.fates.push(if is_same {
                        Fate::Same(*first)
                    } else {
                        Fate::Known(Err(Error::KeyReused))
                    });
                    continue;
                }
                seen.insert((new.tenant_id, &new.idempotency_key), (place, batch.keys.len()));
                fingerprint = Some(own);
            }
            let row = new_row(new, catalog, now, random);
            if let Some(fingerprint) = fingerprint {
                batch.key_owners.push(place);
                batch.keys.push(IdempotencyKey {
                    tenant_id: new.tenant_id,
                    key: new.idempotency_key.clone(),
                    fingerprint,
                    event_id: row.event.id,
                    delivery_count: row.delivery_count,
                });
            }
            batch.fates.push(Fate::New(batch.rows.len()));
            batch.rows.push(row);
        }
        batch
    }

    /// How many deliveries the batch makes at most.
    pub(super) fn delivery_count(&self) -> usize {
        self.rows.iter().map(|row| row.delivery_count as usize).sum()
    }

    /// How many events had to be judged by the committer.
    pub(super) const fn judged_again(&self) -> u64 {
        self.judged_again
    }

    /// The keys that the batch wants to take.
    pub(super) fn keys(&self) -> impl ExactSizeIterator<Item = &IdempotencyKey> {
        self.keys.iter()
    }

    /// Drops the events whose key an earlier request had taken, and answers with that one's.
    pub(super) fn settle_keys(&mut self, uses: &HashMap<(TenantId, String), KeyUse>) {
        if uses.is_empty() {
            return;
        }
        for (key, owner) in self.keys.iter().zip(&self.key_owners) {
            let Some(earlier) = uses.get(&(key.tenant_id, key.key.clone())) else { continue };
            if let Fate::New(row) = self.fates[*owner] {
                self.rows[row].is_dropped = true;
            }
            self.fates[*owner] = Fate::Known(if earlier.fingerprint == key.fingerprint {
                Ok(Accepted {
                    event_id: earlier.event_id,
                    delivery_count: earlier.delivery_count,
                    duplicate: true,
                })
            } else {
                Err(Error::KeyReused)
            });
        }
    }

    /// Makes the deliveries. Those that are due and find a place in the queue are born leased;
    /// their permits are returned in order.
    pub(super) fn reserve(
        &mut self,
        queue: &Queue,
        catalogs: &HashMap<TenantId, Catalog>,
        now: Timestamp,
        random: &mut StdRng,
    ) -> Vec<Permit> {
        let mut permits = Vec::new();
        for row in self.rows.iter().filter(|row| !row.is_dropped) {
            if !catalogs.contains_key(&row.event.tenant_id) {
                continue;
            }
            let bytes = row.event.weight();
            for subscription in &row.subscriptions {
                for recipient in recipients(subscription) {
                    let mut delivery =
                        new_delivery(&row.event, subscription, recipient, now, random);
                    if delivery.next_attempt_time.is_some_and(|due| due <= now) {
                        match place(queue, subscription, bytes) {
                            Ok(permit) => {
                                delivery.state = State::Delivering;
                                delivery.next_attempt_time = None;
                                permits.push(permit);
                                self.leased.push((delivery.clone(), Arc::clone(&row.event)));
                            }
                            Err(is_heavy) => {
                                let wanting = (Arc::clone(subscription), is_heavy);
                                self.wanting.insert(subscription.id, wanting);
                            }
                        }
                    }
                    self.deliveries.push(delivery);
                }
            }
        }
        permits
    }

    /// What is to be stored.
    pub(super) fn acceptance<'a>(
        &'a self,
        settings: &'a HashMap<TenantId, Catalog>,
        node: NodeId,
        now: Timestamp,
    ) -> Acceptance<'a> {
        let is_new = |place: &usize| matches!(self.fates[*place], Fate::New(_));
        let keys = self.keys.iter().zip(&self.key_owners);
        let rows = self.rows.iter().filter(|row| !row.is_dropped);
        Acceptance {
            settings,
            keys: keys.filter(|(_, owner)| is_new(owner)).map(|(key, _)| key).collect(),
            events: rows.map(|row| row.event.as_ref()).collect(),
            deliveries: &self.deliveries,
            node,
            now,
        }
    }

    /// The subscriptions that have something due for which there was no place, or for whose bytes there
    /// was no room.
    pub(super) fn take_wanting(&mut self) -> impl Iterator<Item = Wanting> + use<> {
        std::mem::take(&mut self.wanting).into_values()
    }

    /// The answers, in the order of the requests, and the deliveries that were born leased.
    pub(super) fn finish(self) -> (Vec<Answer>, Vec<Leased>) {
        let mut answers: Vec<Result<Accepted, Error>> = Vec::with_capacity(self.fates.len());
        for fate in self.fates {
            let answer = match fate {
                Fate::Known(answer) => answer,
                Fate::New(row) => {
                    let row = &self.rows[row];
                    Ok(Accepted {
                        event_id: row.event.id,
                        delivery_count: row.delivery_count,
                        duplicate: false,
                    })
                }
                // The first of the two stands before it.
                Fate::Same(first) => {
                    answers[first].clone().map(|accepted| Accepted { duplicate: true, ..accepted })
                }
            };
            answers.push(answer);
        }
        (answers, self.leased)
    }
}

/// A place in the queue for an event of so many bytes. Without one it says whether there was a place,
/// and only no room for the bytes.
fn place(queue: &Queue, subscription: &Subscription, bytes: usize) -> Result<Permit, bool> {
    let permit = queue.reserve(subscription.id, Some(subscription), 1).pop();
    let mut permit = permit.ok_or(false)?;
    if permit.weigh(bytes) { Ok(permit) } else { Err(true) }
}

fn new_row(new: &NewEvent, catalog: &Catalog, now: Timestamp, random: &mut StdRng) -> NewRow {
    let event = new.clone().accepted(EventId::new(now, random), now);
    let subscriptions = catalog.subscribers(&event.event_type);
    let count: usize =
        subscriptions.iter().map(|subscription| recipients(subscription).count()).sum();
    NewRow {
        event: Arc::new(event),
        subscriptions,
        delivery_count: u32::try_from(count).unwrap_or(u32::MAX),
        is_dropped: false,
    }
}

/// Whom a subscription delivers to: one for a webhook, each address for an email.
fn recipients(subscription: &Subscription) -> impl Iterator<Item = &str> {
    let (webhook, addresses) = match &subscription.spec.channel {
        Channel::Webhook(_) => (Some(""), [].as_slice()),
        Channel::Email(email) => (None, email.recipients.as_slice()),
    };
    webhook.into_iter().chain(addresses.iter().map(String::as_str))
}

fn new_delivery(
    event: &Event,
    subscription: &Subscription,
    recipient: &str,
    now: Timestamp,
    random: &mut StdRng,
) -> Delivery {
    let is_held = subscription.state != subscription::State::Active;
    let due = event.deliver_time.unwrap_or(now).max(now);
    let due = subscription.digest().map_or(due, |digest| digest.window_end(due));
    Delivery {
        id: DeliveryId::new(now, random),
        tenant_id: event.tenant_id,
        event_id: event.id,
        event_type: event.event_type.clone(),
        subscription_id: subscription.id,
        channel: subscription.spec.channel.kind(),
        recipient: recipient.to_owned(),
        state: if is_held { State::Held } else { State::Scheduled },
        failure_reason: None,
        attempt_count: 0,
        automatic_count: 0,
        interrupted_count: 0,
        next_attempt_time: (!is_held).then_some(due),
        expire_time: event.expire_time,
        recover_time: None,
        last_attempt: None,
        trace_id: event.trace.trace_id_hex(),
        revision: 1,
        create_time: now,
        update_time: now,
    }
}
