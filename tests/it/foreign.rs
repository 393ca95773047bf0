//! Programs that share no code with us: receivers that verify what we send, and clients that call
//! what we serve. `signatures` and `cloudevents` have the libraries.
//!
//! They live in `tests/foreign` and `examples/python`; `make test` installs what they need.

use std::collections::HashMap;
use std::process::{Output, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;
use tidings::api::proto::{self, DeliveryState, FailureReason, PayloadFormat, SignatureScheme};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::support::app::quick_retries;
use crate::support::foreign::{PATIENCE, command, node, python, tool};
use crate::support::{App, Database};

/// Events for each of the receivers that others wrote.
const EVENTS: usize = 40;
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
        Box::pin(a_wrong_secret_is_refused(database, FLASK)).await;
    }
}

on_both! {
    async fn an_express_receiver_refuses_a_wrong_secret(database: Database) {
        Box::pin(a_wrong_secret_is_refused(database, EXPRESS)).await;
    }
}

on_both! {
    async fn a_go_receiver_refuses_a_wrong_secret(database: Database) {
        Box::pin(a_wrong_secret_is_refused(database, GO)).await;
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
        // Without this permission the service takes no receiver on the loopback.
        let options = tidings::config::Options { allow_cidrs: vec![], ..crate::support::app::options(&database) };
        let app = App::start_with(database, &options).await;
        let cases = [("", "TIDINGS_API_KEY is not set"), ("wrong", "UNAUTHENTICATED"), (&app.operator_key, "INVALID_ARGUMENT: subscription.webhook.url")];
        for (key, reason) in cases {
            let output = run_the_example(&app, key).await;
            let stderr = String::from_utf8(output.stderr).expect("UTF-8");
            assert_eq!(output.status.code(), Some(1), "{stderr}");
            assert!(stderr.contains(reason) && !stderr.contains("Traceback"), "{stderr}");
        }
        app.stop().await;
    }
}
