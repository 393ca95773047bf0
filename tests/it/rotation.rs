//! A new master key while the service emits and delivers: nothing is lost, nothing waits, and a
//! rewrap that is killed in the middle goes on where it stopped.

use std::collections::{HashMap, HashSet};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;
use tidings::api::proto;
use tidings::domain::signature::verify_standard_webhooks;
use tidings::store::{Table, add_master_key};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use crate::support::app::emit_request;
use crate::support::make::Maker;
use crate::support::process::{Served, operator_key, tidings};
use crate::support::receiver::Captured;
use crate::support::{Client, Database, Receiver};

/// Subscriptions, each to an event type of its own.
const SUBSCRIPTIONS: usize = 60;

fn name(index: usize) -> String {
    format!("kind.n{index}")
}

/// A `tidings master-key` command on the database.
fn master_key(database: &Database, command: &[&str]) -> tokio::process::Command {
    let arguments = database.arguments();
    let all =
        ["master-key"].iter().chain(command).copied().chain(arguments.iter().map(String::as_str));
    let mut command = tidings(&all.collect::<Vec<_>>());
    command.current_dir(database.folder.path());
    command
}

async fn status(database: &Database) -> Value {
    let output = master_key(database, &["status", "--json"]).output().await.expect("ran");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Rows under the first key and under the second one.
fn rows(status: &Value) -> (u64, u64) {
    let rows = |index: usize| status["keys"][index]["rows"].as_u64().expect("a count");
    (rows(0), rows(1))
}

/// Which secrets may have signed for each subscription.
type Secrets = Arc<Mutex<HashMap<String, Vec<String>>>>;

struct Load {
    acknowledged: Arc<Mutex<HashSet<String>>>,
    stop: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

impl Load {
    /// Emits without a pause, and now and then changes a subscription's secret.
    fn start(client: &Client, tenant: &str, ids: &[String], secrets: &Secrets) -> Self {
        let (acknowledged, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let mut tasks = JoinSet::new();
        for caller in 0..4 {
            let (client, tenant) = (client.clone(), tenant.to_owned());
            let (acknowledged, stop): (Arc<Mutex<HashSet<String>>>, _) =
                (Arc::clone(&acknowledged), Arc::clone(&stop));
            tasks.spawn(async move {
                let mut next = caller;
                while !stop.load(Ordering::Relaxed) {
                    next = (next + 7) % SUBSCRIPTIONS;
                    let request = emit_request(&tenant, &name(next), "{}");
                    let answer =
                        client.events().emit(request).await.expect("accepted").into_inner();
                    assert_eq!(answer.delivery_count, 1);
                    acknowledged.lock().await.insert(answer.event_id);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            });
        }
        let (client, tenant, ids) = (client.clone(), tenant.to_owned(), ids.to_vec());
        let (secrets, stopped) = (Arc::clone(secrets), Arc::clone(&stop));
        tasks.spawn(async move {
            let mut next = 0;
            while !stopped.load(Ordering::Relaxed) {
                next = (next + 11) % SUBSCRIPTIONS;
                // Held while it is changed: a request that is signed with the new secret is looked
                // up after it is known.
                let mut known = secrets.lock().await;
                let request = proto::RotateSecretRequest {
                    tenant_id: tenant.clone(),
                    subscription_id: ids[next].clone(),
                    ..Default::default()
                };
                let rotated = client.subscriptions().rotate_secret(request).await.expect("rotated");
                known.entry(name(next)).or_default().push(rotated.into_inner().signing_secret);
                drop(known);
                tokio::time::sleep(Duration::from_millis(40)).await;
            }
        });
        Self { acknowledged, stop, tasks }
    }

    /// Waits for more events than there have been.
    async fn more(&self, count: usize) {
        let wanted = self.acknowledged.lock().await.len() + count;
        for _ in 0..3_000 {
            if self.acknowledged.lock().await.len() >= wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no {count} more events were acknowledged");
    }

    async fn stop(mut self) -> HashSet<String> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("every call was answered");
        }
        std::mem::take(&mut *self.acknowledged.lock().await)
    }
}

/// Whether the request carries its subscription's header and a signature by one of its secrets.
fn is_signed(request: &Captured, secrets: &HashMap<String, Vec<String>>) -> bool {
    let name = request.header("tidings-event-type");
    let header = |header: &str| request.header(header).to_owned();
    let (id, time) = (header("webhook-id"), header("webhook-timestamp"));
    let signature = header("webhook-signature");
    let verify =
        |secret: &String| verify_standard_webhooks(secret, &id, &time, &request.body, &signature);
    request.header("x-name") == name
        && request.target.ends_with(&format!("?token={name}"))
        && secrets[name].iter().any(verify)
}

/// Waits until every event has arrived, and checks each request.
async fn all_arrive(receiver: &Receiver, events: &HashSet<String>, secrets: &Secrets) {
    let mut lost = events.len();
    for _ in 0..600 {
        let requests = receiver.requests();
        let arrived: HashSet<_> = requests.iter().map(|r| r.header("webhook-id")).collect();
        lost = events.iter().filter(|id| !arrived.contains(id.as_str())).count();
        if lost == 0 {
            let secrets = secrets.lock().await;
            for request in &requests {
                assert!(is_signed(request, &secrets), "{request:?}");
                assert_eq!(request.header("tidings-attempt"), "1", "an attempt failed before");
            }
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{lost} of {} events were lost", events.len());
}

/// Runs `tidings master-key rotate` slowly and kills it when it has told of some progress.
async fn rotate_and_kill(database: &Database) {
    let mut child = master_key(database, &["rotate", "--batch-size", "4", "--pause", "150ms"])
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("started");
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
    let mut seen = Vec::new();
    loop {
        let line = lines.next_line().await.expect("read");
        let line = line.unwrap_or_else(|| panic!("it ended by itself: {seen:?}"));
        let is_progress = line.contains(" of about ");
        seen.push(line);
        if is_progress {
            break;
        }
    }
    child.kill().await.expect("killed");
}

on_both! {
    async fn rotation_under_load_with_a_kill_in_the_middle(database: Database) {
        let receiver = Receiver::answering(200).await;
        let key = operator_key(&database).await;
        let served = Served::start(&database, &[]).await;
        let client = Client::connect(&served.endpoint, &key).await;
        let tenant = client.create_tenant("Acme").await.id;
        let secrets = Secrets::default();
        let mut ids = Vec::new();
        for index in 0..SUBSCRIPTIONS {
            let name = name(index);
            let channel = proto::WebhookChannel {
                url: format!("{}?token={name}", receiver.url()),
                headers: [("X-Name".to_owned(), name.clone())].into(),
                ..Default::default()
            };
            let (made, secret) = client.subscribe_with(&tenant, &[&name], channel, None).await;
            ids.push(made.id);
            secrets.lock().await.insert(name, vec![secret]);
        }
        let load = Load::start(&client, &tenant, &ids, &secrets);
        load.more(50).await;

        rotate_and_kill(&database).await;
        let (new, old) = rows(&status(&database).await);
        assert!(new > 0 && old > 0, "the kill came in the middle: {new} new, {old} old");
        // The service goes on with rows under both keys, and seals under the new one.
        load.more(100).await;
        let rewrapped = master_key(&database, &["rewrap", "--batch-size", "7", "--json"]).output().await.expect("ran");
        assert!(rewrapped.status.success(), "{}", String::from_utf8_lossy(&rewrapped.stderr));
        load.more(100).await;
        let ended = status(&database).await;
        assert_eq!(ended["rows_left"], 0, "{ended}");
        assert_eq!((&ended["keys"][1]["rows"], &ended["keys"][1]["removable"]), (&0.into(), &true.into()));
        // Again: nothing to do.
        let again = master_key(&database, &["rewrap"]).output().await.expect("ran");
        assert!(again.status.success());
        let events = load.stop().await;
        all_arrive(&receiver, &events, &secrets).await;
        let page = served.page("/metrics").await;
        for zero in ["tidings_secrets_unreadable_total 0", "tidings_webhook_attempts_total{result=\"configuration\"} 0"] {
            assert!(page.contains(zero), "{zero} is not in {page}");
        }
        served.signal("TERM").await;
        assert_eq!(served.wait().await.0, Some(0));

        // The old key is of no more use: the new one alone is enough, the old one alone is not.
        let both = std::fs::read_to_string(database.key_file()).expect("read");
        let keys: Vec<_> = both.lines().filter(|line| line.starts_with("tdmk_")).collect();
        assert_eq!(keys.len(), 2);
        std::fs::write(database.key_file(), keys[1]).expect("written");
        let refused = master_key(&database, &["status"]).output().await.expect("ran");
        assert!(String::from_utf8_lossy(&refused.stderr).contains("wrong master key"));
        std::fs::write(database.key_file(), keys[0]).expect("written");
        let served = Served::start(&database, &[]).await;
        let client = Client::connect(&served.endpoint, &key).await;
        let mut events = events;
        for index in 0..SUBSCRIPTIONS {
            events.insert(client.emit(&tenant, &name(index), "{}").await.event_id);
        }
        all_arrive(&receiver, &events, &secrets).await;
        served.kill().await;
    }
}

on_both! {
    /// A process learns of a new key by itself: from its next sealing on it uses no other.
    async fn the_first_key_alone_seals_in_every_process(database: Database) {
        let key = operator_key(&database).await;
        let served = Served::start(&database, &[]).await;
        let client = Client::connect(&served.endpoint, &key).await;
        let tenant = client.create_tenant("Acme").await.id;
        client.subscribe(&tenant, &["*"], "https://hooks.company.com/").await;
        let before = status(&database).await;
        // The check value, the tenant, the subscription.
        assert_eq!((&before["keys"][0]["rows"], before["keys"].as_array().map(Vec::len)), (&3.into(), Some(1)));
        add_master_key(&database.key_file()).await.expect("added");
        client.subscribe(&tenant, &["*"], "https://hooks.company.com/").await;
        assert_eq!(rows(&status(&database).await), (1, 3), "the service seals under the new key");
        served.kill().await;
    }
}

on_both! {
    /// What somebody stores between a rewrap's reading and its writing is newer, and stays.
    async fn a_change_wins_over_a_rewrap(database: Database) {
        let store = database.open().await;
        let (maker, now) = (Maker::new(1), store.now().await.expect("now"));
        let tenant = maker.tenant(&store, now).await;
        let mut changed = maker.subscription(&store, tenant.id, now).await;
        let same = maker.subscription(&store, tenant.id, now).await;
        add_master_key(&database.key_file()).await.expect("added");
        store.unlock().await.expect("both keys are known");
        let table = Table::Subscriptions;
        let found = store.rows_to_rewrap(table, None, 10).await.expect("read");
        assert_eq!(found.len(), 2);
        changed.secrets[0].text = "whsec_bmV3ZXIgbmV3ZXIgbmV3ZXIgbmV3ZXI=".into();
        changed.revision += 1;
        store.update_subscription(&changed).await.expect("changed");
        let rewrapped = store.rewrap(table, &found).await.expect("written");
        assert_eq!((rewrapped.rows, rewrapped.changed), (1, 1));
        for expected in [&changed, &same] {
            let read = store.subscription(tenant.id, expected.id).await.expect("read");
            assert_eq!(read.as_ref(), Some(expected));
        }
        assert!(store.rows_to_rewrap(table, None, 10).await.expect("read").is_empty());
        store.close().await;
    }
}

on_both! {
    /// A process that seals nothing itself learns of a new key from the rows that name it.
    async fn a_reader_learns_a_new_key_from_the_rows(database: Database) {
        let receiver = Receiver::answering(200).await;
        let key = operator_key(&database).await;
        let served = Served::start(&database, &[]).await;
        let client = Client::connect(&served.endpoint, &key).await;
        let tenant = client.create_tenant("Acme").await.id;
        let (made, _) = client.subscribe(&tenant, &["a"], &receiver.url()).await;
        client.emit(&tenant, "a", "{}").await;
        receiver.wait_for(1).await;

        // Another process has the new key first, and changes something that everybody reads anew.
        add_master_key(&database.key_file()).await.expect("added");
        let other = database.open().await;
        for table in Table::ALL {
            let rows = other.rows_to_rewrap(table, None, 10).await.expect("read");
            assert_eq!(other.rewrap(table, &rows).await.expect("written").rows, 1);
        }
        let ids = (tenant.parse().expect("an id"), made.id.parse().expect("an id"));
        let mut changed = other.subscription(ids.0, ids.1).await.expect("read").expect("there");
        (changed.spec.display_name, changed.revision) = ("renamed".into(), changed.revision + 1);
        other.update_subscription(&changed).await.expect("changed");
        other.close().await;
        client.emit(&tenant, "a", "{}").await;
        let arrived = receiver.wait_for(2).await;
        assert_eq!(arrived[1].header("tidings-attempt"), "1");
        assert!(served.page("/metrics").await.contains("tidings_secrets_unreadable_total 0"));
        served.kill().await;
    }
}

on_both! {
    /// Of many that meet a new key at the same moment, one reads the file and the others wait.
    async fn many_readers_learn_a_new_key_at_once(database: Database) {
        const READERS: usize = 32;
        let store = database.open().await;
        let (maker, now) = (Maker::new(1), store.now().await.expect("now"));
        let tenant = maker.tenant(&store, now).await;
        let made = maker.subscription(&store, tenant.id, now).await;
        for _ in 0..8 {
            add_master_key(&database.key_file()).await.expect("added");
            let other = database.open().await;
            let rows = other.rows_to_rewrap(Table::Subscriptions, None, 10).await.expect("read");
            assert_eq!(other.rewrap(Table::Subscriptions, &rows).await.expect("written").rows, 1);
            other.close().await;
            let readers = (0..READERS).map(|_| {
                let (store, tenant, id) = (store.clone(), tenant.id, made.id);
                tokio::spawn(async move { store.subscription(tenant, id).await })
            });
            for read in futures::future::join_all(readers).await {
                let read = read.expect("no panic").expect("read").expect("there");
                assert!(!read.unreadable, "it was read before the key was");
                assert_eq!(read.secrets, made.secrets);
            }
        }
        store.close().await;
    }
}
