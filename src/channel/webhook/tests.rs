//! The client against real listeners: what is sent, what is never connected to, and that hostile
//! endpoints end in time, in bounded memory, with a plain kind of error.

mod document;
mod endpoint;
mod phases;
mod tls;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use prometheus_client::registry::Registry;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::io::AsyncWriteExt;
use tokio::sync::Barrier;

use self::endpoint::{Endpoint, LONG, read_request};
use super::resolver::Resolver;
use super::response::{KEPT_BODY_BYTES, MAX_HEADERS};
use super::{Client, Config, Metrics};
use crate::domain::attempt::{ErrorKind, Outcome, Report, Task, Trigger};
use crate::domain::channel::{Channel, PayloadFormat, SignatureScheme, WebhookChannel};
use crate::domain::event::Event;
use crate::domain::id::{DeliveryId, EventId, SubscriptionId, TenantId};
use crate::domain::subscription::{Secret, State, Subscription, SubscriptionSpec};
use crate::domain::tenant::{Tenant, TenantSpec};
use crate::domain::trace::TraceContext;
use crate::domain::{Clock, Timestamp, signature};

const NOW: Timestamp = Timestamp::from_micros(1_770_283_800_250_000);
const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const OLD_SECRET: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const DATA: &str = r#"{"amount": 12345678901234567890, "a":1,"a":2}"#;
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Seen: yes\r\n\r\nok";
/// A timeout for what is to time out.
const SHORT: Duration = Duration::from_millis(250);
const RETRY: Outcome = Outcome::Retry { retry_after: None };

struct Frozen;

impl Clock for Frozen {
    fn now(&self) -> Timestamp {
        NOW
    }
}

/// The configuration that the tests need and production must not have.
fn loopback() -> Config {
    let range = "127.0.0.0/8".parse().expect("range");
    Config { allow_cidrs: vec![range], allow_http: true, ..Config::default() }
}

fn client(config: &Config) -> Client {
    client_with(config, &[])
}

/// A client for which the names of `answers`, and no others, exist.
fn client_with(config: &Config, answers: &[(&str, &[&str])]) -> Client {
    client_at(config, answers, Arc::new(Frozen))
}

fn client_at(config: &Config, answers: &[(&str, &[&str])], clock: Arc<dyn Clock>) -> Client {
    let addresses = |texts: &[&str]| -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().expect("address")).collect()
    };
    let answers: BTreeMap<_, _> =
        answers.iter().map(|(name, texts)| ((*name).to_owned(), addresses(texts))).collect();
    let metrics = Metrics::new(&mut Registry::default());
    Client::with_resolver(config, clock, metrics, Resolver::Fixed(Arc::new(answers)))
        .expect("client")
}

fn settings(url: &str) -> WebhookChannel {
    WebhookChannel { url: url.to_owned(), timeout: LONG, ..WebhookChannel::default() }
}

fn task(url: &str) -> Task {
    task_over(Channel::Webhook(settings(url)))
}

fn task_over(channel: Channel) -> Task {
    let trace = TraceContext::root(&mut StdRng::seed_from_u64(7));
    let tenant_id = TenantId::first_at(NOW);
    let secret = |text: &str, expire_time| Secret {
        expire_time,
        ..Secret::new(text.to_owned(), &mut StdRng::seed_from_u64(text.len() as u64))
    };
    let event = Event {
        id: EventId::first_at(NOW),
        tenant_id,
        event_type: "billing.paid".to_owned(),
        subject: String::new(),
        data: Bytes::from_static(DATA.as_bytes()),
        labels: BTreeMap::new(),
        occur_time: NOW,
        create_time: NOW,
        deliver_time: None,
        expire_time: None,
        trace,
    };
    let spec = TenantSpec { display_name: "Acme".to_owned(), ..TenantSpec::default() };
    let tenant = Tenant {
        id: tenant_id,
        spec,
        unreadable: false,
        revision: 1,
        create_time: NOW,
        update_time: NOW,
    };
    let subscription = Subscription {
        id: SubscriptionId::first_at(NOW),
        tenant_id,
        spec: SubscriptionSpec {
            display_name: String::new(),
            event_types: Vec::new(),
            channel,
            retry_policy: None,
            labels: BTreeMap::new(),
        },
        state: State::Active,
        disable_reason: None,
        unreadable: false,
        secrets: vec![
            secret(SECRET, None),
            secret(OLD_SECRET, Some(NOW.plus(Duration::from_secs(1)))),
            secret("whsec_expired", Some(NOW)),
        ],
        revision: 1,
        create_time: NOW,
        update_time: NOW,
    };
    Task {
        delivery_id: DeliveryId::first_at(NOW),
        number: 3,
        trigger: Trigger::Automatic,
        event: Arc::new(event),
        tenant: Arc::new(tenant),
        subscription: Arc::new(subscription),
        recipient: String::new(),
        create_time: NOW,
        email_template: String::new(),
        unsubscribe_url: String::new(),
        digest: Vec::new(),
        trace,
    }
}

fn kind(report: &Report) -> Option<ErrorKind> {
    report.failure.as_ref().map(|failure| failure.kind)
}

/// One attempt by a new client that may connect to loopback.
async fn attempt(url: &str) -> Report {
    client(&loopback()).attempt(&task(url), &settings(url)).await
}

async fn attempt_within(url: &str, timeout: Duration) -> Report {
    client(&loopback()).attempt(&task(url), &WebhookChannel { timeout, ..settings(url) }).await
}

#[expect(clippy::disallowed_methods, reason = "measures how long a test's attempt really takes")]
fn stopwatch() -> impl Fn() -> Duration {
    let start = Instant::now();
    move || start.elapsed()
}

/// The head of a captured request in lower case, and its body.
fn parts(request: &[u8]) -> (String, &[u8]) {
    let end = request.windows(4).position(|window| window == b"\r\n\r\n").expect("a head");
    (String::from_utf8_lossy(&request[..end]).into_owned(), &request[end + 4..])
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = head.lines().filter_map(|line| line.split_once(": "));
    lines.find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

#[tokio::test]
async fn a_request_is_signed_complete_and_verifiable() {
    let mut endpoint = Endpoint::answering_once(OK).await;
    let url = format!("{}?token=hidden", endpoint.url());
    let custom = WebhookChannel {
        signatures: vec![
            SignatureScheme::StandardWebhooks,
            SignatureScheme::StandardWebhooksEd25519,
            SignatureScheme::HmacSha256Hex,
            SignatureScheme::Github,
            SignatureScheme::Stripe,
        ],
        headers: BTreeMap::from([("X-Api-Key".to_owned(), "customer's".to_owned())]),
        ..settings(&url)
    };
    let task = task(&url);
    let report = client(&loopback()).attempt(&task, &custom).await;
    assert_eq!(report.outcome, Outcome::Delivered);
    assert_eq!((report.http_status, kind(&report)), (Some(200), None));
    assert_eq!(report.response_body, b"ok");
    assert!(report.response_headers.iter().any(|header| header == ("x-seen", "yes")));

    let request = endpoint.ended().await;
    let (head, body) = parts(&request);
    let of = |name| header(&head, name);
    assert!(head.starts_with("POST /hook?token=hidden HTTP/1.1\r\n"), "{head}");
    assert_eq!(of("host"), Some(endpoint.address.to_string().as_str()));
    assert_eq!(of("content-type"), Some("application/json"));
    assert_eq!(of("user-agent"), Some(concat!("Tidings/", env!("CARGO_PKG_VERSION"))));
    assert_eq!(of("traceparent"), Some(task.trace.to_string().as_str()));
    assert_eq!(of("tidings-delivery-id"), Some(task.delivery_id.as_str()));
    assert_eq!(of("tidings-event-type"), Some("billing.paid"));
    assert_eq!(of("tidings-attempt"), Some("3"));
    assert_eq!(of("x-api-key"), Some("customer's"));
    assert_eq!(of("accept-encoding"), None);
    assert!(body.ends_with(format!(",\"data\":{DATA}}}").as_bytes()));

    let (id, time) = (of("webhook-id").expect("id"), of("webhook-timestamp").expect("time"));
    assert_eq!((id, time), (task.event.id.as_str(), "1770283800"));
    let signatures = of("webhook-signature").expect("signatures");
    assert_eq!(signatures.split(' ').count(), 4, "the expired secret signs no more");
    let stripe = of("stripe-signature").expect("Stripe");
    assert_eq!(stripe.split(',').count(), 3);
    for secret in [SECRET, OLD_SECRET] {
        assert!(signature::verify_standard_webhooks(secret, id, time, body, signatures));
        assert!(signature::verify_stripe(secret, body, stripe));
    }
    let spec = &task.subscription.spec;
    let listing = SubscriptionSpec { channel: Channel::Webhook(custom), ..spec.clone() };
    let keys = Subscription { spec: listing, ..(*task.subscription).clone() }.public_keys_at(NOW);
    assert_eq!(keys.len(), 2);
    for key in keys {
        let verify = signature::verify_standard_webhooks_ed25519;
        assert!(verify(&key, id, time, body, signatures));
    }
    let (plain, github) = (of("x-signature").expect("HMAC"), of("x-hub-signature-256"));
    assert!(signature::verify_hmac_hex(OLD_SECRET, body, plain));
    assert!(signature::verify_github(OLD_SECRET, body, github.expect("GitHub")));

    let recorded: BTreeMap<_, _> = report.request_headers.iter().collect();
    for (name, value) in [
        ("webhook-signature", "v1,*** v1,*** v1a,*** v1a,***"),
        ("x-signature", "***"),
        ("x-hub-signature-256", "sha256=***"),
        ("stripe-signature", "t=1770283800,v1=***,v1=***"),
        ("x-api-key", "***"),
    ] {
        assert_eq!(recorded.get(name), Some(&value));
    }
    assert_eq!(recorded.get("webhook-timestamp"), Some(&"1770283800"));
}

#[tokio::test]
async fn settings_choose_the_format_the_header_and_the_tenants_url() {
    let mut endpoint = Endpoint::answering_once(OK).await;
    let custom = WebhookChannel {
        payload_format: PayloadFormat::DataOnly,
        signatures: vec![SignatureScheme::HmacSha256Hex],
        signature_header: "X-Company-Signature".to_owned(),
        ..settings("")
    };
    let mut task = task("");
    let mut tenant = (*task.tenant).clone();
    tenant.spec.webhook_url = endpoint.url();
    task.tenant = Arc::new(tenant);
    let report = client(&loopback()).attempt(&task, &custom).await;
    assert_eq!(report.outcome, Outcome::Delivered, "{report:?}");
    let request = endpoint.ended().await;
    let (head, body) = parts(&request);
    assert_eq!(body, DATA.as_bytes());
    assert!(signature::verify_hmac_hex(
        OLD_SECRET,
        body,
        header(&head, "x-company-signature").expect("HMAC")
    ));
    assert_eq!(header(&head, "webhook-id"), None);
}

#[tokio::test]
async fn what_is_not_configured_is_not_sent() {
    let endpoint = Endpoint::answering(OK).await;
    let url = endpoint.url();
    let none = settings("");
    let reserved = WebhookChannel {
        headers: BTreeMap::from([("Content-Length".to_owned(), "0".to_owned())]),
        ..settings(&url)
    };
    let attribute = WebhookChannel {
        headers: BTreeMap::from([("Ce-Id".to_owned(), "0".to_owned())]),
        ..settings(&url)
    };
    let named = |hmac: &str, stripe: &str| WebhookChannel {
        signatures: vec![SignatureScheme::HmacSha256Hex, SignatureScheme::Stripe],
        signature_header: hmac.to_owned(),
        stripe_signature_header: stripe.to_owned(),
        ..settings(&url)
    };
    let (shared, replaced) = (named("X-One", "x-one"), named("Content-Type", ""));
    for settings in [none, reserved, attribute, shared, replaced] {
        let report = client(&loopback()).attempt(&task(&url), &settings).await;
        assert_eq!((kind(&report), report.outcome), (Some(ErrorKind::Configuration), RETRY));
    }
    let mut unsigned = task(&url);
    let mut subscription = (*unsigned.subscription).clone();
    subscription.secrets.clear();
    unsigned.subscription = Arc::new(subscription);
    let report = client(&loopback()).attempt(&unsigned, &settings(&url)).await;
    assert_eq!((kind(&report), report.outcome), (Some(ErrorKind::Configuration), RETRY));
    assert_eq!(endpoint.connections(), 0);
}

#[tokio::test]
async fn statuses_become_outcomes() {
    let wait = |seconds| Outcome::Retry { retry_after: Some(Duration::from_secs(seconds)) };
    for (head, outcome) in [
        ("204 No Content", Outcome::Delivered),
        ("299 Odd\r\nContent-Length: 0", Outcome::Delivered),
        ("400 Bad Request\r\nContent-Length: 0", RETRY),
        ("408 Request Timeout\r\nContent-Length: 0", RETRY),
        ("410 Gone\r\nContent-Length: 0", Outcome::Gone),
        ("429 Slow Down\r\nRetry-After: 7\r\nContent-Length: 0", wait(7)),
        ("500 Oops\r\nRetry-After: 7\r\nContent-Length: 0", RETRY),
        (
            "503 Busy\r\nRetry-After: Thu, 05 Feb 2026 09:31:00 GMT\r\nContent-Length: 0",
            Outcome::Retry { retry_after: Some(Duration::from_millis(59_750)) },
        ),
        ("503 Busy\r\nRetry-After: soon\r\nContent-Length: 0", RETRY),
        ("101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x", RETRY),
    ] {
        let endpoint = Endpoint::answering_once(format!("HTTP/1.1 {head}\r\n\r\n")).await;
        let report = attempt(&endpoint.url()).await;
        assert_eq!(report.outcome, outcome, "{head}");
        let failed = outcome != Outcome::Delivered;
        assert_eq!(kind(&report), failed.then_some(ErrorKind::HttpStatus), "{head}");
        assert_eq!(report.http_status, head[..3].parse().ok());
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let target = Endpoint::answering(OK).await;
    for status in [301, 302, 303, 307, 308] {
        let answer = format!(
            "HTTP/1.1 {status} Go\r\nLocation: {}\r\nContent-Length: 0\r\n\r\n",
            target.url()
        );
        let endpoint = Endpoint::answering(answer).await;
        let report = attempt(&endpoint.url()).await;
        assert_eq!((kind(&report), report.outcome), (Some(ErrorKind::HttpStatus), RETRY));
        assert_eq!(endpoint.connections(), 1);
    }
    assert_eq!(target.connections(), 0);
}

#[tokio::test]
async fn loopback_is_refused_by_default_without_a_connection() {
    let endpoint = Endpoint::answering(OK).await;
    let port = endpoint.address.port();
    let closed = Config { allow_http: true, ..Config::default() };
    let names: [(&str, &[&str]); 3] = [
        ("private.company.com", &["127.0.0.1"]),
        ("mixed.company.com", &["127.0.0.1", "1.1.1.1"]),
        ("mapped.company.com", &["::ffff:127.0.0.1"]),
    ];
    let client = client_with(&closed, &names);
    let mut messages = Vec::new();
    for (host, outcome) in [
        ("127.0.0.1", Outcome::Permanent),
        ("[::1]", Outcome::Permanent),
        ("169.254.169.254", Outcome::Permanent),
        ("private.company.com", RETRY),
        ("mixed.company.com", RETRY),
        ("mapped.company.com", RETRY),
    ] {
        let url = format!("http://{host}:{port}/?token=hidden");
        let report = client.attempt(&task(&url), &settings(&url)).await;
        assert_eq!(
            (kind(&report), report.outcome),
            (Some(ErrorKind::AddressRefused), outcome),
            "{host}"
        );
        messages.extend(report.failure.map(|failure| failure.message));
    }
    messages.dedup();
    assert_eq!(messages.len(), 1, "one text for every reason");
    assert!(!messages[0].contains(|c: char| c.is_ascii_digit()) && !messages[0].contains("token"));
    assert_eq!(endpoint.connections(), 0);
}

#[tokio::test]
async fn denied_and_mixed_answers_are_refused_even_beside_good_ones() {
    let endpoint = Endpoint::answering(OK).await;
    let config = Config { deny_cidrs: vec!["127.0.0.7".parse().expect("range")], ..loopback() };
    let client = client_with(&config, &[("a.company.com", &["127.0.0.1", "127.0.0.7"])]);
    let url = format!("http://a.company.com:{}/", endpoint.address.port());
    let report = client.attempt(&task(&url), &settings(&url)).await;
    assert_eq!(kind(&report), Some(ErrorKind::AddressRefused));
    assert_eq!(endpoint.connections(), 0);
}

#[tokio::test]
async fn names_that_do_not_resolve_are_retried() {
    let client = client_with(&loopback(), &[("empty.company.com", &[])]);
    for host in ["empty.company.com", "unknown.company.com"] {
        let url = format!("http://{host}:8080/");
        let report = client.attempt(&task(&url), &settings(&url)).await;
        assert_eq!((kind(&report), report.outcome), (Some(ErrorKind::Dns), RETRY));
    }
}

#[tokio::test]
async fn the_next_address_is_tried_when_one_does_not_answer() {
    let endpoint = Endpoint::answering(OK).await;
    let client = client_with(&loopback(), &[("a.company.com", &["127.0.0.9", "127.0.0.1"])]);
    let url = format!("http://a.company.com:{}/", endpoint.address.port());
    let report = client.attempt(&task(&url), &settings(&url)).await;
    assert_eq!(report.outcome, Outcome::Delivered, "{report:?}");
    let closed = format!("http://127.0.0.9:{}/", endpoint.address.port());
    let report = attempt(&closed).await;
    assert_eq!((kind(&report), report.outcome), (Some(ErrorKind::Connect), RETRY));
}

#[tokio::test]
async fn urls_are_judged_again_when_sent() {
    let endpoint = Endpoint::answering(OK).await;
    let client_of = |allow_http| client(&Config { allow_http, ..loopback() });
    let not_canonical = format!("http://127.0.0.1:{}", endpoint.address.port());
    let user = format!("http://user@127.0.0.1:{}/", endpoint.address.port());
    let number = format!("http://2130706433:{}/", endpoint.address.port());
    for (client, url) in [
        (client_of(false), endpoint.url()),
        (client_of(true), not_canonical),
        (client_of(true), user),
        (client_of(true), number),
    ] {
        let report = client.attempt(&task(&url), &settings(&url)).await;
        assert_eq!(
            (kind(&report), report.outcome),
            (Some(ErrorKind::UrlRefused), Outcome::Permanent)
        );
    }
    assert_eq!(endpoint.connections(), 0);
}

#[tokio::test]
async fn connections_are_reused() {
    let endpoint = Endpoint::answering(OK).await;
    let client = client(&loopback());
    for _ in 0..10 {
        let report = client.attempt(&task(&endpoint.url()), &settings(&endpoint.url())).await;
        assert_eq!(report.outcome, Outcome::Delivered);
    }
    assert_eq!(endpoint.connections(), 1);
}

#[tokio::test]
async fn as_many_connections_are_kept_as_ten_busy_subscriptions_of_a_host_use() {
    const AT_ONCE: usize = 160;
    let all_are_there = Arc::new(Barrier::new(AT_ONCE));
    let endpoint = Endpoint::start(move |mut stream| {
        let all_are_there = Arc::clone(&all_are_there);
        async move {
            while read_request(&mut stream).await.is_some() {
                all_are_there.wait().await;
                stream.write_all(OK.as_bytes()).await.ok();
            }
            Vec::new()
        }
    })
    .await;
    let (client, url) = (client(&loopback()), endpoint.url());
    for _ in 0..3 {
        let (task, settings) = (task(&url), settings(&url));
        let attempts = (0..AT_ONCE).map(|_| client.attempt(&task, &settings));
        for report in join_all(attempts).await {
            assert_eq!(report.outcome, Outcome::Delivered);
        }
        // They come back to the pool.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(endpoint.connections(), AT_ONCE);
}

#[tokio::test]
async fn a_pooled_connection_that_the_endpoint_closed_harms_nobody() {
    let mut endpoint = Endpoint::answering_once(OK).await;
    let client = client(&loopback());
    for _ in 0..50 {
        let report = client.attempt(&task(&endpoint.url()), &settings(&endpoint.url())).await;
        assert_eq!(report.outcome, Outcome::Delivered, "{report:?}");
        assert!(!endpoint.ended().await.is_empty());
    }
}

#[tokio::test]
async fn a_connection_that_saw_garbage_is_not_used_again() {
    for answer in [
        format!("{OK}HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        format!("{OK}garbage"),
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            .to_owned(),
    ] {
        let endpoint = Endpoint::answering(answer.clone()).await;
        let client = client(&loopback());
        for connections in 1..=3 {
            let report = client.attempt(&task(&endpoint.url()), &settings(&endpoint.url())).await;
            assert_eq!(report.outcome, Outcome::Delivered, "{answer}");
            assert_eq!(endpoint.connections(), connections, "{answer}");
        }
    }
}

#[tokio::test]
async fn what_is_no_http_is_a_protocol_error() {
    for answer in [
        "",
        "SSH-2.0-OpenSSH_9.9\r\n",
        "HTTP/1.1 200",
        "HTTP/1.1 999999 What\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        "HTTP/1.1 200 OK\r\nbad header\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
        "\0\0\0\0\0\0",
    ] {
        let endpoint = Endpoint::answering_once(answer).await;
        let report = attempt(&endpoint.url()).await;
        assert_eq!(
            (kind(&report), report.outcome),
            (Some(ErrorKind::Protocol), RETRY),
            "{answer:?}"
        );
        assert_eq!(endpoint.connections(), 1, "sent once: {answer:?}");
    }
}

#[tokio::test]
async fn an_endpoint_that_hangs_ends_with_the_deadline() {
    let mut endpoint = Endpoint::start(|mut stream| async move {
        let request = read_request(&mut stream).await.unwrap_or_default();
        assert_eq!(read_request(&mut stream).await, None, "nothing more comes");
        request
    })
    .await;
    let took = stopwatch();
    let report = attempt_within(&endpoint.url(), SHORT).await;
    assert_eq!((kind(&report), report.outcome), (Some(ErrorKind::Timeout), RETRY));
    assert!((SHORT..SHORT * 8).contains(&took()), "{:?}", took());
    assert_eq!(
        report.failure.expect("failed").message,
        "The endpoint did not answer within 0.25 s."
    );
    assert!(!endpoint.ended().await.is_empty(), "the connection is closed");
}

#[tokio::test]
async fn an_endless_body_is_cut_and_counts_as_what_the_status_says() {
    for (status, expected) in [(200, None), (500, Some(ErrorKind::HttpStatus))] {
        for head in ["Transfer-Encoding: chunked", "Content-Length: 1000000000000"] {
            let head: &'static str = format!("HTTP/1.1 {status} X\r\n{head}\r\n\r\n").leak();
            let piece = [b"400\r\n".as_slice(), &[b'x'; 1_024], b"\r\n"].concat();
            let mut endpoint = Endpoint::flooding(head, piece, Duration::ZERO).await;
            let took = stopwatch();
            let report = attempt(&endpoint.url()).await;
            assert_eq!((kind(&report), report.http_status), (expected, Some(status)));
            assert_eq!(report.response_body.len(), KEPT_BODY_BYTES);
            endpoint.ended().await;
            assert!(took() < LONG / 2, "{:?}", took());
        }
    }
}

#[tokio::test]
async fn a_dripping_body_ends_with_the_deadline() {
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n";
    let mut endpoint = Endpoint::flooding(head, b"x".to_vec(), SHORT / 10).await;
    let took = stopwatch();
    let report = attempt_within(&endpoint.url(), SHORT).await;
    assert_eq!(report.outcome, Outcome::Delivered, "2xx is success, whole or not");
    assert!((1..50).contains(&report.response_body.len()));
    assert!((SHORT..SHORT * 8).contains(&took()), "{:?}", took());
    endpoint.ended().await;
}

#[tokio::test]
async fn dripping_headers_end_with_the_deadline() {
    let mut endpoint =
        Endpoint::flooding("HTTP/1.1 200 OK\r\nX: ", b"x".to_vec(), SHORT / 10).await;
    let report = attempt_within(&endpoint.url(), SHORT).await;
    assert_eq!(kind(&report), Some(ErrorKind::Timeout));
    endpoint.ended().await;
}

#[tokio::test]
async fn endless_headers_are_too_large() {
    for piece in ["x".repeat(1_000), format!("X: {}\r\n", "y".repeat(1_000)), "A: b\r\n".repeat(10)]
    {
        let mut endpoint =
            Endpoint::flooding("HTTP/1.1 200 OK\r\nX: ", piece.into(), Duration::ZERO).await;
        let report = attempt(&endpoint.url()).await;
        assert_eq!((kind(&report), report.outcome), (Some(ErrorKind::ResponseTooLarge), RETRY));
        endpoint.ended().await;
    }
}

#[tokio::test]
async fn the_limits_of_headers_hold_on_both_sides() {
    let lines = |count: usize| "X: y\r\n".repeat(count - 1);
    let large = |bytes: usize| format!("X: {}\r\n", "y".repeat(bytes));
    for (headers, expected) in [
        (lines(MAX_HEADERS), None),
        (lines(MAX_HEADERS + 1), Some(ErrorKind::ResponseTooLarge)),
        (large(65_000), None),
        (large(65_536), Some(ErrorKind::ResponseTooLarge)),
        (large(1_000_000), Some(ErrorKind::ResponseTooLarge)),
    ] {
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n{headers}\r\n");
        let endpoint = Endpoint::answering(answer).await;
        assert_eq!(kind(&attempt(&endpoint.url()).await), expected, "{} bytes", headers.len());
    }
}

#[tokio::test]
async fn headers_are_cut_before_they_end() {
    let endless = format!("HTTP/1.1 200 OK\r\nX: {}", "y".repeat(100_000));
    let endpoint = Endpoint::answering(endless).await;
    assert_eq!(kind(&attempt(&endpoint.url()).await), Some(ErrorKind::ResponseTooLarge));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_interim_answers_ends_with_the_deadline() {
    let piece = "HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n".repeat(100);
    let mut endpoint = Endpoint::flooding("", piece.into(), Duration::ZERO).await;
    let took = stopwatch();
    let report = attempt_within(&endpoint.url(), SHORT).await;
    assert_eq!(kind(&report), Some(ErrorKind::Timeout));
    assert!(took() < SHORT * 8, "{:?}", took());
    endpoint.ended().await;
}

#[tokio::test]
async fn one_hanging_endpoint_keeps_no_connection_and_no_other_waiting() {
    let hanging = Endpoint::start(|mut stream| async move {
        while read_request(&mut stream).await.is_some() {}
        Vec::new()
    })
    .await;
    let good = Endpoint::answering(OK).await;
    let client = client(&loopback());
    let (slow_url, good_url) = (hanging.url(), good.url());
    let (slow, task) = (WebhookChannel { timeout: SHORT, ..settings(&slow_url) }, task(&slow_url));
    let took = stopwatch();
    let many = futures::future::join_all((0..50).map(|_| client.attempt(&task, &slow)));
    let quick = async {
        let report = client.attempt(&task, &settings(&good_url)).await;
        assert_eq!(report.outcome, Outcome::Delivered);
        assert!(took() < SHORT, "{:?}", took());
    };
    let (reports, ()) = tokio::join!(many, quick);
    assert!(reports.iter().all(|report| kind(report) == Some(ErrorKind::Timeout)));
}

#[tokio::test]
async fn metrics_exist_at_zero_and_count() {
    let mut registry = Registry::with_prefix("tidings");
    let metrics = Metrics::new(&mut registry);
    let text = |registry: &Registry| {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, registry).expect("encoded");
        text
    };
    let start = text(&registry);
    assert!(start.contains("tidings_webhook_attempts_total{result=\"delivered\"} 0"), "{start}");
    for kind in ErrorKind::ALL {
        let line = format!("tidings_webhook_attempts_total{{result=\"{}\"}} 0", kind.as_str());
        assert!(start.contains(&line), "{line}");
    }
    let endpoint = Endpoint::answering(OK).await;
    let client = Client::new(&loopback(), Arc::new(Frozen), metrics).expect("client");
    client.attempt(&task(&endpoint.url()), &settings(&endpoint.url())).await;
    client.attempt(&task("ftp://a.co/"), &settings("ftp://a.co/")).await;
    let end = text(&registry);
    for line in [
        "tidings_webhook_attempts_total{result=\"delivered\"} 1",
        "tidings_webhook_attempts_total{result=\"url_refused\"} 1",
        "tidings_webhook_attempt_duration_seconds_count 2",
        "tidings_webhook_phase_duration_seconds_count{phase=\"dns\"} 0",
        "tidings_webhook_phase_duration_seconds_count{phase=\"connect\"} 1",
        "tidings_webhook_phase_duration_seconds_count{phase=\"tls\"} 0",
        "tidings_webhook_phase_duration_seconds_count{phase=\"first_byte\"} 1",
        "tidings_webhook_open_connections 1",
    ] {
        assert!(end.contains(line), "{line} in {end}");
    }
}
