//! Builds the components on the database and gives each what it works with.

use std::sync::Arc;

use futures::FutureExt;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio_util::sync::CancellationToken;

use crate::api::{self, Api};
use crate::channel::apart::Processes;
use crate::channel::{Channels, email, webhook};
use crate::dispatch::{self, Announced, Dispatch};
use crate::domain::trace::{NoSpans, SpanSink};
use crate::feed::Feed;
use crate::intake::{self, Intake, WeakIntake};
use crate::store::{self, CatalogCache, DatabaseClock, Store};
use crate::telemetry::traces;

use super::attempts::Manual;
use super::{Config, Error, random};

/// Everything between the database and the servers.
pub(super) struct Engine {
    pub(super) dispatch: Dispatch,
    pub(super) intake: Intake,
    pub(super) feed: Feed,
    pub(super) clock: Arc<DatabaseClock>,
    random: StdRng,
}

impl Engine {
    /// Starts all components.
    pub(super) async fn start(
        config: &Config,
        store: &Store,
        spans: &Arc<dyn SpanSink>,
        registry: &mut Registry,
    ) -> Result<Self, Error> {
        let mut random = random::generator()?;
        let clock = Arc::new(DatabaseClock::start(store).await?);
        let catalog = Arc::new(CatalogCache::default());
        let metrics = webhook::Metrics::new(registry.sub_registry_with_prefix("tidings"));
        let client = webhook::Client::new(&config.webhook, Arc::clone(&clock) as _, metrics)?;
        let tidings = registry.sub_registry_with_prefix("tidings");
        let mailer = email::Mailer::new(&config.email, Arc::clone(&clock) as _, tidings)?;
        let mut channels = Channels::new(client, mailer);
        if let Some(program) = &config.program {
            let (webhook, email) = (config.webhook.clone(), config.email.clone());
            let processes = Processes::new(program.clone(), webhook, email);
            channels = channels.with_processes(processes);
        }
        let parts = dispatch::Parts {
            store: store.clone(),
            clock: Arc::clone(&clock),
            catalog: Arc::clone(&catalog),
            channels: Arc::new(channels),
            spans: Arc::clone(spans),
            seed: random.next_u64(),
        };
        let dispatch = Dispatch::start(config.dispatch.clone(), parts, registry).await?;
        let parts = intake::Parts {
            store: store.clone(),
            clock: Arc::clone(&clock) as _,
            catalog,
            queue: dispatch.queue(),
            seed: random.next_u64(),
        };
        let intake = Intake::start(config.intake, parts, registry);
        dispatch.announce_by(announcer(intake.downgrade()));
        let feed = Feed::start(store, registry);
        Ok(Self { dispatch, intake, feed, clock, random })
    }

    /// The gRPC services; they take nothing new once `shutdown` is cancelled.
    pub(super) fn api(
        &mut self,
        config: &Config,
        store: &Store,
        spans: &Arc<dyn SpanSink>,
        shutdown: CancellationToken,
    ) -> Result<Api, api::Error> {
        let parts = api::Parts {
            store: store.clone(),
            clock: Arc::clone(&self.clock) as _,
            intake: self.intake.clone(),
            feed: self.feed.clone(),
            attempts: Arc::new(Manual::new(self.dispatch.attempts())),
            kick: Arc::new(self.dispatch.kick()),
            spans: Arc::clone(spans),
            // Keys and secrets are made from it: it has all of the randomness, not a short seed.
            random: StdRng::from_rng(&mut self.random),
            urls: config.webhook.url_admission(),
            look: config.email.look.clone(),
            sends_mail: config.email.sends(),
            shutdown,
        };
        Api::new(config.api.clone(), parts)
    }
}

/// Lets the engine emit, although it does not know the intake.
fn announcer(intake: WeakIntake) -> dispatch::Announcer {
    Box::new(move |event| {
        let intake = intake.upgrade();
        async move {
            let Some(intake) = intake else { return Announced::Later };
            match intake.announce(event).await {
                Ok(_) | Err(intake::Error::UnknownTenant) => Announced::Done,
                Err(error) => {
                    tracing::warn!(%error, "an event of the service itself waits to be emitted");
                    Announced::Later
                }
            }
        }
        .boxed()
    })
}

/// Opens the database with the schema that this version needs.
pub(super) async fn open(config: &store::Config) -> Result<Store, Error> {
    if config.database()?.embedded_file().is_some() {
        let steps = Store::migrate(config).await?;
        if !steps.is_empty() {
            tracing::info!(steps = steps.join(", "), "the database file was migrated");
        }
    }
    let store = Store::open(config).await?;
    store.check_schema().await?;
    let prepared = store.prepare_vault().await?;
    if let Some((path, id)) = prepared.made {
        tracing::info!(
            path = %path.display(), key.id = %id,
            "made a master key beside the database: keep a copy of it, apart from the database's \
             backups"
        );
    }
    if prepared.sealed > 0 {
        tracing::info!(rows = prepared.sealed, "secrets that stood in the clear are sealed now");
    }
    Ok(store)
}

/// Says how to get a first key, as long as there is none.
pub(super) async fn hint_first_key(store: &Store) -> Result<(), Error> {
    if store.list_keys(None, None, 1).await?.items.is_empty() {
        tracing::info!(
            "there is no operator key yet: make one with `tidings keys create --operator` and the \
             same --database-url"
        );
    }
    Ok(())
}

/// Says which rules are relaxed. (The client for webhooks itself tells of the networks.)
pub(super) fn announce_exceptions(config: &Config) {
    if config.api.tls.is_none() && !config.grpc_addr.ip().is_loopback() {
        tracing::warn!(
            grpc.addr = %config.grpc_addr,
            "gRPC is served in the clear: set grpc-tls-cert and grpc-tls-key, unless something in \
             front does TLS"
        );
    }
    if !config.email.sends() {
        tracing::info!("no mail is sent: smtp-url and mail-from are not set");
    }
    if config.webhook.allow_http {
        tracing::warn!("receivers without TLS may be called, because allow-http says so");
    }
}

/// Who takes spans: the exporter when it is configured, otherwise nobody.
pub(super) fn spans(
    config: Option<&traces::Config>,
    registry: &mut Registry,
) -> Result<(Arc<dyn SpanSink>, Option<traces::Exporter>), Error> {
    let Some(config) = config else {
        return Ok((Arc::new(NoSpans), None));
    };
    let (sink, exporter) = traces::start(config, registry.sub_registry_with_prefix("tidings"))?;
    Ok((Arc::new(sink), Some(exporter)))
}

pub(super) fn register_build_info(registry: &mut Registry) {
    let info = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("tidings_build", "The version that runs", info);
}
