//! What a work needs, set up: a database, the service on it, tenants with endpoints, the load.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidings::api::proto::subscription::Channel as To;
use tidings::api::proto::{EmailChannel, EmitRequest, WebhookChannel, emit_request};

use crate::backlog;
use crate::database::Database;
use crate::emit::{Emitter, Source, payload};
use crate::options::{Kind, Options};
use crate::receiver::{Receiver, Silent};
use crate::service::{self, Service};
use crate::{Error, Result};

/// Endpoints that never answer, of one tenant: the good one's own tenant gets the first of them.
const SILENT_PER_TENANT: usize = 100;
/// Events that are emitted before anything is measured: connections and statements are made ready.
const WARM_UP_EVENTS: usize = 500;
/// Events that each endpoint that never answers has waiting from the start: more than may be under
/// way to it, so that it holds all that one endpoint can hold.
const SILENT_BURST: usize = 20;
/// After this long without an arrival, what has not come counts as lost. Longer than any attempt, lease
/// or turn takes.
pub(crate) const STALL: Duration = Duration::from_mins(5);
/// How long it may take until every endpoint that never answers has been called.
const SILENT_PATIENCE: Duration = Duration::from_secs(30);

/// Who takes part.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Setup {
    pub(crate) tenants: usize,
    /// Good endpoints of each tenant.
    pub(crate) endpoints: usize,
    /// Endpoints that never answer.
    pub(crate) silent: usize,
    /// Deliveries to these that are due from the start.
    pub(crate) backlog: usize,
    /// Whether the good endpoints are recipients of mail.
    pub(crate) is_mail: bool,
}

/// Everything, running.
pub(crate) struct Stage {
    pub(crate) database: Database,
    pub(crate) service: Service,
    pub(crate) receiver: Receiver,
    pub(crate) silent: Silent,
    pub(crate) emitter: Emitter,
    /// The tenants with good endpoints.
    pub(crate) tenants: Arc<[String]>,
    /// The good endpoints' subscriptions.
    pub(crate) subscriptions: Vec<String>,
    /// The tenants with endpoints that never answer.
    pub(crate) silent_tenants: Arc<[String]>,
    /// Deliveries to good endpoints before the measured ones.
    pub(crate) warm_up: usize,
}

impl Stage {
    pub(crate) async fn set(
        setup: Setup,
        kind: Kind,
        options: &Options,
        folder: &Path,
        name: &str,
    ) -> Result<Self> {
        let database = Database::fresh(kind, options, folder, name).await?;
        let key = service::prepare(&options.binary, &database.url).await?;
        let receiver = Receiver::start(setup.is_mail).await?;
        let silent = Silent::start(setup.silent).await?;
        let relay = setup.is_mail.then_some(receiver.address);
        let mut service = Service::start(&options.binary, &database.url, &key, relay).await?;
        let (tenants, subscriptions) = good(setup, options, &service, &receiver).await?;
        let silent_tenants = unanswering(&service, &silent, &tenants).await?;
        let mut emitter = service.emitter().await?;
        if setup.backlog > 0 {
            templates(&emitter, &silent_tenants).await?;
            service.stop().await?;
            backlog::seed(&database, setup.backlog).await?;
            service = Service::start(&options.binary, &database.url, &key, relay).await?;
            emitter = service.emitter().await?;
        }
        let mut stage = Self {
            database,
            service,
            receiver,
            silent,
            emitter,
            tenants,
            subscriptions,
            silent_tenants,
            warm_up: 0,
        };
        stage.warm_up(setup, options).await?;
        if setup.silent > 0 && setup.backlog == 0 {
            stage.burst(setup.silent).await?;
        }
        if setup.silent > 0 {
            stage.wait_silent(setup.silent).await?;
        }
        Ok(stage)
    }

    /// A source of events for the good endpoints.
    pub(crate) fn source(&self, types: usize, label: &'static str) -> Source {
        Source { tenants: Arc::clone(&self.tenants), prefix: "bench", types, label }
    }

    async fn warm_up(&mut self, setup: Setup, options: &Options) -> Result<()> {
        let count = WARM_UP_EVENTS.min(options.scale().events / 4).max(self.tenants.len());
        let source = self.source(1, "warm");
        self.warm_up = self.emitter.closed(&source, count, 1).await?.len() * setup.endpoints;
        self.receiver.wait(self.warm_up, STALL).await;
        match self.open().await? {
            0 => Ok(()),
            open => Err(format!("{open} deliveries of the warm-up have not ended").into()),
        }
    }

    /// Waits until all deliveries to good endpoints are recorded as ended; gives how many never were.
    pub(crate) async fn open(&self) -> Result<usize> {
        self.database.open_deliveries(&self.tenants, &self.subscriptions).await
    }

    /// Gives every endpoint that never answers more than it can have under way.
    async fn burst(&self, silent: usize) -> Result<()> {
        let source = Source {
            tenants: Arc::clone(&self.silent_tenants),
            prefix: "silent.all",
            types: 1,
            label: "burst",
        };
        let tenants = silent.div_ceil(SILENT_PER_TENANT);
        self.emitter.closed(&source, SILENT_BURST * tenants, 1).await?;
        Ok(())
    }

    /// Waits until each endpoint that never answers has been called.
    async fn wait_silent(&self, wanted: usize) -> Result<()> {
        let begin = Instant::now();
        while self.silent.called() < wanted {
            if begin.elapsed() > SILENT_PATIENCE {
                let called = self.silent.called();
                return Err(format!("{called} of {wanted} silent endpoints were called").into());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Checks that the features were on, for so many deliveries, and removes everything.
    pub(crate) async fn strike(self, deliveries: Option<usize>) -> Result<()> {
        if self.receiver.unsigned() > 0 {
            return Err("requests came without a signature".into());
        }
        let is_orderly = self.silent_tenants.is_empty();
        if is_orderly {
            self.service.stop().await?;
        } else {
            self.service.kill().await?;
        }
        if let Some(deliveries) = deliveries {
            let count = self.warm_up + deliveries;
            self.database.check_complete(&self.tenants, &self.subscriptions, count).await?;
        }
        self.database.remove().await
    }
}

/// Tenants with good endpoints, and the ids of their subscriptions.
async fn good(
    setup: Setup,
    options: &Options,
    service: &Service,
    receiver: &Receiver,
) -> Result<(Arc<[String]>, Vec<String>)> {
    let channel = service.connect().await?;
    let (mut tenants, mut subscriptions) = (Vec::new(), Vec::new());
    for tenant in 0..setup.tenants {
        let id = service.create_tenant(&channel, &format!("Tenant {tenant}")).await?;
        for _ in 0..setup.endpoints {
            let webhook = WebhookChannel {
                url: receiver.url(subscriptions.len()),
                // 0 stands for the default.
                max_in_flight: options.in_flight.unwrap_or_default(),
                ..WebhookChannel::default()
            };
            let to = if setup.is_mail { To::Email(mail()) } else { To::Webhook(webhook) };
            let types = vec!["bench.*".to_owned()];
            subscriptions.push(service.subscribe(&channel, &id, types, to).await?);
        }
        tenants.push(id);
    }
    Ok((tenants.into(), subscriptions))
}

/// Mail whose subject names the event, so that the receiver knows it.
fn mail() -> EmailChannel {
    EmailChannel {
        recipients: vec!["bench@example.com".into()],
        template: "{% block subject %}{{ event.id }}{% endblock %}".into(),
        ..EmailChannel::default()
    }
}

/// Subscribes the endpoints that never answer: to a common type, and each to one of its own.
async fn unanswering(
    service: &Service,
    silent: &Silent,
    tenants: &[String],
) -> Result<Arc<[String]>> {
    let channel = service.connect().await?;
    let mut ids: Vec<String> = Vec::new();
    for (number, url) in silent.urls().into_iter().enumerate() {
        if number % SILENT_PER_TENANT == 0 {
            ids.push(match tenants.first() {
                Some(first) if number == 0 => first.clone(),
                _ => service.create_tenant(&channel, &format!("Silent {number}")).await?,
            });
        }
        let tenant = &ids[number / SILENT_PER_TENANT];
        let types =
            vec!["silent.all.*".to_owned(), format!("silent.t{}", number % SILENT_PER_TENANT)];
        let webhook = WebhookChannel { url, ..WebhookChannel::default() };
        service.subscribe(&channel, tenant, types, To::Webhook(webhook)).await?;
    }
    Ok(ids.into())
}

/// One delivery for each endpoint that never answers, to be made an hour from now: what a backlog is
/// copied from.
async fn templates(emitter: &Emitter, tenants: &[String]) -> Result<()> {
    let later = i64::try_from(std::time::UNIX_EPOCH.elapsed()?.as_secs())? + 3_600;
    let mut client = emitter.0.first().ok_or("no client")?.clone();
    for tenant in tenants {
        let request = EmitRequest {
            tenant_id: tenant.clone(),
            r#type: "silent.all.t0".into(),
            payload: Some(emit_request::Payload::DataJson(payload(0))),
            deliver_time: Some(prost_types::Timestamp { seconds: later, nanos: 0 }),
            ..EmitRequest::default()
        };
        client.emit(request).await.map_err(|status| -> Error { format!("{status}").into() })?;
    }
    Ok(())
}
