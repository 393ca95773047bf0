//! What the line promises, each with the thing that goes wrong.

use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use futures::FutureExt;
use sea_orm::sqlx::Executor;
use sea_orm::sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};
use tokio::task::JoinHandle;

use super::*;

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
async fn a_commit_is_synced_and_the_log_is_the_pools() {
    let world = World::new().await;
    let read = |pragma: &'static str| {
        world.line.run(move |transaction| {
            let value = |row: &rusqlite::Row<'_>| row.get::<_, rusqlite::types::Value>(0);
            Ok(End::Commit(transaction.pragma_query_value(None, pragma, value)?))
        })
    };
    assert_eq!(read("synchronous").await.expect("read"), 2_i64.into(), "FULL");
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
