//! Traces: finished spans on their way to a collector, with OTLP over gRPC.
//!
//! A span keeps the ids, times and parent that it was recorded with, so that a delivery's attempts
//! stand in the trace of the Emit, whichever process made them. Recording never blocks: spans wait
//! in a bounded queue, and when the collector does not keep up, new ones are counted and dropped.

use std::borrow::Cow;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter, SpanLinks};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;
use tonic::transport::{ClientTlsConfig, Endpoint};
use url::Url;

use crate::domain::Timestamp;
use crate::domain::trace::{FinishedSpan, SpanSink};

use super::Error;

/// Spans that wait to be sent. A span is some hundred bytes.
const QUEUE: usize = 8_192;
/// Spans of one request to the collector: OTLP's usual batch.
const BATCH: usize = 512;
/// How long a span waits for company.
const DELAY: Duration = Duration::from_secs(2);
/// How long the collector may take for a batch, retries included.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Where traces are sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The collector's gRPC endpoint.
    pub endpoint: Url,
    /// The share of sampled traces that is sent, from 0.0 to 1.0.
    pub sample_ratio: f64,
}

/// Takes spans for the collector.
#[derive(Clone, Debug)]
pub struct Sink {
    queue: mpsc::Sender<SpanData>,
    threshold: u64,
    scope: InstrumentationScope,
    dropped: Counter,
}

/// The task that sends spans.
#[derive(Debug)]
pub struct Exporter {
    task: JoinHandle<()>,
    closing: CancellationToken,
}

/// Starts to send spans as `config` says.
///
/// # Errors
/// When the endpoint cannot be used. A collector that does not answer is no error.
pub fn start(config: &Config, registry: &mut Registry) -> Result<(Sink, Exporter), Error> {
    let exporter = connect(config)?;
    Ok(start_with(exporter, config.sample_ratio, registry))
}

fn connect(config: &Config) -> Result<opentelemetry_otlp::SpanExporter, Error> {
    let invalid = |error: &dyn std::error::Error| Error::Traces(error.to_string());
    let mut endpoint = Endpoint::from_shared(config.endpoint.to_string())
        .map_err(|error| invalid(&error))?
        .connect_timeout(TIMEOUT)
        .timeout(TIMEOUT);
    if config.endpoint.scheme() == "https" {
        let tls = ClientTlsConfig::new().with_enabled_roots();
        endpoint = endpoint.tls_config(tls).map_err(|error| invalid(&error))?;
    }
    let mut exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_channel(endpoint.connect_lazy())
        .with_timeout(TIMEOUT)
        .build()
        .map_err(|error| invalid(&error))?;
    exporter.set_resource(
        &Resource::builder()
            .with_service_name("tidings")
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build(),
    );
    Ok(exporter)
}

fn start_with<E: SpanExporter + 'static>(
    exporter: E,
    sample_ratio: f64,
    registry: &mut Registry,
) -> (Sink, Exporter) {
    let dropped = Counter::default();
    registry.register(
        "trace_spans_dropped",
        "Spans that were not sent because the collector did not keep up",
        dropped.clone(),
    );
    let (queue, spans) = mpsc::channel(QUEUE);
    let scope =
        InstrumentationScope::builder("tidings").with_version(env!("CARGO_PKG_VERSION")).build();
    let sink = Sink { queue, threshold: threshold(sample_ratio), scope, dropped: dropped.clone() };
    let closing = CancellationToken::new();
    let task = tokio::spawn(send(exporter, spans, dropped, closing.clone()));
    (sink, Exporter { task, closing })
}

impl Exporter {
    /// Takes nothing more, and waits until everything that was recorded is sent, or `deadline`.
    pub async fn finish(mut self, deadline: Instant) {
        self.closing.cancel();
        if time::timeout_at(deadline, &mut self.task).await.is_err() {
            self.task.abort();
            tracing::warn!("the collector did not take the last traces in time");
        }
    }
}

impl SpanSink for Sink {
    fn is_enabled(&self) -> bool {
        true
    }

    fn record(&self, span: FinishedSpan) {
        // The decision rests on the trace's id alone, as OpenTelemetry's TraceIdRatioBased does:
        // every replica, and every other service with that sampler, decides the same.
        let is_chosen =
            (span.context.trace_id & u128::from(u64::MAX >> 1)) < u128::from(self.threshold);
        if span.context.sampled && is_chosen && self.queue.try_send(self.data(span)).is_err() {
            self.dropped.inc();
        }
    }
}

/// Ids whose low 63 bits are below this are sent.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "the ratio is between 0 and 1, and a share needs no more than 52 bits"
)]
fn threshold(ratio: f64) -> u64 {
    (ratio.clamp(0.0, 1.0) * (1_u64 << 63) as f64) as u64
}

impl Sink {
    fn data(&self, span: FinishedSpan) -> SpanData {
        let context = SpanContext::new(
            TraceId::from(span.context.trace_id),
            SpanId::from(span.context.span_id),
            TraceFlags::SAMPLED,
            false,
            TraceState::NONE,
        );
        let attributes =
            span.attributes.into_iter().map(|(name, value)| KeyValue::new(name, value)).collect();
        SpanData {
            span_context: context,
            parent_span_id: span.parent_span_id.map_or(SpanId::INVALID, SpanId::from),
            // An Emit answers a caller in another process; an attempt belongs to an Emit, which
            // may be one of this process.
            parent_span_is_remote: span.parent_span_id.is_some() && !span.is_client,
            span_kind: if span.is_client { SpanKind::Client } else { SpanKind::Server },
            name: Cow::Borrowed(span.name),
            start_time: system_time(span.start_time),
            end_time: system_time(span.end_time),
            attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: span.error.map_or(Status::Unset, Status::error),
            instrumentation_scope: self.scope.clone(),
        }
    }
}

fn system_time(instant: Timestamp) -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(u64::try_from(instant.as_micros()).unwrap_or(0))
}

/// Sends batches until `closing`, and then what is left.
async fn send<E: SpanExporter>(
    exporter: E,
    mut spans: mpsc::Receiver<SpanData>,
    dropped: Counter,
    closing: CancellationToken,
) {
    let mut is_failing = false;
    while let Some(batch) = next_batch(&mut spans, &closing).await {
        let count = batch.len() as u64;
        let result = time::timeout(TIMEOUT, exporter.export(batch)).await;
        let failure = failure(result);
        if let Some(error) = &failure {
            dropped.inc_by(count);
            if !is_failing {
                tracing::warn!(error, "traces cannot be sent; the next success will be logged");
            }
        } else if is_failing {
            tracing::info!("traces are sent again");
        }
        is_failing = failure.is_some();
    }
    let _ = exporter.shutdown();
}

/// What has gathered [`DELAY`] after the first span, or is left when closing; `None` at the end.
async fn next_batch(
    spans: &mut mpsc::Receiver<SpanData>,
    closing: &CancellationToken,
) -> Option<Vec<SpanData>> {
    let mut batch = Vec::with_capacity(BATCH);
    let gather = async {
        batch.push(spans.recv().await?);
        // What was received before the delay is over stays in the batch.
        let _ = time::timeout(DELAY, fill(spans, &mut batch)).await;
        Some(())
    };
    if let Some(gathered) = closing.run_until_cancelled(gather).await {
        return gathered.map(|()| batch);
    }
    spans.close();
    fill(spans, &mut batch).await;
    (!batch.is_empty()).then_some(batch)
}

/// Fills the batch up, or takes everything that is left of a closed queue.
async fn fill(spans: &mut mpsc::Receiver<SpanData>, batch: &mut Vec<SpanData>) {
    while batch.len() < BATCH {
        let room = BATCH - batch.len();
        if spans.recv_many(batch, room).await == 0 {
            break;
        }
    }
}

fn failure(result: Result<OTelSdkResult, time::error::Elapsed>) -> Option<String> {
    match result {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(elapsed) => Some(elapsed.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use crate::domain::trace::TraceContext;

    use super::*;

    #[derive(Clone, Debug, Default)]
    struct Collector(Arc<Mutex<Vec<SpanData>>>);

    impl SpanExporter for Collector {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            self.0.lock().unwrap().extend(batch);
            Ok(())
        }
    }

    fn span(trace_id: u128, sampled: bool) -> FinishedSpan {
        FinishedSpan {
            name: "deliver webhook",
            context: TraceContext { trace_id, span_id: 7, sampled },
            parent_span_id: Some(3),
            is_client: true,
            start_time: Timestamp::from_micros(1_000_001),
            end_time: Timestamp::from_micros(2_000_002),
            error: Some("refused".into()),
            attributes: vec![("http.response.status_code", "503".into())],
        }
    }

    async fn sent(ratio: f64, spans: Vec<FinishedSpan>) -> Vec<SpanData> {
        let collector = Collector::default();
        let mut registry = Registry::default();
        let (sink, exporter) = start_with(collector.clone(), ratio, &mut registry);
        for span in spans {
            sink.record(span);
        }
        #[expect(clippy::disallowed_methods, reason = "a deadline that is far away")]
        exporter.finish(Instant::now() + TIMEOUT).await;
        drop(sink);
        let sent = collector.0.lock().unwrap();
        sent.clone()
    }

    #[tokio::test]
    async fn a_span_keeps_its_ids_times_and_status() {
        let sent = sent(1.0, vec![span(0xabc, true)]).await;
        let [data] = sent.as_slice() else { panic!("one span, not {}", sent.len()) };
        assert_eq!(data.span_context.trace_id(), TraceId::from(0xabc_u128));
        assert_eq!(data.span_context.span_id(), SpanId::from(7_u64));
        assert_eq!(data.parent_span_id, SpanId::from(3_u64));
        assert_eq!(data.span_kind, SpanKind::Client);
        assert_eq!(data.start_time, UNIX_EPOCH + Duration::from_micros(1_000_001));
        assert_eq!(data.end_time, UNIX_EPOCH + Duration::from_micros(2_000_002));
        assert_eq!(data.status, Status::error("refused"));
        assert_eq!(data.attributes, [KeyValue::new("http.response.status_code", "503")]);
    }

    #[tokio::test]
    async fn only_sampled_and_chosen_traces_are_sent() {
        assert!(sent(1.0, vec![span(1, false)]).await.is_empty());
        assert_eq!(sent(1.0, vec![span(u128::MAX, true)]).await.len(), 1);
        assert!(sent(0.0, vec![span(1, true)]).await.is_empty());
        let half = vec![span(1, true), span(u128::from(u64::MAX >> 1), true)];
        assert_eq!(sent(0.5, half).await.len(), 1);
    }

    #[tokio::test]
    async fn a_collector_that_hangs_blocks_nobody() {
        #[derive(Debug)]
        struct Hangs;
        impl SpanExporter for Hangs {
            async fn export(&self, _batch: Vec<SpanData>) -> OTelSdkResult {
                std::future::pending().await
            }
        }
        let mut registry = Registry::default();
        let (sink, exporter) = start_with(Hangs, 1.0, &mut registry);
        // Nothing is received while this loop holds the only thread.
        for _ in 0..QUEUE + 10 {
            sink.record(span(1, true));
        }
        assert_eq!(sink.dropped.get(), 10);
        #[expect(clippy::disallowed_methods, reason = "a deadline that has passed")]
        exporter.finish(Instant::now()).await;
    }
}
