//! What the engine counts. Every series exists from the start, at zero.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::domain::attempt::{Attempt, Trigger};
use crate::domain::delivery::{Delivery, State};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Debug)]
pub(super) struct Metrics {
    ended: Family<StateLabel, Counter>,
    retried: Counter,
    pub(super) fenced: Counter,
    pub(super) claimed: Counter,
    pub(super) in_flight: Gauge,
    pub(super) queue_held: Gauge,
    pub(super) scheduled: Gauge,
    lag_seconds: Histogram,
    delivery_seconds: Histogram,
    batch_size: Histogram,
}

impl Metrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let latency = || Histogram::new(exponential_buckets(0.000_5, 2.0, 18));
        let metrics = Self {
            ended: Family::default(),
            retried: Counter::default(),
            fenced: Counter::default(),
            claimed: Counter::default(),
            in_flight: Gauge::default(),
            queue_held: Gauge::default(),
            scheduled: Gauge::default(),
            lag_seconds: latency(),
            delivery_seconds: latency(),
            batch_size: Histogram::new(exponential_buckets(1.0, 2.0, 10)),
        };
        metrics.register(registry);
        metrics.zero();
        metrics
    }

    fn register(&self, registry: &mut Registry) {
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
            "tidings_attempts_in_flight",
            "Attempts under way on this node",
            self.in_flight.clone(),
        );
        registry.register(
            "tidings_queue_held",
            "Deliveries that this node holds in memory",
            self.queue_held.clone(),
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
                if state == State::Succeeded {
                    let duration = delivery.update_time.since(delivery.create_time);
                    self.delivery_seconds.observe(duration.as_secs_f64());
                }
            }
            _ => {}
        }
    }

    /// Measures a group commit.
    pub(super) fn recorded_batch(&self, size: usize) {
        self.batch_size.observe(f64::from(u32::try_from(size).unwrap_or(u32::MAX)));
    }
}
