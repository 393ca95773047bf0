//! Opening the database, and the schema's version.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use migrations::{Migrator, MigratorTrait};
use sea_orm::sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sea_orm::sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous,
};
use sea_orm::sqlx::{Connection, Executor};
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbErr, RuntimeErr,
    SqlxPostgresConnector, SqlxSqliteConnector, TransactionTrait, sqlx,
};

use super::dialect::Dialect;
use super::ends::Ends;
use super::feed::{Births, Follows};
use super::leases::Leases;
use super::line::{Lines, postgres, sqlite};
use super::pooler::Sessions;
use super::vault::{KeySource, Vault};
use super::wake::Wakes;
use super::{Error, Store, pooler};

/// How long a query waits for a free connection before the database counts as unavailable.
pub(super) const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long SQLite waits for another process (`tidings keys create`, for example) to finish writing.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Has PostgreSQL end a transaction whose client says nothing for 5 s: a replica that was stopped, or
/// that the network has cut off, must not keep its locks on tenants' feeds and on idempotency keys.
/// Others wait for those, and TCP would tell of it after hours. Ours never pause: between two
/// statements is a little work in memory. Shorter than a lease, so that its deliveries are free when
/// they are taken over. Not a start-up parameter: poolers refuse those that they do not know.
const GIVE_UP_ABANDONED: &str = "SET idle_in_transaction_session_timeout = 5000";
/// Has PostgreSQL look up the rows of a group by their keys. It knows little of a group's size, and
/// nothing of a table that has grown since it was last analysed: it would rather read the whole table
/// and hash it, which takes the longer the more there is. No statement of ours is meant to. What is
/// forbidden counts as expensive, and what is expensive would be compiled (`jit`) for each execution.
const BY_KEY: &str = "SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; SET jit = off";
/// What each connection to SQLite is told, beside what makes it durable.
pub(super) const PRAGMAS: [(&str, &str); 3] = [
    // In KiB when negative. Recent rows are what is needed again; the rest is in the system's cache. After
    // some commits the writer looks through all of its cache, so more of it costs time, too.
    ("cache_size", "-8000"),
    // In pages: 16 MB of log, until they are written into the database. The same pages change again and
    // again; the longer the log may grow, the fewer times each is written there. Much longer, and whoever
    // commits then waits for long.
    ("wal_autocheckpoint", "4000"),
    ("temp_store", "MEMORY"),
];
/// What each connection to PostgreSQL is told.
const SETTINGS: &[&str] = &[GIVE_UP_ABANDONED, BY_KEY];
/// The least that the pool may have: to find out about a pooler, and to migrate, two are taken at once.
const MIN_POOL: u32 = 2;
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
    /// Where the master keys are that secrets are sealed with.
    pub master_key: KeySource,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            database_url: "sqlite://tidings.db".into(),
            max_connections: 20,
            master_key: KeySource::default(),
        }
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
                // Poolers refuse start-up parameters that they do not know, and no statement prints floats.
                let options = options.application_name("tidings").extra_float_digits(None);
                Ok(Database::Postgres(Box::new(options)))
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
    /// Opens the database. A SQLite file is created where there is none. Tenants and subscriptions
    /// can be read and written once [`Store::prepare_vault`] or [`Store::unlock`] has the keys.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn open(config: &Config) -> Result<Self, Error> {
        let database = config.database()?;
        let vault = Vault::new(&config.master_key, &database);
        match database {
            Database::Sqlite(_, options) => Self::open_sqlite(*options, vault).await,
            Database::Postgres(options) => {
                Self::open_postgres(*options, config.max_connections, vault).await
            }
        }
    }

    async fn open_sqlite(options: SqliteConnectOptions, vault: Vault) -> Result<Self, Error> {
        let path = options.get_filename().to_path_buf();
        make_private(&path);
        let options = options
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // FULL syncs the log at each commit: acknowledged means on disk.
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT)
            .statement_cache_capacity(256);
        let told = |options: SqliteConnectOptions, (name, value)| options.pragma(name, value);
        let options = PRAGMAS.into_iter().fold(options, told);
        let pool = |size| {
            SqlitePoolOptions::new()
                .max_connections(size)
                .acquire_timeout(ACQUIRE_TIMEOUT)
                .test_before_acquire(false)
                .idle_timeout(None)
                .max_lifetime(None)
        };
        let write = pool(1).after_release(|connection, _| Box::pin(is_sound(connection)));
        let write = write.connect_with(options.clone()).await.map_err(not_connected)?;
        let read = pool(SQLITE_READERS).connect_lazy_with(options);
        let lines = Lines::Sqlite(sqlite::Line::new(write.clone(), path));
        Ok(Self {
            write: SqlxSqliteConnector::from_sqlx_sqlite_pool(write),
            read: SqlxSqliteConnector::from_sqlx_sqlite_pool(read),
            lines,
            dialect: Dialect::Sqlite,
            wakes: Wakes::default(),
            follows: Follows::default(),
            births: Births::default(),
            sessions: Sessions::Own,
            ends: Ends::default(),
            leases: Leases::default(),
            vault,
        })
    }

    async fn open_postgres(
        options: PgConnectOptions,
        max_connections: u32,
        vault: Vault,
    ) -> Result<Self, Error> {
        let lines = postgres::Lines::new(&options, SETTINGS, ACQUIRE_TIMEOUT);
        let pool = PgPoolOptions::new()
            .max_connections(max_connections.saturating_sub(postgres::Lines::COUNT).max(MIN_POOL))
            .acquire_timeout(ACQUIRE_TIMEOUT)
            // A test before each use would cost a round trip per query; a broken connection shows
            // itself in the query, and the pool replaces it.
            .test_before_acquire(false)
            .after_connect(|connection, _| {
                Box::pin(async move {
                    for setting in SETTINGS {
                        connection.execute(*setting).await?;
                    }
                    Ok(())
                })
            })
            .connect_with(options)
            .await
            .map_err(not_connected)?;
        let sessions = pooler::check(&pool).await?;
        let connection = SqlxPostgresConnector::from_sqlx_postgres_pool(pool);
        Ok(Self {
            write: connection.clone(),
            read: connection,
            lines: Lines::Postgres(lines),
            dialect: Dialect::Postgres,
            wakes: Wakes::default(),
            follows: Follows::default(),
            births: Births::default(),
            sessions,
            ends: Ends::default(),
            leases: Leases::default(),
            vault,
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
        self.lines.close().await;
        let _ = self.read.close().await;
    }

    /// Brings the schema to this version's, under a lock, and returns the names of the steps that
    /// were applied.
    ///
    /// # Errors
    /// When a step fails, or the schema is newer than this version.
    pub async fn migrate(config: &Config) -> Result<Vec<String>, Error> {
        // One connection holds the lock while another one migrates.
        let store = Self::open(&Config { max_connections: MIN_POOL, ..config.clone() }).await?;
        let lock = store.lock_migration().await?;
        let migrated = store.migrate_alone().await;
        if let Some(lock) = lock {
            lock.rollback().await?;
        }
        store.close().await;
        migrated
    }

    /// Waits until no other process migrates, and keeps the others waiting until the transaction
    /// ends. A lock of the session would outlive us behind a pooler, which keeps the session.
    async fn lock_migration(&self) -> Result<Option<DatabaseTransaction>, Error> {
        if self.dialect == Dialect::Sqlite {
            return Ok(None);
        }
        let transaction = self.write.begin().await?;
        // A step may take long, and this transaction stands idle meanwhile.
        transaction.execute_unprepared("SET LOCAL idle_in_transaction_session_timeout = 0").await?;
        let lock = format!("SELECT pg_advisory_xact_lock({MIGRATION_LOCK})");
        transaction.execute_unprepared(&lock).await?;
        Ok(Some(transaction))
    }

    async fn migrate_alone(&self) -> Result<Vec<String>, Error> {
        if self.dialect == Dialect::Postgres {
            // Without the key nothing could be served, so nothing is changed either.
            self.require_key().await?;
        }
        let pending = pending(&self.write).await?;
        Migrator::up(&self.write, None).await?;
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

/// Whether a connection may be used again: it must be outside of any transaction, in its own eyes, too.
///
/// When the disk is full, and in a few other cases, SQLite ends a transaction by itself. The rollback
/// that follows then fails, and sqlx goes on as if the transaction were still open: the next one is a
/// savepoint, and after the second error of this kind a savepoint in a transaction that nobody will
/// ever commit. Everything that is acknowledged from then on would be lost.
async fn is_sound(connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    if !connection.is_in_transaction() {
        return Ok(true);
    }
    // The rollback of a transaction that was dropped may be on its way: this comes behind it.
    connection.ping().await?;
    let is_sound = !connection.is_in_transaction();
    if !is_sound {
        tracing::debug!("a transaction could not be rolled back; its connection is replaced");
    }
    Ok(is_sound)
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

/// Makes the database's file, where there is none, its owner's alone: payloads are in it in the clear.
/// SQLite gives the log beside it the same permissions. What cannot be made here is reported when it
/// is opened.
fn make_private(path: &Path) {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    drop(options.open(path));
}
