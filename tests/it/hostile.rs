//! Hostile endpoints against the real binary: each attempt ends in time, with its own
//! kind of error and a sentence that helps, over a connection that is not used again; the process's
//! memory stays bounded, and a good endpoint beside them gets all that is its own.

mod endpoint;
mod frames;
mod http1;
mod http2;
mod tls;

use std::time::Duration;

use futures::future::join_all;
use tidings::api::proto;
use tidings::api::proto::{DeliveryState, ErrorKind};
use tokio::sync::Semaphore;

use self::endpoint::{Endpoint, Script};
use crate::support::app::emit_request;
use crate::support::authority::Authority;
use crate::support::process::{Served, operator_key};
use crate::support::{Client, Database, Receiver};

/// The timeout of every subscription to a hostile endpoint.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Scripts that are followed at once: those that flood, and the others.
const FLOODS: usize = 2;
const QUIET: usize = 16;
/// What an attempt may take beyond it on a machine that is busy with all the floods.
const SLACK: Duration = Duration::from_secs(5);
/// Attempts at each endpoint, one after the other: the second must not use the first's connection.
const ATTEMPTS: usize = 2;
/// Events for the good endpoint.
const GOOD: usize = 300;
/// What the process may grow by. An answer that is read without a limit grows it by this much in a
/// second; a hundred attempts that keep to theirs, of 64 KiB each, do not come near.
const MAX_GROWTH_KIB: u64 = 64 * 1_024;

/// What came of a script.
struct Seen {
    attempts: Vec<proto::Attempt>,
    connections: usize,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_endpoints_end_in_time_in_bounded_memory_and_harm_nobody() {
    let authority = Authority::new();
    let mut scripts = http1::scripts();
    scripts.extend(tls::scripts(&authority));
    scripts.extend(http2::scripts(&authority));
    let database = Database::sqlite().await;
    let key = operator_key(&database).await;
    let file = authority.path().to_str().expect("UTF-8");
    let served = Served::start(&database, &["--ca-file", file]).await;
    let client = Client::connect(&served.endpoint, &key).await;
    let tenant = client.create_tenant("hostile").await.id;

    let good = Receiver::answering(200).await;
    client.subscribe(&tenant, &["good"], &good.url()).await;
    // What every service takes for its first deliveries is no growth.
    emit_good(&client, &tenant, 20).await;
    good.wait_for(20).await;
    let pid = served.child.id().expect("running");
    let before = peak_memory_kib(pid);

    let (seen, ()) =
        tokio::join!(play_all(&client, &tenant, &scripts), emit_good(&client, &tenant, GOOD));
    let arrived = good.wait_for(20 + GOOD).await;
    let after = peak_memory_kib(pid);

    print_table(&scripts, &seen);
    println!(
        "{} scripts, {} attempts; peak memory {before} KiB before, {after} KiB after; \
         the good endpoint got {} of {} events",
        scripts.len(),
        scripts.len() * ATTEMPTS,
        arrived.len() - 20,
        GOOD
    );
    let wrong: Vec<_> =
        scripts.iter().zip(&seen).filter_map(|(script, seen)| wrong(script, seen)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(arrived.len(), 20 + GOOD, "each good delivery arrives once");
    assert!(after - before < MAX_GROWTH_KIB, "grew by {} KiB", after - before);
    served.kill().await;
}

async fn emit_good(client: &Client, tenant: &str, count: usize) {
    let requests = (0..count).map(|_| emit_request(tenant, "good", "{}")).collect();
    let batch = proto::EmitBatchRequest { requests, ..Default::default() };
    client.events().emit_batch(batch).await.expect("accepted");
}

/// What came of each script, in their order. The floods take turns: what they take of a small machine
/// must not make the others late.
async fn play_all(client: &Client, tenant: &str, scripts: &[Script]) -> Vec<Seen> {
    let floods = Semaphore::new(FLOODS);
    let (floods, quiet) = (&floods, &Semaphore::new(QUIET));
    join_all(scripts.iter().enumerate().map(async |(number, script)| {
        let turns = if script.is_flood { floods } else { quiet };
        let _turn = turns.acquire().await.expect("open");
        play(client, tenant, format!("hostile.n{number}"), script).await
    }))
    .await
}

/// Attempts, one after the other, at an endpoint that follows `script`.
async fn play(client: &Client, tenant: &str, event_type: String, script: &Script) -> Seen {
    let endpoint = Endpoint::start(script).await;
    let webhook = proto::WebhookChannel {
        url: endpoint.url(),
        timeout: Some(TIMEOUT.try_into().expect("a duration")),
        ..Default::default()
    };
    let once = proto::RetryPolicy { max_retries: Some(0), ..Default::default() };
    client.subscribe_with(tenant, &[&event_type], webhook, Some(once)).await;
    let mut attempts = Vec::new();
    for _ in 0..ATTEMPTS {
        let event_id = client.emit(tenant, &event_type, "{}").await.event_id;
        let delivery = ended(client, tenant, &event_id).await;
        attempts.extend(client.attempts(tenant, &delivery.id).await);
    }
    Seen { attempts, connections: endpoint.connections() }
}

async fn ended(client: &Client, tenant: &str, event_id: &str) -> proto::Delivery {
    let open = [DeliveryState::Scheduled, DeliveryState::Delivering];
    for _ in 0..600 {
        let mut deliveries = client.deliveries_of(tenant, event_id).await;
        assert_eq!(deliveries.len(), 1, "one delivery was expected");
        if !open.contains(&deliveries[0].state()) {
            return deliveries.remove(0);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{event_id} was not delivered in time");
}

fn took(attempt: &proto::Attempt) -> Duration {
    attempt.duration.and_then(|duration| duration.try_into().ok()).expect("a duration")
}

/// What is not as it should be.
fn wrong(script: &Script, seen: &Seen) -> Option<String> {
    let mut faults = Vec::new();
    for attempt in &seen.attempts {
        let (kind, message) = (attempt.error_kind(), attempt.error_message.as_str());
        if !script.expected.contains(&kind) {
            faults.push(format!("{}: {message:?}", kind.as_str_name()));
        } else if !message.contains(script.message) {
            faults.push(format!("the sentence is {message:?}"));
        }
        if (kind == ErrorKind::Unspecified) != message.is_empty() || message.contains("127.0.0.1") {
            faults.push(format!("{} with the sentence {message:?}", kind.as_str_name()));
        }
        if took(attempt) > TIMEOUT + SLACK {
            faults.push(format!("took {:?}", took(attempt)));
        }
        // What has no end is cut where it is too much, not where the time is up.
        if script.is_cut() && took(attempt) >= TIMEOUT {
            faults.push("was not cut".into());
        }
        if attempt.response_body.len() > 4 * 1_024 {
            faults.push(format!("{} bytes of the body were kept", attempt.response_body.len()));
        }
        if attempt.request_headers.iter().any(|header| header.name == "accept-encoding") {
            faults.push("an encoding was asked for".into());
        }
        if let Some(body) = script.body
            && attempt.response_body != body
        {
            faults.push(format!("the body is {:?}", attempt.response_body));
        }
    }
    // Where nothing was wrong, a connection may serve both attempts.
    let connections = if script.is_sound { 1..=ATTEMPTS } else { ATTEMPTS..=ATTEMPTS };
    if seen.attempts.len() != ATTEMPTS || !connections.contains(&seen.connections) {
        faults.push(format!(
            "{} attempts over {} connections",
            seen.attempts.len(),
            seen.connections
        ));
    }
    (!faults.is_empty()).then(|| format!("{}: {}", script.label, faults.join("; ")))
}

/// The most memory that the process has ever had, in KiB.
fn peak_memory_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

fn print_table(scripts: &[Script], seen: &[Seen]) {
    println!("\n{:<60} {:<20} {:>8} {:>8} {:>6}", "script", "verdict", "ms", "ms", "conns");
    for (script, seen) in scripts.iter().zip(seen) {
        let verdict = match seen.attempts.first().map(proto::Attempt::error_kind) {
            Some(ErrorKind::Unspecified) => "DELIVERED",
            Some(kind) => kind.as_str_name().trim_start_matches("ERROR_KIND_"),
            None => "none",
        };
        let millis: Vec<_> =
            seen.attempts.iter().map(|a| format!("{:>8}", took(a).as_millis())).collect();
        let (label, connections) = (script.label, seen.connections);
        println!("{label:<60} {verdict:<20} {} {connections:>6}", millis.join(" "));
    }
}
