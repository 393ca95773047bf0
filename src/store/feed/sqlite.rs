//! Telling the feed on SQLite's line.

use rusqlite::{Connection, OptionalExtension, params};

use crate::domain::Timestamp;

use super::super::Error;
use super::Told;

const RAISE_HEAD: &str =
    "UPDATE feed_heads SET position = position + ?2 WHERE tenant_id = ?1 RETURNING position";

const INSERT_ROW: &str =
    "INSERT INTO feed (tenant_id, position, create_time, changes) VALUES (?1, ?2, ?3, ?4)";

impl Told<'_> {
    /// Writes what changed, as the last statements of a transaction. Returns where the tenants' feeds end then, in
    /// their order.
    pub(in super::super) fn write(
        &self,
        transaction: &Connection,
        now: Timestamp,
    ) -> Result<Vec<Option<i64>>, Error> {
        let mut raise = transaction.prepare_cached(RAISE_HEAD)?;
        let mut insert = transaction.prepare_cached(INSERT_ROW)?;
        // Rows stand in the order of their tenants.
        let mut rows = self.rows.iter().peekable();
        let mut heads = Vec::with_capacity(self.tenants.len());
        for (tenant_id, count) in &self.tenants {
            let position: Option<i64> =
                raise.query_row(params![tenant_id.as_str(), count], |row| row.get(0)).optional()?;
            heads.push(position);
            while let Some(row) = rows.next_if(|row| row.tenant_id == *tenant_id) {
                // A tenant that is gone has no feed.
                let Some(position) = position else { continue };
                let position = position - row.back;
                insert.execute(params![
                    tenant_id.as_str(),
                    position,
                    now.as_micros(),
                    row.changes
                ])?;
            }
        }
        Ok(heads)
    }
}
