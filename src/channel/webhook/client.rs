//! The client that makes attempts.
//!
//! Guarantees: whatever the endpoint does, an attempt ends within its timeout, connecting and
//! reading included, and ends as a [`Report`].
//!
//! Pooling is only an optimisation. Its price is a request that meets the endpoint's hang-up on an
//! idle connection: it fails as `Protocol` and is retried by the policy, never silently, because
//! nobody can tell whether the endpoint has seen it. A short idle timeout makes that rare.

use std::fmt;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::Sleep;

use super::connector::{Connector, Tcp};
use super::failure::Failed;
use super::phases::Watch;
use super::resolver::Resolver;
use super::response::{self, MAX_HEADER_BYTES};
use super::urls::Urls;
use super::{Config, ConfigError, Metrics, request, tls};
use crate::domain::attempt::{Outcome, Report, Task};
use crate::domain::channel::{MAX_TIMEOUT, WebhookChannel};
use crate::domain::{Clock, Timestamp};

/// What a stream of HTTP/2 may send unread: an answer that is read at all.
const STREAM_WINDOW_BYTES: u32 = 64 * 1_024;
/// What a connection of HTTP/2 may send unread, over all streams.
const CONNECTION_WINDOW_BYTES: u32 = 1_024 * 1_024;
/// How often a busy connection of HTTP/2 is asked whether it lives, and how long it may take to
/// say so: a dead one would fail every attempt until the kernel notices.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// The one client for webhooks. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    http: legacy::Client<Connector, Full<Bytes>>,
    urls: Urls,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("rules", &self.shared.urls.rules()).finish_non_exhaustive()
    }
}

impl Client {
    /// Builds the client. Reads certificates from files, and connects to nothing.
    ///
    /// # Errors
    /// When `ca_file` is no good.
    pub fn new(
        config: &Config,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
    ) -> Result<Self, ConfigError> {
        Self::with_resolver(config, clock, metrics, Resolver::system())
    }

    pub(super) fn with_resolver(
        config: &Config,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
        resolver: Resolver,
    ) -> Result<Self, ConfigError> {
        for range in &config.allow_cidrs {
            tracing::warn!(network = %range, "receivers in a closed network may be called, because allow-cidr says so");
        }
        let tcp = Tcp::new(config.guard(), resolver, metrics.open_gauge());
        let rules = config.url_rules();
        let connector = Connector::new(tls::client_config(config.ca_file.as_deref())?, tcp, rules);
        let http = legacy::Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(config.pool_idle_timeout)
            .pool_max_idle_per_host(config.pool_idle_per_host)
            .retry_canceled_requests(false)
            .http1_max_buf_size(MAX_HEADER_BYTES)
            .http2_max_header_list_size(u32::try_from(MAX_HEADER_BYTES).unwrap_or(u32::MAX))
            .http2_initial_stream_window_size(STREAM_WINDOW_BYTES)
            .http2_initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .http2_keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .build(connector);
        Ok(Self { shared: Arc::new(Shared { http, urls: Urls::new(rules), clock, metrics }) })
    }

    /// The present, as the client's clock has it.
    pub(in crate::channel) fn now(&self) -> Timestamp {
        self.shared.clock.now()
    }

    /// Makes one attempt to deliver `task` as `settings`, those of its subscription, say.
    pub async fn attempt(&self, task: &Task, settings: &WebhookChannel) -> Report {
        let start_time = self.now();
        let mut report = Report::new(Outcome::Delivered, start_time);
        if let Err(failed) = self.deliver(task, settings, &mut report).await {
            report.outcome = failed.outcome;
            report.failure = Some(failed.failure);
        }
        report.duration = self.now().since(start_time);
        let error = report.failure.as_ref().map(|failure| failure.kind);
        self.shared.metrics.observe(error, report.duration, report.timings.as_ref());
        report
    }

    async fn deliver(
        &self,
        task: &Task,
        settings: &WebhookChannel,
        report: &mut Report,
    ) -> Result<(), Failed> {
        let limit = settings.timeout.min(MAX_TIMEOUT);
        let mut deadline = pin!(tokio::time::sleep(limit));
        let mut request = request::build(task, settings, &self.shared.urls, report.start_time)?;
        report.request_headers = request::recorded(request.headers(), settings);
        let watch = Watch::on(&mut request, &self.shared.clock);
        let answer = watch.over(self.send(request, deadline.as_mut())).await;
        let head = answer.as_ref().and_then(|answer| answer.as_ref().ok());
        report.timings = Some(watch.timings(self.now(), head));
        let failed = match answer {
            Some(Ok(answer)) => return self.judge(answer, deadline, &watch, report).await,
            Some(Err(error)) => Failed::from_client(&error),
            None => Failed::timeout(limit, watch.phase()),
        };
        watch.retire();
        Err(failed)
    }

    /// `None` when the deadline comes first. What was under way is then dropped, and with it the
    /// connection (HTTP/1.1) or the stream (HTTP/2, whose connection gets no more requests).
    async fn send(
        &self,
        request: Request<Full<Bytes>>,
        deadline: Pin<&mut Sleep>,
    ) -> Option<Result<Response<Incoming>, legacy::Error>> {
        tokio::select! {
            biased;
            () = deadline => None,
            answer = self.shared.http.request(request) => Some(answer),
        }
    }

    async fn judge(
        &self,
        answer: Response<Incoming>,
        deadline: Pin<&mut Sleep>,
        watch: &Watch,
        report: &mut Report,
    ) -> Result<(), Failed> {
        let status = answer.status();
        let retry_after = response::retry_after(&answer, self.now());
        report.http_status = Some(status.as_u16());
        report.response_headers = response::recorded(answer.headers());
        if !response::within_limits(answer.headers()) {
            watch.retire();
            return Err(Failed::too_large());
        }
        let is_ambiguous = response::is_ambiguous(answer.headers());
        let body = response::read(answer.into_body(), deadline).await;
        if is_ambiguous || !body.is_whole {
            watch.retire();
        }
        report.response_body = body.kept;
        if status.is_success() { Ok(()) } else { Err(Failed::status(status, retry_after)) }
    }
}
