//! Programs that share no code with us: what we sign, they verify, and what we serve, they call.
//!
//! They live in `tests/foreign` and `examples/python`; `make test` installs what they need.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde_json::{Value, json};
use tidings::api::proto::{self, DeliveryState, FailureReason, PayloadFormat, SignatureScheme};
use tidings::domain::payload::{DEFAULT_MAX_BYTES, MAX_DEPTH};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::support::app::quick_retries;
use crate::support::receiver::Captured;
use crate::support::{App, Database, Receiver};

/// For a program to start, work and end on a busy machine.
const PATIENCE: Duration = Duration::from_mins(2);
/// Events for each of the receivers that others wrote.
const EVENTS: usize = 40;
/// What the libraries say of a signature that was read, and is wrong. A forgery must be refused for
/// this and not for a header that nobody could have read.
const REFUSED: &str = "No matching signature found";

/// What `make test` says about a program that is not ours.
fn tool(variable: &str) -> OsString {
    std::env::var_os(variable).unwrap_or_else(|| {
        panic!(
            "{variable} is not set: run the tests with `make test`, which installs what they need"
        )
    })
}

fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A program without our variables and without a proxy, which ends with the test.
fn command(program: impl Into<OsString>, script: Option<&str>) -> Command {
    let mut command = Command::new(program.into());
    command.args(script.map(in_repository)).kill_on_drop(true);
    let ours = |name: &str| name.starts_with("TIDINGS_") || name.to_lowercase().ends_with("_proxy");
    for (name, _) in std::env::vars().filter(|(name, _)| ours(name)) {
        command.env_remove(name);
    }
    command
}

/// A Python script of the repository.
fn python(script: &str) -> Command {
    let mut command = command(tool("TIDINGS_TEST_PYTHON"), Some(script));
    // Tests leave nothing in the source tree.
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// A Node.js script of the repository.
fn node(script: &str) -> Command {
    let packages = tool("TIDINGS_TEST_NODE_PATH");
    let mut command = command("node", Some(script));
    command.env("TIDINGS_TEST_NODE_PATH", packages);
    command
}

/// A secret as Standard Webhooks wants it.
fn standard_secret(byte: u8) -> String {
    format!("whsec_{}", BASE64.encode([byte; 32]))
}

/// A webhook in a channel's shape, with a secret that the receiver knows before there is a URL.
async fn subscribe(
    app: &App,
    tenant_id: &str,
    webhook: proto::WebhookChannel,
    secret: &str,
    max_retries: i32,
) {
    let subscription = proto::Subscription {
        tenant_id: tenant_id.into(),
        display_name: "foreign".into(),
        event_types: vec!["*".into()],
        channel: Some(proto::subscription::Channel::Webhook(webhook)),
        retry_policy: Some(quick_retries(max_retries)),
        ..Default::default()
    };
    let request = proto::CreateSubscriptionRequest {
        subscription: Some(subscription),
        signing_secret: secret.into(),
    };
    let created = app.operator.subscriptions().create_subscription(request).await.expect("created");
    assert_eq!(created.into_inner().signing_secret, secret);
}

// What the libraries say

/// A request as it was captured, or forged from one, for a library to verify with a secret.
#[derive(Clone)]
struct Item {
    what: &'static str,
    secret: String,
    headers: HashMap<String, String>,
    body: Bytes,
}

impl Item {
    fn captured(request: &Captured, secret: &str) -> Self {
        Self {
            what: "captured",
            secret: secret.into(),
            headers: request.headers.iter().cloned().collect(),
            body: request.body.clone(),
        }
    }

    fn with_header(mut self, name: &str, value: &str) -> Self {
        let before = self.headers.insert(name.into(), value.into());
        assert!(before.is_some_and(|before| before != value), "{name} is changed");
        self
    }

    /// Everything that an attacker without the secret would change.
    fn forgeries(&self, other_id: &str, other_secret: &str) -> Vec<Self> {
        assert_ne!(self.secret, other_secret);
        let mut longer = self.body.to_vec();
        longer.push(b' ');
        let mut changed = self.body.to_vec();
        // The first byte of JSON is ASCII, and stays it: the body must be wrong, not unreadable.
        changed[0] ^= 1;
        let seconds: i64 = self.headers["webhook-timestamp"].parse().expect("seconds");
        let later = (seconds + 1).to_string();
        vec![
            Self { what: "a longer body", body: longer.into(), ..self.clone() },
            Self { what: "a changed body", body: changed.into(), ..self.clone() },
            Self { what: "another id", ..self.clone() }.with_header("webhook-id", other_id),
            Self { what: "another time", ..self.clone() }.with_header("webhook-timestamp", &later),
            Self { what: "another secret", secret: other_secret.into(), ..self.clone() },
        ]
    }
}

/// Verifies every item with a library, in one process. Nothing for a signature that holds, else
/// what the library says.
async fn verdicts(mut program: Command, items: &[Item]) -> Vec<Option<String>> {
    let input: Vec<Value> = items
        .iter()
        .map(|item| {
            let body = BASE64.encode(&item.body);
            json!({ "secret": item.secret, "headers": item.headers, "body_base64": body })
        })
        .collect();
    let input = serde_json::to_vec(&input).expect("JSON");
    let mut child = program
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started");
    let mut stdin = child.stdin.take().expect("piped");
    let feed = async move {
        // A program that has ended reads no more; its exit code tells why.
        let _ = stdin.write_all(&input).await;
    };
    let ended = tokio::time::timeout(PATIENCE, async {
        tokio::join!(feed, child.wait_with_output()).1.expect("waited")
    });
    let output = ended.await.expect("ends in time");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said: Vec<_> = String::from_utf8(output.stdout)
        .expect("UTF-8")
        .lines()
        .map(|line| {
            let said: Value = serde_json::from_str(line).expect("JSON");
            let ok = said["ok"].as_bool().expect("a verdict");
            (!ok).then(|| said["error"].as_str().expect("a reason").to_owned())
        })
        .collect();
    assert_eq!(said.len(), items.len(), "one verdict for each item");
    said
}

/// What the libraries of `PyPI` and npm say of `genuine` requests, which must hold, and of `forged`
/// ones, which must not.
async fn verify(genuine: &[Item], forged: &[Item]) {
    assert!(!genuine.is_empty() && !forged.is_empty(), "nothing was verified");
    let items = [genuine, forged].concat();
    let (pypi, npm) = tokio::join!(
        verdicts(python("tests/foreign/verify.py"), &items),
        verdicts(node("tests/foreign/verify.mjs"), &items),
    );
    for (library, said) in [("PyPI", pypi), ("npm", npm)] {
        for (number, (item, said)) in items.iter().zip(said).enumerate() {
            let body = String::from_utf8_lossy(&item.body[..item.body.len().min(200)]);
            let told = format!("{library}, {}, {body}: {said:?}", item.what);
            if number < genuine.len() {
                assert_eq!(said, None, "{told}");
            } else {
                assert!(said.is_some_and(|said| said.contains(REFUSED)), "{told}");
            }
        }
    }
}

/// JSON that a careless sender or receiver would change on the way.
fn payloads() -> Vec<String> {
    let mut payloads: Vec<String> = [
        "{}",
        // One byte, and other values that are no objects.
        "1",
        "[]",
        "\"\"",
        "null",
        "-0",
        r#"{"name":"Zoë","city":"東京","mood":"🙂🏽","joined":"e\u0301 is not é","rtl":"שלום"}"#,
        r#"{"schlüssel":1,"ключ":2,"鍵":3}"#,
        r#"{"a":1,"a":2,"b":0,"a":1}"#,
        r#"{"type":"theirs","event_type":"theirs","timestamp":"theirs","id":"theirs","data":"theirs"}"#,
        r#"{"big":123456789012345678901234567890,"small":-123456789012345678901234567890}"#,
        r#"{"float":0.10,"exponent":1e400,"tiny":1E-400,"whole":1.0,"precise":3.141592653589793238462643}"#,
        " { \"a\" :\t1 ,\r\n  \"b\":[ 1,2 ,3 ]\n}\r\n ",
        r#"{"escapes":"\u0000\u001f\"\\\/\b\f\n\r\t\u2028\ud83d\ude42","slash":"/","amp":"&<>'"}"#,
        "{\"raw\":\"\u{2028}\u{2029}\u{feff}\u{7f}\u{10ffff}\"}",
        r#"{"":"","a.b":{"":[{}]},"__proto__":{"x":1},"constructor":null}"#,
    ]
    .map(str::to_owned)
    .to_vec();
    payloads.push("[".repeat(MAX_DEPTH) + &"]".repeat(MAX_DEPTH));
    // As large as it may be: all ASCII, and with characters of three bytes.
    for character in ["a", "鍵"] {
        let (start, end) = (r#"{"text":""#, r#""}"#);
        let room = DEFAULT_MAX_BYTES - start.len() - end.len();
        let text = character.repeat(room / character.len());
        let padding = " ".repeat(room % character.len());
        payloads.push(format!("{start}{text}{padding}{end}"));
    }
    assert!(payloads[payloads.len() - 2..].iter().all(|payload| payload.len() == 256 * 1024));
    // Lengths around the blocks of the hash.
    payloads.extend(
        (0..42).map(|length| format!(r#"{{"n":{length},"é":"{}"}}"#, "é".repeat(3 * length))),
    );
    payloads
}

on_both! {
    async fn libraries_of_others_verify_every_payload_in_every_format_and_refuse_every_forgery(database: Database) {
        let app = App::start(database).await;
        let receiver = Receiver::answering(204).await;
        let tenant = app.operator.create_tenant("Zoë & 東京 \"Söhne\"").await;
        let formats = [PayloadFormat::Standard, PayloadFormat::Flat, PayloadFormat::DataOnly];
        let mut secrets = HashMap::new();
        for format in formats {
            let webhook = proto::WebhookChannel {
                url: receiver.url(),
                payload_format: format as i32,
                headers: [("X-Format".to_owned(), format.as_str_name().to_owned())].into(),
                ..Default::default()
            };
            let (_, secret) = app.operator.subscribe_with(&tenant.id, &["*"], webhook, None).await;
            secrets.insert(format.as_str_name().to_owned(), secret);
        }
        let mut emitted = HashMap::new();
        for payload in payloads() {
            let event = app.operator.emit(&tenant.id, "user.created", &payload).await;
            assert_eq!(event.delivery_count, 3);
            emitted.insert(event.event_id, payload);
        }
        assert!(emitted.len() > 60);
        let requests = receiver.wait_for(emitted.len() * formats.len()).await;

        let (mut genuine, mut forged, mut arrived) = (Vec::new(), Vec::new(), HashSet::new());
        for (number, request) in requests.iter().enumerate() {
            let (id, format) = (request.header("webhook-id"), request.header("x-format"));
            let payload = &emitted[id];
            match PayloadFormat::from_str_name(format).expect("a format") {
                PayloadFormat::DataOnly => assert_eq!(request.body, payload),
                PayloadFormat::Standard => assert!(request.body.ends_with(format!("\"data\":{payload}}}").as_bytes())),
                // Read as bytes: our own JSON reader knows no number as large as 1e400.
                _ => assert!(request.body.starts_with(br#"{"event_type":"user.created","#)),
            }
            arrived.insert((id, format));
            let item = Item::captured(request, &secrets[format]);
            let other = |name: &str, mine: &str| {
                let mut others = requests.iter().cycle().skip(number).map(|request| request.header(name).to_owned());
                others.find(|other| other != mine).expect("another")
            };
            let other_secret = &secrets[&other("x-format", format)];
            forged.extend(item.forgeries(&other("webhook-id", id), other_secret));
            genuine.push(item);
        }
        assert_eq!(arrived.len(), emitted.len() * formats.len(), "every event in every format");
        verify(&genuine, &forged).await;
        app.stop().await;
    }
}

on_both! {
    async fn while_a_rotation_overlaps_the_old_and_the_new_secret_both_verify(database: Database) {
        let app = App::start(database).await;
        let receiver = Receiver::answering(204).await;
        let tenant = app.operator.create_tenant("Acme").await;
        let (subscription, first) = app.operator.subscribe(&tenant.id, &["*"], &receiver.url()).await;
        let rotate = async |overlap| {
            let request = proto::RotateSecretRequest {
                tenant_id: tenant.id.clone(),
                subscription_id: subscription.id.clone(),
                overlap,
                ..Default::default()
            };
            app.operator.subscriptions().rotate_secret(request).await.expect("rotated").into_inner().signing_secret
        };
        let arrives = async |count| {
            app.operator.emit(&tenant.id, "user.created", r#"{"name":"Zoë"}"#).await;
            receiver.wait_for(count).await.remove(count - 1)
        };

        let before = arrives(1).await;
        let second = rotate(None).await;
        let during = arrives(2).await;
        let third = rotate(Some(prost_types::Duration::default())).await;
        let after = arrives(3).await;

        let all = [(&before, vec![&first]), (&during, vec![&first, &second]), (&after, vec![&third])];
        let (mut genuine, mut forged) = (Vec::new(), Vec::new());
        for (request, valid) in all {
            for secret in [&first, &second, &third] {
                let kind = if valid.contains(&secret) { &mut genuine } else { &mut forged };
                kind.push(Item::captured(request, secret));
            }
        }
        assert_eq!((genuine.len(), forged.len()), (4, 5));
        verify(&genuine, &forged).await;
        app.stop().await;
    }
}

// Receivers that others wrote

/// A receiver, and the subscription that it wants.
struct Kind {
    command: fn() -> Command,
    scheme: SignatureScheme,
    format: PayloadFormat,
    secret: fn(u8) -> String,
}

const FLASK: Kind = Kind {
    command: || python("tests/foreign/flask_receiver.py"),
    scheme: SignatureScheme::StandardWebhooks,
    format: PayloadFormat::Standard,
    secret: standard_secret,
};

const EXPRESS: Kind = Kind {
    command: || node("tests/foreign/express_receiver.mjs"),
    scheme: SignatureScheme::StandardWebhooks,
    format: PayloadFormat::Flat,
    secret: standard_secret,
};

const GO: Kind = Kind {
    command: || command(tool("TIDINGS_TEST_GO_RECEIVER"), None),
    scheme: SignatureScheme::HmacSha256Hex,
    format: PayloadFormat::DataOnly,
    // Who has always signed with a plain HMAC has a secret that is no Base64.
    secret: |byte| format!("a plain secret, number {byte}!"),
};

/// A receiver that runs; it ends when it is dropped.
struct Running {
    port: u64,
    lines: Lines<BufReader<ChildStdout>>,
    _child: Child,
}

impl Running {
    /// Starts a receiver that expects `secret`.
    async fn start(kind: &Kind, secret: &str) -> Self {
        let mut command = (kind.command)();
        command.env("SIGNING_SECRET", secret).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("started");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut running = Self { port: 0, lines, _child: child };
        running.port = running.report().await["port"].as_u64().expect("a port");
        running
    }

    /// The next line that it prints.
    async fn report(&mut self) -> Value {
        let line = tokio::time::timeout(PATIENCE, self.lines.next_line()).await.expect("in time");
        serde_json::from_str(&line.expect("readable").expect("no end")).expect("JSON")
    }

    async fn reports(&mut self, count: usize) -> Vec<Value> {
        let mut reports = Vec::with_capacity(count);
        while reports.len() < count {
            reports.push(self.report().await);
        }
        reports
    }

    /// A webhook that it can receive.
    fn webhook(&self, kind: &Kind) -> proto::WebhookChannel {
        proto::WebhookChannel {
            url: format!("http://127.0.0.1:{}/webhooks/tidings", self.port),
            signatures: vec![kind.scheme as i32],
            payload_format: kind.format as i32,
            ..Default::default()
        }
    }
}

async fn every_webhook_is_verified(database: Database, kind: Kind) {
    let app = App::start(database).await;
    let tenant = app.operator.create_tenant("Acme").await;
    let secret = (kind.secret)(1);
    let mut receiver = Running::start(&kind, &secret).await;
    subscribe(&app, &tenant.id, receiver.webhook(&kind), &secret, 3).await;

    // Each has a type of its own, which the receiver finds where the format puts it.
    let mut emitted = HashMap::new();
    for number in 0..EVENTS {
        let event_type = format!("order.paid_{number}");
        let data = format!(r#"{{ "order" : {number}, "customer":"Zoë", "city":"東京" }}"#);
        let event = app.operator.emit(&tenant.id, &event_type, &data).await;
        emitted.insert(event_type, event.event_id);
    }
    for event_id in emitted.values() {
        let delivery =
            app.operator.wait_for_state(&tenant.id, event_id, DeliveryState::Succeeded).await;
        assert_eq!(delivery.attempt_count, 1);
        assert_eq!(delivery.last_attempt.expect("an attempt").http_status, 204);
    }
    for report in receiver.reports(EVENTS).await {
        assert_eq!(report["verified"], true, "{report}");
        let event_id = emitted.remove(report["type"].as_str().expect("a type"));
        let event_id = event_id.unwrap_or_else(|| panic!("emitted once, arrived once: {report}"));
        if kind.scheme == SignatureScheme::StandardWebhooks {
            assert_eq!(report["webhook_id"], event_id);
        }
    }
    assert!(emitted.is_empty(), "never arrived: {emitted:?}");
    app.stop().await;
}

async fn a_wrong_secret_is_refused(database: Database, kind: Kind) {
    let app = App::start(database).await;
    let tenant = app.operator.create_tenant("Acme").await;
    let mut receiver = Running::start(&kind, &(kind.secret)(1)).await;
    subscribe(&app, &tenant.id, receiver.webhook(&kind), &(kind.secret)(2), 1).await;

    let event_id = app.operator.emit(&tenant.id, "order.paid", "{}").await.event_id;
    let delivery = app.operator.wait_for_state(&tenant.id, &event_id, DeliveryState::Failed).await;
    assert_eq!(delivery.failure_reason(), FailureReason::Exhausted);
    let attempts = app.operator.attempts(&tenant.id, &delivery.id).await;
    let statuses: Vec<_> = attempts.iter().map(|attempt| attempt.http_status).collect();
    assert_eq!(statuses, [401, 401]);
    for report in receiver.reports(statuses.len()).await {
        assert_eq!(report["verified"], false, "{report}");
        assert_eq!(report["type"], "order.paid", "{report}");
    }
    app.stop().await;
}

on_both! {
    async fn a_flask_receiver_verifies_every_webhook(database: Database) {
        every_webhook_is_verified(database, FLASK).await;
    }
}

on_both! {
    async fn an_express_receiver_verifies_every_webhook(database: Database) {
        every_webhook_is_verified(database, EXPRESS).await;
    }
}

on_both! {
    async fn a_go_receiver_verifies_every_webhook(database: Database) {
        every_webhook_is_verified(database, GO).await;
    }
}

on_both! {
    async fn a_flask_receiver_refuses_a_wrong_secret(database: Database) {
        a_wrong_secret_is_refused(database, FLASK).await;
    }
}

on_both! {
    async fn an_express_receiver_refuses_a_wrong_secret(database: Database) {
        a_wrong_secret_is_refused(database, EXPRESS).await;
    }
}

on_both! {
    async fn a_go_receiver_refuses_a_wrong_secret(database: Database) {
        a_wrong_secret_is_refused(database, GO).await;
    }
}

// The example

async fn run_the_example(app: &App, key: &str) -> Output {
    let mut example = python("examples/python/tidings_example.py");
    example
        .current_dir(app.database.folder.path())
        .env("TIDINGS_ENDPOINT", app.endpoint())
        .env("TIDINGS_API_KEY", key)
        .stdin(Stdio::null());
    tokio::time::timeout(PATIENCE, example.output()).await.expect("ends in time").expect("ran")
}

on_both! {
    async fn the_python_example_gets_from_a_key_to_a_verified_webhook(database: Database) {
        let app = App::start(database).await;
        let output = run_the_example(&app, &app.operator_key).await;
        let stdout = String::from_utf8(output.stdout).expect("UTF-8");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stdout}{stderr}");
        assert_eq!(stderr, "");

        // What it says is what the service knows.
        let tenants = app.operator.tenants().list_tenants(proto::ListTenantsRequest::default()).await;
        let tenants = tenants.expect("listed").into_inner().tenants;
        assert_eq!(tenants.len(), 1);
        let deliveries = app.operator.deliveries_of(&tenants[0].id, "").await;
        assert_eq!(deliveries.len(), 1);
        let delivery = &deliveries[0];
        assert_eq!(delivery.state(), DeliveryState::Succeeded);
        let wanted = [
            tenants[0].id.clone(),
            "resume token".into(),
            format!("{} revision {}: SUCCEEDED", delivery.id, delivery.revision),
            format!("verified {}", delivery.event_id),
        ];
        for wanted in wanted {
            assert!(stdout.contains(&wanted), "{wanted} is not said:\n{stdout}");
        }
        app.stop().await;
    }
}

on_both! {
    async fn the_python_example_fails_and_says_why(database: Database) {
        // Without this permission the service does not call a receiver on the loopback.
        let options = tidings::config::Options { allow_cidrs: vec![], ..crate::support::app::options(&database) };
        let app = App::start_with(database, &options).await;
        let cases = [("", "TIDINGS_API_KEY is not set"), ("wrong", "UNAUTHENTICATED"), (&app.operator_key, "FAILED")];
        for (key, reason) in cases {
            let output = run_the_example(&app, key).await;
            let stderr = String::from_utf8(output.stderr).expect("UTF-8");
            assert_eq!(output.status.code(), Some(1), "{stderr}");
            assert!(stderr.contains(reason) && !stderr.contains("Traceback"), "{stderr}");
        }
        app.stop().await;
    }
}
