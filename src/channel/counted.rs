//! What is counted by a gauge while it lives.

use prometheus_client::metrics::gauge::Gauge;

/// Counts one more while it lives.
#[derive(Debug)]
pub(crate) struct Counted(Gauge);

impl Counted {
    /// Begins to count.
    pub(crate) fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
