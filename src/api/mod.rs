//! Speaks gRPC: the six services of the contract, and health and reflection.
//!
//! A call passes the `layer` (does the method exist, may the key call it, is there room, is the
//! deadline ahead), then its service, which converts, asks the parts of the house and converts
//! back. Errors of every kind are `status::Failure`s until the last moment; only `status` makes a
//! [`tonic::Status`]. Types of the contract stay in this module.
//!
//! Everything has a limit: see [`Config`] and the constants here.

mod access;
mod attempts;
mod auth;
mod catalog;
mod context;
mod convert;
mod deliveries;
mod direct;
mod events;
mod layer;
mod listener;
mod mask;
mod paging;
pub mod proto;
mod rate;
mod reason;
mod status;
mod stream;
mod subscriptions;
mod suppressions;
mod tenants;
pub mod tls;
mod token;
mod told;
mod watch;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::{HealthReporter, HealthService};

use crate::domain::mail::Look;
use crate::domain::trace::SpanSink;
use crate::domain::{Clock, endpoint, payload};
use crate::feed::Feed;
use crate::intake::Intake;
use crate::store::Store;

pub use attempts::{AttemptError, Attempts, RetryResult, TestResult};
pub use reason::{Reason, errors_markdown};
pub use status::DOMAIN as ERROR_DOMAIN;

use auth::{Auth, Touches};
use context::Context;
use layer::{Gate, GateLayer};
use proto::catalog_service_server::CatalogServiceServer;
use proto::delivery_service_server::DeliveryServiceServer;
use proto::event_service_server::EventServiceServer;
use proto::subscription_service_server::SubscriptionServiceServer;
use proto::suppression_service_server::SuppressionServiceServer;
use proto::tenant_service_server::TenantServiceServer;
use rate::Rate;

/// Tells the janitor that there is something to do.
pub type Kick = Arc<dyn Fn() + Send + Sync>;

/// Most bytes of one message from a client: what most gRPC libraries send at most.
pub const MAX_REQUEST_BYTES: usize = 4 * 1024 * 1024;
/// Most bytes of one message to a client. Lists end far below; a batch of results may come near.
const MAX_RESPONSE_BYTES: usize = 16 * 1024 * 1024;
/// Bytes that a client may send ahead on one stream: a few large payloads.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
/// Bytes that a client may send ahead on one connection, which bounds what it can make us hold.
const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// Largest HTTP/2 frame: more than the default of 16 KiB, so that large messages cost fewer.
const FRAME_BYTES: u32 = 64 * 1024;
/// Most bytes of one request's headers: keys and traces take a few hundred.
const HEADER_BYTES: u32 = 16 * 1024;
/// Most streams that a client may reset before they were looked at (the "rapid reset" attack).
const MAX_PENDING_RESETS: usize = 32;
/// The services whose health is told, besides that of the whole ("").
pub const SERVICES: [&str; 7] = [
    "",
    "tidings.v1.CatalogService",
    "tidings.v1.DeliveryService",
    "tidings.v1.EventService",
    "tidings.v1.SubscriptionService",
    "tidings.v1.SuppressionService",
    "tidings.v1.TenantService",
];

/// The limits of the gRPC server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Most connections at the same time; further ones wait to be accepted.
    pub max_connections: usize,
    /// Most calls at the same time on one connection.
    pub max_streams_per_connection: u32,
    /// Most calls at the same time in all, streams not counted once they are open.
    pub max_requests: usize,
    /// Most open streams (`EmitStream`, `WatchDeliveries`) in all.
    pub max_streams: usize,
    /// Most calls per second of one key; every event of a batch or a stream counts as one.
    pub max_requests_per_second: u32,
    /// How long a client may take to begin to speak after it has connected.
    pub greeting_timeout: Duration,
    /// After this long without traffic a connection is asked whether it is still there.
    pub keepalive_interval: Duration,
    /// How long the answer may take; without one the connection ends.
    pub keepalive_timeout: Duration,
    /// After this long a connection is asked to be opened anew, so that clients spread over
    /// replicas; calls that are under way are finished.
    pub max_connection_age: Duration,
    /// Most bytes of an event's payload: the same as the intake's.
    pub max_payload_bytes: usize,
    /// Most subscriptions of one tenant.
    pub max_subscriptions_per_tenant: u32,
    /// The server's certificate; `None` for no TLS.
    pub tls: Option<tls::Config>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_connections: 10_000,
            max_streams_per_connection: 1_024,
            max_requests: 8_192,
            max_streams: 2_048,
            max_requests_per_second: 50_000,
            greeting_timeout: listener::GREETING_TIMEOUT,
            keepalive_interval: Duration::from_secs(30),
            keepalive_timeout: Duration::from_secs(20),
            max_connection_age: Duration::from_hours(1),
            max_payload_bytes: payload::DEFAULT_MAX_BYTES,
            max_subscriptions_per_tenant: 1_000,
            tls: None,
        }
    }
}

/// What the services need of the house.
pub struct Parts {
    /// The database.
    pub store: Store,
    /// The present.
    pub clock: Arc<dyn Clock>,
    /// Accepts events.
    pub intake: Intake,
    /// Tells of changes.
    pub feed: Feed,
    /// Makes the attempts that clients ask for.
    pub attempts: Arc<dyn Attempts>,
    /// Called after changes that deliveries are to follow. Must not block.
    pub kick: Kick,
    /// Takes the spans of emits.
    pub spans: Arc<dyn SpanSink>,
    /// Makes ids, keys, secrets and spans.
    pub random: StdRng,
    /// Judges URLs that are to be stored.
    pub urls: endpoint::Admission,
    /// How mails look, for previews.
    pub look: Look,
    /// Whether there is somewhere to send mail by.
    pub sends_mail: bool,
    /// Cancelled when nothing new is to be accepted.
    pub shutdown: CancellationToken,
}

/// The gRPC side of the service, ready to serve.
pub struct Api {
    config: Config,
    server: Server,
    context: Arc<Context>,
    touches: Touches,
    health: HealthReporter,
    closing: CancellationToken,
}

/// The server cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// The contract's descriptors cannot be served.
    #[error("the reflection service cannot be built")]
    Reflection(#[source] tonic_reflection::server::Error),
    /// The transport failed.
    #[error("the gRPC server failed")]
    Transport(#[source] tonic::transport::Error),
}

impl Api {
    /// Puts the services together. Nothing runs before [`Api::serve`].
    ///
    /// # Errors
    /// When the certificate cannot be used.
    pub fn new(config: Config, parts: Parts) -> Result<Self, Error> {
        let server = builder(&config)?;
        let rate = Rate::new(config.max_requests_per_second, layer::now());
        let (auth, touches) = Auth::new(parts.store.clone(), Arc::clone(&parts.clock), rate);
        let context = Context {
            store: parts.store,
            clock: parts.clock,
            intake: parts.intake,
            feed: parts.feed,
            attempts: parts.attempts,
            kick: parts.kick,
            spans: parts.spans,
            random: Mutex::new(parts.random),
            urls: parts.urls,
            look: parts.look,
            sends_mail: parts.sends_mail,
            auth: Arc::new(auth),
            streams: Arc::new(Semaphore::new(config.max_streams.min(Semaphore::MAX_PERMITS))),
            shutdown: parts.shutdown,
            max_payload_bytes: config.max_payload_bytes,
            max_subscriptions: config.max_subscriptions_per_tenant,
        };
        Ok(Self {
            config,
            server,
            context: Arc::new(context),
            touches,
            health: HealthReporter::new(),
            closing: CancellationToken::new(),
        })
    }

    /// Tells the health of the services, for whoever has more to say about it.
    pub fn health(&self) -> HealthReporter {
        self.health.clone()
    }

    /// Serves on `listener` until the shutdown's token is cancelled and every call has ended.
    ///
    /// When it is cancelled, the health turns to `NOT_SERVING`, nothing new is accepted, and streams
    /// end with `SHUTTING_DOWN`. There is no deadline here: who needs one drops the future.
    ///
    /// # Errors
    /// When the server cannot be built.
    pub async fn serve(self, listener: TcpListener) -> Result<(), Error> {
        let routes = self.routes()?;
        let events = self.events();
        let Self { config, server, context, touches, health, closing } = self;
        let shutdown = context.shutdown.clone();
        let connections = listener::connections(
            listener,
            config.max_connections,
            config.greeting_timeout,
            shutdown.clone(),
        );
        for service in SERVICES {
            health.set_service_status(service, ServingStatus::Serving).await;
        }
        let gate = Gate::new(
            Arc::clone(&context.auth),
            config.max_requests,
            shutdown.clone(),
            closing.clone(),
        );
        let signal = async move {
            shutdown.cancelled().await;
            for service in SERVICES {
                health.set_service_status(service, ServingStatus::NotServing).await;
            }
            closing.cancel();
        };
        let serving = server
            .layer(GateLayer { gate: Arc::new(gate), events })
            .add_routes(routes)
            .serve_with_incoming_shutdown(connections, signal);
        tokio::select! {
            served = serving => served.map_err(Error::Transport),
            // It ends only with the last Auth, which the context keeps until here.
            () = touches.run() => Ok(()),
        }
    }

    /// The service to which nearly all calls go.
    fn events(&self) -> EventServiceServer<events::Events> {
        EventServiceServer::new(events::Events(Arc::clone(&self.context)))
            .max_decoding_message_size(MAX_REQUEST_BYTES)
            .max_encoding_message_size(MAX_RESPONSE_BYTES)
    }

    /// All other services.
    fn routes(&self) -> Result<Routes, Error> {
        macro_rules! limited {
            ($server:ident, $service:expr) => {
                $server::new($service)
                    .max_decoding_message_size(MAX_REQUEST_BYTES)
                    .max_encoding_message_size(MAX_RESPONSE_BYTES)
            };
        }
        let context = || Arc::clone(&self.context);
        let health = HealthService::from_health_reporter(self.health.clone());
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(proto::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                // ErrorInfo, BadRequest, RetryInfo: so that tools can decode the details of errors.
                .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        };
        let subscriptions = subscriptions::Subscriptions(context());
        Ok(Routes::new(limited!(SubscriptionServiceServer, subscriptions))
            .add_service(limited!(SuppressionServiceServer, suppressions::Suppressions(context())))
            .add_service(limited!(DeliveryServiceServer, deliveries::Deliveries(context())))
            .add_service(limited!(CatalogServiceServer, catalog::Catalog(context())))
            .add_service(limited!(TenantServiceServer, tenants::Tenants(context())))
            .add_service(tonic_health::pb::health_server::HealthServer::new(health))
            .add_service(reflection().build_v1().map_err(Error::Reflection)?)
            .add_service(reflection().build_v1alpha().map_err(Error::Reflection)?))
    }
}

/// A server on which nothing is left unlimited.
///
/// There is no grace period after the connection's age: with one, tonic 0.14 cuts the connection
/// off instead of asking for a new one. Calls that are under way end by themselves, by their
/// deadline, or by the shutdown.
fn builder(config: &Config) -> Result<Server, tls::Error> {
    let server = Server::builder()
        .max_concurrent_streams(config.max_streams_per_connection)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .http2_max_header_list_size(HEADER_BYTES)
        .http2_max_pending_accept_reset_streams(Some(MAX_PENDING_RESETS))
        .http2_keepalive_interval(Some(config.keepalive_interval))
        .http2_keepalive_timeout(Some(config.keepalive_timeout))
        .max_connection_age(config.max_connection_age);
    match &config.tls {
        Some(tls) => tls.apply(server, config.greeting_timeout),
        None => Ok(server),
    }
}
