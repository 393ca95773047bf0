//! The canary search: unique secrets of every kind go in by every way there is, the service runs
//! with the loudest logs, and then everything that it has ever said or kept is searched for them, in
//! every form in which a program writes bytes.
//!
//! The search must be able to find: what the receiver got (which is meant to have them) is searched
//! first, and each canary must be there or have been used.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aho_corasick::AhoCorasick;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tidings::api::proto::{self, DeliveryState};
use tidings::domain::signature::verify_standard_webhooks;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tonic::Status;

use crate::support::app::{emit_request, quick_retries};
use crate::support::process::{Served, operator_key};
use crate::support::{Client, Database, Receiver, Reply};

/// Everything at its loudest, libraries by name.
const LOUDEST: &str = "trace,h2=trace,hyper=trace,hyper_util=trace,rustls=trace,sea_orm=trace,\
                       sqlx=trace,tonic=trace,tower=trace,opentelemetry=trace,log=trace";

/// Secrets by what they are.
#[derive(Default)]
struct Canaries(Vec<(String, Vec<u8>)>);

impl Canaries {
    fn add(&mut self, what: &str, secret: impl Into<Vec<u8>>) {
        self.0.push((what.to_owned(), secret.into()));
    }

    /// A secret of Standard Webhooks, and the key that it stands for.
    fn add_secret(&mut self, what: &str, secret: &str) {
        let encoded = secret.strip_prefix("whsec_").expect("a prefix");
        self.add(what, encoded);
        self.add(&format!("{what} (decoded)"), STANDARD.decode(encoded).expect("base64"));
    }

    /// An automaton for all forms of all secrets, and their names.
    fn search(&self) -> (AhoCorasick, Vec<String>) {
        let (mut patterns, mut names) = (Vec::new(), Vec::new());
        for (what, secret) in &self.0 {
            for (form, pattern) in forms(secret) {
                patterns.push(pattern);
                names.push(format!("{what}, {form}"));
            }
        }
        (AhoCorasick::new(patterns).expect("patterns"), names)
    }
}

/// How programs write bytes.
fn forms(secret: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let list = |separator: &str| {
        let numbers: Vec<_> = secret.iter().map(ToString::to_string).collect();
        numbers.join(separator).into_bytes()
    };
    let percent = |keep: fn(u8) -> bool| -> Vec<u8> {
        let write = |byte: &u8| {
            if keep(*byte) { vec![*byte] } else { format!("%{byte:02X}").into_bytes() }
        };
        secret.iter().flat_map(write).collect()
    };
    let mut forms = vec![
        ("raw", secret.to_vec()),
        ("hex", hex::encode(secret).into_bytes()),
        ("HEX", hex::encode_upper(secret).into_bytes()),
        (
            "percent-encoded",
            percent(|byte| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte)),
        ),
        ("percent-encoded whole", percent(|_| false)),
        ("a debug list", list(", ")),
        ("a JSON list", list(",")),
        ("escaped", secret.escape_ascii().to_string().into_bytes()),
    ];
    // Within longer text the letters depend on where it starts; the ends depend on what is around.
    for before in 0..3_usize {
        let mut padded = vec![0; before];
        padded.extend_from_slice(secret);
        for (form, encoded) in
            [("base64", STANDARD.encode(&padded)), ("base64url", URL_SAFE.encode(&padded))]
        {
            let whole = encoded.trim_end_matches('=');
            let (start, end) = ((before * 8).div_ceil(6), whole.len() - 2);
            forms.push((form, whole.as_bytes()[start..end].to_vec()));
        }
    }
    forms
}

/// What was said and kept, by where.
#[derive(Default)]
struct Heard(Vec<(String, Vec<u8>)>);

impl Heard {
    fn add(&mut self, place: impl Into<String>, content: impl Into<Vec<u8>>) {
        self.0.push((place.into(), content.into()));
    }

    /// An answer, as it is on the wire and as a program would log it.
    fn answer<T: Message + Debug>(&mut self, call: &str, answer: &T) {
        self.add(format!("the answer of {call}"), answer.encode_to_vec());
        self.add(format!("the answer of {call}, shown"), format!("{answer:?}"));
    }

    fn refusal<T: Debug>(&mut self, call: &str, result: Result<T, Status>) {
        let status = result.expect_err(call);
        self.add(format!("the error of {call}"), format!("{status:?} {status}"));
        self.add(format!("the details of {call}"), status.details().to_vec());
    }

    fn len(&self, place: &str) -> usize {
        self.0
            .iter()
            .filter(|(at, _)| at.starts_with(place))
            .map(|(_, content)| content.len())
            .sum()
    }

    /// Every place where a canary is.
    fn find(&self, (automaton, names): &(AhoCorasick, Vec<String>)) -> Vec<String> {
        let mut found = Vec::new();
        for (place, content) in &self.0 {
            for hit in automaton.find_iter(content).take(3) {
                let around =
                    &content[hit.start().saturating_sub(120)..(hit.end() + 40).min(content.len())];
                let around = String::from_utf8_lossy(around);
                found.push(format!("{} in {place}: …{around}…", names[hit.pattern().as_usize()]));
            }
        }
        found
    }
}

/// A collector that keeps the bytes of what is exported.
struct Collector {
    endpoint: String,
    bytes: Arc<Mutex<Vec<u8>>>,
    _tasks: JoinSet<()>,
}

impl Collector {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let bytes = Arc::<Mutex<Vec<u8>>>::default();
        let kept = Arc::clone(&bytes);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let kept = Arc::clone(&kept);
                let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                    let kept = Arc::clone(&kept);
                    async move {
                        let head = format!("{:?}", request.headers());
                        let body = request.into_body().collect().await?.to_bytes();
                        let mut kept = kept.lock().expect("not poisoned");
                        kept.extend_from_slice(head.as_bytes());
                        kept.extend_from_slice(&body);
                        // An empty message, and the status behind it.
                        let mut trailers = hyper::HeaderMap::new();
                        trailers.insert("grpc-status", "0".parse().expect("a value"));
                        let body = Full::new(Bytes::from_static(&[0; 5]))
                            .with_trailers(async move { Some(Ok(trailers)) });
                        let mut response = Response::new(body);
                        let kind = "application/grpc".parse().expect("a value");
                        response.headers_mut().insert("content-type", kind);
                        Ok::<_, hyper::Error>(response)
                    }
                });
                connections.spawn(async move {
                    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let _ = server.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { endpoint, bytes, _tasks: tasks }
    }
}

/// What goes in.
struct Planted {
    own_secret: String,
    query: String,
    header: String,
    tenant_query: String,
    password: String,
}

impl Planted {
    fn new() -> Self {
        let unique = |word: &str| format!("{word}{:032x}", rand::random::<u128>());
        let key: [u8; 32] = rand::random();
        Self {
            own_secret: format!("whsec_{}", STANDARD.encode(key)),
            query: unique("canaryquery"),
            // With what has to be escaped in one place or another.
            header: format!("{} / \"+{}", unique("canaryheader"), unique("=")),
            tenant_query: unique("canarytenant"),
            password: unique("canarypassword"),
        }
    }
}

/// A subscription of `tenant` to everything.
fn subscription_to(tenant: &str, webhook: proto::WebhookChannel) -> proto::Subscription {
    proto::Subscription {
        tenant_id: tenant.into(),
        event_types: vec!["*".into()],
        channel: Some(proto::subscription::Channel::Webhook(webhook)),
        retry_policy: Some(quick_retries(1)),
        ..Default::default()
    }
}

/// A service under search, and who talks to it.
struct Search<'a> {
    client: Client,
    receiver: &'a Receiver,
    planted: &'a Planted,
    canaries: &'a mut Canaries,
    heard: &'a mut Heard,
}

impl Search<'_> {
    fn webhook(&self, url: &str) -> proto::WebhookChannel {
        proto::WebhookChannel {
            url: format!("{url}?token={}", self.planted.query),
            headers: [("X-Key".to_owned(), self.planted.header.clone())].into(),
            ..Default::default()
        }
    }

    async fn tenant(&mut self) -> String {
        let tenant = proto::Tenant {
            display_name: "Acme".into(),
            webhook_url: format!("{}?token={}", self.receiver.url(), self.planted.tenant_query),
            ..Default::default()
        };
        let request = proto::CreateTenantRequest { tenant: Some(tenant) };
        let made = self.client.tenants().create_tenant(request).await.expect("made").into_inner();
        self.heard.answer("CreateTenant", &made);
        made.tenant.expect("a tenant").id
    }

    /// Creates a subscription; everything of the answer but the secret is searched.
    async fn subscribe(
        &mut self,
        tenant: &str,
        webhook: proto::WebhookChannel,
        own: &str,
    ) -> (String, String) {
        let request = proto::CreateSubscriptionRequest {
            subscription: Some(subscription_to(tenant, webhook)),
            signing_secret: own.to_owned(),
        };
        let made = self
            .client
            .subscriptions()
            .create_subscription(request)
            .await
            .expect("made")
            .into_inner();
        let subscription = made.subscription.expect("a subscription");
        self.heard.answer("CreateSubscription", &subscription);
        self.canaries.add_secret("a signing secret", &made.signing_secret);
        (subscription.id, made.signing_secret)
    }

    /// A key of the tenant, which is used, too.
    async fn tenant_client(&mut self, tenant: &str) -> Client {
        let request = proto::CreateApiKeyRequest {
            api_key: Some(proto::ApiKey {
                tenant_id: tenant.into(),
                scopes: [
                    "events:emit",
                    "events:read",
                    "subscriptions:read",
                    "subscriptions:write",
                    "deliveries:read",
                    "deliveries:write",
                ]
                .map(str::to_owned)
                .into(),
                ..Default::default()
            }),
        };
        let made = self.client.tenants().create_api_key(request).await.expect("made").into_inner();
        self.heard.answer("CreateApiKey", &made.api_key.expect("a key"));
        // The first characters are shown, so that people know their keys.
        self.canaries.add("a tenant's key", &made.secret[12..]);
        Client::on(self.client.channel.clone(), &made.secret)
    }

    /// Reads everything that there is to read.
    async fn read(&mut self, tenant: &str, subscription: &str, event: &str) {
        let (tenant_id, subscription_id) = (tenant.to_owned(), subscription.to_owned());
        let mut subscriptions = self.client.subscriptions();
        let get = proto::GetSubscriptionRequest {
            tenant_id: tenant_id.clone(),
            subscription_id: subscription_id.clone(),
        };
        let got = subscriptions.get_subscription(get).await.expect("read").into_inner();
        self.heard.answer("GetSubscription", &got);
        // What is read can be written back.
        let update = proto::UpdateSubscriptionRequest {
            subscription: got.subscription,
            ..Default::default()
        };
        let updated =
            subscriptions.update_subscription(update).await.expect("updated").into_inner();
        self.heard.answer("UpdateSubscription", &updated);
        let list =
            proto::ListSubscriptionsRequest { tenant_id: tenant_id.clone(), ..Default::default() };
        self.heard.answer(
            "ListSubscriptions",
            &subscriptions.list_subscriptions(list).await.expect("read").into_inner(),
        );
        let stats = proto::GetSubscriptionStatsRequest {
            tenant_id: tenant_id.clone(),
            subscription_id: subscription_id.clone(),
            ..Default::default()
        };
        self.heard.answer(
            "GetSubscriptionStats",
            &subscriptions.get_subscription_stats(stats).await.expect("read").into_inner(),
        );
        let mut tenants = self.client.tenants();
        let get = proto::GetTenantRequest { tenant_id: tenant_id.clone() };
        self.heard.answer("GetTenant", &tenants.get_tenant(get).await.expect("read").into_inner());
        self.heard.answer(
            "ListTenants",
            &tenants
                .list_tenants(proto::ListTenantsRequest::default())
                .await
                .expect("read")
                .into_inner(),
        );
        for tenant_id in [tenant_id.clone(), String::new()] {
            let list = proto::ListApiKeysRequest { tenant_id, ..Default::default() };
            self.heard.answer(
                "ListApiKeys",
                &tenants.list_api_keys(list).await.expect("read").into_inner(),
            );
        }
        let mut deliveries = self.client.deliveries();
        let list = proto::ListDeliveriesRequest {
            tenant_id: tenant_id.clone(),
            event_id: event.into(),
            ..Default::default()
        };
        let listed = deliveries.list_deliveries(list).await.expect("read").into_inner();
        self.heard.answer("ListDeliveries", &listed);
        for delivery in listed.deliveries {
            let list = proto::ListAttemptsRequest {
                tenant_id: tenant_id.clone(),
                delivery_id: delivery.id.clone(),
                ..Default::default()
            };
            self.heard.answer(
                "ListAttempts",
                &deliveries.list_attempts(list).await.expect("read").into_inner(),
            );
            let get = proto::GetDeliveryRequest {
                tenant_id: tenant_id.clone(),
                delivery_id: delivery.id,
            };
            self.heard.answer(
                "GetDelivery",
                &deliveries.get_delivery(get).await.expect("read").into_inner(),
            );
        }
    }

    /// Has attempts made on request, and a secret replaced.
    async fn act(&mut self, tenant: &str, subscription: &str, delivery: &str) {
        let (tenant_id, subscription_id) = (tenant.to_owned(), subscription.to_owned());
        let mut subscriptions = self.client.subscriptions();
        let test = proto::TestSubscriptionRequest {
            tenant_id: tenant_id.clone(),
            subscription_id: subscription_id.clone(),
        };
        self.heard.answer(
            "TestSubscription",
            &subscriptions.test_subscription(test).await.expect("tested").into_inner(),
        );
        let retry = proto::RetryDeliveryRequest {
            tenant_id: tenant_id.clone(),
            delivery_id: delivery.into(),
        };
        self.heard.answer(
            "RetryDelivery",
            &self.client.deliveries().retry_delivery(retry).await.expect("retried").into_inner(),
        );
        let rotate = proto::RotateSecretRequest {
            tenant_id: tenant_id.clone(),
            subscription_id: subscription_id.clone(),
            ..Default::default()
        };
        let rotated = subscriptions.rotate_secret(rotate).await.expect("rotated").into_inner();
        self.canaries.add_secret("a rotated secret", &rotated.signing_secret);
        self.heard.answer("RotateSecret", &rotated.subscription.expect("a subscription"));
        let pause = proto::PauseSubscriptionRequest {
            tenant_id: tenant_id.clone(),
            subscription_id: subscription_id.clone(),
        };
        self.heard.answer(
            "PauseSubscription",
            &subscriptions.pause_subscription(pause).await.expect("paused").into_inner(),
        );
        let resume = proto::ResumeSubscriptionRequest { tenant_id, subscription_id };
        self.heard.answer(
            "ResumeSubscription",
            &subscriptions.resume_subscription(resume).await.expect("resumed").into_inner(),
        );
    }

    /// Errors of many kinds, each with something secret in the request.
    async fn err(&mut self, tenant: &str, subscription: &str) {
        let password = &self.planted.password;
        let mut subscriptions = self.client.subscriptions();
        let refused_urls = [
            format!("https://user:{password}@hooks.company.com/"),
            format!("https://10.0.0.1/?token={password}"),
            format!("ftp://hooks.company.com/?token={password}"),
            format!("https://hooks.company.com/#{password}"),
            format!("https://[{password}/"),
        ];
        for url in refused_urls {
            let webhook = proto::WebhookChannel { url: url.clone(), ..Default::default() };
            let request = proto::CreateSubscriptionRequest {
                subscription: Some(subscription_to(tenant, webhook)),
                ..Default::default()
            };
            // One of them is a URL that may be stored: its host is refused when it is called.
            match subscriptions.create_subscription(request).await {
                Ok(made) => self
                    .heard
                    .answer("CreateSubscription", &made.into_inner().subscription.expect("one")),
                refused => self.heard.refusal("CreateSubscription (URL)", refused),
            }
        }
        for (name, value) in [
            ("X-Bad", format!("{password}\r\nx: y")),
            ("Host", password.clone()),
            ("X Y", password.clone()),
        ] {
            let mut webhook = self.webhook(&self.receiver.url());
            webhook.headers.insert(name.into(), value);
            let request = proto::CreateSubscriptionRequest {
                subscription: Some(subscription_to(tenant, webhook)),
                signing_secret: format!("short {password} é"),
            };
            self.heard.refusal(
                "CreateSubscription (header)",
                subscriptions.create_subscription(request).await,
            );
        }
        let rotate = proto::RotateSecretRequest {
            tenant_id: tenant.into(),
            subscription_id: subscription.into(),
            signing_secret: format!("whsec_{password}!"),
            ..Default::default()
        };
        self.heard.refusal("RotateSecret", subscriptions.rotate_secret(rotate).await);
        let foreign = proto::GetSubscriptionRequest {
            tenant_id: tenant.into(),
            subscription_id: format!("sub_{password}"),
        };
        self.heard.refusal("GetSubscription", subscriptions.get_subscription(foreign).await);
        let url = format!("https://user:{password}@hooks.company.com/");
        let tenant =
            proto::Tenant { display_name: "Bad".into(), webhook_url: url, ..Default::default() };
        let create = proto::CreateTenantRequest { tenant: Some(tenant) };
        self.heard.refusal("CreateTenant", self.client.tenants().create_tenant(create).await);
        let stranger = Client::on(self.client.channel.clone(), &format!("tdk_{password}"));
        let list = proto::ListTenantsRequest::default();
        self.heard.refusal("ListTenants", stranger.tenants().list_tenants(list).await);
    }
}

/// Libraries may say what they handle, and nobody knows what of it is secret: below `info` only our
/// own lines are written, whatever is asked for.
fn check_sources(log: &[String]) {
    for line in log {
        let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let (level, target) = (line["level"].as_str(), line["target"].as_str());
        let is_quiet = matches!(level, Some("ERROR" | "WARN" | "INFO"));
        let is_ours = target.is_some_and(|target| target.starts_with("tidings"));
        assert!(is_quiet || is_ours, "{line}");
    }
}

/// A URL at which nobody listens.
async fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    format!("http://{}/hook", listener.local_addr().expect("an address"))
}

/// One life of the service: everything is done once.
async fn live(
    database: &Database,
    log_format: &str,
    (planted, receiver, key): (&Planted, &Receiver, &str),
    (canaries, heard): (&mut Canaries, &mut Heard),
) -> HashMap<String, String> {
    let collector = Collector::start().await;
    let options = [
        "--log-filter",
        LOUDEST,
        "--log-format",
        log_format,
        "--otlp-endpoint",
        &collector.endpoint,
    ];
    let served = Served::start(database, &options).await;
    let client = Client::connect(&served.endpoint, key).await;
    let mut search = Search { client, receiver, planted, canaries, heard };
    let tenant = search.tenant().await;
    let mut secrets = HashMap::new();
    let (good, secret) =
        search.subscribe(&tenant, search.webhook(&receiver.url()), &planted.own_secret).await;
    secrets.insert("own".to_owned(), secret);
    search.subscribe(&tenant, search.webhook(&receiver.url()), "").await;
    // To the tenant's URL; to a port where nobody listens; to where no TLS is spoken.
    search.subscribe(&tenant, proto::WebhookChannel::default(), "").await;
    search.subscribe(&tenant, search.webhook(&nobody().await), "").await;
    let tls = receiver.url().replace("http://", "https://");
    search.subscribe(&tenant, search.webhook(&tls), "").await;

    let own = search.tenant_client(&tenant).await;
    let watch = proto::WatchDeliveriesRequest {
        tenant_id: tenant.clone(),
        include_current: true,
        ..Default::default()
    };
    let mut watched =
        own.deliveries().watch_deliveries(watch).await.expect("watching").into_inner();
    let event = own.emit("", "user.created", r#"{"a":1}"#).await;
    assert_eq!(event.delivery_count, 5);
    let ended = |state| matches!(state, DeliveryState::Succeeded | DeliveryState::Failed);
    let mut deliveries = Vec::new();
    for _ in 0..1_000 {
        deliveries = own.deliveries_of("", &event.event_id).await;
        if deliveries.iter().all(|delivery| ended(delivery.state())) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let count = |state| deliveries.iter().filter(|delivery| delivery.state() == state).count();
    assert_eq!(
        (count(DeliveryState::Succeeded), count(DeliveryState::Failed)),
        (3, 2),
        "{deliveries:?}"
    );
    for _ in 0..5 {
        let change = watched.message().await.expect("a change").expect("open");
        search.heard.answer("WatchDeliveries", &change);
    }
    search.read(&tenant, &good, &event.event_id).await;
    let delivery =
        deliveries.iter().find(|delivery| delivery.subscription_id == good).expect("one");
    search.act(&tenant, &good, &delivery.id).await;
    search.err(&tenant, &good).await;
    search.heard.refusal("Emit", own.events().emit(emit_request("", "bad type", "{")).await);
    drop(watched);
    heard.add("the metrics", served.page("/metrics").await);
    heard.add("the database, running", database.contents().await);
    served.signal("TERM").await;
    let (code, log) = served.wait().await;
    assert_eq!(code, Some(0));
    if log_format == "json" {
        check_sources(&log);
    }
    heard.add("the log", log.join("\n"));
    heard.add("the spans", collector.bytes.lock().expect("not poisoned").clone());
    secrets
}

on_both! {
    async fn no_secret_is_ever_said_or_kept_in_the_clear(database: Database) {
        let planted = Planted::new();
        // The first attempt fails.
        let receiver = Receiver::scripted(|request, _| {
            Reply::status(if request.header("tidings-attempt") == "1" { 500 } else { 200 })
        }).await;
        let key = operator_key(&database).await;
        let (mut canaries, mut heard) = (Canaries::default(), Heard::default());
        canaries.add("the operator's key", &key[12..]);
        canaries.add("a URL's query", planted.query.as_str());
        canaries.add("a header's value", planted.header.as_str());
        canaries.add("a tenant's URL's query", planted.tenant_query.as_str());
        canaries.add("what was refused", planted.password.as_str());
        let mut secrets = HashMap::new();
        for format in ["json", "text"] {
            secrets = live(&database, format, (&planted, &receiver, &key), (&mut canaries, &mut heard)).await;
        }
        heard.add("the database, stopped", database.contents().await);
        let master = std::fs::read_to_string(database.key_file()).expect("a key file");
        let master = master.lines().find(|line| line.starts_with("tdmk_")).expect("a key");
        canaries.add("the master key", &master["tdmk_".len()..]);
        let decoded = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(&master["tdmk_".len()..]);
        canaries.add("the master key (decoded)", decoded.expect("base64"));

        // All of them were at work: the receiver got what it should get.
        let requests = receiver.requests();
        let own = &secrets["own"];
        let is_signed = |request: &&crate::support::receiver::Captured| {
            let signed = |name| request.header(name);
            verify_standard_webhooks(own, signed("webhook-id"), signed("webhook-timestamp"), &request.body, signed("webhook-signature"))
        };
        assert_eq!(own, &planted.own_secret);
        let signed: Vec<_> = requests.iter().filter(is_signed).collect();
        assert!(signed.len() >= 4, "own secret: {} signed requests", signed.len());
        for request in signed {
            assert_eq!(request.header("x-key"), planted.header);
            assert!(request.target.ends_with(&planted.query));
        }
        assert!(requests.iter().any(|request| request.target.ends_with(&planted.tenant_query)));
        // The search finds what is there, in every form, anywhere.
        let mut known = Heard::default();
        known.add("the receiver", format!("{requests:?}"));
        let search = canaries.search();
        let found = known.find(&search).join("\n");
        assert!(found.contains("a URL's query, raw"), "{found}");
        for (_, secret) in &canaries.0 {
            for (form, pattern) in forms(secret) {
                let mut one = Heard::default();
                one.add("here", [b"x=".as_slice(), &pattern, b"&y"].concat());
                assert!(!one.find(&search).is_empty(), "{form} is not found");
            }
        }
        assert!(search.1.len() > 200, "{} patterns", search.1.len());
        for (place, least) in [("the log", 1_000), ("the spans", 5_000), ("the metrics", 5_000), ("the database", 20_000), ("the answer", 20_000), ("the error", 2_000)] {
            assert!(heard.len(place) >= least, "{place}: only {} bytes", heard.len(place));
        }
        let spans = heard.0.iter().find(|(place, _)| place == "the spans").expect("spans");
        assert!(spans.1.windows(15).any(|window| window == b"deliver webhook"), "attempts were exported");

        let found = heard.find(&search);
        assert!(found.is_empty(), "{} leaks:\n{}", found.len(), found.join("\n"));
    }
}
