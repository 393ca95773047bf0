//! The command line against a running service: what a newcomer types, and what a program reads.

use std::process::Output;

use serde_json::Value;

use crate::support::process::{Served, operator_key, tidings};
use crate::support::{Database, Receiver};

/// Runs a client command.
async fn command(served: &Served, key: &str, arguments: &[&str]) -> Output {
    let mut command = tidings(arguments);
    command.env("TIDINGS_ENDPOINT", &served.endpoint).env("TIDINGS_API_KEY", key);
    command.output().await.expect("ran")
}

/// Runs a client command that succeeds, and reads its JSON.
async fn json(served: &Served, key: &str, arguments: &[&str]) -> Value {
    let output = command(served, key, &[arguments, &["--json"]].concat()).await;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    let stdout = String::from_utf8(output.stdout).expect("UTF-8");
    serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {stdout}"))
}

on_both! {
    async fn a_newcomer_gets_from_a_key_to_a_delivery(database: Database) {
        let receiver = Receiver::answering(200).await;
        let key = operator_key(&database).await;
        let served = Served::start(&database, &[]).await;
        let tenant = json(&served, &key, &["tenants", "create", "--display-name", "Acme"]).await;
        let tenant = tenant["tenant"]["id"].as_str().expect("an id").to_owned();
        let url = receiver.url();
        let create = ["subscriptions", "create", "--tenant", &tenant, "--event-type", "billing.*", "--url", &url];
        let created = json(&served, &key, &create).await;
        assert!(created["signing_secret"].as_str().expect("a secret").starts_with("whsec_"));
        let emit = ["emit", "--tenant", &tenant, "billing.paid", "--data", r#"{"amount":1200}"#];
        let emitted = json(&served, &key, &emit).await;
        assert_eq!(emitted["delivery_count"], 1);
        let arrived = receiver.wait_for(1).await.remove(0);
        assert_eq!(arrived.json()["data"]["amount"], 1200);

        let listed = json(&served, &key, &["deliveries", "list", "--tenant", &tenant]).await;
        let delivery = listed["deliveries"][0]["id"].as_str().expect("an id").to_owned();
        let shown = command(&served, &key, &["deliveries", "show", "--tenant", &tenant, &delivery]).await;
        let shown = String::from_utf8(shown.stdout).expect("UTF-8");
        assert!(shown.contains("billing.paid") && shown.contains("200"), "{shown}");
        assert!(!shown.contains('\u{1b}'), "no colour where nobody looks");
        for part in ["connect ", "first byte ", "webhook-signature: v1,***", "webhook-id: evt_"] {
            assert!(shown.contains(part), "{part} is not in {shown}");
        }
        let show = ["deliveries", "show", "--tenant", &tenant, &delivery];
        let timings = json(&served, &key, &show).await["attempts"][0]["timings"].clone();
        assert!(timings["first_byte"].as_str().expect("a time").ends_with('s'), "{timings}");
        assert_eq!((&timings["tls"], &timings["connection_reused"]), (&Value::Null, &false.into()));

        let keys = json(&served, &key, &["keys", "create", "--tenant", &tenant, "--scope", "events:emit"]).await;
        let limited = keys["secret"].as_str().expect("a key").to_owned();
        let denied = command(&served, &limited, &["deliveries", "list"]).await;
        assert_eq!(denied.status.code(), Some(1));
        let error = String::from_utf8(denied.stderr).expect("UTF-8");
        assert!(error.contains("deliveries:read"), "the missing scope is named: {error}");
        served.kill().await;
    }
}

/// What `docs/command-line.md` promises to programs: one document, or one per line, and nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_writes_json_for_programs() {
    let database = Database::sqlite().await;
    let receiver = Receiver::answering(200).await;
    let created = tidings(&["keys", "create", "--operator", "--json"])
        .args(["--database-url", &database.config.database_url])
        .output()
        .await
        .expect("ran");
    let created: Value = serde_json::from_slice(&created.stdout).expect("JSON");
    assert!(created["api_key"]["id"].as_str().expect("an id").starts_with("key_"));
    let key = created["secret"].as_str().expect("a key").to_owned();
    let served = Served::start(&database, &[]).await;
    let tenant = json(&served, &key, &["tenants", "create", "--display-name", "Acme"]).await;
    let tenant = tenant["tenant"]["id"].as_str().expect("an id").to_owned();
    let limited =
        json(&served, &key, &["keys", "create", "--tenant", &tenant, "--all-scopes"]).await;
    let (key, operator) = (limited["secret"].as_str().expect("a key").to_owned(), key);
    let url = receiver.url();
    let subscription =
        json(&served, &key, &["subscriptions", "create", "-t", "*", "--url", &url]).await;
    let subscription = subscription["subscription"]["id"].as_str().expect("an id").to_owned();
    json(&served, &key, &["event-types", "create", "billing.paid"]).await;
    json(&served, &key, &["emit", "billing.paid"]).await;
    receiver.wait_for(1).await;
    let deliveries = loop {
        let ended = ["deliveries", "list", "--state", "succeeded"];
        let deliveries = json(&served, &key, &ended).await;
        if deliveries["deliveries"].as_array().is_some_and(|list| !list.is_empty()) {
            break deliveries;
        }
    };
    let delivery = deliveries["deliveries"][0]["id"].as_str().expect("an id").to_owned();
    for (arguments, field) in [
        (&["tenants", "get", &tenant][..], "tenant"),
        (&["subscriptions", "list"], "subscriptions"),
        (&["subscriptions", "get", &subscription], "subscription"),
        (&["subscriptions", "stats", &subscription], "stats"),
        (&["subscriptions", "test", &subscription], "attempt"),
        (&["subscriptions", "pause", &subscription], "subscription"),
        (&["subscriptions", "resume", &subscription], "subscription"),
        (&["subscriptions", "rotate-secret", &subscription], "signing_secret"),
        (&["event-types", "list"], "event_types"),
        (&["event-types", "get", "billing.paid"], "event_type"),
        (&["deliveries", "show", &delivery], "attempts"),
        (&["deliveries", "retry", &delivery], "delivery"),
    ] {
        let written = json(&served, &key, arguments).await;
        assert!(!written[field].is_null(), "{arguments:?} has no {field}: {written}");
    }
    let keys = json(&served, &operator, &["keys", "list", "--tenant", &tenant]).await;
    assert_eq!(keys["api_keys"].as_array().map(Vec::len), Some(1));
    for arguments in [
        &["emit", "billing.paid", "--count", "3", "--json"][..],
        &["watch", "--include-current", "--limit", "1", "--json"],
    ] {
        let output = command(&served, &key, arguments).await;
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        assert!(!text.is_empty());
        for line in text.lines() {
            assert!(
                serde_json::from_str::<Value>(line).is_ok_and(|value| value.is_object()),
                "{line}"
            );
        }
    }
    served.kill().await;
}

/// Bad options are told all at once, each by its name, before anything is touched.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_options_are_named_together() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = tidings(&[
        "serve",
        "--grpc-addr",
        "nowhere",
        "--lease-ttl",
        "1ms",
        "--allow-cidr",
        "10.0.0.0/99",
    ])
    .current_dir(folder.path())
    .output()
    .await
    .expect("ran");
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8(output.stderr).expect("UTF-8");
    for option in ["--grpc-addr", "--lease-ttl", "--allow-cidr"] {
        assert!(error.contains(option), "{option} is not named: {error}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).expect("listed").count(), 0, "nothing was made");
}

/// A misspelt option is told, not ignored; what client commands read is no mistake.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_variables_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    for command in [&["serve"][..], &["migrate"], &["config"], &["keys", "create", "--operator"]] {
        let output = tidings(command)
            .current_dir(folder.path())
            .env("TIDINGS_DENY_CIDR", "203.0.113.0/24")
            .output()
            .await
            .expect("ran");
        let error = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!(output.status.code(), Some(2), "{command:?}: {error}");
        assert!(error.contains("did you mean TIDINGS_DENY_CIDRS?"), "{command:?}: {error}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).expect("listed").count(), 0, "nothing was made");
    let output = tidings(&["config"])
        .current_dir(folder.path())
        .env("TIDINGS_ENDPOINT", "http://127.0.0.1:50051")
        .env("TIDINGS_API_KEY", "tdk_x")
        .env("TIDINGS_TENANT", "ten_x")
        .env("TIDINGS_TLS_CA_FILE", "ca.pem")
        .env("TIDINGS_WEBHOOK_SECRET", "whsec_x")
        .env("TIDINGS_TEST_POSTGRES_URL", "postgres://127.0.0.1/")
        .output()
        .await
        .expect("ran");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Flag before variable before file before default; secrets are masked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_effective_configuration_is_shown_without_secrets() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(
        folder.path().join("tidings.toml"),
        "database-url = \"postgres://tidings:hunter2@db.company.com/tidings\"\nmax-in-flight = 7\nqueue-size = 70\n",
    )
    .expect("written");
    let output = tidings(&["config", "--json", "--queue-size", "90"])
        .current_dir(folder.path())
        .env("TIDINGS_MAX_IN_FLIGHT", "8")
        .output()
        .await
        .expect("ran");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!text.contains("hunter2"), "{text}");
    let shown: Value = serde_json::from_str(&text).expect("JSON");
    assert!(shown["database-url"].to_string().contains("db.company.com"));
    for (option, value) in [("max-in-flight", "8"), ("queue-size", "90")] {
        assert!(shown[option].to_string().contains(value), "{option}: {}", shown[option]);
    }
}

/// The README's first command, in short: it ends by itself, with exit code 0.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_demo_ends_well() {
    let output = tidings(&["demo", "--burst", "200"]).output().await.expect("ran");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    for word in ["SUCCEEDED", "FAILED", "verified", "accepted", "Try next"] {
        assert!(text.contains(word), "{word} is not in {text}");
    }
    assert!(!text.contains('\u{1b}'), "no escape codes off a terminal");
    for line in text.lines().filter(|line| !line.contains('/')) {
        assert!(line.chars().count() <= 80, "wider than 80 columns: {line}");
    }
}
