//! How fast: many events from many callers at once, each acknowledged on disk and delivered.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;

use super::super::Error;
use super::super::client::Client;
use super::super::output::time;
use super::scene::BURST_TYPE;
use crate::api::proto::{EmitRequest, emit_request};
use crate::domain::Timestamp;

/// Callers that wait for an answer before they emit the next event.
pub(super) const CALLERS: usize = 64;
/// After this long no caller begins another event: a slow machine gets a shorter burst.
const TIME_LIMIT: Duration = Duration::from_secs(4);

/// What came of the callers.
#[derive(Debug)]
pub(super) struct Accepted {
    /// When the first event was emitted.
    pub(super) start: Timestamp,
    /// How long it took until the last answer.
    pub(super) duration: Duration,
    /// How long each answer took, the shortest first.
    latencies: Vec<Duration>,
}

impl Accepted {
    /// How many events were accepted.
    pub(super) fn count(&self) -> usize {
        self.latencies.len()
    }

    /// The latency that so many of 100 answers did not exceed.
    pub(super) fn percentile(&self, percent: usize) -> Duration {
        let index = (self.latencies.len() * percent / 100).min(self.latencies.len().max(1) - 1);
        self.latencies.get(index).copied().unwrap_or_default()
    }
}

/// Emits `count` events from [`CALLERS`] callers.
///
/// # Errors
/// When the service refuses one.
pub(super) async fn emit(client: &Client, count: usize) -> Result<Accepted, Error> {
    let start = time::now();
    let next = Arc::new(AtomicUsize::new(0));
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS.min(count) {
        callers.spawn(call(client.clone(), Arc::clone(&next), count, start));
    }
    let mut latencies = Vec::with_capacity(count);
    while let Some(caller) = callers.join_next().await {
        latencies.extend(caller.map_err(|error| Error::failure(error.to_string()))??);
    }
    let duration = time::now().since(start);
    latencies.sort_unstable();
    Ok(Accepted { start, duration, latencies })
}

async fn call(
    client: Client,
    next: Arc<AtomicUsize>,
    count: usize,
    start: Timestamp,
) -> Result<Vec<Duration>, Error> {
    let mut events = client.events();
    let mut latencies = Vec::new();
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let begin = time::now();
        if number >= count || begin.since(start) > TIME_LIMIT {
            return Ok(latencies);
        }
        let data = format!(r#"{{"meter":"api_calls","number":{number}}}"#);
        events
            .emit(EmitRequest {
                r#type: BURST_TYPE.into(),
                payload: Some(emit_request::Payload::DataJson(data)),
                ..EmitRequest::default()
            })
            .await?;
        latencies.push(time::now().since(begin));
    }
}

/// So many per second.
pub(super) fn rate(count: usize, duration: Duration) -> u64 {
    let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX).max(1);
    u64::try_from(count).unwrap_or(u64::MAX).saturating_mul(1_000_000) / micros
}

/// `12,345`.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_percentiles_are_right_at_the_edges() {
        assert_eq!(rate(2_000, Duration::from_millis(500)), 4_000);
        assert_eq!(rate(1, Duration::ZERO), 1_000_000);
        assert_eq!(["1", "12,345", "1,000,000"], [1, 12_345, 1_000_000].map(grouped));
        let latencies = (1..=100).map(Duration::from_millis).collect();
        let some = Accepted { start: Timestamp::default(), duration: Duration::ZERO, latencies };
        assert_eq!(some.percentile(50), Duration::from_millis(51));
        assert_eq!(some.percentile(100), Duration::from_millis(100));
        let none = Accepted { latencies: Vec::new(), ..some };
        assert_eq!(none.percentile(99), Duration::ZERO);
    }
}
