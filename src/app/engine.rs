//! Builds the components on the database and gives each what it works with.

use std::sync::Arc;

use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio_util::sync::CancellationToken;

use crate::api::{self, Api};
use crate::channel::{Channels, webhook};
use crate::dispatch::{self, Dispatch};
use crate::domain::trace::{NoSpans, SpanSink};
use crate::feed::Feed;
use crate::intake::{self, Intake};
use crate::store::{self, CatalogCache, DatabaseClock, Store};
use crate::telemetry::traces;

use super::attempts::Manual;
use super::{Config, Error, random};

/// Everything between the database and the servers.
pub(super) struct Engine {
    pub(super) dispatch: Dispatch,
    pub(super) intake: Intake,
    pub(super) feed: Feed,
    clock: Arc<DatabaseClock>,
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
        let parts = dispatch::Parts {
            store: store.clone(),
            clock: Arc::clone(&clock),
            catalog: Arc::clone(&catalog),
            channels: Arc::new(Channels::new(client)),
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
    ) -> Api {
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
            urls: config.webhook.url_rules(),
            shutdown,
        };
        Api::new(config.api.clone(), parts)
    }
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

/// Says which rules for receivers are relaxed. (The client itself tells of the networks.)
pub(super) fn announce_exceptions(config: &webhook::Config) {
    if config.allow_http {
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
