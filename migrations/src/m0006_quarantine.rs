//! Quarantine: how often in a row a delivery's lease has ended with the process that had it, and a
//! reason for those that are set apart.
//!
//! The check of the reasons is widened. PostgreSQL does so by name. SQLite cannot change a check, so
//! the schema's text is changed in place, as <https://www.sqlite.org/lang_altertable.html> describes
//! for changes that leave the content as it is: writing the table anew would take as long as it is
//! large.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::DbBackend;

use crate::dialect;

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        dialect::execute(manager, COLUMN).await?;
        let check = match manager.get_connection().get_database_backend() {
            DbBackend::Postgres => POSTGRES,
            _ => SQLITE,
        };
        dialect::execute(manager, check).await
    }

    /// Also on SQLite: of two steps that belong together none may be left out.
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}

const COLUMN: &str = r"
-- Leases in a row that ended with the process that had them, and without a result.
ALTER TABLE deliveries ADD COLUMN interrupted_count INTEGER NOT NULL DEFAULT 0 CHECK (interrupted_count >= 0)
";

/// 4 and 5 are the contract's reasons of suppressed deliveries; 6 is quarantined.
const POSTGRES: &str = r"
ALTER TABLE deliveries DROP CONSTRAINT deliveries_failure_reason_check
;
ALTER TABLE deliveries ADD CONSTRAINT deliveries_failure_reason_check CHECK (failure_reason BETWEEN 1 AND 6)
";

const SQLITE: &str = r"
PRAGMA writable_schema = ON
;
UPDATE sqlite_schema
SET sql = replace(sql, 'CHECK (failure_reason BETWEEN 1 AND 3)', 'CHECK (failure_reason BETWEEN 1 AND 6)')
WHERE type = 'table' AND name = 'deliveries'
;
-- Has every connection read the schema anew, and forbids such writing again.
PRAGMA writable_schema = RESET
";
