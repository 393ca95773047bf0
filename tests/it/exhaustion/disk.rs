//! A disk that is full: on SQLite a small file system of the test's own, on PostgreSQL its error.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use tidings::api::proto::{self, DeliveryState};
use tokio::sync::Semaphore;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::{all_arrive, arrived};
use crate::support::app::{emit_request, explain};
use crate::support::namespace::{Place, enter};
use crate::support::process::{Served, operator_key};
use crate::support::{App, Client, Database, Receiver, Reply};

const MIB: usize = 1024 * 1024;
/// The size of the small file system.
const DISK: usize = 5 * MIB;

/// A small file system on a folder; gone when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(folder: &Path) -> Self {
        let options = format!("size={DISK}");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(folder)
            .status()
            .expect("mount runs");
        assert!(mounted.success(), "no small file system can be made in the namespace");
        Self(folder.to_owned())
    }

    /// Takes half of it, to be given back.
    fn reserve(&self) {
        std::fs::write(self.0.join("filler"), vec![0; DISK / 2]).expect("room");
    }

    /// Takes all space that is left.
    fn fill(&self) -> usize {
        let path = self.0.join("filler");
        let mut file = OpenOptions::new().create(true).append(true).open(path).expect("a file");
        let mut size = 0;
        for piece in [256 * 1024, 4096, 1] {
            let zeros = vec![0; piece];
            // Less than asked for may be written; what counts is that nothing is left.
            while let Ok(written @ 1..) = file.write(&zeros) {
                size += written;
            }
        }
        size
    }

    fn make_room(&self) {
        File::create(self.0.join("filler")).expect("emptied");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: whoever has a file open ends with the test.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn assert_full(refused: &Status) {
    assert_eq!(explain(refused), (Code::ResourceExhausted, "STORAGE_FULL".into(), vec![]));
    assert!(refused.message().contains("disk"), "{refused:?}");
    assert!(refused.get_error_details().retry_info().is_some(), "says when to try again");
}

/// Emits until there is no room; returns the refusal.
async fn emit_until_full(
    client: &Client,
    tenant_id: &str,
    payload: &str,
    acknowledged: &mut HashSet<String>,
) -> Status {
    for _ in 0..5_000 {
        match client.events().emit(emit_request(tenant_id, "user.created", payload)).await {
            Ok(answer) => {
                acknowledged.insert(answer.into_inner().event_id);
            }
            Err(refused) => return refused,
        }
    }
    panic!("the disk never was full");
}

/// Creates tenants until there is no room; returns the refusal.
async fn create_until_full(client: &Client) -> Status {
    for _ in 0..5_000 {
        let labels = (0..30).map(|number| (format!("label-{number}"), "x".repeat(200))).collect();
        let tenant = proto::Tenant { display_name: "Acme".into(), labels, ..Default::default() };
        let request = proto::CreateTenantRequest { tenant: Some(tenant) };
        if let Err(refused) = client.tenants().create_tenant(request).await {
            return refused;
        }
    }
    panic!("the disk never was full");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_keeps_everything_and_goes_on() {
    let test = "exhaustion::disk::a_full_disk_refuses_keeps_everything_and_goes_on";
    if let Place::Outside = enter(test).await {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let disk = SmallDisk::mount(folder.path());
    disk.reserve();
    let database = Database::sqlite_in(folder).await;
    let gate = Arc::new(Semaphore::new(0));
    let behind = Arc::clone(&gate);
    let receiver =
        Receiver::after_answers(14, move |_, _| Reply::status(200).behind(Arc::clone(&behind)))
            .await;
    let key = operator_key(&database).await;
    let mut served = Served::start(&database, &[]).await;
    let client = Client::connect(&served.endpoint, &key).await;
    let tenant = client.create_tenant("Acme").await;
    let (subscription, _) = client.subscribe(&tenant.id, &["*"], &receiver.url()).await;
    let payload = format!("\"{}\"", "x".repeat(16 * 1024));
    let mut acknowledged = client.earn(&tenant.id, 14).await;

    // First by its own growth, with attempts under way.
    let refused = emit_until_full(&client, &tenant.id, &payload, &mut acknowledged).await;
    assert_full(&refused);
    assert!(acknowledged.len() > 14 + 20, "something fitted: {}", acknowledged.len());
    // Then by others, to the last byte. Results come while there is no room for them.
    disk.fill();
    gate.add_permits(8);
    receiver.wait_for(14 + 16 + 1).await;
    // What the files have room for inside still fits; it is not much.
    let refused = emit_until_full(&client, &tenant.id, &payload, &mut acknowledged).await;
    assert_full(&refused);
    // What is read is answered, and whoever changes settings is told the same.
    assert!(!client.deliveries_to(&subscription).await.is_empty());
    assert_full(&create_until_full(&client).await);
    assert!(served.child.try_wait().expect("looked").is_none(), "it lives");
    assert_eq!(served.get("/healthz").await, 200);

    // Room again: it goes on by itself. Events are small now, so that all fit.
    disk.make_room();
    gate.add_permits(100_000);
    let mut last = None;
    for _ in 0..600 {
        match client.events().emit(emit_request(&tenant.id, "user.created", "{}")).await {
            Ok(answer) => {
                acknowledged.insert(answer.into_inner().event_id);
                last = None;
                break;
            }
            Err(refused) => last = Some(refused),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(last.is_none(), "it never went on: {last:?}");
    all_arrive(&receiver, &acknowledged).await;
    assert_eq!(arrived(&receiver), acknowledged, "nothing else arrives");
    let all = client.wait_for_all(&subscription, DeliveryState::Succeeded).await;
    assert_eq!(all.len(), acknowledged.len());
    // What was answered is on the disk, not only in the process.
    served.signal("KILL").await;
    let (_, log) = served.wait().await;
    let full = log.iter().filter(|line| line.contains("disk of the database is full")).count();
    assert!(full > 0, "the log says so: {}", log.join("\n"));
    let served = Served::start(&database, &[]).await;
    let client = Client::connect(&served.endpoint, &key).await;
    let kept = client.deliveries_to(&subscription).await;
    assert_eq!(kept.len(), acknowledged.len());
    assert!(kept.iter().all(|delivery| delivery.state() == DeliveryState::Succeeded), "{kept:?}");
    served.kill().await;
}

/// PostgreSQL's own error, raised where a full disk would raise it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_of_postgres_is_told_as_such() {
    const FULL: &str = "
        CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full'; END $$;
        CREATE TRIGGER full_disk BEFORE INSERT ON events EXECUTE FUNCTION full_disk();
        CREATE TRIGGER full_disk BEFORE INSERT ON attempts EXECUTE FUNCTION full_disk()";
    const ROOM: &str = "DROP TRIGGER full_disk ON events; DROP TRIGGER full_disk ON attempts";
    let gate = Arc::new(Semaphore::new(0));
    let behind = Arc::clone(&gate);
    let receiver =
        Receiver::after_answers(5, move |_, _| Reply::status(200).behind(Arc::clone(&behind)))
            .await;
    let app = App::start(Database::postgres().await).await;
    let tenant = app.operator.create_tenant("Acme").await;
    let (subscription, _) = app.operator.subscribe(&tenant.id, &["*"], &receiver.url()).await;
    let earned = app.operator.earn(&tenant.id, 5).await;
    let mut acknowledged = earned.clone();
    for _ in 0..5 {
        acknowledged.insert(app.operator.emit(&tenant.id, "user.created", "{}").await.event_id);
    }
    receiver.wait_for(5 + 5).await;
    app.database.execute(FULL).await;
    gate.add_permits(100_000);
    for _ in 0..5 {
        let refused =
            app.operator.events().emit(emit_request(&tenant.id, "user.created", "{}")).await;
        assert_full(&refused.expect_err("the disk is full"));
    }
    let mut waiting = app.operator.deliveries_to(&subscription).await;
    waiting.retain(|delivery| !earned.contains(&delivery.event_id));
    assert!(
        waiting.iter().all(|delivery| delivery.state() == DeliveryState::Delivering),
        "no result can be written: {waiting:?}"
    );
    app.database.execute(ROOM).await;
    acknowledged.insert(app.operator.emit(&tenant.id, "user.created", "{}").await.event_id);
    all_arrive(&receiver, &acknowledged).await;
    let all = app.operator.wait_for_all(&subscription, DeliveryState::Succeeded).await;
    assert_eq!(all.len(), acknowledged.len());
    // The results waited in memory: nothing was sent twice.
    assert_eq!(receiver.requests().len(), acknowledged.len());
    app.stop().await;
}
