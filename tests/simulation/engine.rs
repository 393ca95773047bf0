//! How a node acts: what `src/dispatch` does with tasks, as events. Every decision is the product's.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;

use tidings::dispatch::decide::claims::{Plan, Round};
use tidings::dispatch::decide::delivery::{
    after_attempt, after_manual, ended_without_attempt, given_back, is_suspect, may_attempt,
    quarantined, said_of_endpoint, verdict,
};
use tidings::dispatch::decide::lanes;
use tidings::dispatch::decide::lease::Tenure;
use tidings::dispatch::decide::places::Given;
use tidings::dispatch::decide::trust::Sign;
use tidings::dispatch::decide::wants::Want;
use tidings::domain::Timestamp;
use tidings::domain::attempt::{ErrorKind, Failure, Outcome, Report, Trigger};
use tidings::domain::channel::Channel;
use tidings::domain::delivery::{Delivery, State};
use tidings::domain::health::Observation;
use tidings::domain::id::{DeliveryId, NodeId, SubscriptionId};
use tidings::domain::replicas::Replicas;
use tidings::domain::retry::RetryPolicy;
use tidings::domain::subscription::Subscription;
use tidings::store::{CatalogCache, Ended, HealthChange, LateResult, ManualClaim, Observed};

use super::database::{Database, Leased, reference};
use super::faults::Fired;
use super::node::{
    Batch, Claiming, Clock, Finished, Giving, Job, Manual, Node, Permit, Worker, owner,
};
use super::receiver::UnderWay;
use super::transactions::{Birth, Reply, Request};
use super::world::{Event, What, World, say};

/// As in `src/dispatch`: the pause of the claimer after an error, the recorder's pauses, how often
/// others' changes are read, and how often there are chores.
const ERROR_PAUSE: Duration = Duration::from_secs(1);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
const CHORES_INTERVAL: Duration = Duration::from_secs(1);
const RARELY: u32 = 5;
const RENEWALS: u32 = 3;
const MAX_BATCH: usize = 512;

impl World {
    /// Starts a node, as soon as the database answers.
    pub(crate) fn start(&mut self, node: usize) {
        if !self.is_reachable() {
            let delay = self.millis(200..=1_000);
            return self.after(delay, Event::Start { node });
        }
        let drift = self.random.random_range(-2_000..=2_000);
        let config = self.scenario.config;
        self.nodes[node].forget(&config);
        self.nodes[node].clock = Clock::new(drift);
        self.synchronize(node);
        let asked_at = self.clock(node);
        let name = NodeId::new(asked_at, &mut self.nodes[node].random);
        self.database.register(name, config.lease_ttl);
        self.nodes[node].tenure = Some(Tenure::new(name, asked_at, config.lease_ttl));
        self.trouble_time = self.now;
        say!(self, "node {node}: starts as {name}");
        self.look(node, true);
        self.later(node, config.lease_ttl / RENEWALS, What::Renew);
        self.later(node, LOOK_INTERVAL, What::Look);
        let delay = self.millis(0..=1_000);
        self.later(node, delay, What::Chores);
        self.nodes[node].next_round = self.now;
        self.plan_claim(node);
    }

    /// A node reads the database's time, more or less exactly.
    fn synchronize(&mut self, node: usize) {
        let error = if self.is_stormy() { 100_000 } else { 2_000 };
        let error = self.random.random_range(-error..=error);
        let said = Timestamp::from_micros(self.database.now.as_micros() + error);
        self.nodes[node].clock.synchronize(self.now, said);
    }

    pub(crate) fn act(&mut self, node: usize, what: What) {
        match what {
            What::Claim(ticket) if ticket == self.nodes[node].claim_ticket => self.claim(node),
            What::Claim(_) => {}
            What::Look => {
                let round = self.nodes[node].chores;
                if self.is_reachable() {
                    self.look(node, round.is_multiple_of(60));
                }
                self.later(node, LOOK_INTERVAL, What::Look);
            }
            What::Chores => self.chores(node),
            What::Renew => self.renew(node),
            What::TurnWakes(worker) => self.turn(node, worker),
            What::AttemptEnds(worker) => self.attempt_ends(node, worker),
            What::AlarmRings(worker) => {
                self.give_places(node);
                if let Some(Worker::Waits(_)) = self.nodes[node].workers.get(&worker) {
                    self.set_alarm(node, worker, false);
                }
            }
            What::ManualEnds(manual) => self.manual_ends(node, manual),
            What::Dies => {
                self.note(Fired::DiedOfAttempt);
                self.die(node);
            }
            What::RecordAgain => self.write(node),
            What::Answer(answer) => self.answered(node, answer.request, answer.reply),
        }
    }

    fn answered(&mut self, node: usize, request: Request, reply: Option<Reply>) {
        match (request, reply) {
            (Request::Accept { births, now, name }, Some(_)) => {
                for Birth { delivery, event, subscription, permit, is_heavy, .. } in births {
                    self.database.acknowledge(delivery.id);
                    let Some(permit) = permit else {
                        if delivery.next_attempt_time.is_some_and(|due| due <= now) {
                            let want = Want { of: reference(&delivery), is_heavy };
                            self.nodes[node].want(want, subscription.as_deref(), now);
                            self.plan_claim(node);
                        }
                        continue;
                    };
                    self.push(
                        node,
                        Job { delivery, event, subscription, settings_time: now, permit, name },
                    );
                }
            }
            (Request::Claim(claiming), Some(Reply::Claimed(leased, probes))) => {
                let now = claiming.now;
                self.nodes[node].known.learn(probes, now);
                self.claimed(node, *claiming, leased);
            }
            (Request::Claim(_), _) => self.claim_failed(node),
            (Request::Record { .. }, Some(Reply::Recorded(recorded))) => {
                self.recorded(node, &recorded.fenced.into_iter().collect(), &recorded.health);
            }
            (Request::Late { attempt, .. }, Some(Reply::Late(result))) => {
                self.late(node, attempt.delivery_id, &result);
            }
            (Request::Record { .. } | Request::Late { .. }, _) => {
                let Some(batch) = &mut self.nodes[node].batch else { return };
                let pause = batch.pause;
                batch.pause = (pause * 2).min(LONGEST_PAUSE);
                self.later(node, pause, What::RecordAgain);
            }
            (Request::Register { name, asked_at } | Request::Renew { name, asked_at }, reply) => {
                self.renewed(node, name, asked_at, reply.as_ref());
            }
            (Request::ManualClaim { .. }, Some(Reply::Manual(claim))) => self.manual(node, claim),
            (Request::ManualRecord { ended, .. }, Some(Reply::Recorded(recorded))) => {
                if !recorded.fenced.is_empty()
                    && let Some(attempt) = ended.attempt
                {
                    // It was canceled meanwhile.
                    let now = self.clock(node);
                    self.send(node, Request::ManualLate { attempt, now });
                }
            }
            // Whoever asked for it hears of the error.
            (_, _) => {}
        }
    }

    // The lease.

    fn renew(&mut self, node: usize) {
        let Some(name) = self.nodes[node].name() else { return };
        if !self.is_reachable() {
            let ttl = self.scenario.config.lease_ttl;
            return self.later(node, ttl / RENEWALS, What::Renew);
        }
        self.synchronize(node);
        let asked_at = self.clock(node);
        self.send(node, Request::Renew { name, asked_at });
    }

    fn renewed(&mut self, node: usize, name: NodeId, asked_at: Timestamp, reply: Option<&Reply>) {
        let ttl = self.scenario.config.lease_ttl;
        if let Some(Reply::Stale) = reply {
            let name = NodeId::new(asked_at, &mut self.nodes[node].random);
            return self.send(node, Request::Register { name, asked_at });
        }
        if reply.is_some() {
            if self.nodes[node].name() != Some(name) {
                say!(self, "node {node}: goes on as {name}");
                self.note(Fired::NewName);
            }
            self.nodes[node].tenure = Some(Tenure::new(name, asked_at, ttl));
        }
        self.later(node, ttl / RENEWALS, What::Renew);
    }

    // What others know.

    fn look(&mut self, node: usize, at_everything: bool) {
        let Some(name) = self.nodes[node].name() else { return };
        let now = self.clock(node);
        let live = self.database.live_nodes();
        let Node { known, look_time, .. } = &mut self.nodes[node];
        let mut has_changed = known.set_replicas(Replicas::of(name, &live));
        if at_everything {
            let rows = self.database.health_since(Timestamp::from_micros(0));
            known.learn(rows.iter().copied(), now);
            known.prune(now, Some((&rows, now)));
            has_changed = true;
        } else {
            has_changed |= known.learn(self.database.health_since(known.unread_since(now)), now);
            known.prune(now, None);
        }
        known.was_read(now);
        *look_time = self.now;
        if has_changed {
            self.wake_claimer(node);
        }
    }

    fn chores(&mut self, node: usize) {
        self.nodes[node].chores += 1;
        self.later(node, CHORES_INTERVAL, What::Chores);
        let Some(name) = self.nodes[node].name() else { return };
        if !self.is_reachable() {
            return;
        }
        let now = self.clock(node);
        let mut has_due = false;
        if self.nodes[node].chores.is_multiple_of(RARELY) {
            let taken = self.database.take_over(now);
            if taken > 0 {
                say!(self, "node {node}: takes {taken} deliveries over");
                self.note(Fired::TakeOver);
                has_due = true;
            }
            let older_than = now.minus(self.scenario.config.forgotten_after);
            let lanes = self.nodes[node].lanes.borrow();
            let known = |delivery| lanes.holds(delivery);
            let released = self.database.release_unknown(name, older_than, known, now);
            drop(lanes);
            if released > 0 {
                say!(self, "node {node}: gives back {released} leases that it does not know");
                self.note(Fired::Unknown);
                has_due = true;
            }
            self.database.unsettle_stragglers(now);
        }
        has_due |= self.database.settle(now) > 0;
        if self.database.expire(now) > 0 {
            self.note(Fired::Expired);
        }
        if has_due {
            self.wake_claimer(node);
        }
    }

    // Claiming.

    pub(crate) fn wake_claimer(&mut self, node: usize) {
        let own = &mut self.nodes[node];
        own.next_round = own.next_round.min(own.earliest_round);
        self.plan_claim(node);
    }

    /// What the product waits for between its claims: the next round, or room for those that wanted it.
    fn plan_claim(&mut self, node: usize) {
        let now = self.now;
        let own = &mut self.nodes[node];
        if own.is_claiming {
            return;
        }
        let is_any_ready = own.lanes.borrow().is_any_ready();
        let until_round = own.next_round.since(now);
        let until_claim = own.next_claim.since(now);
        let pause = if is_any_ready { until_round.min(until_claim) } else { until_round };
        own.claim_ticket += 1;
        let ticket = own.claim_ticket;
        self.later(node, pause, What::Claim(ticket));
    }

    fn claim_failed(&mut self, node: usize) {
        let own = &mut self.nodes[node];
        own.is_claiming = false;
        own.earliest_round = self.now.plus(ERROR_PAUSE);
        own.next_round = own.earliest_round;
        drop(own.lanes.borrow_mut().take_ready());
        self.plan_claim(node);
    }

    fn claim(&mut self, node: usize) {
        self.nodes[node].is_claiming = true;
        let Some(name) = self.nodes[node].name() else { return };
        if !self.is_reachable() {
            return self.claim_failed(node);
        }
        let now = self.clock(node);
        let mut round = Round::default();
        let is_of_all = self.nodes[node].next_round <= self.now;
        let mut due = self.nodes[node].lanes.borrow_mut().take_ready();
        self.nodes[node].claim_begin = self.now;
        if is_of_all {
            self.nodes[node].next_round = self.now.plus(self.scenario.config.poll_interval);
            due = round.due(&self.database.scheduled(), now);
        } else if !due.is_empty() {
            self.note(Fired::RoomAgain);
        }
        let read = due.iter().map(|of| (*of, self.database.subscription(*of)));
        let settings: BTreeMap<_, _> = read.collect();
        let own = &self.nodes[node];
        let settings_of = |of| settings.get(of).and_then(Option::as_deref);
        let gates = due.iter().map(|of| (*of, own.known.gate(of.id, settings_of(of), now)));
        let gates: Vec<_> = gates.collect();
        let mut giving = Giving { node: own, settings: &settings, now };
        let plan = Plan::of(gates, &mut giving, &mut round);
        let is_empty = plan.rooms.is_empty() && plan.probed.is_empty();
        let claiming = Claiming { plan, round, settings, now, name, is_of_all };
        if is_empty {
            return self.claim_is_over(node, claiming);
        }
        self.send(node, Request::Claim(Box::new(claiming)));
    }

    fn claim_is_over(&mut self, node: usize, claiming: Claiming) {
        let Claiming { mut plan, round, settings, is_of_all, .. } = claiming;
        let wanting = plan.take_wanting();
        drop(plan);
        let now = self.clock(node);
        let own = &mut self.nodes[node];
        for want in wanting {
            own.want(want, settings.get(&want.of).and_then(Option::as_deref), now);
        }
        own.is_claiming = false;
        let poll_interval = self.scenario.config.poll_interval;
        let took = self.now.since(own.claim_begin);
        if is_of_all {
            own.lanes.borrow_mut().prune(now);
            let rest = round.rest(took, poll_interval);
            // Who was called meanwhile looks again as soon as may be.
            let was_called = own.next_round <= self.now;
            own.earliest_round = self.now.plus(rest);
            let pause = round.pause(now, rest, poll_interval);
            own.next_round = self.now.plus(if was_called { rest } else { pause });
            own.next_claim = self.now;
        } else {
            own.next_claim = self.now.plus(round.breath(took, poll_interval));
        }
        self.plan_claim(node);
    }

    fn claimed(&mut self, node: usize, mut claiming: Claiming, leased: Vec<Leased>) {
        claiming.round.claimed += leased.len();
        let (now, name) = (claiming.now, claiming.name);
        for Leased { delivery, event } in leased {
            let Some(permit) = claiming.plan.take(delivery.id) else { continue };
            let subscription = claiming.settings.get(&reference(&delivery)).cloned().flatten();
            say!(self, "node {node}: claims {}", delivery.id);
            self.push(
                node,
                Job { delivery, event, subscription, settings_time: now, permit, name },
            );
        }
        self.claim_is_over(node, claiming);
    }

    // The way of a delivery.

    fn push(&mut self, node: usize, mut job: Job) {
        let now = self.clock(node);
        let own = &self.nodes[node];
        let subscription = job.subscription.as_deref();
        let id = job.delivery.subscription_id;
        let limit = own.known.allowance(id, subscription, now).in_flight;
        let mut lanes = own.lanes.borrow_mut();
        lanes.occupy(&mut job.permit.place, job.delivery.id);
        let starting = lanes.push(job, |job| &job.permit.place, limit);
        drop(lanes);
        self.begin(node, starting);
    }

    fn begin(&mut self, node: usize, jobs: Vec<Job>) {
        for job in jobs {
            let own = &mut self.nodes[node];
            own.next_worker += 1;
            let worker = own.next_worker;
            own.workers.insert(worker, Worker::Waits(job));
            self.turn(node, worker);
        }
    }

    fn turn(&mut self, node: usize, worker: u64) {
        let now = self.clock(node);
        let own = &mut self.nodes[node];
        let Some(Worker::Waits(job)) = own.workers.get(&worker) else { return };
        let (id, subscription) = (job.delivery.subscription_id, job.subscription.as_deref());
        let allowance = own.known.allowance(id, subscription, now);
        let rate = own.known.rate(subscription);
        let next_start = rate.and_then(|_| own.lanes.borrow().next_start(id));
        match lanes::turn(&job.permit.place, allowance.in_flight, next_start, now) {
            lanes::Turn::GiveBack => self.run(node, worker, None),
            lanes::Turn::Wait(start) => {
                let pause = start.since(now) + Duration::from_micros(1);
                self.later(node, pause, What::TurnWakes(worker));
            }
            lanes::Turn::Ask => {
                let owner = owner(&job.delivery);
                let is_prompt = allowance.is_prompt;
                if let Some(given) = own.places.take(owner, is_prompt, now) {
                    self.has_place(node, worker, given);
                } else {
                    own.places.wait(owner, is_prompt, worker);
                    self.note(Fired::WaitedForPlace);
                    self.set_alarm(node, worker, is_prompt);
                }
            }
        }
    }

    /// Has a worker that waits look again for places when further attempts may begin that may hang.
    fn set_alarm(&mut self, node: usize, worker: u64, is_prompt: bool) {
        let now = self.clock(node);
        if let Some(alarm) = self.nodes[node].places.alarm(is_prompt, now) {
            self.note(Fired::WaitedForRamp);
            self.later(node, alarm.since(now), What::AlarmRings(worker));
        }
    }

    fn has_place(&mut self, node: usize, worker: u64, given: Given) {
        let now = self.clock(node);
        let is_reachable = self.is_reachable();
        let Self { nodes, database, .. } = self;
        let own = &mut nodes[node];
        let Some(Worker::Waits(job)) = own.workers.get_mut(&worker) else { return };
        if is_reachable {
            refresh(job, database, now);
        }
        let id = job.delivery.subscription_id;
        let subscription = job.subscription.as_deref();
        let allowed = own.known.allowance(id, subscription, now).in_flight;
        let rate = own.known.rate(subscription);
        if own.lanes.borrow().is_surplus(&job.permit.place, allowed) {
            self.stand_back(node, worker);
            self.nodes[node].places.give_back(&given, false);
            return self.give_places(node);
        }
        if rate.is_none_or(|rate| own.lanes.borrow_mut().take_start(id, rate, now)) {
            return self.run(node, worker, Some(given));
        }
        own.places.give_back(&given, false);
        self.give_places(node);
        self.turn(node, worker);
    }

    /// A worker goes, since its lane has too many; its job waits again.
    fn stand_back(&mut self, node: usize, worker: u64) {
        let own = &mut self.nodes[node];
        let Some(Worker::Waits(job)) = own.workers.remove(&worker) else { return };
        say!(self, "node {node}: lets {} wait again", job.delivery.id);
        let own = &self.nodes[node];
        let let_go = own.lanes.borrow_mut().put_back(job, |job| &job.permit.place);
        drop(let_go);
        self.note(Fired::StoodBack);
    }

    fn give_places(&mut self, node: usize) {
        let now = self.clock(node);
        while let Some((given, worker)) = self.nodes[node].places.give_next(now, |_| true) {
            self.has_place(node, worker, given);
        }
    }

    /// What the product's `Worker::run` does; with a place or, to give the delivery back, without.
    fn run(&mut self, node: usize, worker: u64, mut given: Option<Given>) {
        let now = self.clock(node);
        let Some(Worker::Waits(mut job)) = self.nodes[node].workers.remove(&worker) else { return };
        let of = reference(&job.delivery);
        if !self.nodes[node].tenure.is_some_and(|tenure| tenure.covers(job.name, now)) {
            say!(self, "node {node}: leaves {} to others", job.delivery.id);
            self.note(Fired::LeftToOthers);
            let Job { subscription, permit, .. } = job;
            drop(permit);
            return self.done(node, (of.id, subscription.as_deref()), given, false);
        }
        if self.is_reachable() {
            refresh(&mut job, &self.database, now);
        }
        let subscription = job.subscription.clone();
        let after =
            if let Some((state, reason)) = verdict(&job.delivery, subscription.as_deref(), now) {
                ended_without_attempt(job.delivery.clone(), state, reason, now)
            } else {
                let known = &self.nodes[node].known;
                let gate = known.gate(of.id, subscription.as_deref(), now);
                let awaits_probe = known.awaits_probe(of.id);
                let Some(subscription) = subscription.clone() else { return };
                let may_attempt = may_attempt(&job.permit.place, gate, awaits_probe);
                if let Some(given) = given.take_if(|_| may_attempt) {
                    return self.attempt(node, worker, job, subscription, given);
                }
                say!(self, "node {node}: gives {} back", job.delivery.id);
                self.note(Fired::GivenBack);
                given_back(job.delivery.clone(), &job.event, now)
            };
        self.finish(node, Ended { after, attempt: None }, job.permit);
        self.done(node, (of.id, subscription.as_deref()), given, false);
    }

    fn attempt(
        &mut self,
        node: usize,
        worker: u64,
        job: Job,
        subscription: Arc<Subscription>,
        given: Given,
    ) {
        self.check_attempt(node, &job);
        let of = reference(&job.delivery);
        let is_probe = job.permit.place.is_probe();
        let report = self.request(node, &job.delivery, &subscription, (is_probe, true));
        let kills = self.kills(&job.delivery);
        let number = job.delivery.attempt_count + 1;
        say!(
            self,
            "node {node}: attempt {number} of {} to {}: {:?} in {:?}{}",
            job.delivery.id,
            of.id,
            report.outcome,
            report.duration,
            if is_probe { ", the probe" } else { "" }
        );
        let end = if kills { What::Dies } else { What::AttemptEnds(worker) };
        self.later(node, report.duration, end);
        let report = Box::new(report);
        let attempting = Worker::Attempts { job, subscription, report, number, given };
        self.nodes[node].workers.insert(worker, attempting);
        self.check_places(node);
    }

    /// Whether an attempt of the delivery brings down its node. What may do so is made apart.
    fn kills(&mut self, delivery: &Delivery) -> bool {
        let is_lethal = self.is_lethal(delivery);
        let is_apart = is_suspect(delivery);
        if is_apart && !is_lethal {
            self.note(Fired::AttemptedApart);
        }
        if is_lethal && !is_apart && !delivery.state.is_terminal() {
            self.check_fatal(delivery.id);
        }
        is_lethal && !is_apart
    }

    fn is_lethal(&self, delivery: &Delivery) -> bool {
        self.database.row(delivery.id).is_some_and(|row| row.is_lethal)
    }

    /// Sends a request to the receiver, which decides what comes of it.
    fn request(
        &mut self,
        node: usize,
        delivery: &Delivery,
        subscription: &Subscription,
        (is_probe, is_automatic): (bool, bool),
    ) -> Report {
        let Channel::Webhook(webhook) = &subscription.spec.channel else { unreachable!() };
        let times = (self.now, self.clock(node));
        if self.is_lethal(delivery) {
            // It comes to no request.
            let duration = self.millis(1..=50);
            let failure = Failure { kind: ErrorKind::Internal, message: String::new() };
            let report = Report::new(Outcome::Permanent, times.1);
            return Report { duration, failure: Some(failure), ..report };
        }
        let Self { receivers, random, .. } = self;
        let receiver = receivers.get_mut(&reference(delivery)).expect("a receiver");
        let (report, fired) = receiver.take(times, webhook.timeout, random);
        let ends = self.now.plus(report.duration);
        receiver.under_way.push(UnderWay { ends, is_probe, is_automatic });
        if let Some(fired) = fired {
            self.note(fired);
        }
        if report.outcome == Outcome::Delivered {
            let taken = self.requests.taken.entry(delivery.id).or_default();
            *taken += 1;
            if *taken > 1 && is_automatic {
                self.note(Fired::Duplicate);
            }
        }
        report
    }

    fn attempt_ends(&mut self, node: usize, worker: u64) {
        let own = &mut self.nodes[node];
        let Some(Worker::Attempts { job, subscription, report, number, given }) =
            own.workers.remove(&worker)
        else {
            return;
        };
        let attempt = own.attempt(&job.delivery, number, Trigger::Automatic, *report);
        let id = job.delivery.subscription_id;
        if attempt.report.outcome == Outcome::Delivered {
            own.success_time.insert(id, self.now);
        }
        let now = self.clock(node);
        let is_fatal = self.is_lethal(&job.delivery);
        let sign = Sign::of(&attempt.report);
        if !is_fatal {
            self.nodes[node].known.trust(&subscription, sign, now);
        }
        let random = self.nodes[node].random.random();
        let policy =
            || subscription.spec.retry_policy.clone().unwrap_or_else(RetryPolicy::built_in);
        let after = if is_fatal {
            self.note(Fired::Quarantined);
            quarantined(job.delivery, &attempt, now)
        } else {
            after_attempt(job.delivery, &attempt, policy, now, random)
        };
        self.finish(node, Ended { after, attempt: Some(attempt) }, job.permit);
        self.done(node, (id, Some(&subscription)), Some(given), sign == Sign::Silent);
    }

    /// Hands a result to the recorder.
    fn finish(&mut self, node: usize, ended: Ended, permit: Permit) {
        let now = self.clock(node);
        let own = &mut self.nodes[node];
        let said = said_of_endpoint(&ended, |id| own.known.awaits_success(id));
        let random = own.random.random();
        let seen = said.map(|(subscription, observation)| Observed {
            delivery_id: ended.after.id,
            subscription,
            observation,
            random,
        });
        if let Some(seen) = seen {
            own.known.see(seen, now);
        }
        own.finished.push(Finished { ended, seen, permit });
        if own.batch.is_none() {
            self.next_batch(node);
        }
    }

    /// A worker has ended its job: its place goes to the next, and its lane has another one for it.
    fn done(
        &mut self,
        node: usize,
        (id, subscription): (SubscriptionId, Option<&Subscription>),
        given: Option<Given>,
        is_silent: bool,
    ) {
        if let Some(given) = given {
            self.nodes[node].places.give_back(&given, is_silent);
            self.give_places(node);
        }
        let now = self.clock(node);
        let own = &self.nodes[node];
        let limit = own.known.allowance(id, subscription, now).in_flight;
        let (next, mut more) = own.lanes.borrow_mut().next(id, limit, now);
        more.extend(next);
        self.begin(node, more);
    }

    // Recording.

    fn next_batch(&mut self, node: usize) {
        let own = &mut self.nodes[node];
        if own.finished.is_empty() {
            return;
        }
        let count = own.finished.len().min(MAX_BATCH);
        let (mut ended, mut seen, mut permits) = (Vec::new(), Vec::new(), Vec::new());
        for finished in own.finished.drain(..count) {
            ended.push(finished.ended);
            seen.extend(finished.seen);
            permits.push(finished.permit);
        }
        own.batch = Some(Batch { ended, seen, permits, pause: FIRST_PAUSE, late: Vec::new() });
        self.write(node);
    }

    fn write(&mut self, node: usize) {
        let now = self.clock(node);
        let Some(batch) = &mut self.nodes[node].batch else { return };
        batch.late.clear();
        let request = Request::Record { ended: batch.ended.clone(), seen: batch.seen.clone(), now };
        self.send(node, request);
    }

    fn recorded(&mut self, node: usize, fenced: &HashSet<DeliveryId>, health: &[HealthChange]) {
        let now = self.clock(node);
        let Node { batch, known, .. } = &mut self.nodes[node];
        let Some(batch) = batch else { return };
        known.settle(batch.seen.iter(), health.iter().map(HealthChange::row), now);
        let late = batch.ended.iter().rev().filter(|ended| fenced.contains(&ended.after.id));
        batch.late = late.filter_map(|ended| ended.attempt.clone()).collect();
        let recovers = |change: &HealthChange| {
            change.before.awaits_success() && !change.after.awaits_success()
        };
        if health.iter().any(recovers) {
            self.wake_claimer(node);
        }
        self.next_late(node);
    }

    fn next_late(&mut self, node: usize) {
        let now = self.clock(node);
        let Some(batch) = &mut self.nodes[node].batch else { return };
        if let Some(attempt) = batch.late.pop() {
            return self.send(node, Request::Late { attempt, now });
        }
        let has_due = batch.ended.iter().any(|ended| ended.after.state == State::Scheduled);
        self.nodes[node].batch = None;
        if has_due {
            self.wake_claimer(node);
        }
        self.plan_claim(node);
        self.next_batch(node);
    }

    fn late(&mut self, node: usize, id: DeliveryId, result: &LateResult) {
        let (fired, word) = match result {
            LateResult::Added(_) => (Fired::Added, "is added after the end"),
            LateResult::Known => (Fired::Known, "had been recorded"),
            LateResult::Lost => (Fired::Fenced, "is fenced"),
        };
        say!(self, "node {node}: the result of {id} {word}");
        self.note(fired);
        self.next_late(node);
    }

    // Attempts on request.

    fn manual(&mut self, node: usize, claim: ManualClaim) {
        let (delivery, due) = match claim {
            ManualClaim::Leased(delivery, due) => (*delivery, Some(due)),
            ManualClaim::Ended(delivery) => (*delivery, None),
            ManualClaim::Busy(_) | ManualClaim::NotFound => return,
        };
        let of = reference(&delivery);
        self.nodes[node].next_worker += 1;
        let manual = self.nodes[node].next_worker;
        let Some(subscription) = self.database.subscription(of) else {
            let now = self.clock(node);
            if let Some(due) = due {
                let after = after_manual(delivery, None, due, now);
                let ended = Box::new(Ended { after, attempt: None });
                self.send(node, Request::ManualRecord { ended, now });
            }
            return;
        };
        self.note(if due.is_some() { Fired::ManualRetry } else { Fired::ManualAfterEnd });
        let report = self.request(node, &delivery, &subscription, (false, false));
        say!(self, "node {node}: {} is attempted on request: {:?}", delivery.id, report.outcome);
        let end = if self.kills(&delivery) { What::Dies } else { What::ManualEnds(manual) };
        self.later(node, report.duration, end);
        let number = delivery.attempt_count + 1;
        let attempt = self.nodes[node].attempt(&delivery, number, Trigger::Manual, report);
        let manual_attempt = Manual { delivery, due, of, attempt: Some(attempt) };
        self.nodes[node].manual.insert(manual, manual_attempt);
    }

    fn manual_ends(&mut self, node: usize, manual: u64) {
        let Some(Manual { delivery, due, of, attempt: Some(attempt) }) =
            self.nodes[node].manual.remove(&manual)
        else {
            return;
        };
        let now = self.clock(node);
        if let Some(observation) = Observation::of(&attempt)
            && self.is_reachable()
            && self.database.health.contains_key(&of)
        {
            let random = self.nodes[node].random.random();
            let change = self.database.observe(of, vec![(observation, random)], now);
            self.nodes[node].known.learn(change.map(|change| change.row()), now);
        }
        let request = match due {
            Some(due) => {
                let after = if self.is_lethal(&delivery) {
                    quarantined(delivery, &attempt, now)
                } else {
                    after_manual(delivery, Some(&attempt), due, now)
                };
                let ended = Box::new(Ended { after, attempt: Some(attempt) });
                Request::ManualRecord { ended, now }
            }
            None => Request::ManualLate { attempt, now },
        };
        self.send(node, request);
    }
}

/// What the product's `Worker::refresh` does, when the database answers.
fn refresh(job: &mut Job, database: &Database, now: Timestamp) {
    if now.since(job.settings_time) > CatalogCache::MAX_AGE {
        job.subscription = database.subscription(reference(&job.delivery));
        job.settings_time = now;
    }
}
