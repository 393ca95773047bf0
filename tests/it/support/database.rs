//! A database of its own for each test.

use std::sync::atomic::{AtomicU32, Ordering};

use sea_orm::{ConnectionTrait, Database as SeaDatabase};
use tempfile::TempDir;
use tidings::store::{Config, Store};

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
        let folder = tempfile::tempdir().expect("a temporary folder");
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

    /// The URL of a new database without a schema.
    pub(crate) async fn empty_postgres() -> String {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("test_{}_{number}", std::process::id());
        let server = postgres_url();
        let admin = SeaDatabase::connect(&server).await.expect("the PostgreSQL server answers");
        admin.execute_unprepared(&format!("CREATE DATABASE {name}")).await.expect("a new database");
        admin.close().await.expect("closed");
        let (base, _) = server.rsplit_once('/').expect("a URL with a database");
        format!("{base}/{name}")
    }

    async fn migrated(database_url: String, folder: TempDir) -> Self {
        let config = Config { database_url, max_connections: 10 };
        let steps = Store::migrate(&config).await.expect("migrated");
        assert!(!steps.is_empty(), "an empty database needs every step");
        Self { config, folder }
    }

    pub(crate) async fn open(&self) -> Store {
        let store = Store::open(&self.config).await.expect("opened");
        store.check_schema().await.expect("the schema is current");
        store
    }
}
