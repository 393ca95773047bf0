//! What the engine counts. Every series exists from the start, at zero.

use std::collections::HashMap;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::domain::attempt::{Attempt, Trigger};
use crate::domain::delivery::{Delivery, FailureReason, State};
use crate::domain::health;
use crate::domain::subscription::DisableReason;

/// The states of a breaker.
const BREAKER_OPEN: &str = "open";
const BREAKER_CLOSED: &str = "closed";

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Debug)]
pub(super) struct Metrics {
    /// Live replicas, this one included.
    pub(super) replicas: Gauge,
    pub(super) announcements: Gauge,
    endpoints: Family<StateLabel, Gauge>,
    breakers: Family<StateLabel, Counter>,
    disabled: Family<ReasonLabel, Counter>,
    ended: Family<StateLabel, Counter>,
    retried: Counter,
    quarantined: Counter,
    pub(super) interrupted: Counter,
    pub(super) fatal_attempts: Counter,
    pub(super) fenced: Counter,
    pub(super) claimed: Counter,
    pub(super) paused: Counter,
    pub(super) in_flight: Gauge,
    pub(super) waiting: Gauge,
    pub(super) queue_held: Gauge,
    pub(super) queue_bytes: Gauge,
    pub(super) scheduled: Gauge,
    lag_seconds: Histogram,
    delivery_seconds: Histogram,
    batch_size: Histogram,
}

impl Metrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let latency = || Histogram::new(exponential_buckets(0.000_5, 2.0, 18));
        let metrics = Self {
            replicas: Gauge::default(),
            announcements: Gauge::default(),
            endpoints: Family::default(),
            breakers: Family::default(),
            disabled: Family::default(),
            ended: Family::default(),
            retried: Counter::default(),
            quarantined: Counter::default(),
            interrupted: Counter::default(),
            fatal_attempts: Counter::default(),
            fenced: Counter::default(),
            claimed: Counter::default(),
            paused: Counter::default(),
            in_flight: Gauge::default(),
            waiting: Gauge::default(),
            queue_held: Gauge::default(),
            queue_bytes: Gauge::default(),
            scheduled: Gauge::default(),
            lag_seconds: latency(),
            delivery_seconds: latency(),
            batch_size: Histogram::new(exponential_buckets(1.0, 2.0, 10)),
        };
        metrics.register(registry);
        metrics.register_deliveries(registry);
        metrics.zero();
        metrics
    }

    fn register(&self, registry: &mut Registry) {
        registry.register(
            "tidings_replicas",
            "Live replicas that share the subscriptions' limits, as this node knows",
            self.replicas.clone(),
        );
        registry.register(
            "tidings_announcements_waiting",
            "Events of the service itself that could not be emitted when this node last tried",
            self.announcements.clone(),
        );
        registry.register(
            "tidings_endpoints",
            "Endpoints that are not healthy, by state; every replica knows of all of them",
            self.endpoints.clone(),
        );
        registry.register(
            "tidings_breakers",
            "Breakers that this node has opened and closed, by their new state",
            self.breakers.clone(),
        );
        registry.register(
            "tidings_subscriptions_disabled",
            "Subscriptions that this node has disabled, by reason",
            self.disabled.clone(),
        );
    }

    /// What counts deliveries and attempts.
    fn register_deliveries(&self, registry: &mut Registry) {
        registry.register(
            "tidings_deliveries_ended",
            "Deliveries that ended, by state",
            self.ended.clone(),
        );
        registry.register(
            "tidings_deliveries_retried",
            "Failed attempts that will be tried again",
            self.retried.clone(),
        );
        registry.register(
            "tidings_deliveries_quarantined",
            "Deliveries that failed because their attempts bring down the process that makes them",
            self.quarantined.clone(),
        );
        registry.register(
            "tidings_deliveries_interrupted",
            "Deliveries that this node took over from replicas that had ended or fallen silent",
            self.interrupted.clone(),
        );
        registry.register(
            "tidings_attempts_fatal",
            "Attempts that brought down the process that made them, and not the service",
            self.fatal_attempts.clone(),
        );
        registry.register(
            "tidings_results_fenced",
            "Results that came after another node had taken the delivery over",
            self.fenced.clone(),
        );
        registry.register(
            "tidings_deliveries_claimed",
            "Due deliveries that this node claimed",
            self.claimed.clone(),
        );
        registry.register(
            "tidings_attempts_paused",
            "Pauses after attempts, made because events arrive faster than they can be committed",
            self.paused.clone(),
        );
        registry.register(
            "tidings_attempts_in_flight",
            "Attempts under way on this node",
            self.in_flight.clone(),
        );
        registry.register(
            "tidings_attempts_waiting",
            "Attempts that may begin, and wait for a place or for their turn among those that may hang",
            self.waiting.clone(),
        );
        registry.register(
            "tidings_queue_held",
            "Deliveries that this node holds in memory",
            self.queue_held.clone(),
        );
        registry.register(
            "tidings_queue_bytes",
            "Bytes of events that this node holds in memory for their deliveries",
            self.queue_bytes.clone(),
        );
        registry.register(
            "tidings_queue_scheduled",
            "Deliveries in the database that wait for an attempt, counted up to 100000",
            self.scheduled.clone(),
        );
        registry.register(
            "tidings_delivery_lag_seconds",
            "From acceptance to the start of the first attempt",
            self.lag_seconds.clone(),
        );
        registry.register(
            "tidings_delivery_duration_seconds",
            "From acceptance to success",
            self.delivery_seconds.clone(),
        );
        registry.register(
            "tidings_recorded_batch_size",
            "Results written per transaction",
            self.batch_size.clone(),
        );
    }

    fn zero(&self) {
        for state in State::ALL.into_iter().filter(|state| state.is_terminal()) {
            drop(self.ended.get_or_create(&StateLabel { state: state.as_str() }));
        }
        self.replicas.set(1);
        self.endpoints(&HashMap::new());
        for state in [BREAKER_OPEN, BREAKER_CLOSED] {
            drop(self.breakers.get_or_create(&StateLabel { state }));
        }
        for reason in DisableReason::ALL {
            drop(self.disabled.get_or_create(&ReasonLabel { reason: reason.as_str() }));
        }
    }

    /// Shows how many endpoints are in which state.
    pub(super) fn endpoints(&self, counts: &HashMap<health::State, i64>) {
        for state in health::State::ALL.into_iter().filter(|s| *s != health::State::Healthy) {
            let gauge = self.endpoints.get_or_create(&StateLabel { state: state.as_str() });
            gauge.set(counts.get(&state).copied().unwrap_or(0));
        }
    }

    /// Counts a breaker that opened.
    pub(super) fn breaker_opened(&self) {
        self.breakers.get_or_create(&StateLabel { state: BREAKER_OPEN }).inc();
    }

    /// Counts a breaker that closed.
    pub(super) fn breaker_closed(&self) {
        self.breakers.get_or_create(&StateLabel { state: BREAKER_CLOSED }).inc();
    }

    /// Counts a subscription that was disabled.
    pub(super) fn disabled(&self, reason: DisableReason) {
        self.disabled.get_or_create(&ReasonLabel { reason: reason.as_str() }).inc();
    }

    /// Measures how long a delivery waited for its first attempt.
    pub(super) fn first_attempt(&self, delivery: &Delivery, attempt: &Attempt) {
        if attempt.number == 1 && attempt.trigger == Trigger::Automatic {
            self.lag_seconds
                .observe(attempt.report.start_time.since(delivery.create_time).as_secs_f64());
        }
    }

    /// Counts a change that was recorded.
    pub(super) fn recorded(&self, delivery: &Delivery) {
        match delivery.state {
            State::Scheduled => {
                self.retried.inc();
            }
            state if state.is_terminal() => {
                self.ended.get_or_create(&StateLabel { state: state.as_str() }).inc();
                if delivery.failure_reason == Some(FailureReason::Quarantined) {
                    self.quarantined.inc();
                }
                if state == State::Succeeded {
                    let duration = delivery.update_time.since(delivery.create_time);
                    self.delivery_seconds.observe(duration.as_secs_f64());
                }
            }
            _ => {}
        }
    }

    /// Counts deliveries that ended without an attempt.
    pub(super) fn ended(&self, state: State, count: u64) {
        self.ended.get_or_create(&StateLabel { state: state.as_str() }).inc_by(count);
    }

    /// Measures a group commit.
    pub(super) fn recorded_batch(&self, size: usize) {
        self.batch_size.observe(f64::from(u32::try_from(size).unwrap_or(u32::MAX)));
    }
}
