//! A database of its own for each test.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sea_orm::{ConnectionTrait, Database as SeaDatabase, QueryResult, Statement};
use tempfile::TempDir;
use tidings::store::{Config, KeySource, MasterKey, Store};

/// The sessions of a PostgreSQL database that wait for another's row.
const WAITING: &str =
    "FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";

/// A migrated, empty database. A SQLite file goes with it; a PostgreSQL database goes with the
/// server that the tests started.
pub(crate) struct Database {
    pub(crate) config: Config,
    pub(crate) folder: TempDir,
}

/// The PostgreSQL server that `make test` has started.
pub(crate) fn postgres_url() -> String {
    std::env::var("TIDINGS_TEST_POSTGRES_URL")
        .expect("TIDINGS_TEST_POSTGRES_URL is not set: run the tests with `make test`, which starts a PostgreSQL")
}

impl Database {
    pub(crate) async fn sqlite() -> Self {
        Self::sqlite_in(tempfile::tempdir().expect("a temporary folder")).await
    }

    /// In a folder that is special in some way.
    pub(crate) async fn sqlite_in(folder: TempDir) -> Self {
        let path = folder.path().join("tidings.db");
        Self::migrated(format!("sqlite://{}", path.display()), folder).await
    }

    pub(crate) async fn postgres() -> Self {
        Self::migrated(
            Self::empty_postgres().await,
            tempfile::tempdir().expect("a temporary folder"),
        )
        .await
    }

    /// A database on a server of the test's own.
    pub(crate) async fn on(server: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        Self::migrated(Self::empty_on(server).await, folder).await
    }

    /// The migrated database at `url`, whose master key is in `folder`.
    pub(crate) fn at(url: &str, folder: TempDir) -> Self {
        let master_key = KeySource::File(folder.path().join("master.key"));
        let config = Config { database_url: url.to_owned(), max_connections: 10, master_key };
        Self { config, folder }
    }

    /// The URL of a new database without a schema.
    pub(crate) async fn empty_postgres() -> String {
        Self::empty_on(&postgres_url()).await
    }

    async fn empty_on(server: &str) -> String {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("test_{}_{number}", std::process::id());
        let admin = SeaDatabase::connect(server).await.expect("the PostgreSQL server answers");
        admin.execute_unprepared(&format!("CREATE DATABASE {name}")).await.expect("a new database");
        admin.close().await.expect("closed");
        let (base, _) = server.rsplit_once('/').expect("a URL with a database");
        format!("{base}/{name}")
    }

    async fn migrated(database_url: String, folder: TempDir) -> Self {
        // Beside SQLite a key is made; a server's database needs one.
        let master_key = if database_url.starts_with("postgres") {
            KeySource::File(write_key(&folder.path().join("master.key")))
        } else {
            KeySource::Unset
        };
        let config = Config { database_url, max_connections: 10, master_key };
        let steps = Store::migrate(&config).await.expect("migrated");
        assert!(!steps.is_empty(), "an empty database needs every step");
        let database = Self { config, folder };
        database.put_checks_back().await;
        database
    }

    /// PostgreSQL's tables have no checks, for they take time. In tests they have.
    async fn put_checks_back(&self) {
        if !self.config.database_url.starts_with("postgres") {
            return;
        }
        let add = |(table, name, check)| {
            format!("ALTER TABLE {table} ADD CONSTRAINT {name} CHECK ({check})")
        };
        self.execute(&migrations::CHECKS.map(add).join(";")).await;
    }

    pub(crate) async fn open(&self) -> Store {
        let store = Store::open(&self.config).await.expect("opened");
        store.check_schema().await.expect("the schema is current");
        store.prepare_vault().await.expect("the key is right");
        store
    }

    /// Runs a statement past the service.
    pub(crate) async fn execute(&self, sql: &str) {
        let connection = SeaDatabase::connect(&self.config.database_url).await.expect("connected");
        connection.execute_unprepared(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        connection.close().await.expect("closed");
    }

    /// The row that a query past the service finds.
    pub(crate) async fn row(&self, sql: &str) -> QueryResult {
        let connection = SeaDatabase::connect(&self.config.database_url).await.expect("connected");
        let statement = Statement::from_string(connection.get_database_backend(), sql);
        let row = connection.query_one_raw(statement).await;
        connection.close().await.expect("closed");
        row.unwrap_or_else(|error| panic!("{sql}: {error}")).expect("a row")
    }

    /// Waits until some transaction waits for another's row: the interleaving has happened.
    pub(crate) async fn wait_for_lock(&self) {
        let connection = SeaDatabase::connect(&self.config.database_url).await.expect("connected");
        let waiting = format!("SELECT 1 {WAITING}");
        for _ in 0..2_000 {
            let statement = Statement::from_string(connection.get_database_backend(), &waiting);
            if connection.query_one_raw(statement).await.expect("asked").is_some() {
                connection.close().await.expect("closed");
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("the interleaving never happened: no transaction waited for another");
    }

    /// Ends the sessions that wait for another's row, and returns how many.
    pub(crate) async fn end_waiting(&self) -> i64 {
        self.count(&format!("SELECT count(pg_terminate_backend(pid)) {WAITING}")).await
    }

    /// The number that a query past the service finds.
    pub(crate) async fn count(&self, sql: &str) -> i64 {
        self.row(sql).await.try_get_by_index(0).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// Whether it is a file of its own.
    pub(crate) fn is_sqlite(&self) -> bool {
        self.config.database_url.starts_with("sqlite")
    }

    /// Everything that the database keeps: its files, or a dump of it.
    pub(crate) async fn contents(&self) -> Vec<u8> {
        if self.is_sqlite() {
            let mut contents = Vec::new();
            for name in ["tidings.db", "tidings.db-wal", "tidings.db-shm"] {
                contents.extend(std::fs::read(self.folder.path().join(name)).unwrap_or_default());
            }
            return contents;
        }
        let dump = match std::env::var_os("TIDINGS_TEST_POSTGRES_BIN") {
            Some(folder) => PathBuf::from(folder).join("pg_dump"),
            None => PathBuf::from("pg_dump"),
        };
        let dumped = tokio::process::Command::new(dump)
            .args(["--dbname", &self.config.database_url])
            .output()
            .await
            .expect("pg_dump runs");
        assert!(dumped.status.success(), "{}", String::from_utf8_lossy(&dumped.stderr));
        dumped.stdout
    }

    /// The file that holds the master key, once there is one.
    pub(crate) fn key_file(&self) -> PathBuf {
        match &self.config.master_key {
            KeySource::File(path) => path.clone(),
            _ => self.folder.path().join("tidings.db.key"),
        }
    }

    /// The options by which a process finds the database and its key.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let mut arguments = vec!["--database-url".to_owned(), self.config.database_url.clone()];
        if let KeySource::File(path) = &self.config.master_key {
            arguments.extend(["--master-key-file".to_owned(), path.display().to_string()]);
        }
        arguments
    }
}

/// A new master key in a file of its owner's.
pub(crate) fn write_key(path: &Path) -> PathBuf {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let key = MasterKey::generate().expect("randomness").text();
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(path).expect("made");
    writeln!(file, "{}", key.expose()).expect("written");
    path.to_owned()
}
