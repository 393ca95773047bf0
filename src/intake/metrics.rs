//! What intake counts. Every series exists from the start, at zero.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::{Accepted, Error};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Debug)]
pub(super) struct Metrics {
    accepted: Counter,
    duplicates: Counter,
    deliveries: Counter,
    refused: Family<ReasonLabel, Counter>,
    judged_again: Counter,
    emit_seconds: Histogram,
    batch_size: Histogram,
}

const REASONS: [&str; 9] = [
    "invalid",
    "unknown_tenant",
    "key_reused",
    "overloaded",
    "shutting_down",
    "deadline_exceeded",
    "unavailable",
    "internal",
    "storage_full",
];

const fn reason(error: &Error) -> &'static str {
    match error {
        Error::Invalid(_) => REASONS[0],
        Error::UnknownTenant => REASONS[1],
        Error::KeyReused => REASONS[2],
        Error::Overloaded => REASONS[3],
        Error::ShuttingDown => REASONS[4],
        Error::DeadlineExceeded => REASONS[5],
        Error::Unavailable => REASONS[6],
        Error::Internal => REASONS[7],
        Error::StorageFull => REASONS[8],
    }
}

impl Metrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            accepted: Counter::default(),
            duplicates: Counter::default(),
            deliveries: Counter::default(),
            refused: Family::default(),
            judged_again: Counter::default(),
            emit_seconds: Histogram::new(exponential_buckets(0.000_25, 2.0, 16)),
            batch_size: Histogram::new(exponential_buckets(1.0, 2.0, 10)),
        };
        registry.register(
            "tidings_events_accepted",
            "Events that were committed and acknowledged",
            metrics.accepted.clone(),
        );
        registry.register(
            "tidings_events_duplicate",
            "Requests that repeated an earlier one by their idempotency key",
            metrics.duplicates.clone(),
        );
        registry.register(
            "tidings_deliveries_created",
            "Deliveries of accepted events",
            metrics.deliveries.clone(),
        );
        registry.register(
            "tidings_events_refused",
            "Events that were not accepted, by reason",
            metrics.refused.clone(),
        );
        registry.register(
            "tidings_events_judged_again",
            "Events whose JSON Schema was changed while they waited for their commit",
            metrics.judged_again.clone(),
        );
        registry.register(
            "tidings_emit_duration_seconds",
            "From the request to its acknowledgement",
            metrics.emit_seconds.clone(),
        );
        registry.register(
            "tidings_emit_batch_size",
            "Events per transaction",
            metrics.batch_size.clone(),
        );
        for reason in REASONS {
            drop(metrics.refused.get_or_create(&ReasonLabel { reason }));
        }
        metrics
    }

    pub(super) fn emitted(&self, result: Result<&Accepted, &Error>, duration: Duration) {
        match result {
            Ok(accepted) if accepted.duplicate => {
                self.duplicates.inc();
            }
            Ok(accepted) => {
                self.accepted.inc();
                self.deliveries.inc_by(u64::from(accepted.delivery_count));
                self.emit_seconds.observe(duration.as_secs_f64());
            }
            Err(error) => {
                self.refused.get_or_create(&ReasonLabel { reason: reason(error) }).inc();
            }
        }
    }

    pub(super) fn judged_again(&self, count: u64) {
        self.judged_again.inc_by(count);
    }

    pub(super) fn batch(&self, size: usize) {
        self.batch_size.observe(f64::from(u32::try_from(size).unwrap_or(u32::MAX)));
    }
}
