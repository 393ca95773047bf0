//! What the line promises, each with the thing that goes wrong.

use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use rand::SeedableRng;
use rand::rngs::StdRng;
use sea_orm::sqlx::Executor;
use sea_orm::sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};
use tokio::task::JoinHandle;

use super::super::Lines;
use super::*;
use crate::domain::Timestamp;
use crate::domain::id::{EventId, TenantId};
use crate::store::{Config, IdempotencyKey, Store};

/// A file with one table, a pool with one connection, and a line.
struct World {
    folder: tempfile::TempDir,
    writer: SqlitePool,
    line: Line,
}

impl World {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("db");
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal);
        let writer = SqlitePoolOptions::new().max_connections(1).connect_with(options);
        let writer = writer.await.expect("connected");
        writer.execute("CREATE TABLE notes (text TEXT NOT NULL)").await.expect("created");
        let line = Line::new(writer.clone(), path);
        Self { folder, writer, line }
    }

    fn path(&self) -> &Path {
        &self.line.0.path
    }

    /// What is committed, seen from outside.
    fn notes(&self) -> Vec<String> {
        let connection = Connection::open(self.path()).expect("opened");
        let mut statement = connection.prepare("SELECT text FROM notes").expect("prepared");
        let notes = statement.query_map([], |row| row.get(0)).expect("read");
        notes.collect::<Result<_, _>>().expect("read")
    }

    /// Takes a note through the line.
    async fn note(&self, text: &str) -> Result<(), Error> {
        self.line.run(|transaction| write(transaction, text).map(End::Commit)).await
    }
}

fn write(transaction: &Connection, text: &str) -> Result<(), Error> {
    transaction.prepare_cached("INSERT INTO notes VALUES (?1)")?.execute([text])?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ends_well_is_committed_and_what_does_not_is_taken_back() {
    let world = World::new().await;
    world.note("kept").await.expect("committed");
    let answer = world.line.run(|transaction| {
        write(transaction, "refused")?;
        Ok(End::Rollback("no"))
    });
    assert_eq!(answer.await.expect("answered"), "no");
    let failed = world.line.run(|transaction| {
        write(transaction, "failed")?;
        Err::<End<()>, _>(Error::Corrupt("by a test".into()))
    });
    assert!(matches!(failed.await, Err(Error::Corrupt(_))));
    let panicked = AssertUnwindSafe(world.line.run(|transaction| -> Result<End<()>, Error> {
        write(transaction, "panicked")?;
        panic!("a test says so")
    }));
    panicked.catch_unwind().await.expect_err("panicked");
    world.note("kept, too").await.expect("committed");
    assert_eq!(world.notes(), ["kept", "kept, too"]);
}

#[tokio::test]
async fn the_connection_is_as_the_pools_but_for_the_log() {
    let world = World::new().await;
    let read = |pragma: &'static str| {
        world.line.run(move |transaction| {
            let value = |row: &rusqlite::Row<'_>| row.get::<_, rusqlite::types::Value>(0);
            Ok(End::Commit(transaction.pragma_query_value(None, pragma, value)?))
        })
    };
    // NORMAL: the log is synced beside the next transaction, see below.
    assert_eq!(read("synchronous").await.expect("read"), 1_i64.into());
    assert_eq!(read("journal_mode").await.expect("read"), "wal".to_owned().into());
    assert_eq!(read("foreign_keys").await.expect("read"), 1_i64.into());
    for (name, value) in PRAGMAS.into_iter().filter(|(name, _)| *name != "temp_store") {
        let value: i64 = value.parse().expect("a number");
        assert_eq!(read(name).await.expect("read"), value.into(), "{name}");
    }
}

#[tokio::test]
async fn sqlite_is_compiled_as_cargos_configuration_says() {
    let world = World::new().await;
    let options = world.line.run(|transaction| {
        let mut statement = transaction.prepare("PRAGMA compile_options")?;
        let options = statement.query_map([], |row| row.get::<_, String>(0))?;
        Ok(End::Commit(options.collect::<Result<Vec<_>, _>>()?))
    });
    let options = options.await.expect("read");
    // Whether it calls fdatasync is not listed. It stands beside these.
    assert!(options.iter().any(|option| option == "DEFAULT_MEMSTATUS=0"), "{options:?}");
    assert!(options.iter().all(|option| option != "ENABLE_MEMORY_MANAGEMENT"), "{options:?}");
}

/// Begins work that waits for a word; says when it has begun.
fn slow(world: &World) -> (JoinHandle<Result<(), Error>>, mpsc::Sender<()>) {
    let (go, signal) = mpsc::channel();
    let (begun, has_begun) = mpsc::channel();
    let line = world.line.clone();
    let task = tokio::spawn(async move {
        line.run(move |transaction| {
            write(transaction, "slow")?;
            begun.send(()).expect("heard");
            signal.recv_timeout(Duration::from_secs(30)).expect("a word");
            Ok(End::Commit(()))
        })
        .await
    });
    off_the_workers(|| has_begun.recv_timeout(Duration::from_secs(30)).expect("begun"));
    (task, go)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_else_writes_until_the_work_is_done() {
    let world = World::new().await;
    let (task, go) = slow(&world);
    assert!(world.writer.try_acquire().is_none(), "the pool's connection is held");
    let other = world.writer.execute("INSERT INTO notes VALUES ('other')");
    go.send(()).expect("heard");
    other.await.expect("written");
    task.await.expect("ended").expect("committed");
    assert_eq!(world.notes(), ["slow", "other"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_that_has_begun_ends_although_nobody_waits_for_it() {
    let world = World::new().await;
    let (task, go) = slow(&world);
    task.abort();
    assert!(world.writer.try_acquire().is_none(), "the pool's connection is held");
    go.send(()).expect("heard");
    // It was aborted after its last step, or before it could tell.
    let _ = task.await;
    world.note("next").await.expect("committed");
    assert_eq!(world.notes(), ["slow", "next"], "all of it, and nothing is left open");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_stops_waiting_for_its_turn_has_done_nothing() {
    let world = World::new().await;
    let turn = world.writer.acquire().await.expect("acquired");
    let waiting = tokio::time::timeout(Duration::from_millis(50), world.note("never"));
    waiting.await.expect_err("it waits");
    drop(turn);
    world.note("next").await.expect("committed");
    assert_eq!(world.notes(), ["next"]);
}

/// A task that works on the line until it is told to end, and how often it has.
fn busy(world: &World, is_over: &Arc<AtomicBool>, works: &Arc<AtomicU32>) -> JoinHandle<()> {
    let (line, is_over, works) = (world.line.clone(), Arc::clone(is_over), Arc::clone(works));
    tokio::spawn(async move {
        while !is_over.load(Ordering::Relaxed) {
            let work = line.run(|transaction| write(transaction, "line").map(End::Commit));
            work.await.expect("committed");
            works.fetch_add(1, Ordering::Relaxed);
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pool_has_its_turn_although_the_line_is_never_free() {
    let world = World::new().await;
    let (is_over, works) = (Arc::default(), Arc::default());
    let tasks: Vec<_> = (0..4).map(|_| busy(&world, &is_over, &works)).collect();
    while works.load(Ordering::Relaxed) < 100 {
        tokio::task::yield_now().await;
    }
    for _ in 0..5 {
        let before = works.load(Ordering::Relaxed);
        world.writer.execute("INSERT INTO notes VALUES ('pool')").await.expect("written");
        let meanwhile = works.load(Ordering::Relaxed) - before;
        // Those in a row, and those that had ended by the time at which this task went on.
        assert!(meanwhile < 10 * MOST_IN_A_ROW, "{meanwhile} before the pool's");
    }
    is_over.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.expect("ended");
    }
    let notes = world.notes();
    let count = |text: &str| notes.iter().filter(|note| *note == text).count();
    assert_eq!(count("pool"), 5);
    assert_eq!(count("line"), works.load(Ordering::Relaxed) as usize);
    world.writer.acquire().await.expect("given back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_connection_goes_on_to_the_next_who_still_waits() {
    let world = World::new().await;
    let (first, go) = slow(&world);
    let task = |text: &'static str| {
        let line = world.line.clone();
        tokio::spawn(async move {
            line.run(|transaction| write(transaction, text).map(End::Commit)).await
        })
    };
    let mut tasks = Vec::new();
    for text in ["gone", "second", "gone", "third"] {
        tasks.push((text, task(text)));
        while world.line.0.turns().waiting.len() < tasks.len() {
            tokio::task::yield_now().await;
        }
    }
    // It asked the pool before them, and has its turn after them: nothing was given back in between.
    let writer = world.writer.clone();
    let pool =
        tokio::spawn(async move { writer.execute("INSERT INTO notes VALUES ('pool')").await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    for (_, task) in tasks.iter().filter(|(text, _)| *text == "gone") {
        task.abort();
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    go.send(()).expect("heard");
    first.await.expect("ended").expect("committed");
    for (text, task) in tasks {
        match task.await {
            Ok(written) => written.expect("committed"),
            Err(error) => assert!(error.is_cancelled() && text == "gone"),
        }
    }
    pool.await.expect("ended").expect("written");
    assert_eq!(world.notes(), ["slow", "second", "third", "pool"]);
    assert!(!world.line.0.turns().is_taken);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_told_as_such_and_the_connection_is_sound_again() {
    let world = World::new().await;
    world.note("before").await.expect("committed");
    // As many pages as there are: each attempt needs more, and has the transaction ended by SQLite.
    let fill = || {
        world.line.run(|transaction| {
            transaction.pragma_update(None, "max_page_count", 1)?;
            for _ in 0..100 {
                write(transaction, &"x".repeat(1_000))?;
            }
            Ok(End::Commit(()))
        })
    };
    for _ in 0..3 {
        let error = fill().await.expect_err("full");
        assert!(error.is_full() && error.is_unavailable(), "{error}");
    }
    // More than fits into the pages that there are: a connection that kept the limit would refuse it.
    let after = "after".repeat(2_000);
    world.note(&after).await.expect("there is room again");
    assert_eq!(world.notes(), ["before", &after]);
    world.writer.execute("DELETE FROM notes").await.expect("no lock is left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_process_that_writes_is_waited_for() {
    let world = World::new().await;
    let other = Connection::open(world.path()).expect("opened");
    other.execute_batch("BEGIN IMMEDIATE; INSERT INTO notes VALUES ('other')").expect("locked");
    let line = world.line.clone();
    let waiting = tokio::spawn(async move {
        line.run(|transaction| write(transaction, "ours").map(End::Commit)).await
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!waiting.is_finished(), "it waits");
    other.execute_batch("COMMIT").expect("committed");
    waiting.await.expect("ended").expect("committed");
    assert_eq!(world.notes(), ["other", "ours"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_line_leaves_nothing_behind() {
    let world = World::new().await;
    world.note("kept").await.expect("committed");
    world.writer.close().await;
    world.line.close();
    let refused = world.note("too late").await.expect_err("closed");
    assert!(refused.is_unavailable(), "{refused}");
    assert_eq!(world.notes(), ["kept"]);
    // The last connection writes the log back, and removes it.
    assert!(!world.folder.path().join("db-wal").exists());
}

/// What is no file cannot be synced.
fn broken() -> File {
    let broken = File::open("/dev/null").expect("opened");
    broken.sync_data().expect_err("it cannot be synced");
    broken
}

fn log_bytes(world: &World) -> u64 {
    let log = world.folder.path().join("db-wal");
    log.metadata().expect("it is there").len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_told_before_the_log_is_on_the_disk_and_the_next_one_goes_on() {
    let world = World::new().await;
    let syncing = world.line.0.log.syncing.lock().await;
    let note = |text: &'static str| {
        let line = world.line.clone();
        tokio::spawn(async move {
            line.run(|transaction| write(transaction, text).map(End::Commit)).await
        })
    };
    let tasks = ["first", "second", "third"].map(note);
    while world.notes().len() < tasks.len() {
        tokio::task::yield_now().await;
    }
    let line = world.line.clone();
    let reader = tokio::spawn(async move { line.settled().await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(tasks.iter().all(|task| !task.is_finished()), "committed, and not told");
    assert!(!reader.is_finished(), "what was read may not be told either");
    drop(syncing);
    for task in tasks {
        task.await.expect("ended").expect("synced");
    }
    reader.await.expect("ended").expect("settled");
    // They may have come to the line in any order.
    let mut notes = world.notes();
    notes.sort();
    assert_eq!(notes, ["first", "second", "third"]);
}

/// Commits, as far as the log knows.
fn commit(log: &Log) -> log::Commit {
    log.commit(|| Ok::<_, Error>(())).expect("committed").1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_sync_is_for_all_that_had_committed_and_none_for_those_after() {
    let log = Log::default();
    log.open(tempfile::tempfile().expect("a file"));
    let (first, second) = (commit(&log), commit(&log));
    log.synced(first).await.expect("synced");
    log.open(broken());
    let third = commit(&log);
    log.synced(second).await.expect("it was synced with the first");
    let error = log.synced(third).await.expect_err("a sync of its own, which fails");
    assert!(error.is_unavailable(), "{error}");
    log.open(tempfile::tempfile().expect("a file"));
    // The system would say now that all is well.
    let fourth = commit(&log);
    log.synced(fourth).await.expect_err("in doubt");
    log.synced(second).await.expect("that was before");
    log.written_back();
    log.synced(fourth).await.expect("in the database");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_has_seen_a_commit_before_it_has_ended_waits_for_it() {
    let log = Log::default();
    log.open(tempfile::tempfile().expect("a file"));
    let committed = log.commit(|| {
        let mut settled = Box::pin(log.synced(log.latest()));
        assert!(settled.as_mut().now_or_never().is_none(), "its pages may still be on their way");
        Ok::<_, Error>(settled)
    });
    let (settled, _) = committed.expect("committed");
    settled.await.expect("synced");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_earlier_process_left_is_synced_before_it_is_told() {
    let world = World::new().await;
    let syncing = world.line.0.log.syncing.lock().await;
    let early = tokio::time::timeout(Duration::from_millis(50), world.line.settled());
    early.await.expect_err("it waits for the disk");
    drop(syncing);
    world.line.settled().await.expect("synced");
    // A connection that is replaced tells of what its log had failed to say.
    let log = &world.line.0.log;
    log.open(broken());
    drop(world.line.0.place().take());
    let refused = world.line.run(|transaction| {
        write(transaction, "written back first")?;
        Ok(End::Commit(transaction.query_row("SELECT count(*) FROM notes", [], |row| row.get(0))?))
    });
    let count: i64 = refused.await.expect("committed");
    assert_eq!(count, 1);
    assert!(!log.is_in_doubt());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_sync_that_failed_nothing_counts_until_the_log_is_written_back() {
    let world = World::new().await;
    let log = &world.line.0.log;
    world.note("before").await.expect("synced");
    log.open(broken());
    let refused = world.note("in doubt").await.expect_err("not synced");
    assert!(refused.is_unavailable(), "{refused}");
    let doubtful = log.latest();
    log.synced(doubtful).await.expect_err("nobody tries again");
    // Somebody who reads from the log keeps it from being emptied.
    let reader = Connection::open(world.path()).expect("opened");
    reader.execute_batch("BEGIN; SELECT * FROM notes").expect("read");
    {
        let place = world.line.0.place();
        let connection = place.as_ref().expect("connected");
        connection.busy_timeout(Duration::from_millis(50)).expect("set");
    }
    let refused = world.note("too early").await.expect_err("in doubt");
    assert!(refused.is_unavailable(), "{refused}");
    reader.execute_batch("COMMIT").expect("ended");
    assert!(log_bytes(&world) > 0);
    world.line.settled().await.expect("written back");
    assert_eq!(log_bytes(&world), 0);
    log.synced(doubtful).await.expect("it is in the database");
    world.note("after").await.expect("synced");
    assert_eq!(world.notes(), ["before", "in doubt", "after"]);
}

#[tokio::test]
async fn a_database_behind_a_link_has_its_log_beside_the_file() {
    let world = World::new().await;
    let elsewhere = tempfile::tempdir().expect("a folder");
    let path = elsewhere.path().join("link");
    std::os::unix::fs::symlink(world.path(), &path).expect("linked");
    let line = Line::new(world.writer.clone(), path);
    line.run(|transaction| write(transaction, "linked").map(End::Commit)).await.expect("synced");
    assert_eq!(world.notes(), ["linked"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_outsiders_rely_on_is_on_the_disk_before_it_is_read_to_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let database_url = format!("sqlite://{}", folder.path().join("db").display());
    let config = Config { database_url, ..Config::default() };
    Store::migrate(&config).await.expect("migrated");
    let store = Store::open(&config).await.expect("opened");
    let Lines::Sqlite(line) = store.lines.clone() else { panic!("SQLite") };
    let mut random = StdRng::seed_from_u64(7);
    let tenant = TenantId::new(Timestamp::default(), &mut random);
    let tenants = [tenant];
    let event_id = EventId::new(Timestamp::default(), &mut random);
    let key = IdempotencyKey {
        tenant_id: tenant,
        key: "key".into(),
        fingerprint: [0; 32],
        event_id,
        delivery_count: 0,
    };
    let syncing = line.0.log.syncing.lock().await;
    let committing = tokio::spawn({
        let line = line.clone();
        async move {
            line.run(|transaction| {
                transaction.execute("DELETE FROM announcements", [])?;
                Ok(End::Commit(()))
            })
            .await
        }
    });
    let before = commit(&Log::default());
    while line.0.log.latest() < before {
        tokio::task::yield_now().await;
    }
    let mut reads: Vec<(&str, BoxFuture<'_, bool>)> = vec![
        ("where a feed ends", Box::pin(store.feed_head(tenant).map(|read| read.is_ok()))),
        ("where feeds end", Box::pin(store.feed_positions(&tenants).map(|read| read.is_ok()))),
        ("a feed", Box::pin(store.read_feed(tenant, 0, 1).map(|read| read.is_ok()))),
        (
            "a snapshot",
            // There is none of a tenant that there is not. It is told after the disk, too.
            Box::pin(store.snapshot_page(tenant, None, None, &[], None, 1).map(|it| it.is_err())),
        ),
        ("keys", Box::pin(store.key_uses([&key].into_iter()).map(|read| read.is_ok()))),
    ];
    for (name, read) in &mut reads {
        let early = tokio::time::timeout(Duration::from_millis(50), read).await;
        assert!(early.is_err(), "{name} was told before the disk had it");
    }
    drop(syncing);
    for (name, read) in reads {
        assert!(read.await, "{name}");
    }
    committing.await.expect("ended").expect("synced");
}
