//! Builders of what the store keeps.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tidings::domain::Timestamp;
use tidings::domain::attempt::{Attempt, Outcome, Report, Timings, Trigger};
use tidings::domain::channel::{Channel, WebhookChannel};
use tidings::domain::delivery::{Delivery, LastAttempt, State};
use tidings::domain::event::Event;
use tidings::domain::event_type::ChannelKind;
use tidings::domain::header_list::HeaderList;
use tidings::domain::id::{DeliveryId, EventId, NodeId, SubscriptionId, TenantId};
use tidings::domain::labels::Labels;
use tidings::domain::pattern::Pattern;
use tidings::domain::subscription::{
    Secret, State as SubscriptionState, Subscription, SubscriptionSpec,
};
use tidings::domain::tenant::{Tenant, TenantSpec};
use tidings::domain::trace::TraceContext;
use tidings::store::{AcceptResult, Acceptance, Ended, Room, Store, SubscriptionRef};

/// Makes ids from a seed: the same in every run.
pub(crate) struct Maker(Mutex<StdRng>);

impl Maker {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Mutex::new(StdRng::seed_from_u64(seed)))
    }

    fn with<T>(&self, make: impl FnOnce(&mut StdRng) -> T) -> T {
        make(&mut self.0.lock().expect("not poisoned"))
    }

    pub(crate) fn node(&self, now: Timestamp) -> NodeId {
        self.with(|random| NodeId::new(now, random))
    }

    /// A tenant, stored.
    pub(crate) async fn tenant(&self, store: &Store, now: Timestamp) -> Tenant {
        let id = self.with(|random| TenantId::new(now, random));
        let spec = TenantSpec { display_name: "Acme".into(), ..TenantSpec::default() };
        let tenant =
            Tenant { id, spec, unreadable: false, revision: 1, create_time: now, update_time: now };
        store.create_tenant(&tenant).await.expect("stored");
        tenant
    }

    /// An active subscription to everything, stored.
    pub(crate) async fn subscription(
        &self,
        store: &Store,
        tenant_id: TenantId,
        now: Timestamp,
    ) -> Subscription {
        let subscription = self.unstored_subscription(tenant_id, now);
        store.create_subscription(&subscription).await.expect("stored");
        subscription
    }

    /// An active subscription to everything, not stored yet.
    pub(crate) fn unstored_subscription(
        &self,
        tenant_id: TenantId,
        now: Timestamp,
    ) -> Subscription {
        Subscription {
            id: self.with(|random| SubscriptionId::new(now, random)),
            tenant_id,
            spec: SubscriptionSpec {
                display_name: "all".into(),
                event_types: vec![Pattern::parse("*").expect("a pattern")],
                channel: Channel::Webhook(WebhookChannel {
                    url: "https://hooks.company.com/".into(),
                    ..WebhookChannel::default()
                }),
                retry_policy: None,
                labels: Labels::new(),
            },
            state: SubscriptionState::Active,
            disable_reason: None,
            unreadable: false,
            secrets: vec![Secret {
                text: "whsec_c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0".into(),
                expire_time: None,
                signing_key: None,
            }],
            revision: 1,
            create_time: now,
            update_time: now,
        }
    }

    pub(crate) fn event(&self, tenant_id: TenantId, now: Timestamp) -> Event {
        self.with(|random| Event {
            id: EventId::new(now, random),
            tenant_id,
            event_type: "billing.paid".into(),
            subject: String::new(),
            data: Bytes::from_static(b"{}"),
            labels: Labels::new(),
            occur_time: now,
            create_time: now,
            deliver_time: None,
            expire_time: None,
            trace: TraceContext::root(random),
        })
    }

    /// A new delivery of `event`: DELIVERING when `is_leased`, else due at once.
    pub(crate) fn delivery(
        &self,
        event: &Event,
        subscription_id: SubscriptionId,
        is_leased: bool,
    ) -> Delivery {
        let now = event.create_time;
        Delivery {
            id: self.with(|random| DeliveryId::new(now, random)),
            tenant_id: event.tenant_id,
            event_id: event.id,
            event_type: event.event_type.clone(),
            subscription_id,
            channel: ChannelKind::Webhook,
            recipient: String::new(),
            state: if is_leased { State::Delivering } else { State::Scheduled },
            failure_reason: None,
            attempt_count: 0,
            automatic_count: 0,
            interrupted_count: 0,
            next_attempt_time: (!is_leased).then_some(now),
            expire_time: event.expire_time,
            recover_time: None,
            last_attempt: None,
            trace_id: event.trace.trace_id_hex(),
            revision: 1,
            create_time: now,
            update_time: now,
        }
    }

    /// Stores an event with its one delivery.
    pub(crate) async fn store_one(&self, store: &Store, event: &Event, delivery: &Delivery) {
        let now = event.create_time;
        accept(store, &[event], std::slice::from_ref(delivery), self.node(now), now).await;
    }

    /// Stores `count` events with one delivery each.
    pub(crate) async fn deliveries(
        &self,
        store: &Store,
        subscription: &Subscription,
        count: usize,
        node: NodeId,
        is_leased: bool,
        now: Timestamp,
    ) -> Vec<Delivery> {
        let events: Vec<_> = (0..count).map(|_| self.event(subscription.tenant_id, now)).collect();
        let deliveries: Vec<_> =
            events.iter().map(|event| self.delivery(event, subscription.id, is_leased)).collect();
        accept(store, &events.iter().collect::<Vec<_>>(), &deliveries, node, now).await;
        deliveries
    }
}

/// Stores events with their deliveries, whatever the settings.
pub(crate) async fn accept(
    store: &Store,
    events: &[&Event],
    deliveries: &[Delivery],
    node: NodeId,
    now: Timestamp,
) {
    let settings = HashMap::new();
    let (keys, events) = (Vec::new(), events.to_vec());
    let new = Acceptance { settings: &settings, keys, events, deliveries, node, now };
    assert_eq!(store.accept(&new, || ()).await.expect("accepted"), AcceptResult::Stored);
}

/// A successful end of `delivery`'s lease.
pub(crate) fn succeeded(delivery: &Delivery, now: Timestamp) -> Ended {
    let attempt = Attempt {
        delivery_id: delivery.id,
        number: delivery.attempt_count + 1,
        trigger: Trigger::Automatic,
        report: Report {
            outcome: Outcome::Delivered,
            start_time: now,
            duration: Duration::from_millis(3),
            timings: Some(Timings {
                dns: Some(Duration::from_micros(1)),
                connect: Some(Duration::from_millis(1)),
                tls: None,
                first_byte: Some(Duration::from_millis(2)),
                connection_reused: false,
            }),
            http_status: Some(204),
            request_headers: [("content-type", "application/json")].into_iter().collect(),
            response_headers: HeaderList::default(),
            response_body: Vec::new(),
            smtp_reply: String::new(),
            failure: None,
        },
        trace: TraceContext { trace_id: 7, span_id: 8, sampled: true },
    };
    let after = Delivery {
        state: State::Succeeded,
        attempt_count: attempt.number,
        automatic_count: attempt.number,
        last_attempt: Some(LastAttempt::of(&attempt)),
        revision: delivery.revision + 1,
        update_time: now,
        ..delivery.clone()
    };
    Ended { after, attempt: Some(attempt) }
}

/// Room for so many deliveries of a subscription.
pub(crate) fn room(subscription: &Subscription, room: u32) -> Room {
    let of = SubscriptionRef { tenant_id: subscription.tenant_id, id: subscription.id };
    Room { subscription: of, room }
}

/// How a delivery stands in the database.
pub(crate) async fn state(store: &Store, delivery: &Delivery) -> State {
    store.delivery(delivery.tenant_id, delivery.id).await.expect("read").expect("there").state
}

/// Writes a row with these changes to the tenant's feed, as the last statements of a transaction do.
pub(crate) fn feed_row(tenant_id: &str, changes: &str) -> [String; 2] {
    [
        format!("UPDATE feed_heads SET position = position + 1 WHERE tenant_id = '{tenant_id}'"),
        format!(
            "INSERT INTO feed (tenant_id, position, create_time, changes)
            SELECT tenant_id, position, 0, '{changes}' FROM feed_heads WHERE tenant_id = '{tenant_id}'"
        ),
    ]
}
