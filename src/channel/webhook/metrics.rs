//! What is counted of webhook attempts. Every series exists from the start, at zero.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::domain::attempt::{ErrorKind, Timings};

/// Upper bounds of the duration's buckets in seconds, up to the longest attempt.
const BUCKETS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 30.0];

/// The phases of an attempt as labels.
const PHASES: [&str; 4] = ["dns", "connect", "tls", "first_byte"];

/// The metrics of webhooks. Clones count together.
#[derive(Clone, Debug)]
pub struct Metrics {
    delivered: Counter,
    failed: [Counter; ErrorKind::ALL.len()],
    duration: Histogram,
    phases: [Histogram; PHASES.len()],
    open: Gauge,
}

impl Metrics {
    /// Registers the metrics: `webhook_attempts_total{result}`, where the result is `delivered` or
    /// the kind of error, `webhook_attempt_duration_seconds`, `webhook_phase_duration_seconds{phase}`
    /// and `webhook_open_connections`.
    pub fn new(registry: &mut Registry) -> Self {
        let attempts = Family::<[(&'static str, &'static str); 1], Counter>::default();
        let phases =
            Family::<[(&'static str, &'static str); 1], Histogram>::new_with_constructor(|| {
                Histogram::new(BUCKETS)
            });
        let series = |result| attempts.get_or_create_owned(&[("result", result)]);
        let metrics = Self {
            delivered: series("delivered"),
            failed: ErrorKind::ALL.map(|kind| series(kind.as_str())),
            duration: Histogram::new(BUCKETS),
            phases: PHASES.map(|phase| phases.get_or_create_owned(&[("phase", phase)])),
            open: Gauge::default(),
        };
        registry.register(
            "webhook_attempts",
            "Attempts to deliver by webhook, by their result: delivered, or the kind of error",
            attempts,
        );
        registry.register(
            "webhook_attempt_duration_seconds",
            "How long an attempt to deliver by webhook took, connecting and reading included",
            metrics.duration.clone(),
        );
        registry.register(
            "webhook_phase_duration_seconds",
            "How long the phases of attempts took: looking up the name, connecting, the TLS handshake, \
             and from then on until the head of the answer had come",
            phases,
        );
        registry.register(
            "webhook_open_connections",
            "Connections to endpoints that are open, idle ones included",
            metrics.open.clone(),
        );
        metrics
    }

    /// Counts an attempt: delivered when there is no error.
    pub(super) fn observe(
        &self,
        error: Option<ErrorKind>,
        duration: Duration,
        timings: Option<&Timings>,
    ) {
        let timings = timings.copied().unwrap_or_default();
        let times = [timings.dns, timings.connect, timings.tls, timings.first_byte];
        for (histogram, time) in self.phases.iter().zip(times) {
            if let Some(time) = time {
                histogram.observe(time.as_secs_f64());
            }
        }
        let index = ErrorKind::ALL.iter().position(|kind| Some(*kind) == error);
        let counter = index.and_then(|index| self.failed.get(index)).unwrap_or(&self.delivered);
        counter.inc();
        self.duration.observe(duration.as_secs_f64());
    }

    /// The gauge of open connections.
    pub(super) fn open_gauge(&self) -> Gauge {
        self.open.clone()
    }
}
