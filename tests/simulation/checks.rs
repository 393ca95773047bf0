//! What must hold, whatever happens. Nothing here asks the product what it would have decided: the
//! checks look at what the database, the receivers and the true time know.

use std::time::Duration;

use tidings::domain::Timestamp;
use tidings::domain::attempt::Trigger;
use tidings::domain::channel::Channel;
use tidings::domain::delivery::State;
use tidings::domain::id::DeliveryId;
use tidings::domain::subscription;

use super::database::{Row, reference};
use super::faults::Fired;
use super::node::Job;
use super::scenario::{BIRTH, LONGEST_TIMEOUT, Weather};
use super::world::{Event, World};

/// By how much a node's clock may be off from the database's, jumps aside: in a storm, and else.
const SKEW: Duration = Duration::from_millis(400);
const CALM_SKEW: Duration = Duration::from_millis(20);
/// How long settings may be believed: as long as the product says, and the way to the receiver.
const SETTINGS_AGE: Duration = Duration::from_millis(1_100);
/// How long a quiet tenant's delivery may wait for its first attempt beside a tenant whose receivers
/// all hang.
const FAIRNESS_BOUND: Duration = Duration::from_secs(3);
/// How many processes one delivery may bring down.
const MOST_FATAL: u32 = 2;

impl World {
    /// How far clocks may have been apart lately.
    fn tolerance(&self) -> Duration {
        match self.scenario.weather {
            Weather::Calm => CALM_SKEW,
            Weather::Stormy => SKEW + self.jumped,
        }
    }

    /// To be asked before each automatic attempt.
    pub(crate) fn check_attempt(&mut self, node: usize, job: &Job) {
        let problem = self
            .lease_problem(node, job)
            .or_else(|| self.schedule_problem(job))
            .or_else(|| self.settings_problem(job))
            .or_else(|| self.health_problem(node, job))
            .or_else(|| self.limit_problem(node, job));
        if let Some(problem) = problem {
            let id = job.delivery.id;
            self.breaks(format!("node {node} attempts {id}: {problem}"));
        }
        *self.requests.automatic.entry(job.delivery.id).or_default() += 1;
    }

    /// One request for each lease, under a lease that holds.
    fn lease_problem(&mut self, node: usize, job: &Job) -> Option<String> {
        let id = job.delivery.id;
        if !self.requests.by_lease.insert((id, job.delivery.revision)) {
            return Some("twice under one lease".into());
        }
        let row = self.database.row(id)?;
        let is_ours = row.lease.is_some()
            && row.lease == self.nodes[node].name()
            && row.delivery.revision == job.delivery.revision;
        // It was canceled since, which nobody tells a node.
        let was_lost = row.lost_revision > job.delivery.revision;
        let has_ended = row.delivery.state.is_terminal() && !was_lost;
        let was_just_lost = self.now.since(row.lost_at) <= SKEW;
        let has_jumped = self.now.since(self.jump_time) <= self.scenario.config.lease_ttl;
        let holds = is_ours || has_ended || was_just_lost || has_jumped;
        (!holds).then(|| {
            let (state, lease) = (row.delivery.state.as_str(), row.lease);
            format!("its lease is lost: it is {state}, leased to {lease:?}")
        })
    }

    /// Not before it is due, nor before the receiver wishes.
    fn schedule_problem(&mut self, job: &Job) -> Option<String> {
        let tolerance = self.tolerance();
        let row = self.database.row(job.delivery.id)?;
        let due = row.not_before;
        if !row.was_held && self.database.now.plus(tolerance) < due {
            return Some(format!("before it is due at {due}"));
        }
        let wish = row.wish.filter(|_| !row.was_held)?;
        self.note(Fired::CheckedRetryAfter);
        (self.database.now.plus(tolerance) < wish).then(|| "before the receiver wishes".into())
    }

    /// Not for a subscription that stopped longer ago than settings are believed.
    fn settings_problem(&self, job: &Job) -> Option<String> {
        let settings = self.database.settings.get(&reference(&job.delivery))?;
        let is_stopped =
            settings.is_deleted || settings.subscription.state != subscription::State::Active;
        // A clock that jumps back makes settings look younger.
        let is_old = self.now.since(settings.switch_time) > SETTINGS_AGE + self.jumped;
        let was_reachable = self.now.since(self.away_until) > Duration::ZERO;
        (is_stopped && is_old && was_reachable).then(|| "its subscription does not deliver".into())
    }

    /// With an open breaker nothing but one probe per cool-down, and nothing in a pause.
    fn health_problem(&mut self, node: usize, job: &Job) -> Option<String> {
        let of = reference(&job.delivery);
        let tolerance = self.tolerance();
        let database_now = self.database.now;
        let policy = self.scenario.config.health;
        let health = self.database.health.get(&of)?;
        let (episode, open_since, write_time) =
            (health.episode, health.open_since, health.write_time);
        let opened_at = health.opened_at;
        let pause = health.row.health.slow.map(|slow| slow.until).max(health.wish);
        if job.permit.place.is_probe() {
            self.note(Fired::Probe);
            // One that was taken before the breaker opened again is not early, but late: it goes
            // unless its node has heard of that.
            let is_late = job.delivery.update_time < opened_at
                && open_since.is_some_and(|since| since >= self.nodes[node].look_time);
            if is_late {
                return None;
            }
            let last = self.requests.probes.insert(of, (episode, database_now));
            let shortest = policy.first_cool_down.mul_f64(0.89);
            let since = last.filter(|last| last.0 == episode).map_or(opened_at, |last| last.1);
            let is_early = database_now.since(since) + tolerance < shortest;
            let is_second = self.receivers[&of]
                .under_way
                .iter()
                .any(|request| request.is_probe && request.ends > self.now);
            return (is_early || is_second).then(|| "a probe before its time".into());
        }
        // What a node has seen itself it may believe before it is recorded.
        let look_time = self.nodes[node].look_time;
        let seen = self.nodes[node].success_time.get(&of.id).copied();
        let saw_success = |since: Timestamp| seen.is_some_and(|seen| seen >= since);
        if let Some(since) = open_since {
            if since < look_time {
                self.note(Fired::CheckedBreaker);
            }
            if since < look_time && !saw_success(since) {
                return Some("although the breaker is open".into());
            }
        }
        let pause = pause.filter(|_| write_time < look_time && !saw_success(write_time))?;
        (database_now.plus(tolerance) < pause).then(|| "in the receiver's pause".into())
    }

    /// The attempts of all replicas together are within the subscription's limit, while the replicas
    /// and the limit have been the same for long enough.
    fn limit_problem(&mut self, node: usize, job: &Job) -> Option<String> {
        let of = reference(&job.delivery);
        let last = self.requests.starts.insert((node, of), self.now);
        let live = self.database.live_nodes();
        if live != self.requests.live {
            (self.requests.live, self.requests.live_since) = (live, self.now);
        }
        let settings = self.database.settings.get(&of)?;
        let steady_since = self.requests.live_since.max(settings.change_time).max(BIRTH);
        let steady = LONGEST_TIMEOUT + Duration::from_secs(3);
        let have_looked = self.serving().iter().all(|node| {
            let node = &self.nodes[*node];
            node.look_time > self.requests.live_since
        });
        if self.now.since(steady_since) < steady || !have_looked {
            return None;
        }
        let Channel::Webhook(webhook) = settings.subscription.spec.channel.clone() else {
            return None;
        };
        let replicas = u32::try_from(self.requests.live.len()).unwrap_or(u32::MAX);
        let rate = webhook.max_requests_per_second.filter(|_| last >= Some(steady_since));
        if let (Some(rate), Some(last)) = (rate, last) {
            self.note(Fired::CheckedRate);
            let pause = Duration::from_secs_f64(f64::from(replicas) / rate);
            if self.now.since(last) + self.tolerance() < pause {
                return Some("too soon after the last request".into());
            }
        }
        let limit = webhook.max_in_flight as usize;
        let now = self.now;
        let counts = |request: &&super::receiver::UnderWay| {
            request.ends > now && request.is_automatic && !request.is_probe
        };
        let count = self.receivers[&of].under_way.iter().filter(counts).count();
        let is_over = !job.permit.place.is_probe() && count + 1 > limit;
        self.note(Fired::CheckedInFlight);
        is_over.then(|| format!("with {count} others under way, of {limit} that may be"))
    }

    /// To be noted when a node is to die of a delivery: that happens twice, and never again.
    pub(crate) fn check_fatal(&mut self, id: DeliveryId) {
        let fatal = self.requests.fatal.entry(id).or_default();
        *fatal += 1;
        if *fatal > MOST_FATAL {
            self.breaks(format!("{id} brings down a process for the third time"));
        }
    }

    /// No more in memory than the configuration says.
    pub(crate) fn check_memory(&mut self, node: usize) {
        let lanes = self.nodes[node].lanes.borrow();
        let (held, bytes) = (lanes.len(), lanes.bytes());
        drop(lanes);
        let config = self.scenario.config;
        if held > config.queue_size || bytes > config.queue_bytes {
            self.breaks(format!("node {node} holds {held} deliveries, {bytes} bytes"));
        }
    }

    /// No more attempts under way than a node may have.
    pub(crate) fn check_places(&mut self, node: usize) {
        let attempting = self.nodes[node].attempting();
        if attempting > self.scenario.config.max_in_flight {
            self.breaks(format!("node {node} has {attempting} attempts under way"));
        }
    }

    /// Looks whether quiet tenants wait too long for a first attempt.
    pub(crate) fn inspect(&mut self) {
        if self.scenario.weather == Weather::Stormy || self.is_resting {
            return;
        }
        self.after(Duration::from_millis(500), Event::Inspect);
        let loud = self.scenario.tenants[0].id;
        let now = self.database.now;
        let waits = |row: &&Row| {
            row.delivery.tenant_id != loud
                && !self.requests.automatic.contains_key(&row.delivery.id)
        };
        let rows = self.database.open.iter().map(|at| &self.database.rows[*at]);
        let waiting: Vec<_> = rows.filter(waits).collect();
        let hung = |row: &&Row| now.since(row.not_before) > FAIRNESS_BOUND;
        let problem = waiting.iter().find(|row| hung(row)).map(|row| {
            let (id, state) = (row.delivery.id, row.delivery.state.as_str());
            format!("{id} of a quiet tenant waits since {}, {state}", row.not_before)
        });
        let is_beside = self.receivers.iter().any(|(of, receiver)| {
            let hangs = receiver.under_way.iter().filter(|request| request.ends > self.now);
            of.tenant_id == loud && hangs.count() > 2
        });
        if is_beside {
            self.note(Fired::CheckedFairness);
        }
        if let Some(problem) = problem {
            self.breaks(problem);
        }
    }

    /// To be asked at the end: everything has ended, and what has ended well has arrived.
    pub(crate) fn check_end(&mut self) {
        let mut problem = None;
        for Row { delivery, ledger, leases_lost, .. } in &self.database.rows {
            let id = delivery.id;
            let taken = self.requests.taken.get(&id).copied().unwrap_or(0);
            let requests = self.requests.automatic.get(&id).copied().unwrap_or(0) as usize;
            let automatic = |trigger| trigger == Trigger::Automatic;
            let recorded = ledger.iter().filter(|entry| automatic(entry.trigger)).count();
            if delivery.state == State::Succeeded && taken == 0 {
                problem = Some(format!("{id} succeeded, but its receiver never had it"));
            }
            let died = self.requests.died.get(&id).copied().unwrap_or(0);
            let excused = *leases_lost as usize + died as usize;
            if requests < recorded || requests > recorded + excused {
                problem = Some(format!(
                    "{id}: {requests} requests, {recorded} of them recorded, {excused} are excused"
                ));
            }
        }
        if let Some(problem) = problem {
            self.breaks(problem);
        }
    }
}
