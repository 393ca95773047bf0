//! What comes from outside: events, wishes of clients, receivers that misbehave, nodes and databases
//! that fail. All of it ends with the storm.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;

use tidings::domain::Timestamp;
use tidings::domain::channel::Channel;
use tidings::domain::delivery::{Delivery, State};
use tidings::domain::event::Event as DomainEvent;
use tidings::domain::event_type::ChannelKind;
use tidings::domain::id::{DeliveryId, EventId};
use tidings::domain::labels::Labels;
use tidings::domain::subscription;
use tidings::domain::trace::TraceContext;
use tidings::store::SubscriptionRef;

use super::database::reference;
use super::faults::Fired;
use super::node::weigh;
use super::receiver::{Mode, misbehaviour};
use super::scenario::{Weather, retry_policy};
use super::transactions::{Birth, Request};
use super::world::{Event, World, say};

/// Of so many deliveries, one brings down each process that attempts it.
const LETHAL: u32 = 200;

/// Plans the first of everything that comes from outside.
pub(crate) fn begin(world: &mut World) {
    for tenant in 0..world.scenario.tenants.len() {
        let delay = world.millis(300..=2_000);
        let is_loud = world.scenario.tenants[tenant].is_loud;
        let count = if is_loud { world.random.random_range(6..=14) } else { 1 };
        world.after(delay, Event::Emit { tenant, count });
    }
    world.after(Duration::from_secs(1), Event::Disturb);
    world.after(Duration::from_secs(1), Event::Inspect);
    if world.scenario.weather == Weather::Stormy {
        world.after(Duration::from_secs(2), Event::Strike);
        world.after(Duration::from_secs(1), Event::Meddle);
    } else {
        // The loud tenant's receivers hang from the beginning.
        let until = super::scenario::BIRTH.plus(world.scenario.storm);
        for subscription in &world.scenario.tenants[0].subscriptions {
            let of = SubscriptionRef { tenant_id: subscription.tenant_id, id: subscription.id };
            if let Some(receiver) = world.receivers.get_mut(&of) {
                (receiver.mode, receiver.until) = (Mode::Hangs, until);
            }
        }
    }
    world.after(world.scenario.storm, Event::Rest);
}

impl World {
    /// A tenant's service emits: what `src/intake` does with one batch.
    pub(crate) fn emit(&mut self, tenant: usize, count: usize) {
        if self.is_resting {
            return;
        }
        let is_loud = self.scenario.tenants[tenant].is_loud;
        let pause = if is_loud { self.millis(1_500..=8_000) } else { self.millis(700..=5_000) };
        let next = if is_loud && self.random.random_range(0..3) == 0 {
            self.random.random_range(6..=14)
        } else {
            self.random.random_range(1..=2)
        };
        self.after(pause, Event::Emit { tenant, count: next });
        let Some(node) = self.any_serving() else { return };
        let Some(name) = self.nodes[node].name() else { return };
        if !self.is_reachable() {
            return;
        }
        if count > 2 {
            self.note(Fired::Burst);
        }
        let now = self.clock(node);
        let subscriptions = &self.scenario.tenants[tenant].subscriptions;
        let subscriptions = subscriptions.iter().filter_map(|subscription| {
            let of = SubscriptionRef { tenant_id: subscription.tenant_id, id: subscription.id };
            self.database.subscription(of)
        });
        let subscriptions: Vec<_> = subscriptions.collect();
        let mut births = Vec::new();
        for _ in 0..count {
            let event = Arc::new(self.new_event(tenant, now));
            for subscription in &subscriptions {
                births.push(self.birth(node, &event, subscription, now));
            }
        }
        say!(self, "node {node}: accepts {count} events, {} deliveries", births.len());
        self.send(node, Request::Accept { births, now, name });
    }

    fn new_event(&mut self, tenant: usize, now: Timestamp) -> DomainEvent {
        let seconds =
            |world: &mut Self, range| Duration::from_secs(world.random.random_range(range));
        let is_stormy = self.is_stormy();
        let is_one_in = |world: &mut Self, n| is_stormy && world.random.random_range(0..n) == 0;
        let deliver_time = is_one_in(self, 12).then(|| now.plus(seconds(self, 1..=20)));
        let from = deliver_time.unwrap_or(now);
        let expire_time = is_one_in(self, 12).then(|| from.plus(seconds(self, 1..=15)));
        let bytes = if self.random.random_range(0..20) == 0 { 8_000 } else { 200 };
        DomainEvent {
            id: EventId::new(now, &mut self.random),
            tenant_id: self.scenario.tenants[tenant].id,
            event_type: String::new(),
            subject: String::new(),
            data: vec![b' '; bytes].into(),
            labels: Labels::new(),
            occur_time: now,
            create_time: now,
            deliver_time,
            expire_time,
            trace: TraceContext { trace_id: 1, span_id: 1, sampled: false },
        }
    }

    /// A new delivery, with its place when it is due and there is one.
    fn birth(
        &mut self,
        node: usize,
        event: &Arc<DomainEvent>,
        subscription: &Arc<subscription::Subscription>,
        now: Timestamp,
    ) -> Birth {
        let is_held = subscription.state != subscription::State::Active;
        let due = event.deliver_time.unwrap_or(now).max(now);
        let mut delivery = Delivery {
            id: DeliveryId::new(now, &mut self.random),
            tenant_id: event.tenant_id,
            event_id: event.id,
            event_type: String::new(),
            subscription_id: subscription.id,
            channel: ChannelKind::Webhook,
            recipient: String::new(),
            state: if is_held { State::Held } else { State::Scheduled },
            failure_reason: None,
            attempt_count: 0,
            automatic_count: 0,
            interrupted_count: 0,
            next_attempt_time: (!is_held).then_some(due),
            expire_time: event.expire_time,
            recover_time: None,
            last_attempt: None,
            trace_id: String::new(),
            revision: 1,
            create_time: now,
            update_time: now,
        };
        let (mut permit, mut is_heavy) = (None, false);
        if delivery.next_attempt_time.is_some_and(|due| due <= now) {
            let of = reference(&delivery);
            let mut reserved = self.nodes[node].reserve(of, Some(subscription), 1, now);
            let place = reserved.pop();
            is_heavy = place.is_some();
            permit =
                place.and_then(|mut permit| weigh(&mut permit, event.weight()).then_some(permit));
        }
        if permit.is_none() && !is_held && due <= now {
            self.note(Fired::NoPlace);
        }
        if permit.is_some() {
            (delivery.state, delivery.next_attempt_time) = (State::Delivering, None);
        }
        let (event, subscription) = (Arc::clone(event), Some(Arc::clone(subscription)));
        let is_lethal = self.is_stormy() && self.random.random_range(0..LETHAL) == 0;
        Birth { delivery, is_lethal, event, subscription, permit, is_heavy }
    }

    /// A receiver begins to misbehave. In calm weather those of quiet tenants do not.
    pub(crate) fn disturb(&mut self) {
        if self.is_resting {
            return;
        }
        let delay = self.millis(500..=4_000);
        self.after(delay, Event::Disturb);
        let is_calm = self.scenario.weather == Weather::Calm;
        let place = self.random.random_range(0..self.receivers.len());
        let Some((of, receiver)) = self.receivers.iter_mut().nth(place) else { return };
        let loud = self.scenario.tenants[0].id;
        if is_calm && (of.tenant_id != loud || receiver.mode == Mode::Hangs) {
            return;
        }
        receiver.mode = misbehaviour(&mut self.random);
        let lasts = match receiver.mode {
            Mode::Gone | Mode::Final => self.random.random_range(200..=1_000),
            _ => self.random.random_range(1_000..=15_000),
        };
        receiver.until = self.now.plus(Duration::from_millis(lasts));
        say!(self, "the receiver of {}: {:?} for {lasts} ms", of.id, receiver.mode);
    }

    /// A client changes something.
    pub(crate) fn meddle(&mut self) {
        if self.is_resting {
            return;
        }
        let delay = self.millis(200..=2_500);
        self.after(delay, Event::Meddle);
        let Some(node) = self.any_serving() else { return };
        if !self.is_reachable() {
            return;
        }
        let now = self.clock(node);
        let place = self.random.random_range(0..self.receivers.len());
        let Some(of) = self.receivers.keys().nth(place).copied() else { return };
        match self.random.random_range(0..20) {
            0..4 => self.pause(of, now),
            4..9 => self.resume(of, now),
            9..12 => self.cancel(now),
            12..16 => self.retry(node, now),
            16..19 => self.change_settings(of),
            _ => {
                if self.has_open(of, State::Scheduled) && self.random.random_range(0..3) == 0 {
                    say!(self, "{} is deleted", of.id);
                    self.note(Fired::Delete);
                    self.database.delete(of);
                }
            }
        }
    }

    fn has_open(&self, of: SubscriptionRef, state: State) -> bool {
        let rows = self.database.open.iter().map(|at| &self.database.rows[*at].delivery);
        rows.into_iter().any(|delivery| reference(delivery) == of && delivery.state == state)
    }

    fn pause(&mut self, of: SubscriptionRef, now: Timestamp) {
        let active = self.database.subscription(of);
        if active.is_none_or(|active| active.state != subscription::State::Active) {
            return;
        }
        if self.has_open(of, State::Delivering) {
            self.note(Fired::Pause);
        }
        say!(self, "{} is paused", of.id);
        self.database.switch(of, subscription::State::Paused);
        if self.random.random() {
            self.database.settle(now);
        }
    }

    fn resume(&mut self, of: SubscriptionRef, now: Timestamp) {
        let held = self.database.subscription(of);
        if held.is_none_or(|held| held.state == subscription::State::Active) {
            return;
        }
        if self.has_open(of, State::Held) {
            self.note(Fired::Resume);
        }
        say!(self, "{} is resumed", of.id);
        self.database.reset_health(of, now);
        self.database.switch(of, subscription::State::Active);
        if self.random.random() {
            self.database.settle(now);
        }
    }

    fn any_row(&mut self, is_open: bool) -> Option<usize> {
        let open: Vec<_> = self.database.open.iter().copied().collect();
        let count = if is_open { open.len() } else { self.database.rows.len() };
        if count == 0 {
            return None;
        }
        let place = self.random.random_range(0..count);
        Some(if is_open { open[place] } else { place })
    }

    fn cancel(&mut self, now: Timestamp) {
        let Some(at) = self.any_row(true) else { return };
        if self.database.cancel(at, now) == State::Delivering {
            self.note(Fired::CancelUnderWay);
        }
        say!(self, "{} is canceled", self.database.rows[at].delivery.id);
    }

    fn retry(&mut self, node: usize, now: Timestamp) {
        let is_open = self.random.random();
        let Some(at) = self.any_row(is_open) else { return };
        let Some(name) = self.nodes[node].name() else { return };
        let id = self.database.rows[at].delivery.id;
        self.send(node, Request::ManualClaim { id, name, now });
    }

    fn change_settings(&mut self, of: SubscriptionRef) {
        if self.has_open(of, State::Delivering) {
            self.note(Fired::SettingsChange);
        }
        let policy = retry_policy(&mut self.random);
        let limit = self.random.random_range(1..=16);
        say!(self, "{} changes: max_in_flight {limit}, {} retries", of.id, policy.max_retries);
        self.database.update(of, |subscription| {
            subscription.spec.retry_policy = Some(policy);
            if let Channel::Webhook(webhook) = &mut subscription.spec.channel {
                webhook.max_in_flight = limit;
            }
        });
    }

    /// A node or the database fails.
    pub(crate) fn strike(&mut self) {
        if self.is_resting {
            return;
        }
        let delay = self.millis(1_000..=7_000);
        self.after(delay, Event::Strike);
        let ttl = u64::try_from(self.scenario.config.lease_ttl.as_millis()).unwrap_or(0);
        match self.random.random_range(0..12) {
            0..4 => self.crash(),
            4..6 => self.stall(200..=ttl / 2, Fired::ShortStall),
            6..8 => self.stall(ttl + 1_000..=ttl * 2, Fired::LongStall),
            8..10 => {
                let away = self.millis(300..=6_000);
                say!(self, "the database is away for {away:?}");
                self.away_until = self.now.plus(away);
                self.trouble_time = self.away_until;
            }
            _ => self.jump(),
        }
    }

    fn crash(&mut self) {
        let Some(node) = self.any_serving() else { return };
        self.die(node);
    }

    /// A node loses all that it has in memory, and starts anew some time later.
    pub(crate) fn die(&mut self, node: usize) {
        if !self.nodes[node].lanes.borrow().is_empty() {
            self.note(Fired::Crash);
        }
        say!(self, "node {node}: dies");
        for delivery in self.nodes[node].attempted() {
            *self.requests.died.entry(delivery).or_default() += 1;
        }
        let config = self.scenario.config;
        self.nodes[node].forget(&config);
        let delay = self.millis(300..=9_000);
        // Its deliveries wait until its lease has run out.
        self.trouble_time = self.now.plus(delay.max(config.lease_ttl));
        self.after(delay, Event::Start { node });
    }

    fn stall(&mut self, millis: std::ops::RangeInclusive<u64>, fired: Fired) {
        let Some(node) = self.any_serving() else { return };
        if !self.nodes[node].lanes.borrow().is_empty() {
            self.note(fired);
        }
        let stall = self.millis(millis);
        say!(self, "node {node}: stands still for {stall:?}");
        self.nodes[node].stalled_until = self.now.plus(stall);
        self.trouble_time = self.nodes[node].stalled_until;
    }

    fn jump(&mut self) {
        let millis = self.random.random_range(500..=5_000_i64);
        let is_forward = self.random.random();
        let jump = if is_forward { millis } else { -millis };
        self.note(if is_forward { Fired::JumpForward } else { Fired::JumpBack });
        say!(self, "the database's clock jumps by {jump} ms");
        self.offset_us += jump * 1_000;
        self.jump_time = self.now;
        self.jumped += Duration::from_millis(jump.unsigned_abs());
        self.trouble_time = self.now;
    }

    /// The storm is over: nothing fails any more, and everything that was stopped goes on.
    pub(crate) fn rest(&mut self) {
        if !self.is_resting {
            say!(self, "the storm is over");
        }
        self.is_resting = true;
        // A result from the storm may yet disable a subscription.
        self.after(Duration::from_secs(2), Event::Rest);
        for receiver in self.receivers.values_mut() {
            receiver.until = receiver.until.min(self.now);
        }
        let now = self.database.now;
        for of in self.receivers.keys().copied().collect::<Vec<_>>() {
            self.resume(of, now);
        }
    }
}
