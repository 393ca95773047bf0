//! Opening the database, and the schema's version.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use migrations::{Migrator, MigratorTrait};
use sea_orm::sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sea_orm::sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous,
};
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DbErr, RuntimeErr, SqlxPostgresConnector,
    SqlxSqliteConnector, sqlx,
};

use super::dialect::Dialect;
use super::wake::Wakes;
use super::{Error, Store};

/// How long a query waits for a free connection before the database counts as unavailable.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long SQLite waits for another process (`tidings keys create`, for example) to finish writing.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Readers beside SQLite's one writer.
const SQLITE_READERS: u32 = 4;
/// Names the advisory lock under which a schema is migrated: "tidings" as bytes.
const MIGRATION_LOCK: i64 = 0x0074_6964_696e_6773;

/// Which database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `sqlite://path` or `postgres://user:password@host:port/database`.
    pub database_url: String,
    /// Most connections to PostgreSQL.
    pub max_connections: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self { database_url: "sqlite://tidings.db".into(), max_connections: 20 }
    }
}

/// A database that is described, but not yet opened.
#[derive(Clone, Debug)]
pub enum Database {
    /// A file, with options of its own.
    Sqlite(PathBuf, Box<SqliteConnectOptions>),
    /// A server.
    Postgres(Box<PgConnectOptions>),
}

impl Config {
    /// Reads the URL.
    ///
    /// # Errors
    /// When it is neither of the two forms.
    pub fn database(&self) -> Result<Database, Error> {
        let invalid = || {
            Error::Configuration(
                "database-url must be sqlite://path or postgres://user:password@host:port/database"
                    .into(),
            )
        };
        match self.database_url.split_once(':').map(|(scheme, _)| scheme) {
            Some("sqlite") => {
                let options =
                    SqliteConnectOptions::from_str(&self.database_url).map_err(|_| invalid())?;
                let path = options.get_filename().to_path_buf();
                Ok(Database::Sqlite(path, Box::new(options)))
            }
            Some("postgres" | "postgresql") => {
                let options =
                    PgConnectOptions::from_str(&self.database_url).map_err(|_| invalid())?;
                Ok(Database::Postgres(Box::new(options.application_name("tidings"))))
            }
            _ => Err(invalid()),
        }
    }
}

impl Database {
    /// The file of an embedded database; `None` for a server.
    pub fn embedded_file(&self) -> Option<&Path> {
        match self {
            Self::Sqlite(path, _) => Some(path),
            Self::Postgres(_) => None,
        }
    }
}

impl Store {
    /// Opens the database. A SQLite file is created where there is none.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn open(config: &Config) -> Result<Self, Error> {
        match config.database()? {
            Database::Sqlite(_, options) => Self::open_sqlite(*options).await,
            Database::Postgres(options) => {
                Self::open_postgres(*options, config.max_connections).await
            }
        }
    }

    async fn open_sqlite(options: SqliteConnectOptions) -> Result<Self, Error> {
        let options = options
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // FULL syncs the log at each commit: acknowledged means on disk.
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT)
            .statement_cache_capacity(256)
            .pragma("cache_size", "-32000")
            .pragma("temp_store", "MEMORY");
        let pool = |size| {
            SqlitePoolOptions::new()
                .max_connections(size)
                .acquire_timeout(ACQUIRE_TIMEOUT)
                .test_before_acquire(false)
                .idle_timeout(None)
                .max_lifetime(None)
        };
        let write = pool(1).connect_with(options.clone()).await.map_err(not_connected)?;
        let read = pool(SQLITE_READERS).connect_lazy_with(options);
        Ok(Self {
            write: SqlxSqliteConnector::from_sqlx_sqlite_pool(write),
            read: SqlxSqliteConnector::from_sqlx_sqlite_pool(read),
            dialect: Dialect::Sqlite,
            wakes: Wakes::default(),
        })
    }

    async fn open_postgres(options: PgConnectOptions, max_connections: u32) -> Result<Self, Error> {
        let pool = PgPoolOptions::new()
            .max_connections(max_connections)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            // A test before each use would cost a round trip per query; a broken connection shows
            // itself in the query, and the pool replaces it.
            .test_before_acquire(false)
            .connect_with(options)
            .await
            .map_err(not_connected)?;
        let connection = SqlxPostgresConnector::from_sqlx_postgres_pool(pool);
        Ok(Self {
            write: connection.clone(),
            read: connection,
            dialect: Dialect::Postgres,
            wakes: Wakes::default(),
        })
    }

    /// Whether the database is embedded: a file that this process alone serves.
    pub fn is_embedded(&self) -> bool {
        self.dialect == Dialect::Sqlite
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// When it does not.
    pub async fn ping(&self) -> Result<(), Error> {
        self.read.query_one_raw(self.dialect.statement("SELECT 1", Vec::new())).await?;
        Ok(())
    }

    /// Closes all connections.
    pub async fn close(self) {
        // Closing can only fail to say goodbye; everything acknowledged is committed.
        let _ = self.write.close().await;
        let _ = self.read.close().await;
    }

    /// Brings the schema to this version's, under a lock, and returns the names of the steps that
    /// were applied.
    ///
    /// # Errors
    /// When a step fails, or the schema is newer than this version.
    pub async fn migrate(config: &Config) -> Result<Vec<String>, Error> {
        // The lock belongs to a connection, so there must be only one.
        let store = Self::open(&Config { max_connections: 1, ..config.clone() }).await?;
        let connection = &store.write;
        if store.dialect == Dialect::Postgres {
            let lock = format!("SELECT pg_advisory_lock({MIGRATION_LOCK})");
            connection.execute_unprepared(&lock).await?;
        }
        let pending = pending(connection).await?;
        let result = Migrator::up(connection, None).await;
        // The lock ends with the connection, whatever happened.
        store.close().await;
        result?;
        Ok(pending)
    }

    /// Checks that the schema is the one that this version needs.
    ///
    /// # Errors
    /// [`Error::Schema`], with what to do.
    pub async fn check_schema(&self) -> Result<(), Error> {
        let exists = "SELECT 1 FROM seaql_migrations LIMIT 1";
        if self.read.query_one_raw(self.dialect.statement(exists, Vec::new())).await.is_err() {
            self.ping().await?;
            return Err(Error::Schema(
                "the database has no Tidings schema; run: tidings migrate".into(),
            ));
        }
        let pending = pending(&self.read).await?;
        if pending.is_empty() {
            return Ok(());
        }
        Err(Error::Schema(format!(
            "the database's schema is older than this version: {} missing; run: tidings migrate",
            pending.join(", ")
        )))
    }
}

/// The database could not be reached.
pub(super) fn not_connected(error: sqlx::Error) -> Error {
    Error::Unavailable(DbErr::Conn(RuntimeErr::SqlxError(Arc::new(error))))
}

/// The steps that are still to be applied.
async fn pending(connection: &DatabaseConnection) -> Result<Vec<String>, Error> {
    let applied = Migrator::get_migration_models(connection).await?;
    let known = Migrator::get_migration_files();
    let unknown: Vec<_> = applied
        .iter()
        .filter(|step| !known.iter().any(|file| file.name() == step.version))
        .map(|step| step.version.clone())
        .collect();
    if !unknown.is_empty() {
        return Err(Error::Schema(format!(
            "the database's schema is newer than this version: it has {}; run a newer tidings",
            unknown.join(", ")
        )));
    }
    Ok(known
        .iter()
        .filter(|file| !applied.iter().any(|step| step.version == file.name()))
        .map(|file| file.name().to_owned())
        .collect())
}
