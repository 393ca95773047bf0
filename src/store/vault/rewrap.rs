//! Sealing anew what is under an older key, and counting what is under which.
//!
//! A batch is read, sealed anew without a transaction, and written in one short transaction; each
//! row is written only if it still holds what was read. Whoever changed it meanwhile sealed it anew
//! anyway, with what is true now. So a rewrap can be broken off, repeated, and run beside services
//! that change the same rows: nothing is lost and nothing waits.

use std::collections::BTreeMap;

use sea_orm::ConnectionTrait;

use super::super::bulk::{Rows, Type, bigint, bytes, text};
use super::super::{Error, Store};
use super::document::{of_subscription, of_tenant};
use super::envelope::{self, Binding, ID_AT};
use super::key::{ID_BYTES, KeyId};

/// A table with sealed rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// Subscriptions.
    Subscriptions,
    /// Tenants.
    Tenants,
}

impl Table {
    /// Every table with sealed rows.
    pub const ALL: [Self; 2] = [Self::Subscriptions, Self::Tenants];

    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Subscriptions => "subscriptions",
            Self::Tenants => "tenants",
        }
    }

    /// The column that holds the tenant's id.
    const fn tenant_column(self) -> &'static str {
        match self {
            Self::Subscriptions => "tenant_id",
            Self::Tenants => "id",
        }
    }

    fn binding<'a>(self, tenant_id: &'a str, id: &'a str) -> Binding<'a> {
        match self {
            Self::Subscriptions => of_subscription(tenant_id, id),
            Self::Tenants => of_tenant(id),
        }
    }
}

/// A row that is not sealed under the first key.
#[derive(Clone, PartialEq, Eq)]
pub struct SealedRow {
    tenant_id: String,
    id: String,
    sealed: Vec<u8>,
}

/// What stays after sealing is no secret, but says nothing to anybody either.
impl std::fmt::Debug for SealedRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SealedRow").field("id", &self.id).finish_non_exhaustive()
    }
}

impl SealedRow {
    /// The row's id.
    pub fn id(&self) -> &str {
        &self.id
    }
}

/// What became of a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rewrapped {
    /// Rows that are sealed under the first key now.
    pub rows: u64,
    /// Rows that somebody changed meanwhile: sealed anew by whoever did, or to be looked at again.
    pub changed: u64,
    /// Ids of rows that no known key opens. They are left as they are.
    pub unreadable: Vec<String>,
}

/// What is under a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyUsage {
    /// The key.
    pub id: KeyId,
    /// Its place among the known keys, from 0: the first one seals. `None` when it is not known.
    pub place: Option<usize>,
    /// Rows under it, and the check value.
    pub rows: u64,
}

/// Which keys there are, and what is under each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VaultStatus {
    /// The known keys in their order, then those that are used but not known.
    pub keys: Vec<KeyUsage>,
}

impl VaultStatus {
    /// Rows that are not under the first key.
    pub fn left(&self) -> u64 {
        self.keys.iter().filter(|key| key.place != Some(0)).map(|key| key.rows).sum()
    }
}

impl Store {
    /// Counts what is sealed under which key.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn vault_status(&self) -> Result<VaultStatus, Error> {
        let id = format!("substr(sealed, {}, {ID_BYTES})", ID_AT + 1);
        let sql = format!(
            "SELECT key_id, count(*) FROM (
                SELECT {id} AS key_id FROM subscriptions WHERE length(sealed) > 0
                UNION ALL SELECT {id} FROM tenants WHERE length(sealed) > 0
                UNION ALL SELECT {check} FROM vault WHERE length(check_value) > 0) AS used
            GROUP BY key_id",
            check = id.replace("sealed", "check_value"),
        );
        let rows = self.read.query_all_raw(self.dialect.statement(sql, Vec::new())).await?;
        let mut used = BTreeMap::new();
        for row in rows {
            let id: Vec<u8> = row.try_get_by_index(0)?;
            let count: i64 = row.try_get_by_index(1)?;
            if let Ok(id) = id.try_into() {
                used.insert(KeyId(id), u64::try_from(count).unwrap_or(0));
            }
        }
        let known = self.vault.ring()?.ids();
        let mut keys = Vec::with_capacity(known.len());
        for (place, id) in known.into_iter().enumerate() {
            keys.push(KeyUsage { id, place: Some(place), rows: used.remove(&id).unwrap_or(0) });
        }
        keys.extend(used.into_iter().map(|(id, rows)| KeyUsage { id, place: None, rows }));
        Ok(VaultStatus { keys })
    }

    /// At most `limit` rows behind `after` that are not under the first key, in order of their keys.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn rows_to_rewrap(
        &self,
        table: Table,
        after: Option<&SealedRow>,
        limit: u32,
    ) -> Result<Vec<SealedRow>, Error> {
        let first = self.vault.ring()?.first().0;
        let sql = format!(
            "SELECT {tenant}, id, sealed FROM {table}
            WHERE ({tenant}, id) > ($1, $2) AND length(sealed) > 0
              AND substr(sealed, {start}, {ID_BYTES}) <> $3
            ORDER BY {tenant}, id LIMIT $4",
            tenant = table.tenant_column(),
            table = table.as_str(),
            start = ID_AT + 1,
        );
        let (tenant_id, id) =
            after.map_or_else(Default::default, |row| (row.tenant_id.clone(), row.id.clone()));
        let values = vec![text(tenant_id), text(id), bytes(first.0), bigint(i64::from(limit))];
        let rows = self.read.query_all_raw(self.dialect.statement(sql, values)).await?;
        rows.iter()
            .map(|row| {
                Ok(SealedRow {
                    tenant_id: row.try_get_by_index(0)?,
                    id: row.try_get_by_index(1)?,
                    sealed: row.try_get_by_index(2)?,
                })
            })
            .collect()
    }

    /// Seals rows anew under the first key: those that still hold what was read.
    ///
    /// # Errors
    /// When the database does not take them; then all of them are as they were.
    pub async fn rewrap(&self, table: Table, found: &[SealedRow]) -> Result<Rewrapped, Error> {
        let ring = self.vault.ring()?;
        let columns = [
            ("tenant_id", Type::Text),
            ("id", Type::Text),
            ("old", Type::Bytes),
            ("new", Type::Bytes),
        ];
        let mut rows = Rows::new(self.dialect, columns, found.len());
        let mut rewrapped = Rewrapped::default();
        for row in found {
            let binding = table.binding(&row.tenant_id, &row.id);
            let Ok(content) = envelope::open(&ring, binding, &row.sealed) else {
                rewrapped.unreadable.push(row.id.clone());
                continue;
            };
            let sealed = self.vault.seal_now(&ring, binding, &content)?;
            rows.push([text(&row.tenant_id), text(&row.id), bytes(&*row.sealed), bytes(sealed)]);
        }
        let wanted = (found.len() - rewrapped.unreadable.len()) as u64;
        let sql = format!(
            " UPDATE {table} SET sealed = r.new FROM r
            WHERE {table}.{tenant} = r.tenant_id AND {table}.id = r.id
              -- What somebody else has sealed since is newer than what we read.
              AND {table}.sealed = r.old",
            table = table.as_str(),
            tenant = table.tenant_column(),
        );
        let transaction = self.dialect.begin(&self.write).await?;
        rewrapped.rows = rows.execute(&transaction, &sql, &[]).await?;
        transaction.commit().await?;
        rewrapped.changed = wanted - rewrapped.rows.min(wanted);
        Ok(rewrapped)
    }

    /// Ends a rewrap, once every row is under the first key: seals the check value under it, which
    /// is what still asks for the old key at a start.
    ///
    /// # Errors
    /// When the database does not take it.
    pub async fn finish_rewrap(&self) -> Result<(), Error> {
        let first = self.vault.ring()?.first().0;
        match self.check().await?.sealed {
            Some(old) if envelope::key_id(&old) != Some(first) => self.rewrap_check(old).await,
            _ => Ok(()),
        }
    }
}
