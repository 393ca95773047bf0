//! Power cuts: what the system had not brought to the disk is lost, and nothing that anybody was told.
//!
//! No test can switch a machine off. A few lines of C that the service is started with
//! (`volatile_disk.c`) keep a copy of the database's files as they were each time the disk was waited
//! for; the process is killed, and the copies take the files' place. All that was written since is lost,
//! which is the worst that a power cut can do to a file. PostgreSQL's files are PostgreSQL's to keep.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tidings::api::proto::{
    CreateTenantRequest, DeliveryState, GetTenantRequest, Tenant, WatchDeliveriesRequest,
    WatchDeliveriesResponse,
};
use tokio::task::{JoinHandle, JoinSet};

use crate::durability::{Load, all_arrive};
use crate::support::preload::preload;
use crate::support::process::{Served, operator_key};
use crate::support::{Client, Database, Receiver};
use crate::watch::{next, watch};

const CUTS: usize = 4;
/// Events that are acknowledged before each cut, at least.
const EVENTS: usize = 150;
/// Checkpoints come all the time, so waiting for one message is not what ends a test that misses one.
const PATIENCE: Duration = Duration::from_mins(2);
/// How long the disk takes: the longer, the more is on its way to it at a cut.
const SYNC_MILLISECONDS: &str = "25";

/// The files that SQLite keeps, of which the third is rebuilt of the second.
fn files(database: &Path) -> [PathBuf; 3] {
    ["", "-wal", "-shm"].map(|end| PathBuf::from(format!("{}{end}", database.display())))
}

fn on_disk(file: &Path) -> PathBuf {
    PathBuf::from(format!("{}.on_disk", file.display()))
}

/// Has the files be as the disk has them; says whether something was lost.
fn cut_power(database: &Path) -> bool {
    let [main, log, index] = files(database);
    let mut is_lost = false;
    for file in [main, log] {
        let kept = fs::read(on_disk(&file)).unwrap_or_default();
        is_lost |= fs::read(&file).unwrap_or_default() != kept;
        fs::write(&file, kept).expect("written");
    }
    fs::remove_file(index).expect("there was one");
    is_lost
}

/// What a watcher was told: where to go on, and each delivery's latest revision.
#[derive(Clone, Default)]
struct Told {
    token: String,
    revisions: HashMap<String, i64>,
    succeeded: HashSet<String>,
}

impl Told {
    fn take(&mut self, response: WatchDeliveriesResponse) {
        self.token = response.resume_token;
        let Some(delivery) = response.delivery else { return };
        let last = self.revisions.insert(delivery.id.clone(), delivery.revision).unwrap_or(0);
        assert_eq!(delivery.revision, last + 1, "every change of {} is told once", delivery.id);
        if delivery.state() == DeliveryState::Succeeded {
            self.succeeded.insert(delivery.event_id);
        }
    }
}

/// Watches until the service is gone, and returns what it was told.
async fn watching(client: &Client, tenant_id: &str, mut told: Told) -> JoinHandle<Told> {
    let mut stream = watch(client, request(tenant_id, &told)).await;
    tokio::spawn(async move {
        while let Ok(Some(response)) = stream.message().await {
            told.take(response);
        }
        told
    })
}

fn request(tenant_id: &str, told: &Told) -> WatchDeliveriesRequest {
    let (tenant_id, resume_token) = (tenant_id.to_owned(), told.token.clone());
    WatchDeliveriesRequest { tenant_id, resume_token, ..Default::default() }
}

/// Makes tenants one after another until the service is gone; those that it has acknowledged.
fn creating(client: &Client) -> (Arc<Mutex<Vec<String>>>, JoinSet<()>) {
    let (created, mut tasks) = (Arc::new(Mutex::new(Vec::new())), JoinSet::new());
    let (client, acknowledged) = (client.clone(), Arc::clone(&created));
    tasks.spawn(async move {
        while let Ok(answer) = client.tenants().create_tenant(another()).await {
            let created = answer.into_inner().tenant.expect("a tenant");
            acknowledged.lock().unwrap_or_else(PoisonError::into_inner).push(created.id);
        }
    });
    (created, tasks)
}

fn another() -> CreateTenantRequest {
    CreateTenantRequest {
        tenant: Some(Tenant { display_name: "Acme".into(), ..Default::default() }),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_or_told_survives_a_power_cut() {
    let database = Database::sqlite().await;
    let path = database.folder.path().join("tidings.db");
    let file = path.display().to_string();
    let library = preload("volatile_disk", database.folder.path()).await;
    let variables = [
        ("LD_PRELOAD", library.as_str()),
        ("VOLATILE_FILE", &file),
        ("SYNC_MILLISECONDS", SYNC_MILLISECONDS),
    ];
    let receiver = Receiver::answering(200).await;
    let key = operator_key(&database).await;
    // Nothing has it open: all of it is in this one file.
    fs::copy(&path, on_disk(&path)).expect("copied");

    let mut served = Served::start_in(&database, &[], &variables).await;
    let client = Client::connect(&served.endpoint, &key).await;
    let tenant = client.create_tenant("Acme").await;
    client.subscribe(&tenant.id, &["*"], &receiver.url()).await;
    let mut told = Told::default();
    let (mut acknowledged, mut tenants, mut cuts) = (HashSet::new(), Vec::new(), 0);
    for _ in 0..CUTS {
        let client = Client::connect(&served.endpoint, &key).await;
        let watcher = watching(&client, &tenant.id, told).await;
        let load = Load::start(&client, &tenant.id, 16);
        let (created, creator) = creating(&client);
        load.wait_for(EVENTS).await;
        served.kill().await;
        let (good, _) = load.stop().await;
        acknowledged.extend(good);
        creator.join_all().await;
        tenants.append(&mut created.lock().unwrap_or_else(PoisonError::into_inner));
        told = watcher.await.expect("what it is told has no gap");
        cuts += usize::from(cut_power(&path));

        served = Served::start_in(&database, &[], &variables).await;
        let client = Client::connect(&served.endpoint, &key).await;
        for id in tenants.drain(..) {
            let found = client.tenants().get_tenant(GetTenantRequest { tenant_id: id }).await;
            assert!(found.is_ok(), "a tenant was acknowledged and is lost: {found:?}");
        }
    }
    assert!(cuts > 0, "whenever the power was cut everything had come to the disk");
    assert!(told.revisions.len() >= EVENTS, "the watcher was told of {}", told.revisions.len());

    let client = Client::connect(&served.endpoint, &key).await;
    all_arrive(&receiver, &acknowledged).await;
    let mut stream = watch(&client, request(&tenant.id, &told)).await;
    let all = async {
        while !acknowledged.is_subset(&told.succeeded) {
            told.take(next(&mut stream).await);
        }
    };
    tokio::time::timeout(PATIENCE, all).await.expect("it is told of everything");
    served.kill().await;
    let integrity: String =
        database.row("PRAGMA integrity_check").await.try_get_by_index(0).expect("text");
    assert_eq!(integrity, "ok");
}
