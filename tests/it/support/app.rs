//! The whole service in this process, and clients that speak gRPC to it over a real connection.

use std::collections::HashSet;
use std::time::Duration;

use tidings::api::proto;
use tidings::api::proto::catalog_service_client::CatalogServiceClient;
use tidings::api::proto::delivery_service_client::DeliveryServiceClient;
use tidings::api::proto::event_service_client::EventServiceClient;
use tidings::api::proto::subscription_service_client::SubscriptionServiceClient;
use tidings::api::proto::suppression_service_client::SuppressionServiceClient;
use tidings::api::proto::tenant_service_client::TenantServiceClient;
use tidings::app::{self, Running};
use tidings::config::{MasterKeyFile, Options};
use tidings::domain::Timestamp;
use tidings::domain::id::KeyId;
use tidings::domain::key::{self, ApiKey, Scope};
use tidings::store::{KeySource, Store};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

use super::Database;

/// Puts a key into every request.
#[derive(Clone)]
pub(crate) struct WithKey(MetadataValue<Ascii>);

impl Interceptor for WithKey {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

type Authorized = InterceptedService<Channel, WithKey>;

/// A client with one key.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) channel: Channel,
    key: WithKey,
}

impl Client {
    pub(crate) async fn connect(endpoint: &str, key: &str) -> Self {
        let channel = Endpoint::from_shared(endpoint.to_owned())
            .expect("a URL")
            .connect()
            .await
            .expect("connected");
        Self::on(channel, key)
    }

    pub(crate) fn on(channel: Channel, key: &str) -> Self {
        Self { channel, key: WithKey(format!("Bearer {key}").parse().expect("ASCII")) }
    }

    pub(crate) fn events(&self) -> EventServiceClient<Authorized> {
        EventServiceClient::with_interceptor(self.channel.clone(), self.key.clone())
    }

    pub(crate) fn subscriptions(&self) -> SubscriptionServiceClient<Authorized> {
        SubscriptionServiceClient::with_interceptor(self.channel.clone(), self.key.clone())
    }

    pub(crate) fn suppressions(&self) -> SuppressionServiceClient<Authorized> {
        SuppressionServiceClient::with_interceptor(self.channel.clone(), self.key.clone())
    }

    pub(crate) fn deliveries(&self) -> DeliveryServiceClient<Authorized> {
        DeliveryServiceClient::with_interceptor(self.channel.clone(), self.key.clone())
    }

    pub(crate) fn catalog(&self) -> CatalogServiceClient<Authorized> {
        CatalogServiceClient::with_interceptor(self.channel.clone(), self.key.clone())
    }

    pub(crate) fn tenants(&self) -> TenantServiceClient<Authorized> {
        TenantServiceClient::with_interceptor(self.channel.clone(), self.key.clone())
    }

    /// A new tenant; this client must be an operator's.
    pub(crate) async fn create_tenant(&self, name: &str) -> proto::Tenant {
        let tenant = proto::Tenant { display_name: name.into(), ..Default::default() };
        let request = proto::CreateTenantRequest { tenant: Some(tenant) };
        self.tenants()
            .create_tenant(request)
            .await
            .expect("created")
            .into_inner()
            .tenant
            .expect("a tenant")
    }

    /// A subscription to `event_types` at `url`, and its signing secret.
    pub(crate) async fn subscribe(
        &self,
        tenant_id: &str,
        event_types: &[&str],
        url: &str,
    ) -> (proto::Subscription, String) {
        let webhook = proto::WebhookChannel { url: url.into(), ..Default::default() };
        self.subscribe_with(tenant_id, event_types, webhook, Some(quick_retries(3))).await
    }

    pub(crate) async fn subscribe_with(
        &self,
        tenant_id: &str,
        event_types: &[&str],
        webhook: proto::WebhookChannel,
        retry_policy: Option<proto::RetryPolicy>,
    ) -> (proto::Subscription, String) {
        let subscription = proto::Subscription {
            tenant_id: tenant_id.into(),
            display_name: "test".into(),
            event_types: event_types.iter().map(ToString::to_string).collect(),
            channel: Some(proto::subscription::Channel::Webhook(webhook)),
            retry_policy,
            ..Default::default()
        };
        let request = proto::CreateSubscriptionRequest {
            subscription: Some(subscription),
            ..Default::default()
        };
        let created =
            self.subscriptions().create_subscription(request).await.expect("created").into_inner();
        (created.subscription.expect("a subscription"), created.signing_secret)
    }

    pub(crate) async fn emit(
        &self,
        tenant_id: &str,
        event_type: &str,
        data_json: &str,
    ) -> proto::EmitResponse {
        self.events()
            .emit(emit_request(tenant_id, event_type, data_json))
            .await
            .expect("accepted")
            .into_inner()
    }

    /// The event's deliveries.
    pub(crate) async fn deliveries_of(
        &self,
        tenant_id: &str,
        event_id: &str,
    ) -> Vec<proto::Delivery> {
        let request = proto::ListDeliveriesRequest {
            tenant_id: tenant_id.into(),
            event_id: event_id.into(),
            ..Default::default()
        };
        self.deliveries().list_deliveries(request).await.expect("listed").into_inner().deliveries
    }

    /// The subscription as it is now.
    pub(crate) async fn subscription(&self, of: &proto::Subscription) -> proto::Subscription {
        let request = proto::GetSubscriptionRequest {
            tenant_id: of.tenant_id.clone(),
            subscription_id: of.id.clone(),
        };
        let found = self.subscriptions().get_subscription(request).await.expect("found");
        found.into_inner().subscription.expect("a subscription")
    }

    /// Waits until the subscription is as `is_right` says.
    pub(crate) async fn wait_for_subscription(
        &self,
        of: &proto::Subscription,
        is_right: impl Fn(&proto::Subscription) -> bool,
    ) -> proto::Subscription {
        let mut last = None;
        for _ in 0..3_000 {
            let found = self.subscription(of).await;
            if is_right(&found) {
                return found;
            }
            last = Some(found);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the subscription never was as expected: {last:?}");
    }

    /// All deliveries of the subscription.
    pub(crate) async fn deliveries_to(&self, of: &proto::Subscription) -> Vec<proto::Delivery> {
        let request = proto::ListDeliveriesRequest {
            tenant_id: of.tenant_id.clone(),
            subscription_id: of.id.clone(),
            page_size: 1_000,
            ..Default::default()
        };
        self.deliveries().list_deliveries(request).await.expect("listed").into_inner().deliveries
    }

    /// Waits until all deliveries of the subscription are in `state`.
    pub(crate) async fn wait_for_all(
        &self,
        of: &proto::Subscription,
        state: proto::DeliveryState,
    ) -> Vec<proto::Delivery> {
        for _ in 0..3_000 {
            let all = self.deliveries_to(of).await;
            if all.iter().all(|delivery| delivery.state() == state) {
                return all;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the deliveries never were all {state:?}: {:?}", self.deliveries_to(of).await);
    }

    /// Emits `count` events and waits until they are delivered: so many requests at once their endpoint
    /// has earned, and two. Returns the events' ids.
    pub(crate) async fn earn(&self, tenant_id: &str, count: usize) -> HashSet<String> {
        let mut earned = HashSet::new();
        for _ in 0..count {
            let event_id = self.emit(tenant_id, "user.created", "{}").await.event_id;
            let succeeded = proto::DeliveryState::Succeeded;
            self.wait_for_state(tenant_id, &event_id, succeeded).await;
            earned.insert(event_id);
        }
        earned
    }

    /// Waits until the event's only delivery is in `state`.
    pub(crate) async fn wait_for_state(
        &self,
        tenant_id: &str,
        event_id: &str,
        state: proto::DeliveryState,
    ) -> proto::Delivery {
        let mut last = None;
        for _ in 0..3_000 {
            let mut deliveries = self.deliveries_of(tenant_id, event_id).await;
            assert_eq!(deliveries.len(), 1, "one delivery was expected");
            let delivery = deliveries.remove(0);
            if delivery.state() == state {
                return delivery;
            }
            last = Some(delivery);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the delivery never was {state:?}: {last:?}");
    }

    pub(crate) async fn attempts(&self, tenant_id: &str, delivery_id: &str) -> Vec<proto::Attempt> {
        let request = proto::ListAttemptsRequest {
            tenant_id: tenant_id.into(),
            delivery_id: delivery_id.into(),
            ..Default::default()
        };
        self.deliveries().list_attempts(request).await.expect("listed").into_inner().attempts
    }
}

pub(crate) fn emit_request(
    tenant_id: &str,
    event_type: &str,
    data_json: &str,
) -> proto::EmitRequest {
    proto::EmitRequest {
        tenant_id: tenant_id.into(),
        r#type: event_type.into(),
        payload: Some(proto::emit_request::Payload::DataJson(data_json.into())),
        ..Default::default()
    }
}

/// Retries after 50 ms each.
pub(crate) fn quick_retries(max_retries: i32) -> proto::RetryPolicy {
    let interval = prost_types::Duration { seconds: 0, nanos: 50_000_000 };
    proto::RetryPolicy {
        max_retries: Some(max_retries),
        jitter: Some(0.0),
        backoff: Some(proto::retry_policy::Backoff::Schedule(proto::retry_policy::Schedule {
            intervals: vec![interval],
        })),
    }
}

/// The service, running.
pub(crate) struct App {
    pub(crate) running: Running,
    pub(crate) operator: Client,
    pub(crate) operator_key: String,
    pub(crate) database: Database,
}

/// Options for tests: free ports, receivers on the loopback, quick polls.
pub(crate) fn options(database: &Database) -> Options {
    Options {
        grpc_addr: "127.0.0.1:0".parse().expect("an address"),
        http_addr: "127.0.0.1:0".parse().expect("an address"),
        database_url: database.config.database_url.parse().expect("a database"),
        database_max_connections: 10,
        master_key_file: match &database.config.master_key {
            KeySource::File(path) => MasterKeyFile::at(path.clone()),
            _ => MasterKeyFile::default(),
        },
        allow_cidrs: vec!["127.0.0.0/8".parse().expect("a network")],
        allow_http: true,
        poll_interval: Duration::from_millis(50),
        shutdown_grace: Duration::from_secs(10),
        ..Options::default()
    }
}

/// An operator's key, made on the database itself.
pub(crate) async fn operator_key(store: &Store) -> String {
    let mut random = rand::make_rng::<rand::rngs::StdRng>();
    let text = key::generate(&mut random);
    let now = store.now().await.expect("now");
    let api_key = ApiKey {
        id: KeyId::new(now, &mut random),
        tenant_id: None,
        display_name: "test".into(),
        prefix: key::shown(&text).into(),
        scopes: vec![Scope::Admin],
        create_time: now,
        expire_time: None::<Timestamp>,
        revoke_time: None,
        last_use_time: None,
    };
    store.create_key(&api_key, key::hash(&text)).await.expect("stored");
    text
}

impl App {
    pub(crate) async fn start(database: Database) -> Self {
        let options = options(&database);
        Self::start_with(database, &options).await
    }

    pub(crate) async fn start_with(database: Database, options: &Options) -> Self {
        Self::start_configured(database, options.config()).await
    }

    /// Starts with what no option says, such as limits that would take too long to meet.
    pub(crate) async fn start_configured(database: Database, config: app::Config) -> Self {
        let store = database.open().await;
        let operator_key = operator_key(&store).await;
        store.close().await;
        let running = app::start(config).await.expect("started");
        let operator =
            Client::connect(&format!("http://{}", running.grpc_addr()), &operator_key).await;
        Self { running, operator, operator_key, database }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.running.grpc_addr())
    }

    /// Emits by hand over HTTP/2, with more headers: what no client library would send.
    pub(crate) async fn raw_emit(&self, message: &[u8], headers: &[(&str, &str)]) -> Status {
        use http_body_util::{BodyExt, Full};
        // Five bytes of frame, then the message.
        let frame =
            [&[0][..], &u32::try_from(message.len()).expect("small").to_be_bytes(), message]
                .concat();
        let stream =
            tokio::net::TcpStream::connect(self.running.grpc_addr()).await.expect("connected");
        let executor = hyper_util::rt::TokioExecutor::new();
        let io = hyper_util::rt::TokioIo::new(stream);
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(executor, io).await.expect("HTTP/2");
        let connection = tokio::spawn(connection);
        let mut request =
            hyper::Request::post(format!("{}/tidings.v1.EventService/Emit", self.endpoint()))
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .header("authorization", format!("Bearer {}", self.operator_key));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(bytes::Bytes::from(frame))).expect("a request");
        let response = sender.send_request(request).await.expect("answered");
        let headers = response.headers().clone();
        let status = Status::from_header_map(&headers);
        let status = if let Some(status) = status {
            status
        } else {
            let body = response.into_body().collect().await.expect("a body");
            Status::from_header_map(body.trailers().expect("trailers")).expect("a status")
        };
        connection.abort();
        status
    }

    /// The page of metrics, by name and labels.
    pub(crate) async fn metrics(&self) -> String {
        page(self.running.http_addr()).await
    }

    /// The value of a series that counts, which must exist.
    pub(crate) async fn metric(&self, series: &str) -> i64 {
        metric(self.running.http_addr(), series).await
    }

    /// Waits until a series has reached `expected`.
    pub(crate) async fn wait_for_metric(&self, series: &str, expected: i64) {
        let mut last = 0;
        for _ in 0..1_500 {
            last = self.metric(series).await;
            if last == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{series} is {last}, not {expected}");
    }

    /// Stops the service gracefully and gives the database back.
    pub(crate) async fn stop(self) -> Database {
        self.running.stop().await;
        self.database
    }
}

/// The page of metrics of the service at `addr`.
async fn page(addr: std::net::SocketAddr) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(addr).await.expect("connected");
    let request = "GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut page = String::new();
    stream.read_to_string(&mut page).await.expect("answered");
    page
}

/// The value of a series that counts, of the service at `addr`.
pub(crate) async fn metric(addr: std::net::SocketAddr, series: &str) -> i64 {
    format!("{}", value(&page(addr).await, series)).parse().expect("a whole number")
}

/// The value of a series on a page of metrics, which must have it.
pub(crate) fn value(page: &str, series: &str) -> f64 {
    let line = page
        .lines()
        .find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')));
    let line = line.unwrap_or_else(|| panic!("no series {series} in\n{page}"));
    line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number")
}

/// The reason of an error, and the fields that it names.
pub(crate) fn explain(status: &Status) -> (Code, String, Vec<String>) {
    let details = status.get_error_details();
    let info = details.error_info().unwrap_or_else(|| panic!("no ErrorInfo in {status:?}"));
    assert_eq!(info.domain, "tidings");
    let fields = details
        .bad_request()
        .map(|bad| bad.field_violations.iter().map(|violation| violation.field.clone()).collect())
        .unwrap_or_default();
    (status.code(), info.reason.clone(), fields)
}
