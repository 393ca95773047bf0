//! Transactions on their way between a node and the database: they may fail before they take effect,
//! or take effect without a confirmation.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;

use tidings::domain::Timestamp;
use tidings::domain::attempt::Attempt;
use tidings::domain::delivery::Delivery;
use tidings::domain::event::Event as DomainEvent;
use tidings::domain::id::{DeliveryId, NodeId};
use tidings::domain::subscription::Subscription;
use tidings::store::{
    Candidate, Ended, EndpointHealth, LateResult, ManualClaim, Observed, Recorded,
};

use super::database::Leased;
use super::faults::Fired;
use super::node::{Claiming, Giving, Permit};
use super::world::{Event, Fate, What, World, say};

/// A delivery that is to be stored, and its place in the queue when it is born leased.
pub(crate) struct Birth {
    pub(crate) delivery: Delivery,
    /// See `Row::is_lethal`.
    pub(crate) is_lethal: bool,
    pub(crate) event: Arc<DomainEvent>,
    pub(crate) subscription: Option<Arc<Subscription>>,
    pub(crate) permit: Option<Permit>,
    /// There was a place, but no room for its bytes.
    pub(crate) is_heavy: bool,
}

/// What a node asks of the database.
pub(crate) enum Request {
    Accept { births: Vec<Birth>, now: Timestamp, name: NodeId },
    Claim(Box<Claiming>),
    Record { ended: Vec<Ended>, seen: Vec<Observed>, now: Timestamp },
    Late { attempt: Attempt, now: Timestamp },
    Register { name: NodeId, asked_at: Timestamp },
    Renew { name: NodeId, asked_at: Timestamp },
    ManualClaim { id: DeliveryId, name: NodeId, now: Timestamp },
    ManualRecord { ended: Box<Ended>, now: Timestamp },
    ManualLate { attempt: Attempt, now: Timestamp },
}

/// A transaction on its way.
pub(crate) struct Transaction {
    pub(crate) node: usize,
    pub(crate) life: u32,
    pub(crate) request: Request,
    pub(crate) fate: Fate,
    /// How long the answer takes.
    pub(crate) back: Duration,
}

/// An answer on its way; without a reply it is an error.
pub(crate) struct Answer {
    pub(crate) request: Request,
    pub(crate) reply: Option<Reply>,
}

/// What the database answers.
pub(crate) enum Reply {
    Done,
    Stale,
    Claimed(Vec<Leased>, Vec<EndpointHealth>),
    Recorded(Recorded),
    Late(LateResult),
    Manual(ManualClaim),
}

impl World {
    /// Does what a node asked for, and answers.
    pub(crate) fn apply(&mut self, transaction: Transaction) {
        let Transaction { node, life, mut request, fate, back } = transaction;
        let is_gone = self.nodes[node].life != life;
        let stalled_until = self.nodes[node].stalled_until;
        if matches!(request, Request::Claim(_)) && (is_gone || stalled_until > self.now) {
            // A claim has the node decide in its middle: it ends with the node, or waits for it.
            if !is_gone {
                let wait = stalled_until.since(self.now);
                let transaction = Transaction { node, life, request, fate, back };
                self.after(wait, Event::Apply(Box::new(transaction)));
            }
            return;
        }
        if is_gone && self.random.random() {
            // The connection broke before the commit had arrived.
            return;
        }
        let reply = if !self.is_reachable() {
            None
        } else if fate == Fate::Failed {
            self.note(Fired::FailedCommit);
            None
        } else {
            let reply = self.commit(node, &mut request);
            if fate == Fate::Unconfirmed {
                say!(self, "node {node}: a confirmation is lost");
                self.note(Fired::LostConfirmation);
                None
            } else {
                Some(reply)
            }
        };
        if reply.is_none() {
            self.trouble_time = self.now;
        }
        if !is_gone {
            self.later(node, back, What::Answer(Box::new(Answer { request, reply })));
        }
    }

    fn commit(&mut self, node: usize, request: &mut Request) -> Reply {
        let ttl = self.scenario.config.lease_ttl;
        match request {
            Request::Accept { births, name, .. } => {
                for Birth { delivery, is_lethal, event, .. } in births {
                    let row = (delivery.clone(), *is_lethal);
                    self.database.insert(row, Arc::clone(event), *name);
                }
                Reply::Done
            }
            Request::Claim(claiming) => self.commit_claim(node, claiming),
            Request::Record { ended, seen, now } => {
                let recorded = self.database.record(ended, seen, *now);
                self.disabled(&recorded);
                Reply::Recorded(recorded)
            }
            Request::ManualRecord { ended, now, .. } => {
                let ended = std::slice::from_ref(&**ended);
                Reply::Recorded(self.database.record(ended, &[], *now))
            }
            Request::Late { attempt, now } | Request::ManualLate { attempt, now } => {
                Reply::Late(self.database.record_after_end(attempt, *now))
            }
            Request::Register { name, .. } => {
                self.database.register(*name, ttl);
                Reply::Done
            }
            Request::Renew { name, .. } => {
                if self.database.renew(*name, ttl) {
                    Reply::Done
                } else {
                    Reply::Stale
                }
            }
            Request::ManualClaim { id, name, now } => {
                Reply::Manual(self.database.claim_manual(*id, *name, *now))
            }
        }
    }

    fn disabled(&mut self, recorded: &Recorded) {
        for change in &recorded.health {
            if change.disabled.is_some() {
                say!(self, "{} is disabled", change.subscription.id);
                self.note(Fired::Disabled);
            }
            if change.before.breaker.is_none() && change.after.breaker.is_some() {
                say!(self, "the breaker of {} opens", change.subscription.id);
                self.note(Fired::BreakerOpened);
            }
        }
    }

    fn commit_claim(&mut self, node: usize, claiming: &mut Claiming) -> Reply {
        let Claiming { plan, settings, now, name, .. } = claiming;
        let (rooms, probed) = (std::mem::take(&mut plan.rooms), std::mem::take(&mut plan.probed));
        let probe_until = now.plus(self.scenario.config.health.probe_lease);
        let is_stormy = self.is_stormy();
        let Self { database, nodes, random, .. } = self;
        let mut giving = Giving { node: &nodes[node], settings, now: *now };
        let is_locked = || is_stormy && random.random_range(0..50) == 0;
        let admit = |candidate: &Candidate| plan.admit(candidate, &mut giving);
        let (leased, taken) =
            database.claim(&rooms, (&probed, probe_until), (*name, *now), is_locked, admit);
        Reply::Claimed(leased, taken)
    }
}
