//! A database with the semantics of ours: every method is one transaction of `src/store`, made at one
//! instant. What is decided inside a transaction is decided by the product's own functions.
//!
//! Each change of a delivery goes through [`Database::change`], which holds the invariants of a row
//! against it: they do not know of fences or leases.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tidings::domain::Timestamp;
use tidings::domain::attempt::{Attempt, Outcome, Trigger};
use tidings::domain::delivery::{Delivery, FailureReason, LastAttempt, State};
use tidings::domain::event::Event;
use tidings::domain::health::{Breaker, Health, Observation, Policy};
use tidings::domain::id::{DeliveryId, NodeId};
use tidings::domain::retry::RetryPolicy;
use tidings::domain::subscription::{self, Subscription};
use tidings::store::{
    Candidate, Ended, EndpointHealth, HealthChange, LateResult, ManualClaim, Observed, Recorded,
    Room, SubscriptionRef, admitted,
};

/// An attempt in the ledger.
pub(crate) struct Entry {
    number: u32,
    pub(crate) trigger: Trigger,
    span: u64,
    pub(crate) delivered: bool,
}

/// A delivery with what only the database and the checks know of it.
pub(crate) struct Row {
    pub(crate) delivery: Delivery,
    pub(crate) event: Arc<Event>,
    pub(crate) lease: Option<NodeId>,
    due_time: Option<Timestamp>,
    pub(crate) ledger: Vec<Entry>,
    /// Whether each of its attempts brings down the process that makes it.
    pub(crate) is_lethal: bool,
    /// No automatic attempt may be made before this instant of the database.
    pub(crate) not_before: Timestamp,
    /// Not before this, by what the receiver wished after the last automatic attempt.
    pub(crate) wish: Option<Timestamp>,
    /// How often a lease was taken from its node, and which revision that last made, when (true
    /// time).
    pub(crate) leases_lost: u32,
    pub(crate) lost_revision: i64,
    pub(crate) lost_at: Timestamp,
    /// Whether it was held since the last attempt: then it is due when it is released.
    pub(crate) was_held: bool,
    pub(crate) acknowledged: bool,
}

/// A subscription with what only the database and the checks know of it.
pub(crate) struct Settings {
    pub(crate) subscription: Arc<Subscription>,
    settled: bool,
    pub(crate) is_deleted: bool,
    /// When it stopped or resumed to deliver, and when anything changed (true time).
    pub(crate) switch_time: Timestamp,
    pub(crate) change_time: Timestamp,
    /// The fewest and the most retries that its policy ever asked for.
    retries: (u32, u32),
}

/// How an endpoint is remembered, and what the checks know of it.
pub(crate) struct HealthRow {
    pub(crate) row: EndpointHealth,
    /// When the breaker opened and when the row was last written (true time).
    pub(crate) open_since: Option<Timestamp>,
    pub(crate) write_time: Timestamp,
    /// Not before this, by what the receiver wished in its answers to anybody.
    pub(crate) wish: Option<Timestamp>,
    /// When the breaker opened by the clock of who found it.
    pub(crate) opened_at: Timestamp,
    /// How often the breaker has opened.
    pub(crate) episode: u64,
}

/// What was leased by a claim.
pub(crate) struct Leased {
    pub(crate) delivery: Delivery,
    pub(crate) event: Arc<Event>,
}

#[derive(Default)]
pub(crate) struct Database {
    pub(crate) rows: Vec<Row>,
    by_id: HashMap<DeliveryId, usize>,
    scheduled: BTreeMap<SubscriptionRef, BTreeSet<(Timestamp, usize)>>,
    pub(crate) open: BTreeSet<usize>,
    /// Those of them that expire.
    expiring: BTreeSet<(Timestamp, usize)>,
    pub(crate) settings: BTreeMap<SubscriptionRef, Settings>,
    nodes: BTreeMap<NodeId, Timestamp>,
    pub(crate) health: BTreeMap<SubscriptionRef, HealthRow>,
    policy: Policy,
    /// The database's clock, and the true time.
    pub(crate) now: Timestamp,
    pub(crate) true_time: Timestamp,
    /// What broke an invariant.
    pub(crate) broken: Option<String>,
}

impl Database {
    pub(crate) fn new(policy: Policy) -> Self {
        Self { policy, ..Self::default() }
    }

    fn breaks(&mut self, what: String) {
        self.broken.get_or_insert(what);
    }

    pub(crate) fn at(&self, id: DeliveryId) -> Option<usize> {
        self.by_id.get(&id).copied()
    }

    pub(crate) fn row(&self, id: DeliveryId) -> Option<&Row> {
        self.at(id).map(|at| &self.rows[at])
    }

    /// Changes a row, and holds the invariants against it.
    fn change(&mut self, at: usize, change: impl FnOnce(&mut Row)) {
        let of = reference(&self.rows[at].delivery);
        let retries = self.settings[&of].retries;
        let row = &mut self.rows[at];
        let before = (row.delivery.state, row.delivery.failure_reason, row.delivery.revision);
        let due_before = row.delivery.next_attempt_time;
        change(row);
        let problem = problem_of(row, before, retries);
        let Delivery { id, state, next_attempt_time, .. } = row.delivery;
        row.was_held |= state == State::Held;
        if let Some(due) = due_before {
            self.scheduled.entry(of).or_default().remove(&(due, at));
        }
        if let Some(due) = next_attempt_time {
            self.scheduled.entry(of).or_default().insert((due, at));
        }
        if state.is_terminal() {
            self.open.remove(&at);
            self.expiring.retain(|(_, other)| *other != at);
        }
        if let Some(problem) = problem {
            self.breaks(format!("{id}: {problem}"));
        }
    }

    /// Stores a delivery with its event. One that is DELIVERING is leased to `node`.
    pub(crate) fn insert(
        &mut self,
        (delivery, is_lethal): (Delivery, bool),
        event: Arc<Event>,
        node: NodeId,
    ) {
        let at = self.rows.len();
        self.by_id.insert(delivery.id, at);
        self.open.insert(at);
        let leased = delivery.state == State::Delivering;
        self.expiring.extend(delivery.expire_time.map(|expiry| (expiry, at)));
        if let Some(due) = delivery.next_attempt_time {
            self.scheduled.entry(reference(&delivery)).or_default().insert((due, at));
        }
        self.rows.push(Row {
            not_before: event.deliver_time.unwrap_or(delivery.create_time),
            was_held: delivery.state == State::Held,
            delivery,
            event,
            lease: leased.then_some(node),
            due_time: None,
            ledger: Vec::new(),
            is_lethal,
            wish: None,
            leases_lost: 0,
            lost_revision: 0,
            lost_at: Timestamp::from_micros(0),
            acknowledged: false,
        });
    }

    /// Notes that the delivery's event was acknowledged.
    pub(crate) fn acknowledge(&mut self, id: DeliveryId) {
        match self.at(id) {
            Some(at) => self.rows[at].acknowledged = true,
            None => self.breaks(format!("{id} is acknowledged, but not stored")),
        }
    }

    /// See `Store::scheduled`.
    pub(crate) fn scheduled(&self) -> Vec<(SubscriptionRef, Timestamp)> {
        let first = |due: &BTreeSet<(Timestamp, usize)>| due.first().map(|(due, _)| *due);
        self.scheduled.iter().filter_map(|(of, due)| Some((*of, first(due)?))).collect()
    }

    /// See `Store::claim_probing`. `is_locked` says of a row whether another transaction has it.
    pub(crate) fn claim(
        &mut self,
        rooms: &[Room],
        (probed, probe_until): (&[SubscriptionRef], Timestamp),
        (node, now): (NodeId, Timestamp),
        mut is_locked: impl FnMut() -> bool,
        admit: impl FnMut(&Candidate) -> bool,
    ) -> (Vec<Leased>, Vec<EndpointHealth>) {
        let may_probe = |of: &&SubscriptionRef| {
            let breaker = self.health.get(of).and_then(|health| health.row.health.breaker);
            breaker.is_some_and(|breaker| breaker.open_until <= now)
        };
        let taken: Vec<_> = probed.iter().filter(may_probe).copied().collect();
        let rooms = rooms.iter().copied();
        let rooms = rooms.chain(taken.iter().map(|of| Room { subscription: *of, room: 1 }));
        let mut candidates = Vec::new();
        for Room { subscription, room } in rooms {
            let Some(due) = self.scheduled.get(&subscription) else { continue };
            let due = due.iter().take_while(|(due, _)| *due <= now).filter(|_| !is_locked());
            candidates.extend(due.take(room as usize).map(|(due, at)| Candidate {
                subscription,
                delivery_id: self.rows[*at].delivery.id,
                due_time: *due,
                event_bytes: self.rows[*at].event.weight(),
            }));
        }
        let admitted = admitted(candidates, admit);
        if admitted.is_empty() {
            return (Vec::new(), Vec::new());
        }
        let mut leased = Vec::new();
        for candidate in admitted {
            let at = self.by_id[&candidate.delivery_id];
            self.change(at, |row| lease(row, node, now));
            let Row { delivery, event, .. } = &self.rows[at];
            leased.push(Leased { delivery: delivery.clone(), event: Arc::clone(event) });
        }
        let taken = taken.iter().map(|of| self.take_probe(*of, now, probe_until)).collect();
        (leased, taken)
    }

    fn take_probe(
        &mut self,
        of: SubscriptionRef,
        now: Timestamp,
        until: Timestamp,
    ) -> EndpointHealth {
        let mut health = self.health_row(of, now).row.health;
        if let Some(breaker) = &mut health.breaker {
            *breaker = Breaker { open_until: until, probe_time: Some(now), ..*breaker };
        }
        self.write_health(of, health, now)
    }

    fn health_row(&mut self, of: SubscriptionRef, now: Timestamp) -> &mut HealthRow {
        let true_time = self.true_time;
        self.health.entry(of).or_insert_with(|| HealthRow {
            row: EndpointHealth {
                subscription: of,
                health: Health::default(),
                update_time: now.minus(Duration::from_micros(1)),
            },
            open_since: None,
            opened_at: now,
            wish: None,
            write_time: true_time,
            episode: 0,
        })
    }

    fn write_health(
        &mut self,
        of: SubscriptionRef,
        health: Health,
        now: Timestamp,
    ) -> EndpointHealth {
        let (true_time, policy) = (self.true_time, self.policy);
        let row = self.health_row(of, now);
        if row.row.health.breaker.is_none() && health.breaker.is_some() {
            row.episode += 1;
            (row.open_since, row.opened_at) = (Some(true_time), now);
        } else if health.breaker.is_none() {
            row.open_since = None;
        }
        row.write_time = true_time;
        row.row.health = health;
        let later = row.row.update_time.plus(Duration::from_micros(1));
        row.row.update_time = now.max(later);
        let written = row.row;
        if health.consecutive_failures >= policy.failures_to_open && health.breaker.is_none() {
            self.breaks(format!("the breaker of {} is closed after its failures", of.id));
        }
        written
    }

    /// See `Store::record_observed`.
    pub(crate) fn record(
        &mut self,
        ended: &[Ended],
        seen: &[Observed],
        now: Timestamp,
    ) -> Recorded {
        let mut recorded = Recorded::default();
        let mut applied = HashSet::new();
        for Ended { after, attempt } in ended {
            let at = self.by_id[&after.id];
            // The fence.
            if self.rows[at].delivery.revision != after.revision - 1 {
                recorded.fenced.insert(after.id);
                continue;
            }
            applied.insert(after.id);
            self.check_due(at, after, attempt.is_some());
            if attempt.is_some() && after.interrupted_count > 0 {
                self.breaks(format!("{} has a result, and counts as interrupted", after.id));
            }
            self.change(at, |row| {
                let automatic =
                    attempt.as_ref().filter(|attempt| attempt.trigger == Trigger::Automatic);
                if let Some(attempt) = automatic {
                    row.not_before = after.next_attempt_time.unwrap_or(row.not_before);
                    (row.was_held, row.wish) = (false, wish(attempt));
                }
                row.delivery = after.clone();
                (row.lease, row.due_time) = (None, None);
                row.ledger.extend(attempt.as_ref().map(entry));
            });
        }
        let mut by_endpoint: BTreeMap<SubscriptionRef, Vec<_>> = BTreeMap::new();
        for observed in seen.iter().filter(|seen| applied.contains(&seen.delivery_id)) {
            let said = (observed.observation, observed.random);
            by_endpoint.entry(observed.subscription).or_default().push(said);
        }
        for (of, seen) in by_endpoint {
            recorded.health.extend(self.observe(of, seen, now));
        }
        recorded
    }

    /// See `Store::observe_one` and what `Store::record_observed` does for one endpoint.
    pub(crate) fn observe(
        &mut self,
        of: SubscriptionRef,
        seen: Vec<(Observation, f64)>,
        now: Timestamp,
    ) -> Option<HealthChange> {
        self.settings.get(&of).filter(|settings| !settings.is_deleted)?;
        let policy = self.policy;
        let row = self.health_row(of, now);
        for Observation { end_time, failure, .. } in seen.iter().map(|(said, _)| said) {
            let wish = failure.filter(|failed| failed.is_slowing).and_then(|f| f.retry_after);
            // Its clock may have jumped back since.
            let from = (*end_time).min(now);
            let wish = wish.map(|wish| from.plus(wish.min(policy.longest_retry_after)));
            row.wish = row.wish.max(wish);
        }
        let before = row.row.health;
        let (after, disable) = before.after_all(seen, &policy, now);
        let EndpointHealth { update_time, .. } = self.write_health(of, after, now);
        let disabled = disable.filter(|_| {
            let state = self.settings[&of].subscription.state;
            state == subscription::State::Active
        });
        if disabled.is_some() {
            self.switch(of, subscription::State::Disabled);
        }
        Some(HealthChange { subscription: of, before, after, update_time, disabled })
    }

    /// What is given back keeps its place: it is due since when it was due, as far as that is known.
    /// So is what was attempted on request.
    fn check_due(&mut self, at: usize, after: &Delivery, is_attempted: bool) {
        let Row { delivery, event, due_time, .. } = &self.rows[at];
        let kept = match due_time {
            Some(due) => *due,
            None if is_attempted => return,
            None if delivery.automatic_count == 0 => {
                event.deliver_time.unwrap_or(delivery.create_time)
            }
            None => delivery.update_time,
        };
        if after.state == State::Scheduled && after.next_attempt_time != Some(kept) {
            let due = after.next_attempt_time;
            self.breaks(format!("{} was due at {kept}, and is given back to {due:?}", after.id));
        }
    }

    /// See `Store::record_after_end`.
    pub(crate) fn record_after_end(&mut self, attempt: &Attempt, now: Timestamp) -> LateResult {
        let at = self.by_id[&attempt.delivery_id];
        let row = &self.rows[at];
        let is_known = |entry: &Entry| entry.span == attempt.trace.span_id;
        if row.ledger.iter().any(is_known) {
            return LateResult::Known;
        }
        if !row.delivery.state.is_terminal() {
            return LateResult::Lost;
        }
        self.change(at, |row| {
            let delivery = &mut row.delivery;
            delivery.attempt_count += 1;
            delivery.revision += 1;
            delivery.update_time = now;
            let attempt = Attempt { number: delivery.attempt_count, ..attempt.clone() };
            if attempt.report.outcome == Outcome::Delivered && delivery.state != State::Succeeded {
                delivery.recover_time.get_or_insert(now);
            }
            delivery.last_attempt = Some(LastAttempt::of(&attempt));
            row.ledger.push(entry(&attempt));
        });
        LateResult::Added(Box::new(self.rows[at].delivery.clone()))
    }

    /// Makes a leased delivery due again, whose lease was interrupted or only not known.
    fn release(&mut self, at: usize, is_interrupted: bool, now: Timestamp) {
        let true_time = self.true_time;
        self.change(at, |row| {
            let due = row.due_time.map_or(now, |due| due.max(now));
            (row.delivery.state, row.delivery.next_attempt_time) = (State::Scheduled, Some(due));
            row.delivery.revision += 1;
            row.delivery.update_time = now;
            (row.lease, row.due_time) = (None, None);
            row.delivery.interrupted_count += u32::from(is_interrupted);
            (row.leases_lost, row.lost_at) = (row.leases_lost + 1, true_time);
            row.lost_revision = row.delivery.revision;
        });
    }

    /// See `Store::release_unknown`.
    pub(crate) fn release_unknown(
        &mut self,
        node: NodeId,
        older_than: Timestamp,
        is_known: impl Fn(DeliveryId) -> bool,
        now: Timestamp,
    ) -> usize {
        let is_unknown = |at: &usize| {
            let Row { delivery, lease, .. } = &self.rows[*at];
            *lease == Some(node) && delivery.update_time < older_than && !is_known(delivery.id)
        };
        let unknown: Vec<_> = self.open.iter().copied().filter(is_unknown).collect();
        for at in &unknown {
            self.release(*at, false, now);
        }
        unknown.len()
    }

    /// See `Store::take_over`.
    pub(crate) fn take_over(&mut self, now: Timestamp) -> usize {
        let database_now = self.now;
        self.nodes.retain(|_, expiry| *expiry > database_now);
        let is_silent =
            |at: &usize| self.rows[*at].lease.is_some_and(|node| !self.nodes.contains_key(&node));
        let silent: Vec<_> = self.open.iter().copied().filter(is_silent).collect();
        for at in &silent {
            self.release(*at, true, now);
        }
        silent.len()
    }

    /// Lets deliveries follow their subscriptions: `Store::settle` of all that are unsettled.
    pub(crate) fn settle(&mut self, now: Timestamp) -> usize {
        let mut followed = 0;
        let unsettled = self.settings.iter().filter(|(_, settings)| !settings.settled);
        for of in unsettled.map(|(of, _)| *of).collect::<Vec<_>>() {
            let Settings { subscription, is_deleted, .. } = &self.settings[&of];
            let (state, is_deleted) = (subscription.state, *is_deleted);
            let is_active = state == subscription::State::Active;
            let ours: Vec<_> = self.open.iter().copied().collect();
            for at in ours {
                if reference(&self.rows[at].delivery) != of {
                    continue;
                }
                let before = self.rows[at].delivery.state;
                let after = match before {
                    State::Scheduled | State::Held if is_deleted => State::Canceled,
                    State::Held if is_active => State::Scheduled,
                    State::Scheduled if !is_active => State::Held,
                    _ => continue,
                };
                followed += 1;
                self.change(at, |row| follow(row, after, now));
            }
            if let Some(settings) = self.settings.get_mut(&of) {
                settings.settled = true;
            }
        }
        followed
    }

    /// See `Store::unsettle_stragglers`.
    pub(crate) fn unsettle_stragglers(&mut self, now: Timestamp) {
        let is_held = |at: &usize| self.rows[*at].delivery.state == State::Held;
        for at in self.open.iter().copied().filter(is_held).collect::<Vec<_>>() {
            let of = reference(&self.rows[at].delivery);
            match self.settings.get_mut(&of) {
                Some(settings) if !settings.is_deleted => {
                    settings.settled &= settings.subscription.state != subscription::State::Active;
                }
                _ => self.change(at, |row| follow(row, State::Canceled, now)),
            }
        }
    }

    /// See `Store::expire`.
    pub(crate) fn expire(&mut self, now: Timestamp) -> usize {
        let waits =
            |at: &usize| matches!(self.rows[*at].delivery.state, State::Scheduled | State::Held);
        let over = self.expiring.iter().take_while(|(expiry, _)| *expiry <= now);
        let over: Vec<_> = over.map(|(_, at)| *at).filter(waits).collect();
        for at in &over {
            self.change(*at, |row| follow(row, State::Expired, now));
        }
        over.len()
    }

    /// See `Store::cancel`. Tells in which state the delivery was.
    pub(crate) fn cancel(&mut self, at: usize, now: Timestamp) -> State {
        let before = self.rows[at].delivery.state;
        if !before.is_terminal() {
            self.change(at, |row| follow(row, State::Canceled, now));
        }
        before
    }

    /// See `Store::claim_manual`.
    pub(crate) fn claim_manual(
        &mut self,
        id: DeliveryId,
        node: NodeId,
        now: Timestamp,
    ) -> ManualClaim {
        let at = self.by_id[&id];
        let delivery = &self.rows[at].delivery;
        match (delivery.state, delivery.next_attempt_time) {
            (State::Scheduled, Some(due)) => {
                self.change(at, |row| {
                    lease(row, node, now);
                    row.due_time = Some(due);
                });
                ManualClaim::Leased(Box::new(self.rows[at].delivery.clone()), due)
            }
            (state, _) if state.is_terminal() => ManualClaim::Ended(Box::new(delivery.clone())),
            (state, _) => ManualClaim::Busy(state),
        }
    }

    /// See `Store::reset_health`.
    pub(crate) fn reset_health(&mut self, of: SubscriptionRef, now: Timestamp) {
        if self.health.contains_key(&of) {
            self.write_health(of, Health::default(), now);
            self.health_row(of, now).wish = None;
        }
    }

    /// See `Store::health_changes`.
    pub(crate) fn health_since(&self, since: Timestamp) -> Vec<EndpointHealth> {
        let rows = self.health.values().map(|health| health.row);
        rows.filter(|row| row.update_time > since).collect()
    }

    /// Changes settings; deliveries follow when the janitor has settled them.
    pub(crate) fn update(&mut self, of: SubscriptionRef, change: impl FnOnce(&mut Subscription)) {
        let true_time = self.true_time;
        if let Some(settings) = self.settings.get_mut(&of) {
            let subscription = Arc::make_mut(&mut settings.subscription);
            change(subscription);
            subscription.revision += 1;
            let (fewest, most) = settings.retries;
            let retries = retries_of(subscription);
            settings.retries = (fewest.min(retries), most.max(retries));
            (settings.settled, settings.change_time) = (false, true_time);
        }
    }

    pub(crate) fn switch(&mut self, of: SubscriptionRef, state: subscription::State) {
        let true_time = self.true_time;
        self.update(of, |subscription| subscription.state = state);
        if let Some(settings) = self.settings.get_mut(&of) {
            settings.switch_time = true_time;
        }
    }

    /// Stores a new subscription.
    pub(crate) fn subscribe(&mut self, subscription: Subscription) -> SubscriptionRef {
        let of = SubscriptionRef { tenant_id: subscription.tenant_id, id: subscription.id };
        let settings = Settings {
            retries: (retries_of(&subscription), retries_of(&subscription)),
            subscription: Arc::new(subscription),
            settled: true,
            is_deleted: false,
            switch_time: Timestamp::from_micros(0),
            change_time: Timestamp::from_micros(0),
        };
        self.settings.insert(of, settings);
        of
    }

    pub(crate) fn delete(&mut self, of: SubscriptionRef) {
        let true_time = self.true_time;
        if let Some(settings) = self.settings.get_mut(&of) {
            (settings.is_deleted, settings.settled) = (true, false);
            (settings.switch_time, settings.change_time) = (true_time, true_time);
        }
    }

    /// The settings as they are now; `None` when they are gone.
    pub(crate) fn subscription(&self, of: SubscriptionRef) -> Option<Arc<Subscription>> {
        let settings = self.settings.get(&of).filter(|settings| !settings.is_deleted)?;
        Some(Arc::clone(&settings.subscription))
    }

    /// See `Store::register_node`.
    pub(crate) fn register(&mut self, node: NodeId, ttl: Duration) {
        self.nodes.insert(node, self.now.plus(ttl));
    }

    /// See `Store::renew_node`; `false` when the lease had run out.
    pub(crate) fn renew(&mut self, node: NodeId, ttl: Duration) -> bool {
        let now = self.now;
        match self.nodes.get_mut(&node) {
            Some(expiry) if *expiry > now => {
                *expiry = now.plus(ttl);
                true
            }
            _ => false,
        }
    }

    /// See `Store::live_nodes`.
    pub(crate) fn live_nodes(&self) -> Vec<NodeId> {
        let live = self.nodes.iter().filter(|(_, expiry)| **expiry > self.now);
        live.map(|(node, _)| *node).collect()
    }
}

pub(crate) fn reference(delivery: &Delivery) -> SubscriptionRef {
    SubscriptionRef { tenant_id: delivery.tenant_id, id: delivery.subscription_id }
}

fn retries_of(subscription: &Subscription) -> u32 {
    let policy = subscription.spec.retry_policy.as_ref();
    policy.map_or(RetryPolicy::built_in().max_retries, |policy| policy.max_retries)
}

fn lease(row: &mut Row, node: NodeId, now: Timestamp) {
    (row.delivery.state, row.delivery.next_attempt_time) = (State::Delivering, None);
    row.delivery.revision += 1;
    row.delivery.update_time = now;
    row.lease = Some(node);
}

fn follow(row: &mut Row, state: State, now: Timestamp) {
    let due = row.event.deliver_time.unwrap_or(now).max(now);
    let delivery = &mut row.delivery;
    (delivery.state, delivery.revision, delivery.update_time) = (state, delivery.revision + 1, now);
    delivery.next_attempt_time = (state == State::Scheduled).then_some(due);
    if state == State::Canceled {
        delivery.failure_reason = Some(FailureReason::SubscriptionDeleted);
    }
    (row.lease, row.due_time) = (None, None);
}

/// Until when the receiver wishes to have no further request for the delivery.
fn wish(attempt: &Attempt) -> Option<Timestamp> {
    match attempt.report.outcome {
        Outcome::Retry { retry_after: Some(wish) } => {
            Some(attempt.report.start_time.plus(attempt.report.duration).plus(wish))
        }
        _ => None,
    }
}

fn entry(attempt: &Attempt) -> Entry {
    Entry {
        number: attempt.number,
        trigger: attempt.trigger,
        span: attempt.trace.span_id,
        delivered: attempt.report.outcome == Outcome::Delivered,
    }
}

/// What is wrong with a row that was changed.
fn problem_of(
    row: &Row,
    (state, reason, revision): (State, Option<FailureReason>, i64),
    (fewest, most): (u32, u32),
) -> Option<String> {
    let after = &row.delivery;
    let automatic = row.ledger.iter().filter(|entry| entry.trigger == Trigger::Automatic).count();
    let automatic = u32::try_from(automatic).unwrap_or(u32::MAX);
    let is_gapless = (1..).zip(&row.ledger).all(|(number, entry)| entry.number == number);
    let rules = [
        (
            !state.is_terminal() || (after.state, after.failure_reason) == (state, reason),
            "a terminal state did not absorb",
        ),
        (after.revision == revision + 1, "a change does not follow the one before it"),
        (
            (after.state == State::Scheduled) == after.next_attempt_time.is_some(),
            "only what is scheduled is due",
        ),
        (
            (after.state == State::Delivering) == row.lease.is_some(),
            "only what is under way is leased",
        ),
        (after.attempt_count as usize == row.ledger.len(), "the attempts are not all counted"),
        (is_gapless, "attempts are not numbered without gaps"),
        (after.automatic_count <= automatic, "attempts are counted that were not made"),
        (after.automatic_count <= most + 1, "more attempts than allowed"),
        (
            after.failure_reason != Some(FailureReason::Exhausted)
                || after.automatic_count > fewest,
            "given up before the last retry",
        ),
        (
            after.state != State::Succeeded || row.ledger.iter().any(|entry| entry.delivered),
            "it succeeded without a success",
        ),
        (
            row.is_lethal || after.failure_reason != Some(FailureReason::Quarantined),
            "it is quarantined for what another did",
        ),
        (
            !row.is_lethal || row.ledger.is_empty() || after.state.is_terminal(),
            "it goes on although it brought down its process",
        ),
    ];
    let broken = rules.iter().find(|(holds, _)| !holds);
    broken.map(|(_, rule)| format!("{rule} ({} after {})", after.state.as_str(), state.as_str()))
}
