//! What a node knows of endpoints that are not healthy, and of the other replicas: how much it may
//! send where.
//!
//! The database has the truth. This is a copy of what is unhealthy there, bounded by how much that
//! is, together with what this node has seen and not yet recorded: its own attempts count from the
//! moment they end. What others write is learnt as it is read. A replica that learns late sends a
//! little longer; nothing else depends on the copy.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use crate::domain::Timestamp;
use crate::domain::channel::{Channel, DEFAULT_MAX_IN_FLIGHT, EmailChannel};
use crate::domain::health::{Gate, Health, Policy, State};
use crate::domain::id::SubscriptionId;
use crate::domain::replicas::Replicas;
use crate::domain::subscription::Subscription;
use crate::store::{EndpointHealth, Observed};

use super::trust::{Allowance, Sign, Trusts};

/// How far back before the last time changes are read: a transaction may take that long from its first
/// statement to its commit. What takes even longer is seen when everything is read anew.
pub const OVERLAP: Duration = Duration::from_secs(10);

/// What is known. At first: all are well, and this node is alone.
#[derive(Debug)]
pub struct Known {
    by_subscription: HashMap<SubscriptionId, Entry>,
    replicas: Replicas,
    policy: Policy,
    trusts: Trusts,
    /// As of when others' changes were read last.
    read_time: Option<Timestamp>,
}

#[derive(Debug)]
struct Entry {
    /// As the database has it, as far as is known.
    stored: EndpointHealth,
    /// What this node has seen since, in order: on its way into the database.
    pending: Vec<Observed>,
    /// The two together.
    current: Health,
}

impl Entry {
    const fn new(stored: EndpointHealth) -> Self {
        Self { stored, pending: Vec::new(), current: stored.health }
    }

    fn see(&mut self, seen: Observed, policy: &Policy, now: Timestamp) {
        self.current = self.current.after(&seen.observation, policy, now, seen.random).0;
        self.pending.push(seen);
    }

    fn count_anew(&mut self, policy: &Policy, now: Timestamp) {
        self.current = self.stored.health;
        for seen in std::mem::take(&mut self.pending) {
            self.see(seen, policy, now);
        }
    }
}

/// How many attempts may be under way at once to a subscription, over all replicas.
fn max_in_flight(subscription: Option<&Subscription>) -> u32 {
    match subscription.map(|subscription| &subscription.spec.channel) {
        Some(Channel::Webhook(webhook)) => webhook.max_in_flight.max(1),
        // One digest at a time, on one replica: two at once could share a window's events between
        // them, and the recipient would get two.
        Some(Channel::Email(EmailChannel { digest: Some(_), .. })) => 1,
        Some(Channel::Email(_)) | None => DEFAULT_MAX_IN_FLIGHT,
    }
}

impl Known {
    /// Nothing is known yet.
    pub fn new(policy: Policy) -> Self {
        Self {
            by_subscription: HashMap::new(),
            replicas: Replicas::default(),
            policy,
            trusts: Trusts::default(),
            read_time: None,
        }
    }

    /// What this node may send to a subscription's endpoint now. Its share of the requests at once
    /// may be 0: then another replica has them.
    pub fn gate(
        &self,
        id: SubscriptionId,
        subscription: Option<&Subscription>,
        now: Timestamp,
    ) -> Gate {
        let limit = max_in_flight(subscription);
        let gate = self
            .by_subscription
            .get(&id)
            .map_or(Gate::Open { in_flight: limit }, |known| known.current.gate(limit, now));
        match gate {
            Gate::Open { in_flight } => {
                Gate::Open { in_flight: self.replicas.share(in_flight, id) }
            }
            closed => closed,
        }
    }

    /// Attempts that this node may have under way at once, the probe of an open breaker aside, and whether
    /// the endpoint is a prompt one.
    pub fn allowance(
        &self,
        id: SubscriptionId,
        subscription: Option<&Subscription>,
        now: Timestamp,
    ) -> Allowance {
        let in_flight = match self.gate(id, subscription, now) {
            Gate::Open { in_flight } => in_flight,
            Gate::Closed { .. } | Gate::Probe => 0,
        };
        self.trusts.allowance(id, in_flight)
    }

    /// Whether [`Known::trust`] would change anything.
    pub fn is_news(&self, subscription: &Subscription, sign: Sign, now: Timestamp) -> bool {
        self.trusts.is_news(subscription.id, sign, max_in_flight(Some(subscription)), now)
    }

    /// Takes note of how an attempt of this node ended.
    pub fn trust(&mut self, subscription: &Subscription, sign: Sign, now: Timestamp) {
        self.trusts.see(subscription.id, sign, max_in_flight(Some(subscription)), now);
    }

    /// This node's part of a subscription's rate, in requests per second.
    pub fn rate(&self, subscription: Option<&Subscription>) -> Option<f64> {
        let Some(Channel::Webhook(webhook)) = subscription.map(|s| &s.spec.channel) else {
            return None;
        };
        webhook.max_requests_per_second.map(|rate| self.replicas.share_of_rate(rate))
    }

    /// Whether a probe that was taken for this endpoint may still go. Not when the breaker was opened
    /// after that, as it was again, or for longer: it knows of no probe then, and waits for its own.
    pub fn awaits_probe(&self, id: SubscriptionId) -> bool {
        let breaker = self.by_subscription.get(&id).and_then(|known| known.current.breaker);
        breaker.is_none_or(|breaker| breaker.probe_time.is_some())
    }

    /// Whether a success of this endpoint has to be written down.
    pub fn awaits_success(&self, id: SubscriptionId) -> bool {
        self.by_subscription.get(&id).is_some_and(|known| known.current.awaits_success())
    }

    /// Takes note of what an attempt of this node said, before it is recorded.
    pub fn see(&mut self, seen: Observed, now: Timestamp) {
        let subscription = seen.subscription;
        let healthy = || {
            let update_time = Timestamp::from_micros(0);
            Entry::new(EndpointHealth { subscription, health: Health::default(), update_time })
        };
        let entry = self.by_subscription.entry(subscription.id).or_insert_with(healthy);
        entry.see(seen, &self.policy, now);
    }

    /// Takes note that what was seen is recorded, as `rows` say, or never will be.
    pub fn settle<'s>(
        &mut self,
        seen: impl Iterator<Item = &'s Observed>,
        rows: impl IntoIterator<Item = EndpointHealth>,
        now: Timestamp,
    ) {
        for Observed { delivery_id, subscription, .. } in seen {
            if let Some(entry) = self.by_subscription.get_mut(&subscription.id) {
                entry.pending.retain(|pending| pending.delivery_id != *delivery_id);
                entry.count_anew(&self.policy, now);
            }
        }
        self.learn(rows, now);
    }

    /// Takes note of what was read or written, unless something newer is known. Tells whether that
    /// changed anything.
    pub fn learn(
        &mut self,
        rows: impl IntoIterator<Item = EndpointHealth>,
        now: Timestamp,
    ) -> bool {
        let mut has_changed = false;
        for row in rows {
            let id = row.subscription.id;
            match self.by_subscription.get_mut(&id) {
                Some(entry) if entry.stored.update_time >= row.update_time => {}
                Some(entry) => {
                    entry.stored = row;
                    entry.count_anew(&self.policy, now);
                    has_changed = true;
                }
                // A healthy one is kept for a while, or an older row that is read late would count.
                None => {
                    self.by_subscription.insert(id, Entry::new(row));
                    has_changed = true;
                }
            }
        }
        has_changed
    }

    /// From when on others' changes are to be read at `now`: since the last time that it worked, and
    /// not only since a moment ago. This process may have stood still, or the database been away.
    pub fn unread_since(&self, now: Timestamp) -> Timestamp {
        let read_time = self.read_time.map(|read_time| read_time.min(now));
        read_time.unwrap_or_default().minus(OVERLAP)
    }

    /// Takes note that others' changes were read as of `now`.
    pub const fn was_read(&mut self, now: Timestamp) {
        self.read_time = Some(now);
    }

    /// Forgets what has been healthy for longer than anything older could be read, and what was
    /// deleted: whatever is not among `all`, which were read after `read_time`.
    pub fn prune(&mut self, now: Timestamp, all: Option<(&[EndpointHealth], Timestamp)>) {
        let listed = all.map(|(rows, read_time)| {
            let ids = rows.iter().map(|row| row.subscription.id);
            (ids.collect::<HashSet<_>>(), read_time.minus(OVERLAP))
        });
        if all.is_some() {
            self.trusts.prune(now);
        }
        let recent = now.minus(OVERLAP * 2);
        self.by_subscription.retain(|id, entry| {
            let update_time = entry.stored.update_time;
            let is_gone =
                listed.as_ref().is_some_and(|(ids, time)| !ids.contains(id) && update_time < *time);
            let is_over = update_time < recent && entry.current.is_over(now);
            !entry.pending.is_empty() || !(is_gone || is_over)
        });
    }

    /// How many endpoints are in which state, the healthy ones aside.
    pub fn counts(&self, now: Timestamp) -> HashMap<State, i64> {
        let mut counts = HashMap::new();
        for known in self.by_subscription.values() {
            *counts.entry(known.current.state(DEFAULT_MAX_IN_FLIGHT, now)).or_insert(0) += 1;
        }
        counts.remove(&State::Healthy);
        counts
    }

    /// Sets who shares the limits. Tells whether that changed.
    pub fn set_replicas(&mut self, replicas: Replicas) -> bool {
        std::mem::replace(&mut self.replicas, replicas) != replicas
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;
    use crate::domain::health::Breaker;
    use crate::domain::id::TenantId;
    use crate::store::SubscriptionRef;

    #[test]
    fn a_probe_does_not_go_when_the_breaker_was_opened_after_it_was_taken() {
        let mut random = StdRng::seed_from_u64(13);
        let start = Timestamp::from_micros(1_770_283_800_000_000);
        let id = SubscriptionId::new(start, &mut random);
        let subscription = SubscriptionRef { tenant_id: TenantId::new(start, &mut random), id };
        let mut known = Known::new(Policy::default());
        let mut learn = |seconds, breaker: Option<Option<Timestamp>>| {
            let update_time = start.plus(Duration::from_secs(seconds));
            let cool_down = Duration::from_secs(5);
            let open_until = update_time.plus(cool_down);
            let breaker = breaker.map(|probe_time| Breaker { open_until, cool_down, probe_time });
            let health = Health { breaker, ..Health::default() };
            known.learn([EndpointHealth { subscription, health, update_time }], update_time);
            known.awaits_probe(id)
        };
        assert!(learn(0, Some(Some(start))), "it was taken");
        assert!(learn(1, None), "the breaker has closed: everybody may send");
        assert!(!learn(2, Some(None)), "it is open again, and not for this probe");
        assert!(!learn(1, Some(Some(start))), "what is older tells nothing");
    }

    #[test]
    fn what_was_written_while_this_node_could_not_read_is_read_later() {
        let mut known = Known::new(Policy::default());
        let start = Timestamp::from_micros(1_770_283_800_000_000);
        assert!(known.unread_since(start) < Timestamp::from_micros(0), "at first everything");
        known.was_read(start);
        let after_a_pause = start.plus(Duration::from_mins(1));
        assert_eq!(known.unread_since(after_a_pause), start.minus(OVERLAP));
        let after_a_jump = start.minus(Duration::from_mins(1));
        assert_eq!(known.unread_since(after_a_jump), after_a_jump.minus(OVERLAP));
    }
}
