//! Behind a connection pooler that lends sessions for one transaction at a time: migrating, emitting,
//! delivering, retrying and watching work, without LISTEN. A pooler that would mix up prepared
//! statements is refused.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use tidings::api::proto::{DeliveryState, EmitRequest, WatchDeliveriesRequest};
use tokio::task::JoinSet;

use crate::support::app::emit_request;
use crate::support::database::write_key;
use crate::support::fleet::{Fleet, all_arrive};
use crate::support::pooler::{PgBouncer, Pooler, pgbouncer_version};
use crate::support::process::tidings;
use crate::support::{Database, Receiver, Reply};
use crate::watch;

/// Migrates by the command, several at once and then again, and returns the database.
async fn migrated(url: &str) -> Database {
    let folder = tempfile::tempdir().expect("a folder");
    let key = write_key(&folder.path().join("master.key"));
    let mut at_once = JoinSet::new();
    for _ in 0..3 {
        at_once.spawn(migrate(url.to_owned(), key.clone()));
    }
    let mut steps = Vec::new();
    while let Some(said) = at_once.join_next().await {
        steps.push(said.expect("ended"));
    }
    let applied = steps.iter().filter(|said| said.contains("m0001_initial")).count();
    assert_eq!(applied, 1, "one of them migrates, the others find it done: {steps:?}");
    // Nothing of them is left: a lock would keep this one waiting.
    migrate(url.to_owned(), key).await;
    Database::at(url, folder)
}

async fn migrate(url: String, key: impl AsRef<Path>) -> String {
    let key = key.as_ref().display().to_string();
    let arguments = ["migrate", "--database-url", &url, "--master-key-file", &key];
    let mut command = tidings(&arguments);
    let ended = tokio::time::timeout(Duration::from_mins(1), command.output());
    let output = ended.await.expect("no lock is left behind").expect("ran");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "{said}");
    said
}

/// What a deployment does, with two replicas.
async fn everything_works(database: Database) {
    const CALLERS: usize = 16;
    const EACH: usize = 20;
    let fleet = Fleet::start(database, 2).await;
    let receiver = Receiver::scripted(|request, _| {
        let is_first = request.header("tidings-attempt") == "1";
        let retried = request.header("tidings-event-type") == "user.retried";
        Reply::status(if is_first && retried { 503 } else { 200 })
    })
    .await;
    let tenant = fleet.client(0).create_tenant("Acme").await;
    fleet.client(0).subscribe(&tenant.id, &["*"], &receiver.url()).await;
    let request = WatchDeliveriesRequest { tenant_id: tenant.id.clone(), ..Default::default() };
    let mut stream = watch::watch(&fleet.client(0), request).await;
    watch::next(&mut stream).await;
    let mut told = fleet.emit(&tenant.id, CALLERS, Some(EACH)).end().await;
    assert_eq!(told.errors, HashMap::new());

    // On the other replica: one that is retried, and one that is claimed when it is due.
    let other = fleet.client(1);
    let retried = other.emit(&tenant.id, "user.retried", "{}").await.event_id;
    let in_a_second = std::time::SystemTime::now() + Duration::from_secs(1);
    let request = EmitRequest {
        deliver_time: Some(in_a_second.into()),
        ..emit_request(&tenant.id, "user.later", "{}")
    };
    let later = other.events().emit(request).await.expect("accepted").into_inner().event_id;
    let again = other.wait_for_state(&tenant.id, &retried, DeliveryState::Succeeded).await;
    assert_eq!(again.attempt_count, 2);
    other.wait_for_state(&tenant.id, &later, DeliveryState::Succeeded).await;

    told.acknowledged.extend([retried, later]);
    let count = told.acknowledged.len();
    assert_eq!(count, CALLERS * EACH + 2);
    let (mut revisions, mut succeeded) = (HashMap::new(), 0);
    watch::read_until_succeeded(&mut stream, &mut revisions, &mut succeeded, count).await;
    // The first replica has nothing to do any more, and tells of what the other one does all the same.
    let last = other.emit(&tenant.id, "user.created", "{}").await.event_id;
    let told_of =
        watch::read_until_succeeded(&mut stream, &mut revisions, &mut succeeded, count + 1);
    let told_of = tokio::time::timeout(Duration::from_mins(1), told_of).await;
    assert!(told_of.is_ok(), "the watcher never hears of the other replica");
    told.acknowledged.insert(last);
    assert_eq!(all_arrive(&receiver, &told.acknowledged).await, 1, "the retry alone");
    fleet.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooler_that_changes_the_session_with_every_transaction() {
    let (pooler, url) = Pooler::before(&Database::empty_postgres().await).await;
    everything_works(migrated(&url).await).await;
    assert!(pooler.switches() > 1_000, "{} transactions elsewhere", pooler.switches());
    // Its notifications would reach others, whose drivers do not expect them.
    assert_eq!(pooler.listens(), 0, "nobody listens on a session that is lent");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pgbouncer_that_pools_sessions() {
    let (_pgbouncer, url) = PgBouncer::before(&Database::empty_postgres().await, "session").await;
    everything_works(migrated(&url).await).await;
}

/// Since 1.21 `PgBouncer` keeps the prepared statements of its clients apart. What is older is refused
/// with a sentence that says what to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pgbouncer_that_pools_transactions() {
    let (_pgbouncer, url) =
        PgBouncer::before(&Database::empty_postgres().await, "transaction").await;
    if pgbouncer_version().await >= (1, 21) {
        return everything_works(migrated(&url).await).await;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let key = write_key(&folder.path().join("master.key")).display().to_string();
    let arguments = ["migrate", "--database-url", &url, "--master-key-file", &key];
    let refused = tidings(&arguments).output().await.expect("ran");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success(), "{said}");
    assert!(said.contains("max_prepared_statements"), "{said}");
}
