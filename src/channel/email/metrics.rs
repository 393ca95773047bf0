//! What is counted of mail, by relay. Every series exists from the start, at zero.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::channel::Counted;
use crate::domain::attempt::ErrorKind;

/// Upper bounds of the durations' buckets in seconds, up to the longest attempt.
const BUCKETS: [f64; 13] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0];

type Label = [(&'static str, String); 1];
type Labels = [(&'static str, String); 2];

/// The metrics of mail. Clones count together.
#[derive(Clone, Debug)]
pub(super) struct Metrics {
    attempts: Family<Labels, Counter>,
    durations: Family<Label, Histogram, fn() -> Histogram>,
    open: Family<Label, Gauge>,
    in_use: Family<Label, Gauge>,
    out_of_order: Family<Label, Gauge>,
    waits: Histogram,
    sent_away: Counter,
}

/// Those of one relay.
#[derive(Clone, Debug)]
pub(super) struct OfRelay {
    delivered: Counter,
    failed: Arc<[(ErrorKind, Counter)]>,
    duration: Histogram,
    open: Gauge,
    in_use: Gauge,
    out_of_order: Gauge,
}

impl Metrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let histogram: fn() -> Histogram = || Histogram::new(BUCKETS);
        let metrics = Self {
            attempts: Family::default(),
            durations: Family::new_with_constructor(histogram),
            open: Family::default(),
            in_use: Family::default(),
            out_of_order: Family::default(),
            waits: histogram(),
            sent_away: Counter::default(),
        };
        registry.register(
            "mail_attempts",
            "Messages that were given to a relay, by the result: delivered, or the kind of error",
            metrics.attempts.clone(),
        );
        registry.register(
            "mail_attempt_duration_seconds",
            "How long a relay took for a message, connecting included and waiting for a turn not",
            metrics.durations.clone(),
        );
        registry.register(
            "mail_connections",
            "Connections to a relay that are open, idle ones included",
            metrics.open.clone(),
        );
        registry.register(
            "mail_connections_in_use",
            "Places among smtp-max-connections that messages have",
            metrics.in_use.clone(),
        );
        registry.register(
            "mail_relay_out_of_order",
            "Whether a relay comes last, because it was out of order a moment ago",
            metrics.out_of_order.clone(),
        );
        registry.register(
            "mail_turn_wait_seconds",
            "How long messages waited for their turn: the rates' and a free connection",
            metrics.waits.clone(),
        );
        registry.register(
            "mail_turns_postponed",
            "Deliveries that were given back without an attempt, since their turn was too far away",
            metrics.sent_away.clone(),
        );
        metrics
    }

    /// The metrics of the relay `name`.
    pub(super) fn of(&self, name: &str) -> OfRelay {
        let of = || [("relay", name.to_owned())];
        let series = |result: &str| {
            let labels = [("relay", name.to_owned()), ("result", result.to_owned())];
            self.attempts.get_or_create_owned(&labels)
        };
        OfRelay {
            delivered: series("delivered"),
            failed: ErrorKind::OF_MAIL.map(|kind| (kind, series(kind.as_str()))).into(),
            duration: self.durations.get_or_create_owned(&of()),
            open: self.open.get_or_create_owned(&of()),
            in_use: self.in_use.get_or_create_owned(&of()),
            out_of_order: self.out_of_order.get_or_create_owned(&of()),
        }
    }

    /// Measures how long a message waited for its turn.
    pub(super) fn waited(&self, wait: Duration) {
        self.waits.observe(wait.as_secs_f64());
    }

    /// Counts a message whose turn is too far away.
    pub(super) fn sent_away(&self) {
        self.sent_away.inc();
    }
}

impl OfRelay {
    /// Counts a message that a relay was given: delivered when there is no error.
    pub(super) fn observe(&self, error: Option<ErrorKind>, duration: Duration) {
        let failed = self.failed.iter().find(|(kind, _)| Some(*kind) == error);
        failed.map_or(&self.delivered, |(_, counter)| counter).inc();
        self.duration.observe(duration.as_secs_f64());
    }

    /// Counts a connection while it is open.
    pub(super) fn opened(&self) -> Counted {
        Counted::new(&self.open)
    }

    /// Counts a place while somebody has it.
    pub(super) fn taken(&self) -> Counted {
        Counted::new(&self.in_use)
    }

    /// Shows whether the relay comes last.
    pub(super) fn show_order(&self, is_in_order: bool) {
        self.out_of_order.set(i64::from(!is_in_order));
    }
}
