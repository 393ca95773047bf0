//! At the start: are these the right keys, and does anything still stand in the clear?
//!
//! A value that is sealed in the database tells a wrong key before anything else is tried with it.
//! What versions before this one stored in the clear is sealed at the first start; every step may be
//! broken off and begins anew where it stopped. Only when all of it is sealed, and the pages that
//! held it are gone, is that noted.

use std::path::PathBuf;
use std::time::Duration;

use sea_orm::{ConnectionTrait, Value};

use super::super::bulk::{Rows, Type, bigint, bytes, text};
use super::super::dialect::Dialect;
use super::super::{Error, Store};
use super::envelope::{self, Binding, OpenError};
use super::file::{self, FileError};
use super::key::{KeyId, MasterKey};
use super::{Place, off_thread};

/// What is sealed as the check value.
const CHECK: Binding<'static> = Binding { purpose: "check", tenant_id: "", row_id: "" };
const CHECK_CONTENT: &[u8] = b"These are the right keys.";
/// How often, and how far apart, to look whether old transactions have ended: 10 s in all.
const UNSEEN_TRIES: u32 = 100;
const UNSEEN_PAUSE: Duration = Duration::from_millis(100);
/// Rows that are sealed in one transaction.
const BATCH: i64 = 100;

/// What was done at the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prepared {
    /// The key file that was made.
    pub made: Option<(PathBuf, KeyId)>,
    /// Rows that stood in the clear and are sealed now.
    pub sealed: u64,
    /// Whether dead rows with secrets in the clear are left, which somebody's transaction may still
    /// see: the next start removes them.
    pub is_left_over: bool,
}

/// The one row of the table `vault`.
pub(super) struct Check {
    pub(super) sealed: Option<Vec<u8>>,
    is_all_sealed: bool,
}

impl Store {
    /// Reads the master keys and makes sure that they are this database's: for commands on a
    /// database that a service has prepared.
    ///
    /// # Errors
    /// [`Error::MasterKey`], with what to do.
    pub async fn unlock(&self) -> Result<(), Error> {
        self.load_keys(true).await?;
        let check = self.check().await?;
        if check.sealed.is_none() {
            return Err(Error::MasterKey(
                "the database's secrets are not sealed yet: start the service once, or run: \
                 tidings migrate"
                    .into(),
            ));
        }
        self.verify(&check)
    }

    /// Reads the master keys, makes sure that they are this database's, and seals what still stands
    /// in the clear. On an embedded database a key is made when there is none yet.
    ///
    /// # Errors
    /// [`Error::MasterKey`], with what to do.
    pub async fn prepare_vault(&self) -> Result<Prepared, Error> {
        let mut prepared = Prepared::default();
        let mut check = self.check().await?;
        prepared.made = self.load_keys(check.sealed.is_some()).await?;
        if check.sealed.is_none() {
            let ring = self.vault.ring()?;
            let sealed = self.vault.seal_now(&ring, CHECK, CHECK_CONTENT)?;
            // Of two replicas that start at once, one is first; the other has to have its key.
            let sql = "UPDATE vault SET check_value = $1 WHERE id = 1 AND check_value IS NULL";
            self.run(sql, vec![bytes(sealed)]).await?;
            check = self.check().await?;
        }
        self.verify(&check)?;
        if !check.is_all_sealed {
            prepared.sealed = self.seal_subscriptions().await? + self.seal_tenants().await?;
            if self.scrub().await? {
                self.run("UPDATE vault SET all_sealed = 1 WHERE id = 1", Vec::new()).await?;
            } else {
                prepared.is_left_over = true;
                tracing::warn!(
                    "long transactions keep dead rows with secrets in the clear in the database's \
                     files; the next start tries to remove them again"
                );
            }
        }
        Ok(prepared)
    }

    /// Checks that there is a key, before the schema is changed for it.
    pub(in super::super) async fn require_key(&self) -> Result<(), Error> {
        // A database without the table is not in use.
        let is_in_use = self.check().await.is_ok_and(|check| check.sealed.is_some());
        self.load_keys(is_in_use).await.map(drop)
    }

    /// Reads the keys; makes the file beside an embedded database, unless `is_in_use` says that one
    /// must exist.
    async fn load_keys(&self, is_in_use: bool) -> Result<Option<(PathBuf, KeyId)>, Error> {
        let vault = &self.vault;
        let loaded = vault.load().await;
        match (loaded, &vault.0.place) {
            (Ok(()), _) => vault.ring().map(|_| None),
            (Err(FileError::Missing(path)), _) if is_in_use => Err(Error::MasterKey(format!(
                "the master key file {} is missing, and the database's secrets cannot be read \
                 without it: restore it from its backup",
                path.display()
            ))),
            (Err(FileError::Missing(_)), Place::Beside(path)) => {
                let id = off_thread(path, |path| {
                    let key = MasterKey::generate().map_err(|error| FileError::Io {
                        path: path.to_owned(),
                        source: std::io::Error::other(error),
                    })?;
                    file::create(path, &key)
                })
                .await?;
                vault.load().await?;
                Ok(Some((path.clone(), id)))
            }
            (Err(FileError::Missing(path)), _) => Err(Error::MasterKey(format!(
                "the master key file {0} does not exist; to make one, run: tidings master-key \
                 generate > {0}",
                path.display()
            ))),
            (Err(error), _) => Err(error.into()),
        }
    }

    pub(super) async fn check(&self) -> Result<Check, Error> {
        let sql = "SELECT check_value, all_sealed FROM vault WHERE id = 1";
        let row = self.write.query_one_raw(self.dialect.statement(sql, Vec::new())).await?;
        let row = row.ok_or_else(|| Error::Corrupt("the table vault is empty".into()))?;
        let all_sealed: i16 = row.try_get_by_index(1)?;
        Ok(Check { sealed: row.try_get_by_index(0)?, is_all_sealed: all_sealed == 1 })
    }

    /// Tells whether the keys are the database's.
    fn verify(&self, check: &Check) -> Result<(), Error> {
        let ring = self.vault.ring()?;
        let place = &self.vault.0.place;
        let refuse = |problem: String| Err(Error::MasterKey(problem));
        match envelope::open(&ring, CHECK, check.sealed.as_deref().unwrap_or_default()) {
            Ok(content) if content.as_slice() == CHECK_CONTENT => Ok(()),
            Err(OpenError::UnknownKey(id)) => refuse(format!(
                "this is the wrong master key: the database is sealed with {id}, and {place} has \
                 {}. Put the right key back; after a rotation keep the old key until `tidings \
                 master-key status` says that it can go",
                ring.ids().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
            )),
            _ => refuse(
                "the value in the database that checks the master key is damaged: restore the \
                 table `vault` from a backup"
                    .into(),
            ),
        }
    }

    /// Seals the check value anew under the first key.
    pub(super) async fn rewrap_check(&self, old: Vec<u8>) -> Result<(), Error> {
        let ring = self.vault.ring()?;
        let sealed = self.vault.seal_now(&ring, CHECK, CHECK_CONTENT)?;
        let sql = "UPDATE vault SET check_value = $1 WHERE id = 1 AND check_value = $2";
        self.run(sql, vec![bytes(sealed), bytes(old)]).await
    }

    async fn run(&self, sql: &str, values: Vec<Value>) -> Result<(), Error> {
        self.write.execute_raw(self.dialect.statement(sql, values)).await?;
        Ok(())
    }

    async fn seal_subscriptions(&self) -> Result<u64, Error> {
        let mut sealed = 0;
        loop {
            let sql = "SELECT tenant_id, id, channel, secrets, revision FROM subscriptions
                WHERE sealed IS NULL ORDER BY tenant_id, id LIMIT $1";
            let statement = self.dialect.statement(sql, vec![bigint(BATCH)]);
            let found = self.write.query_all_raw(statement).await?;
            if found.is_empty() {
                return Ok(sealed);
            }
            let columns = [
                ("tenant_id", Type::Text),
                ("id", Type::Text),
                ("channel", Type::Text),
                ("sealed", Type::Bytes),
                ("revision", Type::BigInt),
            ];
            let mut rows = Rows::new(self.dialect, columns, found.len());
            for row in &found {
                let (tenant_id, id): (String, String) =
                    (row.try_get_by_index(0)?, row.try_get_by_index(1)?);
                let channel = serde_json::from_str(&row.try_get_by_index::<String>(2)?)?;
                let secrets: Vec<_> = serde_json::from_str(&row.try_get_by_index::<String>(3)?)?;
                let (channel, envelope) =
                    self.vault.seal_subscription(&tenant_id, &id, &channel, &secrets).await?;
                let revision = bigint(row.try_get_by_index(4)?);
                rows.push([text(tenant_id), text(id), text(channel), bytes(envelope), revision]);
            }
            let sql =
                " UPDATE subscriptions SET channel = r.channel, secrets = '[]', sealed = r.sealed
                FROM r WHERE subscriptions.tenant_id = r.tenant_id AND subscriptions.id = r.id
                  AND subscriptions.revision = r.revision AND subscriptions.sealed IS NULL";
            sealed += self.sealing(rows, sql).await?;
        }
    }

    async fn seal_tenants(&self) -> Result<u64, Error> {
        let mut sealed = 0;
        loop {
            let sql = "SELECT id, webhook_url, revision FROM tenants
                WHERE sealed IS NULL ORDER BY id LIMIT $1";
            let statement = self.dialect.statement(sql, vec![bigint(BATCH)]);
            let found = self.write.query_all_raw(statement).await?;
            if found.is_empty() {
                return Ok(sealed);
            }
            let columns = [("id", Type::Text), ("sealed", Type::Bytes), ("revision", Type::BigInt)];
            let mut rows = Rows::new(self.dialect, columns, found.len());
            for row in &found {
                let id: String = row.try_get_by_index(0)?;
                let envelope =
                    self.vault.seal_tenant(&id, &row.try_get_by_index::<String>(1)?).await?;
                rows.push([text(id), bytes(envelope), bigint(row.try_get_by_index(2)?)]);
            }
            let sql = " UPDATE tenants SET webhook_url = '', sealed = r.sealed FROM r
                WHERE tenants.id = r.id AND tenants.revision = r.revision
                  AND tenants.sealed IS NULL";
            sealed += self.sealing(rows, sql).await?;
        }
    }

    /// Writes a batch. On SQLite what is overwritten is wiped.
    async fn sealing<const N: usize>(&self, rows: Rows<N>, sql: &str) -> Result<u64, Error> {
        if self.dialect == Dialect::Sqlite {
            self.write.execute_unprepared("PRAGMA secure_delete = ON").await?;
        }
        let transaction = self.dialect.begin(&self.write).await?;
        let sealed = rows.execute(&transaction, sql, &[]).await?;
        transaction.commit().await?;
        Ok(sealed)
    }

    /// Has the pages rewritten that held what is sealed now: it would stay in free pages, in the
    /// write-ahead log and in dead rows otherwise. Tells whether all of it is gone.
    async fn scrub(&self) -> Result<bool, Error> {
        let is_unseen = self.dialect == Dialect::Sqlite || self.wait_until_unseen().await?;
        let statements: &[&str] = match self.dialect {
            // Memory must not grow with the file: VACUUM makes its copy where temp_store says.
            Dialect::Sqlite => &[
                "PRAGMA wal_checkpoint(TRUNCATE)",
                "PRAGMA temp_store = FILE",
                "VACUUM",
                "PRAGMA temp_store = MEMORY",
                "PRAGMA wal_checkpoint(TRUNCATE)",
                "PRAGMA secure_delete = OFF",
            ],
            Dialect::Postgres => &["VACUUM (FULL) subscriptions", "VACUUM (FULL) tenants"],
        };
        for statement in statements {
            self.write.execute_unprepared(statement).await?;
        }
        if self.dialect == Dialect::Postgres {
            // Once more for what only a connection in its first moments kept, which is shown nowhere.
            tokio::time::sleep(UNSEEN_PAUSE * 5).await;
            for statement in statements {
                self.write.execute_unprepared(statement).await?;
            }
        }
        Ok(is_unseen)
    }

    /// Waits until no transaction of PostgreSQL sees rows as they were before now: VACUUM keeps what
    /// one may still see. Gives up after a while.
    async fn wait_until_unseen(&self) -> Result<bool, Error> {
        let one = async |sql: &str, values| -> Result<Option<String>, Error> {
            let row = self.write.query_one_raw(self.dialect.statement(sql, values)).await?;
            Ok(row.map_or(Ok(None), |row| row.try_get_by_index(0))?)
        };
        let now = one("SELECT pg_current_xact_id()::text", Vec::new()).await?.unwrap_or_default();
        for _ in 0..UNSEEN_TRIES {
            let sql = "SELECT 'busy' FROM pg_stat_activity
                -- A connection that is being opened has no database yet, and counts for all.
                WHERE (datname = current_database() OR datname IS NULL) AND pid <> pg_backend_pid()
                  AND age(backend_xmin) > age($1::text::xid8::xid) LIMIT 1";
            if one(sql, vec![text(&now)]).await?.is_none() {
                return Ok(true);
            }
            tokio::time::sleep(UNSEEN_PAUSE).await;
        }
        Ok(false)
    }
}
