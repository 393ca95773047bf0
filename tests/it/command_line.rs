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

        let keys = json(&served, &key, &["keys", "create", "--tenant", &tenant, "--scope", "events:emit"]).await;
        let limited = keys["secret"].as_str().expect("a key").to_owned();
        let denied = command(&served, &limited, &["deliveries", "list"]).await;
        assert_eq!(denied.status.code(), Some(1));
        let error = String::from_utf8(denied.stderr).expect("UTF-8");
        assert!(error.contains("deliveries:read"), "the missing scope is named: {error}");
        served.kill().await;
    }
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
}
