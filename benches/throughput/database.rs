//! A fresh database for each run, and what only the database can tell.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sea_orm::{ConnectOptions, ConnectionTrait, DatabaseConnection, DbBackend, Statement};

use crate::options::{Kind, Options};
use crate::{Result, host};

/// How often to look whether everything is recorded.
const LOOK: Duration = Duration::from_millis(50);
/// How long recording may take after the last arrival.
const PATIENCE: Duration = Duration::from_secs(30);
/// The settings without which a commit is no promise.
const DURABLE: [&str; 3] = ["fsync", "synchronous_commit", "full_page_writes"];
/// Other settings that a reader of the figures may want to know.
const NOTED: [&str; 5] =
    ["server_version", "wal_sync_method", "shared_buffers", "max_wal_size", "wal_level"];

/// An empty database; [`Database::remove`] removes it.
pub(crate) struct Database {
    pub(crate) url: String,
    /// For questions of our own, on one connection.
    pub(crate) connection: DatabaseConnection,
    /// The file's folder, for SQLite.
    folder: Option<PathBuf>,
    /// The server and the database's name there, for PostgreSQL.
    server: Option<(String, String)>,
}

async fn connect(url: &str) -> Result<DatabaseConnection> {
    let mut options = ConnectOptions::new(url);
    options.max_connections(1).sqlx_logging(false);
    Ok(sea_orm::Database::connect(options).await?)
}

/// One value of one row, as text.
async fn value(connection: &DatabaseConnection, sql: &str) -> Result<String> {
    let statement = Statement::from_string(connection.get_database_backend(), sql);
    let row = connection.query_one_raw(statement).await?.ok_or("no row")?;
    Ok(row.try_get_by_index(0)?)
}

/// One number of one row.
pub(crate) async fn number(connection: &DatabaseConnection, sql: &str) -> Result<i64> {
    let statement = Statement::from_string(connection.get_database_backend(), sql);
    let row = connection.query_one_raw(statement).await?.ok_or("no row")?;
    Ok(row.try_get_by_index(0)?)
}

fn postgres_url(options: &Options) -> Result<&str> {
    Ok(options.postgres_url.as_deref().ok_or("no PostgreSQL URL")?)
}

/// Refuses a database whose commits do not reach a disk: figures of it would be a lie.
pub(crate) async fn check_durable(kind: Kind, options: &Options, folder: &Path) -> Result<()> {
    if kind == Kind::Sqlite {
        if host::is_in_memory(folder) {
            return Err(
                format!("{} is in memory: commits reach no disk there", folder.display()).into()
            );
        }
        return Ok(());
    }
    let connection = connect(postgres_url(options)?).await?;
    for setting in DURABLE {
        let found = value(&connection, &format!("SHOW {setting}")).await?;
        if found != "on" {
            return Err(format!("PostgreSQL runs with {setting} = {found}; it must be on").into());
        }
    }
    let data = value(&connection, "SHOW data_directory").await?;
    if host::is_in_memory(Path::new(&data)) {
        return Err(format!(
            "PostgreSQL's data ({data}) is in memory; set TIDINGS_TEST_POSTGRES_PARENT to a folder on a disk"
        )
        .into());
    }
    connection.close().await?;
    Ok(())
}

/// The versions and settings, by name.
pub(crate) async fn facts(kind: Kind, options: &Options) -> Result<Vec<(String, String)>> {
    let mut facts = Vec::new();
    if kind == Kind::Sqlite {
        let connection = connect("sqlite::memory:").await?;
        facts.push(("sqlite_version".into(), value(&connection, "SELECT sqlite_version()").await?));
        return Ok(facts);
    }
    let connection = connect(postgres_url(options)?).await?;
    for setting in NOTED.into_iter().chain(DURABLE) {
        let found = value(&connection, &format!("SHOW {setting}")).await?;
        facts.push((format!("postgres_{setting}"), found));
    }
    connection.close().await?;
    Ok(facts)
}

impl Database {
    /// A database without a schema, called `name`, which nobody else may use meanwhile.
    pub(crate) async fn fresh(
        kind: Kind,
        options: &Options,
        folder: &Path,
        name: &str,
    ) -> Result<Self> {
        if kind == Kind::Sqlite {
            let folder = folder.join(name);
            fs::create_dir_all(&folder)?;
            let url = format!("sqlite://{}", folder.join("tidings.db").display());
            let connection = connect(&format!("{url}?mode=rwc")).await?;
            return Ok(Self { url, connection, folder: Some(folder), server: None });
        }
        let server = postgres_url(options)?;
        let name = format!("bench_{}_{name}", std::process::id());
        let admin = connect(server).await?;
        admin.execute_unprepared(&format!("CREATE DATABASE {name}")).await?;
        admin.close().await?;
        let (base, _) = server.rsplit_once('/').ok_or("the PostgreSQL URL names no database")?;
        let url = format!("{base}/{name}");
        let connection = connect(&url).await?;
        Ok(Self { url, connection, folder: None, server: Some((server.to_owned(), name)) })
    }

    pub(crate) fn is_postgres(&self) -> bool {
        self.connection.get_database_backend() == DbBackend::Postgres
    }

    /// The statement for the database's present, in microseconds since the Unix epoch.
    pub(crate) fn now(&self) -> &'static str {
        if self.is_postgres() {
            "SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT)"
        } else {
            "SELECT CAST(unixepoch('subsec') * 1000000 AS INTEGER)"
        }
    }

    /// Has the server write now what it would otherwise write while something is measured. SQLite
    /// has nothing of the kind.
    pub(crate) async fn checkpoint(&self) -> Result<()> {
        if self.is_postgres() {
            self.connection.execute_unprepared("CHECKPOINT").await?;
        }
        Ok(())
    }

    /// Tells the planner how large the tables are, as the server would by itself a little later.
    pub(crate) async fn analyze(&self) -> Result<()> {
        if self.is_postgres() {
            self.connection.execute_unprepared("VACUUM (ANALYZE)").await?;
        }
        self.checkpoint().await
    }

    /// The CPU time that the server has used, all its processes together; `None` for SQLite, which
    /// is a part of the service, and for a server on another machine.
    pub(crate) async fn cpu(&self) -> Option<Duration> {
        if !self.is_postgres() {
            return None;
        }
        let backend = number(&self.connection, "SELECT pg_backend_pid()::bigint").await.ok()?;
        let postmaster = host::parent_called(u32::try_from(backend).ok()?, "postgres")?;
        host::family_cpu(postmaster)
    }

    /// Waits until none of these subscriptions' deliveries is under way any more; gives how many
    /// are when it has waited long enough.
    pub(crate) async fn open_deliveries(
        &self,
        tenants: &[String],
        subscriptions: &[String],
    ) -> Result<usize> {
        let begin = Instant::now();
        let sql = count_deliveries(tenants, subscriptions, "state IN (1, 2)");
        loop {
            let open = usize::try_from(number(&self.connection, &sql).await?)?;
            if open == 0 || begin.elapsed() > PATIENCE {
                return Ok(open);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Checks that the features were on: each delivery has ended well and has its attempt.
    pub(crate) async fn check_complete(
        &self,
        tenants: &[String],
        subscriptions: &[String],
        count: usize,
    ) -> Result<()> {
        let count = i64::try_from(count)?;
        let sql = count_deliveries(tenants, subscriptions, "state = 3");
        let succeeded = number(&self.connection, &sql).await?;
        let attempts = number(&self.connection, "SELECT count(*) FROM attempts").await?;
        let keys = number(&self.connection, "SELECT count(*) FROM idempotency_keys").await?;
        if succeeded != count || attempts < count || keys == 0 {
            return Err(format!(
                "{count} deliveries should have succeeded; recorded are {succeeded}, with \
                 {attempts} attempts and {keys} idempotency keys"
            )
            .into());
        }
        Ok(())
    }

    /// Removes it with all its data.
    pub(crate) async fn remove(self) -> Result<()> {
        self.connection.close().await?;
        if let Some(folder) = self.folder {
            fs::remove_dir_all(folder)?;
        }
        if let Some((server, name)) = self.server {
            let admin = connect(&server).await?;
            admin.execute_unprepared(&format!("DROP DATABASE {name} WITH (FORCE)")).await?;
            admin.close().await?;
        }
        Ok(())
    }
}

fn count_deliveries(tenants: &[String], subscriptions: &[String], condition: &str) -> String {
    // Ids that the service has made: letters, digits and an underscore.
    let list =
        |ids: &[String]| ids.iter().map(|id| format!("'{id}'")).collect::<Vec<_>>().join(", ");
    format!(
        "SELECT count(*) FROM deliveries WHERE {condition}
         AND tenant_id IN ({}) AND subscription_id IN ({})",
        list(tenants),
        list(subscriptions)
    )
}
